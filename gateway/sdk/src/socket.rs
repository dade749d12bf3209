//! Opens a WebSocket to a gateway and waits for its welcome.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use mailbox_wire::{Encoding, Fault, ServerFrame, Welcome, json};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use crate::{ConnectOptions, Error};

/// Greatest frame taken from a gateway, in bytes: a page of sync in JSON with room to spare.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Read and write buffer of a socket, in bytes.
const BUFFER_BYTES: usize = 8 * 1024;

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// The calls and messages of a registered user.
    Use,
    /// Registering the token's handle, which may be no user yet.
    Register,
}

/// A connection that is up.
pub(crate) struct Open {
    pub(crate) socket: Socket,
    pub(crate) welcome: Welcome,
    /// When the welcome came, for the offset to the gateway's clock.
    pub(crate) welcomed_at: Instant,
}

/// Connects and waits for the welcome, within `connect_timeout`.
pub(crate) async fn open(options: &ConnectOptions, purpose: Purpose) -> Result<Open, Error> {
    let attempt = Box::pin(attempt(options, purpose));
    match tokio::time::timeout(options.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(refused(
            options,
            format!("no answer within {:?}", options.connect_timeout),
        )),
    }
}

async fn attempt(options: &ConnectOptions, purpose: Purpose) -> Result<Open, Error> {
    let request = request(options, purpose)?;
    let uri = request.uri();
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let tls = uri.scheme_str() == Some("wss");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| refused(options, error.to_string()))?;
    stream
        .set_nodelay(true)
        .map_err(|error| refused(options, error.to_string()))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let connector = if tls { connector(options)? } else { None };
    let connected = client_async_tls_with_config(request, stream, Some(config), connector).await;
    let (mut socket, _) = connected.map_err(|error| handshake_error(options, error))?;
    let welcome = loop {
        match socket.next().await {
            Some(Ok(message)) => match decode(options.encoding, message) {
                Some(Ok(ServerFrame::Welcome(welcome))) => break welcome,
                Some(Err(reason)) => return Err(refused(options, reason)),
                Some(Ok(_)) | None => {}
            },
            Some(Err(error)) => return Err(refused(options, error.to_string())),
            None => return Err(refused(options, "closed before its welcome".into())),
        }
    };
    Ok(Open {
        socket,
        welcome,
        welcomed_at: Instant::now(),
    })
}

/// A frame out of a WebSocket message; `None` for what carries none.
pub(crate) fn decode(encoding: Encoding, message: Message) -> Option<Result<ServerFrame, String>> {
    let bytes = match message {
        Message::Text(text) => Bytes::from(text),
        Message::Binary(bytes) => bytes,
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return None,
    };
    Some(
        encoding
            .decode_server(&bytes)
            .map_err(|error| error.to_string()),
    )
}

/// The WebSocket message of an encoded frame.
pub(crate) fn message(encoding: Encoding, frame: Bytes) -> Message {
    match encoding {
        Encoding::Proto => Message::Binary(frame),
        Encoding::Json => match Utf8Bytes::try_from(frame) {
            Ok(text) => Message::Text(text),
            // JSON that we wrote ourselves is UTF-8; were it not, a gateway refuses it.
            Err(error) => Message::Text(Utf8Bytes::from(error.to_string())),
        },
    }
}

fn request(options: &ConnectOptions, purpose: Purpose) -> Result<Request, Error> {
    let bad = |option: &'static str, reason: String| Error::Options { option, reason };
    if options.device.is_empty() || options.device.len() > 64 {
        return Err(bad(
            "device",
            format!("has {} bytes; 1 to 64 are wanted", options.device.len()),
        ));
    }
    let uri: http::Uri = options
        .url
        .parse()
        .map_err(|error| bad("url", format!("{error}")))?;
    let (Some(scheme @ ("ws" | "wss")), Some(authority)) = (uri.scheme_str(), uri.authority())
    else {
        return Err(bad(
            "url",
            format!("{:?} is not ws://host:port or wss://…", options.url),
        ));
    };
    let path = if uri.path() == "/" {
        "/v1/ws"
    } else {
        uri.path()
    };
    let device = percent_encoded(&options.device);
    let register = match purpose {
        Purpose::Use => "",
        Purpose::Register => "&register=true",
    };
    let full = format!("{scheme}://{authority}{path}?device={device}{register}");
    let mut request = full
        .into_client_request()
        .map_err(|error| bad("url", error.to_string()))?;
    let bearer = http::HeaderValue::try_from(format!("Bearer {}", options.token));
    let mut bearer = bearer.map_err(|_| bad("token", "it is not a JWT".into()))?;
    bearer.set_sensitive(true);
    let headers = request.headers_mut();
    headers.insert(http::header::AUTHORIZATION, bearer);
    let protocol = http::HeaderValue::from_static(options.encoding.subprotocol());
    headers.insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
    Ok(request)
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn connector(options: &ConnectOptions) -> Result<Option<Connector>, Error> {
    let Some(pem) = &options.ca_pem else {
        return Ok(None);
    };
    let bad = |reason: String| Error::Options {
        option: "ca_pem",
        reason,
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("it has no certificate".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(Connector::Rustls(Arc::new(config))))
}

fn refused(options: &ConnectOptions, reason: String) -> Error {
    let url = options.url.split('?').next().unwrap_or_default().to_owned();
    Error::Connect { url, reason }
}

fn handshake_error(options: &ConnectOptions, error: tungstenite::Error) -> Error {
    let tungstenite::Error::Http(response) = error else {
        return refused(options, error.to_string());
    };
    let status = response.status().as_u16();
    let body = Bytes::from(response.into_body().unwrap_or_default());
    let fault = match json::decode_server(&body) {
        Ok(ServerFrame::Error { fault, .. }) => fault,
        Ok(_) | Err(_) => Fault {
            code: "Unavailable".into(),
            message: "whoever answered is not a gateway".into(),
            retryable: status >= 500,
            retry_after_ms: 0,
        },
    };
    Error::NotAdmitted { status, fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_gets_path_and_device_but_never_the_token() {
        let mut options = ConnectOptions::new("ws://127.0.0.1:8080", "secret");
        options.device = "my phone/ü".into();
        let request = request(&options, Purpose::Use).unwrap();
        let uri = request.uri().to_string();
        assert_eq!(uri, "ws://127.0.0.1:8080/v1/ws?device=my%20phone%2F%C3%BC");
        assert!(!format!("{options:?} {request:?}").contains("secret"));
        for url in ["", "127.0.0.1:8080", "http://x", "ws://"] {
            let error = super::request(&ConnectOptions::new(url, "t"), Purpose::Use).unwrap_err();
            assert!(
                matches!(error, Error::Options { option: "url", .. }),
                "{url}: {error}"
            );
        }
    }
}
