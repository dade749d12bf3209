//! Connections to nodes, and what every call on them carries.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mailbox_api::v1::ErrorCode;
use mailbox_api::{CallError, metadata};
use mailbox_cork::Connector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::options::{Auth, ClientOptions};

/// Greatest gRPC message that is read: a page of messages, or a frame of a stream.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const HTTP_FRAME_BYTES_MAX: u32 = 1 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A channel whose calls prove who makes them.
pub(crate) type AuthChannel = InterceptedService<Channel, Credentials>;

/// The metadata of every call.
#[derive(Clone)]
pub(crate) struct Credentials {
    entries: Vec<(&'static str, MetadataValue<Ascii>)>,
}

impl Credentials {
    pub(crate) fn new(auth: &Auth) -> Result<Self, CallError> {
        let mut entries = Vec::new();
        match auth {
            Auth::Secret { cluster_id, secret } => {
                if let Some(id) = cluster_id {
                    entries.push((metadata::CLUSTER_ID, value("cluster id", id)?));
                }
                let mut secret = value("cluster secret", &STANDARD_NO_PAD.encode(secret))?;
                secret.set_sensitive(true);
                entries.push((metadata::CLUSTER_SECRET, secret));
            }
            Auth::Token(token) => {
                let mut token = value("token", &format!("Bearer {token}"))?;
                token.set_sensitive(true);
                entries.push((metadata::AUTHORIZATION, token));
            }
        }
        Ok(Self { entries })
    }
}

fn value(what: &str, text: &str) -> Result<MetadataValue<Ascii>, CallError> {
    MetadataValue::try_from(text).map_err(|_| {
        invalid(format!(
            "the {what} has characters that a header cannot carry"
        ))
    })
}

fn invalid(message: String) -> CallError {
    CallError::new(ErrorCode::InvalidArgument, message)
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &self.entries {
            request.metadata_mut().insert(*name, value.clone());
        }
        Ok(request)
    }
}

/// The address in the form by which nodes are told apart: without scheme and trailing slash.
pub(crate) fn bare_address(address: &str) -> &str {
    let address = address.strip_prefix("http://").unwrap_or(address);
    address
        .strip_prefix("https://")
        .unwrap_or(address)
        .trim_end_matches('/')
}

/// A channel that connects at its first call, and again after every break.
pub(crate) fn channel(address: &str, options: &ClientOptions) -> Result<Channel, CallError> {
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let uri = format!("{scheme}://{}", bare_address(address));
    let mut endpoint = Endpoint::from_shared(uri)
        .map_err(|error| invalid(format!("the address {address} is not host:port: {error}")))?
        .connect_timeout(options.timeouts.connect)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if let Some(tls) = &options.tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
        if let Some(domain) = &tls.domain {
            config = config.domain_name(domain);
        }
        endpoint = endpoint
            .tls_config(config)
            .map_err(|error| invalid(format!("the nodes' authority cannot be used: {error}")))?;
    }
    let connector = Connector::new(options.timeouts.connect);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_travels_in_base64_without_padding() {
        let auth = Auth::Secret {
            cluster_id: Some("c1".into()),
            secret: vec![0xff; 4],
        };
        let mut credentials = Credentials::new(&auth).unwrap();
        let request = credentials.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get(metadata::CLUSTER_ID).unwrap(), "c1");
        assert_eq!(
            request.metadata().get(metadata::CLUSTER_SECRET).unwrap(),
            "/////w"
        );
    }

    #[test]
    fn a_token_travels_as_bearer() {
        let mut credentials = Credentials::new(&Auth::Token("a.b.c".into())).unwrap();
        let request = credentials.call(Request::new(())).unwrap();
        assert_eq!(
            request.metadata().get(metadata::AUTHORIZATION).unwrap(),
            "Bearer a.b.c"
        );
    }

    #[test]
    fn a_secret_is_never_printed() {
        let auth = Auth::Secret {
            cluster_id: None,
            secret: b"hunter22".to_vec(),
        };
        assert!(!format!("{auth:?}").contains("104"));
        assert!(!format!("{:?}", Auth::Token("hunter22".into())).contains("hunter22"));
    }

    #[test]
    fn an_address_may_come_with_a_scheme() {
        assert_eq!(bare_address("http://127.0.0.1:7700/"), "127.0.0.1:7700");
        assert_eq!(bare_address("127.0.0.1:7700"), "127.0.0.1:7700");
    }
}
