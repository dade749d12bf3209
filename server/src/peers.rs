//! Channels to other nodes, for calls that are forwarded to a leader.

use std::collections::HashMap;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::peer::lanes_client::LanesClient;
use mailbox_api::v1::ErrorCode;
use mailbox_api::v1::admin_client::AdminClient;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_client::Tls;
use mailbox_cork::Connector;
use parking_lot::Mutex;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long a forwarded call may take before its caller is told to try again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// One lazily connected channel for each node; as many as the cluster has had nodes.
pub(crate) struct Peers {
    tls: Option<Tls>,
    message_bytes_max: usize,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    pub(crate) fn new(tls: Option<Tls>, message_bytes_max: usize) -> Self {
        Self {
            tls,
            message_bytes_max,
            channels: Mutex::default(),
        }
    }

    /// A client of the node at `address`.
    pub(crate) fn mailbox(&self, address: &str) -> Result<MailboxClient<Channel>, CallError> {
        let client = MailboxClient::new(self.channel(address)?);
        Ok(client
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(self.message_bytes_max))
    }

    /// A client of the administration of the node at `address`.
    pub(crate) fn admin(&self, address: &str) -> Result<AdminClient<Channel>, CallError> {
        let client = AdminClient::new(self.channel(address)?);
        // A node of many shards has much to say.
        Ok(client.max_decoding_message_size(self.message_bytes_max))
    }

    /// A client of the cluster's map at the node at `address`.
    pub(crate) fn cluster(&self, address: &str) -> Result<ClusterClient<Channel>, CallError> {
        let client = ClusterClient::new(self.channel(address)?);
        Ok(client.max_decoding_message_size(self.message_bytes_max))
    }

    /// A client of the dead letters of the node at `address`.
    pub(crate) fn dead_letters(
        &self,
        address: &str,
    ) -> Result<DeadLettersClient<Channel>, CallError> {
        let client = DeadLettersClient::new(self.channel(address)?);
        Ok(client.max_decoding_message_size(self.message_bytes_max))
    }

    /// A client of the lanes that end at the node at `address`.
    pub(crate) fn lanes(&self, address: &str) -> Result<LanesClient<Channel>, CallError> {
        Ok(LanesClient::new(self.channel(address)?))
    }

    fn channel(&self, address: &str) -> Result<Channel, CallError> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.endpoint(address).map_err(|error| {
            CallError::new(
                ErrorCode::Internal,
                format!("the node's address {address}: {error}"),
            )
        })?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    fn endpoint(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            // A node that vanished without a word must not keep a stream waiting.
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        if let Some(tls) = &self.tls {
            let mut config =
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
            if let Some(domain) = &tls.domain {
                config = config.domain_name(domain);
            }
            endpoint = endpoint.tls_config(config)?;
        }
        Ok(endpoint.connect_with_connector_lazy(Connector::new(CONNECT_TIMEOUT)))
    }
}
