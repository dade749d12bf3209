//! What the tests drive a gateway with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use mailbox_gateway::token::{TokenKeys, TokenSigner, issue};
use mailbox_gateway::{Gateway, GatewayOptions, Limits, Listen};
use mailbox_sdk::{Client, ConnectOptions, Encoding, Event, Message, UserRef};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message as WsMessage};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::store::FakeStore;

pub(crate) const SECRET: &[u8] = b"a secret of at least 32 bytes....";

/// Nothing in these tests takes so long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway before a store with alice (17), bob (18) and carol (19).
pub(crate) struct Rig {
    pub(crate) store: FakeStore,
    pub(crate) gateway: Gateway,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut GatewayOptions)) -> Self {
        let store = FakeStore::start(&["alice", "bob", "carol"]).await;
        let gateway = gateway(&store, change).await;
        Self { store, gateway }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.gateway.local_addr())
    }

    pub(crate) fn options(&self, handle: &str, encoding: Encoding) -> ConnectOptions {
        let mut options = ConnectOptions::new(self.url(), token(handle));
        options.encoding = encoding;
        options
    }

    pub(crate) async fn sdk(&self, handle: &str) -> Client {
        Client::connect(self.options(handle, Encoding::Proto))
            .await
            .unwrap()
    }

    /// One HTTP call; the status and the body.
    pub(crate) async fn http(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.gateway.local_addr()).await.unwrap();
        let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut request = format!("{first} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for header in headers.lines() {
            request += &format!("{header}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// The same, as the bearer of a token of this user, with a JSON answer.
    pub(crate) async fn json(&self, handle: &str, head: &str, body: &str) -> (u16, Value) {
        let head = format!("{head}\nauthorization: Bearer {}", token(handle));
        let (status, body) = self.http(&head, body).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

pub(crate) async fn gateway(
    store: &FakeStore,
    change: impl FnOnce(&mut GatewayOptions),
) -> Gateway {
    let keys = TokenKeys::default().with_hs256(SECRET).unwrap();
    let listen = Listen::Address("127.0.0.1:0".parse().unwrap());
    let mut options = GatewayOptions::new(listen, store.client().await, keys);
    change(&mut options);
    Gateway::start(options).await.unwrap()
}

pub(crate) fn limits(change: impl FnOnce(&mut Limits)) -> impl FnOnce(&mut GatewayOptions) {
    |options| change(&mut options.limits)
}

pub(crate) fn token(handle: &str) -> String {
    token_for(handle, Duration::from_secs(60))
}

pub(crate) fn token_for(handle: &str, valid: Duration) -> String {
    let signer = TokenSigner::hs256(SECRET).unwrap();
    issue(&signer, &UserRef::Handle(handle.to_owned()), valid).unwrap()
}

pub(crate) fn id_token(user: u64) -> String {
    let signer = TokenSigner::hs256(SECRET).unwrap();
    issue(&signer, &UserRef::Id(user), Duration::from_secs(60)).unwrap()
}

/// A WebSocket without an SDK around it, speaking JSON.
pub(crate) struct RawSocket(pub(crate) WebSocketStream<MaybeTlsStream<TcpStream>>);

impl RawSocket {
    pub(crate) async fn connect(url: &str, handle: &str) -> Self {
        Self::connect_as(url, handle, "raw").await
    }

    pub(crate) async fn connect_as(url: &str, handle: &str, device: &str) -> Self {
        let url = format!("{url}/v1/ws?access_token={}&device={device}", token(handle));
        let request = url.into_client_request().unwrap();
        Self(tokio_tungstenite::connect_async(request).await.unwrap().0)
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.send(WsMessage::text(text)).await.unwrap();
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Value {
        let message = self.next_message().await.unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// The next frame that has this part.
    pub(crate) async fn next_with(&mut self, part: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame.get(part).is_some() {
                return frame;
            }
        }
    }

    pub(crate) async fn next_message(&mut self) -> Result<WsMessage, tungstenite::Error> {
        tokio::time::timeout(PATIENCE, self.0.next())
            .await
            .unwrap()
            .unwrap()
    }
}

/// One address before several gateways, as a balancer is: a new connection goes to the one that it
/// leads to now. The first passes at once; each later one waits until it is opened.
pub(crate) struct Door {
    address: SocketAddr,
    leads_to: watch::Sender<SocketAddr>,
    knocks: mpsc::UnboundedReceiver<()>,
    opened: Arc<Semaphore>,
}

impl Door {
    pub(crate) async fn before(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leads_to, to) = watch::channel(gateway);
        let (knock, knocks) = mpsc::unbounded_channel();
        let opened = Arc::new(Semaphore::new(1));
        let may_pass = Arc::clone(&opened);
        tokio::spawn(async move {
            let mut first = true;
            while let Ok((mut client, _)) = listener.accept().await {
                if !std::mem::take(&mut first) {
                    let _ = knock.send(());
                }
                let (may_pass, to) = (Arc::clone(&may_pass), to.clone());
                tokio::spawn(async move {
                    may_pass.acquire().await.unwrap().forget();
                    let to = *to.borrow();
                    let mut gateway = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                });
            }
        });
        Self {
            address,
            leads_to,
            knocks,
            opened,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) fn lead_to(&self, gateway: SocketAddr) {
        self.leads_to.send_replace(gateway);
    }

    /// Waits for a later connection.
    pub(crate) async fn knocked(&mut self) {
        tokio::time::timeout(PATIENCE, self.knocks.recv())
            .await
            .unwrap()
            .unwrap();
    }

    /// Lets one later connection pass.
    pub(crate) fn open(&self) {
        self.opened.add_permits(1);
    }
}

/// The next message that the SDK gives.
pub(crate) async fn next_message(client: &Client) -> Message {
    loop {
        let event = tokio::time::timeout(PATIENCE, client.next())
            .await
            .unwrap()
            .unwrap();
        if let Event::Message(message) = event {
            return message;
        }
    }
}

/// Waits until something is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("it came about in time");
}

/// A TLS configuration with a certificate for `localhost`, and that certificate in PEM.
pub(crate) fn tls() -> (Arc<rustls::ServerConfig>, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    (Arc::new(config), made.cert.pem().into_bytes())
}
