//! `mailboxd gateway`: a connection tier process in front of a cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mailbox_client::{Auth, Client, ClientOptions};
use mailbox_gateway::{Gateway, GatewayOptions, Listen, MetricsRegistry, ReadyCheck, Registration};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::auth::{read_secret, read_token_keys};
use crate::config::Config;
use crate::error::Error;
use crate::listener;

/// Pause between tries to reach the cluster at start.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// What is left of the time to stop for connections to drain.
const DRAIN: Duration = Duration::from_secs(5);

/// A gateway that serves.
pub(crate) struct RunningGateway {
    pub(crate) listen: SocketAddr,
    /// What clients dial: `ws://…` or `wss://…`.
    pub(crate) url: String,
    gateway: Gateway,
}

impl RunningGateway {
    /// Binds, waits for the cluster, and serves.
    pub(crate) async fn start(
        config: &Config,
        registry: MetricsRegistry,
        ready: ReadyCheck,
    ) -> Result<Self, Error> {
        // Bound before the cluster is reached: a port in use is told at once.
        let bound = listener::bind("gateway.listen", &config.gateway.listen).await?;
        listener::warn_if_plaintext("gateway.listen", &config.gateway.listen, &config.tls);
        let tls = server_tls(config)?;
        let Some(keys) = read_token_keys(&config.auth)? else {
            return Err(Error::Gateway(
                "no key to check tokens with ([auth])".to_owned(),
            ));
        };
        let client = connect(config).await?;
        let listening = bound.local_addr().map_err(Error::Start)?;
        let bound = bound.into_std().map_err(Error::Start)?;
        let mut options = GatewayOptions::new(Listen::Listener(bound), client, keys);
        options.limits.connections_max = config.gateway.connections_max as usize;
        options.limits.body_bytes_max = config.cluster.body_bytes_max.as_usize();
        options.limits.frame_bytes_max = options
            .limits
            .frame_bytes_max
            .max(config.cluster.body_bytes_max.as_usize() * 2 + 4096);
        options.registry = registry;
        options.ready = ready;
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        options.registration = Some(registration(config, listening, tls.is_some()));
        options.tls = tls;
        let gateway = Gateway::start(options)
            .await
            .map_err(|error| Error::Gateway(crate::status::with_causes(&error)))?;
        let listen = gateway.local_addr();
        Ok(Self {
            listen,
            url: format!("{scheme}://{listen}"),
            gateway,
        })
    }

    /// Drains and stops.
    pub(crate) async fn stop(self) {
        self.gateway.shutdown(DRAIN).await;
    }
}

/// As what the cluster is to know it.
fn registration(config: &Config, listening: SocketAddr, tls: bool) -> Registration {
    let gateway = &config.gateway;
    if gateway.address.is_empty() && listening.ip().is_unspecified() {
        tracing::warn!(
            %listening,
            "gateway.address is not set: the registry cannot tell anybody under which address to reach this gateway"
        );
    }
    let (websocket_url, http_url) = gateway.public_urls(&listening.to_string(), tls);
    let id = match gateway.id.as_str() {
        "" => format!("gw-{:012x}", rand::random_range(0..1_u64 << 48)),
        id => id.to_owned(),
    };
    Registration {
        id,
        websocket_url,
        tcp_address: String::new(),
        http_url,
        region: gateway.region.clone(),
        zone: gateway.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        refresh: Duration::from_millis(gateway.refresh_ms.into()),
    }
}

/// A client of the configured cluster; waits for it as long as it takes.
pub(crate) async fn connect(config: &Config) -> Result<Client, Error> {
    let options = client_options(config)?;
    loop {
        match Client::connect(options.clone()).await {
            Ok(client) => return Ok(client),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "the cluster does not answer yet");
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) => {
                return Err(Error::Call {
                    what: "connect to the cluster",
                    error,
                });
            }
        }
    }
}

fn client_options(config: &Config) -> Result<ClientOptions, Error> {
    let secret = read_secret(&config.cluster.secret_file)?.to_vec();
    let auth = Auth::Secret {
        cluster_id: Some(config.cluster.id.clone()),
        secret,
    };
    let addresses = config.cluster.nodes.values().cloned().collect();
    let mut options = ClientOptions::new(addresses, auth);
    options.tls = listener::read_authority(&config.tls)?;
    Ok(options)
}

fn server_tls(config: &Config) -> Result<Option<Arc<rustls::ServerConfig>>, Error> {
    let Some(listener::PemIdentity { cert, key }) = listener::read_identity(&config.tls)? else {
        return Ok(None);
    };
    let wrong = |what: &str, error: &dyn std::fmt::Display| Error::Tls(format!("{what}: {error}"));
    let chain = CertificateDer::pem_slice_iter(&cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong("tls.cert_file", &error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong("tls.key_file", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("protocol versions", &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong("tls.cert_file with tls.key_file", &error))?;
    Ok(Some(Arc::new(server)))
}
