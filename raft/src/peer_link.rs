//! This node's connections to one peer: control, append and snapshot, shared by all shards.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mailbox_api::metadata;
use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use mailbox_api::peer::peer_client::PeerClient;
use mailbox_cork::Connector;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::error::Error;
use crate::options::{ClientTls, NodeOptions};

/// Version of `peer.proto` and of the encodings in it.
pub(crate) const PEER_PROTOCOL: u32 = 3;
/// Largest message between nodes: one read of the log, or one entry above its cap, and some.
pub(crate) const PEER_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Unanswered control calls to one peer; more fail at once.
const CONTROL_CALLS_MAX: usize = 2048;
/// Answers a call that this build does not know.
pub(crate) const UNKNOWN_CALL: &str = "an unknown call";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// What this node shows to its peers.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) cluster_id: String,
    pub(crate) node: u64,
    secret: MetadataValue<Ascii>,
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
}

impl Credentials {
    pub(crate) fn new(options: &NodeOptions) -> Result<Credentials, Error> {
        let mut secret: MetadataValue<Ascii> = STANDARD_NO_PAD
            .encode(&options.secret)
            .parse()
            .expect("base64 is ASCII");
        secret.set_sensitive(true);
        let cluster = options.cluster_id.parse().map_err(|_| Error::Option {
            option: "cluster_id",
            reason: "printable ASCII only".to_owned(),
        })?;
        Ok(Credentials {
            cluster_id: options.cluster_id.clone(),
            node: options.node,
            secret,
            cluster,
            from: MetadataValue::from(options.node),
        })
    }

    /// The secret as it travels; compare in constant time only.
    pub(crate) fn secret(&self) -> &MetadataValue<Ascii> {
        &self.secret
    }

    fn sign<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let fields = request.metadata_mut();
        fields.insert(metadata::CLUSTER_SECRET, self.secret.clone());
        fields.insert(metadata::CLUSTER_ID, self.cluster.clone());
        fields.insert(metadata::NODE_ID, self.from.clone());
        request
    }
}

struct ControlCall {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
}

/// The connections to one peer.
pub(crate) struct Link {
    pub(crate) node: u64,
    pub(crate) address: String,
    credentials: Credentials,
    control: mpsc::Sender<ControlCall>,
    append: Channel,
    snapshot: Channel,
    /// The control stream is there. It is tried with every pulse: nothing else learns so soon that a peer is back.
    connected: watch::Receiver<bool>,
    messages: Arc<AtomicU64>,
}

impl Link {
    /// Must be called in a tokio runtime. Connects when first used.
    pub(crate) fn new(
        node: u64,
        address: &str,
        tls: Option<&ClientTls>,
        credentials: &Credentials,
    ) -> Result<Arc<Link>, Error> {
        let (control, calls) = mpsc::channel(CONTROL_CALLS_MAX);
        let endpoint = endpoint(address, tls)?;
        let (tell, connected) = watch::channel(false);
        let session = ControlSession {
            node,
            credentials: credentials.clone(),
            channel: connect(&endpoint),
            calls,
            connected: tell,
            trouble: None,
        };
        tokio::spawn(session.run());
        Ok(Arc::new(Link {
            node,
            address: address.to_owned(),
            credentials: credentials.clone(),
            control,
            append: connect(&endpoint),
            snapshot: connect(&endpoint),
            connected,
            messages: Arc::default(),
        }))
    }

    /// Counts a request to this peer that does not go through [`Link::call`].
    pub(crate) fn messages(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.messages)
    }

    /// Requests sent to this peer.
    pub(crate) fn sent(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Returns when the peer is there.
    pub(crate) async fn connected(&self) {
        let mut connected = self.connected.clone();
        if connected.wait_for(|connected| *connected).await.is_err() {
            // The runtime stops.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn hello(&self, shard: u32) -> peer::Hello {
        hello(&self.credentials, self.node, shard)
    }

    pub(crate) fn sign<T>(&self, message: T) -> tonic::Request<T> {
        self.credentials.sign(message)
    }

    pub(crate) fn append_client(&self) -> PeerClient<Channel> {
        client(self.append.clone())
    }

    pub(crate) fn snapshot_client(&self) -> PeerClient<Channel> {
        client(self.snapshot.clone())
    }

    /// One small call. Fails fast if the peer is not reachable.
    pub(crate) async fn call(&self, ask: Ask, timeout: Duration) -> Result<Answer, String> {
        let (answer, answered) = oneshot::channel();
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.control
            .try_send(ControlCall { ask, answer })
            .map_err(|_| {
                format!(
                    "{CONTROL_CALLS_MAX} control calls wait for node {}",
                    self.node
                )
            })?;
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(Answer::Error(reason))) => Err(reason),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(format!(
                "node {} at {} is not reachable",
                self.node, self.address
            )),
            Err(_) => Err(format!(
                "node {} did not answer within {timeout:?}",
                self.node
            )),
        }
    }
}

fn hello(credentials: &Credentials, to_node: u64, shard: u32) -> peer::Hello {
    peer::Hello {
        cluster_id: credentials.cluster_id.clone(),
        from_node: credentials.node,
        to_node,
        protocol: PEER_PROTOCOL,
        shard,
    }
}

fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

/// What all shards say to a peer at one time leaves together.
fn connect(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(Connector::new(CONNECT_TIMEOUT))
}

fn endpoint(address: &str, tls: Option<&ClientTls>) -> Result<Endpoint, Error> {
    let invalid = |error: tonic::transport::Error| Error::Option {
        option: "members",
        reason: format!("{address}: {error}"),
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let Some(tls) = tls else {
        return Ok(endpoint);
    };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
    if !tls.domain.is_empty() {
        config = config.domain_name(&tls.domain);
    }
    endpoint.tls_config(config).map_err(invalid)
}

/// What a status says, and what it comes from: that a certificate is not trusted is at the end of the chain.
fn reason(status: &tonic::Status) -> String {
    let mut words = vec![status.message().to_owned()];
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let text = cause.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        source = cause.source();
    }
    words.join(": ")
}

/// Owns the control stream to one peer. Connects when a call comes, so that the first call after a peer
/// came back reaches it.
struct ControlSession {
    node: u64,
    credentials: Credentials,
    channel: Channel,
    calls: mpsc::Receiver<ControlCall>,
    connected: watch::Sender<bool>,
    /// Why there was no stream the last time, if there was none.
    trouble: Option<String>,
}

type ControlStreams = (
    mpsc::Sender<peer::ControlRequest>,
    tonic::Streaming<peer::ControlResponse>,
);

impl ControlSession {
    async fn run(mut self) {
        while let Some(first) = self.calls.recv().await {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await {
                Ok(Ok(streams)) => {
                    self.connected.send_replace(true);
                    self.trouble = None;
                    self.talk(first, streams).await;
                }
                Ok(Err(status)) => {
                    self.tell(&status);
                    self.pause(first).await;
                }
                Err(_) => self.pause(first).await,
            }
            self.connected.send_if_modified(std::mem::take);
        }
    }

    /// A peer that refuses this node is a person's matter, but not twice a second.
    fn tell(&mut self, status: &tonic::Status) {
        let refused = matches!(
            status.code(),
            tonic::Code::Unauthenticated
                | tonic::Code::FailedPrecondition
                | tonic::Code::InvalidArgument
        );
        let reason = reason(status);
        if self.trouble.as_deref() == Some(&reason) {
            return;
        }
        if refused {
            tracing::error!(peer = self.node, reason, "the peer refuses this node");
        } else {
            tracing::warn!(peer = self.node, reason, "the peer is not reached");
        }
        self.trouble = Some(reason);
    }

    async fn open(&self) -> Result<ControlStreams, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(CONTROL_CALLS_MAX);
        let greeting = peer::ControlRequest {
            call: 0,
            request: Some(Ask::Hello(hello(&self.credentials, self.node, 0))),
        };
        requests
            .try_send(greeting)
            .expect("a fresh channel has room");
        let request = self.credentials.sign(ReceiverStream::new(outgoing));
        let answers = client(self.channel.clone()).control(request).await?;
        Ok((requests, answers.into_inner()))
    }

    /// Fails what waits, and what comes in the next moment: connecting again at once would only burn CPU.
    async fn pause(&mut self, first: ControlCall) {
        drop(first);
        let moment = tokio::time::sleep(Duration::from_millis(20));
        tokio::pin!(moment);
        loop {
            tokio::select! {
                () = &mut moment => return,
                call = self.calls.recv() => if call.is_none() { return },
            }
        }
    }

    async fn talk(&mut self, first: ControlCall, (requests, mut answers): ControlStreams) {
        let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
        let mut last = 0_u64;
        let mut next = Some(first);
        loop {
            if let Some(ControlCall { ask, answer }) = next.take() {
                last += 1;
                let request = peer::ControlRequest {
                    call: last,
                    request: Some(ask),
                };
                if requests.try_send(request).is_err() {
                    return;
                }
                // Calls that have timed out are forgotten here, not by a timer of their own.
                if waiting.len() >= CONTROL_CALLS_MAX {
                    waiting.retain(|_, answer| !answer.is_closed());
                }
                waiting.insert(last, answer);
            }
            tokio::select! {
                call = self.calls.recv() => match call {
                    Some(call) => next = Some(call),
                    None => return,
                },
                answer = answers.message() => match answer {
                    Ok(Some(peer::ControlResponse { call, response: Some(answer) })) => {
                        if let Some(caller) = waiting.remove(&call) {
                            // The caller may have given up meanwhile.
                            let _ = caller.send(answer);
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    Err(status) => {
                        tracing::info!(peer = self.node, %status, "control stream ended");
                        return;
                    }
                },
            }
        }
    }
}
