//! A WebSocket client that says what it is told to, well-formed or not.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::process::PATIENCE;

/// A connection that speaks `mailbox.v1.json`.
pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn connect(gateway: &str, token: &str) -> Self {
        let mut request = format!("ws://{gateway}/v1/ws")
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        let bearer = format!("Bearer {token}");
        headers.insert("authorization", bearer.parse().unwrap());
        let protocol = "mailbox.v1.json".parse().unwrap();
        headers.insert("sec-websocket-protocol", protocol);
        let connected = tokio_tungstenite::connect_async(request).await;
        Self(connected.expect("connect").0)
    }

    pub(crate) async fn say(&mut self, message: Message) {
        self.0.send(message).await.expect("send");
    }

    /// The next frame with this key.
    pub(crate) async fn next_with(&mut self, key: &str) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
            let message = next.expect("in time").expect("open").expect("a frame");
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            if !frame[key].is_null() {
                return frame;
            }
        }
    }
}
