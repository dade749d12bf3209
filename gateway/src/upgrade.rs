//! The way from an HTTP request to a WebSocket, by hand: axum's own would bring a second WebSocket
//! library and buffers of 128 KiB.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mailbox_api::v1::ErrorCode;
use mailbox_wire::{Encoding, Fault, UserRef};
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::Instrument as _;

use crate::coalesce::Coalesced;
use crate::connection::{Connection, Driver, config};
use crate::convert::{fault, fault_from_call};
use crate::dispatch::Attachment;
use crate::gateway::{Permit, Shared};
use crate::http::{Credentials, bearer, refusal, registered};
use crate::outlet::Outlet;
use crate::queue::Queue;
use crate::session::{NOBODY, Session};
use crate::stream::Stream;

/// Greatest name of a device, in bytes.
const DEVICE_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
pub(crate) struct DeviceQuery {
    #[serde(default = "default_device")]
    device: String,
    /// Lets in a handle that is not registered yet, to register it.
    #[serde(default)]
    register: bool,
}

fn default_device() -> String {
    "default".to_owned()
}

/// What the client's handshake asks for.
struct Handshake {
    accept_key: String,
    encoding: Encoding,
    /// Whether the client named the subprotocol, and so has to be told.
    named: bool,
}

/// `GET /v1/ws`.
pub(crate) async fn websocket(
    State(shared): State<Arc<Shared>>,
    Query(credentials): Query<Credentials>,
    Query(device): Query<DeviceQuery>,
    request: Request,
) -> Response {
    let (mut request, _) = request.into_parts();
    let upgrade = request.extensions.remove::<OnUpgrade>();
    let permit = request.extensions.remove::<Permit>();
    let prepared = async {
        let handshake = handshake(&request.headers)?;
        let registers = device.register;
        let device = checked_device(device.device)?;
        if shared.stop.is_cancelled() {
            return Err(fault(ErrorCode::Unavailable, "this gateway is draining"));
        }
        let sub = bearer(&shared, &request.headers, &credentials)?;
        let (user, own_handle) = admit(&shared, sub, registers).await?;
        let (Some(upgrade), Some(permit)) = (upgrade, permit) else {
            return Err(fault(
                ErrorCode::InvalidArgument,
                "this connection cannot be upgraded",
            ));
        };
        let limits = &shared.answerer.limits;
        let queue = Queue::new(limits.queue_frames_max, limits.queue_bytes_max);
        let now_ms = shared.clock.now_ms();
        let connection = Arc::new(Connection::new(user, handshake.encoding, queue, now_ms));
        let attachment = if user == NOBODY {
            None
        } else {
            let attached = shared.answerer.dispatch.attach(Arc::clone(&connection));
            Some(attached.await.map_err(fault_from_call)?)
        };
        let session = Arc::new(Session {
            user,
            own_handle,
            device: device.into(),
            encoding: handshake.encoding,
            answerer: Arc::clone(&shared.answerer),
        });
        let opening = Opening {
            connection,
            _attachment: attachment,
            session,
            _permit: permit,
        };
        Ok((handshake, upgrade, opening))
    };
    match prepared.await {
        Ok((handshake, upgrade, opening)) => {
            let response = switching(&handshake);
            shared
                .tasks
                .spawn(opening.run(upgrade, Arc::clone(&shared)));
            response
        }
        Err(fault) => refusal(&shared, &fault),
    }
}

/// The user whom a token lets in, and the handle that the connection may register.
async fn admit(
    shared: &Shared,
    sub: UserRef,
    registers: bool,
) -> Result<(u64, Option<Box<str>>), Fault> {
    if !registers {
        return Ok((registered(shared, sub).await?, None));
    }
    let UserRef::Handle(handle) = &sub else {
        let message = "only a token whose sub is an @handle may register";
        return Err(fault(ErrorCode::Forbidden, message));
    };
    let own_handle = Some(handle.as_str().into());
    let client = &shared.answerer.client;
    match shared.users.id_of(client, sub.clone()).await {
        Ok(user) => Ok((user, own_handle)),
        Err(error) if error.code() == ErrorCode::UnknownUser => Ok((NOBODY, own_handle)),
        Err(error) => Err(fault_from_call(error)),
    }
}

/// What a connection holds besides its socket.
struct Opening {
    connection: Arc<Connection>,
    /// None for nobody, who is pushed nothing.
    _attachment: Option<Attachment>,
    session: Arc<Session>,
    _permit: Permit,
}

impl Opening {
    /// Waits for the socket, then leaves it to a task of its own: this one's future is as large as
    /// a handshake needs, that one's as small as an idle connection needs.
    async fn run(self, upgrade: OnUpgrade, shared: Arc<Shared>) {
        let timeout = shared.answerer.limits.handshake_timeout;
        let upgraded = match tokio::time::timeout(timeout, upgrade).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(_)) | Err(_) => return,
        };
        let config = config(shared.answerer.limits.frame_bytes_max);
        let Some((stream, read)) = into_stream(upgraded) else {
            return;
        };
        let stream = Coalesced::new(stream);
        let socket =
            WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
        let welcome = self.session.welcome();
        let driver = Driver {
            outlet: Outlet {
                socket,
                connection: Arc::clone(&self.connection),
                clock: shared.clock,
                metrics: shared.answerer.metrics.clone(),
            },
            session: Arc::clone(&self.session),
            in_flight_max: shared.answerer.limits.in_flight_max.max(1),
        };
        let registered = shared.register(self.connection.clone());
        let span = tracing::debug_span!("session", user = self.session.user);
        let task = async move {
            driver.run(welcome).await;
            drop((registered, self));
        };
        if span.is_disabled() {
            shared.tasks.spawn(task);
        } else {
            shared.tasks.spawn(task.instrument(span));
        }
    }
}

/// The bare stream out of hyper, and what hyper has read ahead.
fn into_stream(upgraded: Upgraded) -> Option<(Stream, Vec<u8>)> {
    match upgraded.downcast::<TokioIo<Stream>>() {
        Ok(parts) => Some((parts.io.into_inner(), parts.read_buf.to_vec())),
        Err(_) => {
            tracing::error!("an upgraded connection is not over one of our streams");
            None
        }
    }
}

fn switching(handshake: &Handshake) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(key) = HeaderValue::try_from(&handshake.accept_key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    if handshake.named {
        let name = HeaderValue::from_static(handshake.encoding.subprotocol());
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    response
}

fn handshake(headers: &HeaderMap) -> Result<Handshake, Fault> {
    let refuse = |message: &str| fault(ErrorCode::InvalidArgument, message);
    let has = |name: header::HeaderName, wanted: &str| {
        let values = headers
            .get_all(name)
            .into_iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(refuse(
            "/v1/ws is a WebSocket: connect with a WebSocket client",
        ));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(refuse("Sec-WebSocket-Version must be 13"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| refuse("Sec-WebSocket-Key is missing"))?;
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let known = offered
        .iter()
        .find_map(|name| Encoding::from_subprotocol(name));
    if known.is_none() && !offered.is_empty() {
        let (json, proto) = (Encoding::Json.subprotocol(), Encoding::Proto.subprotocol());
        let message = format!("none of the offered subprotocols is known; known: {json}, {proto}");
        return Err(refuse(&message));
    }
    Ok(Handshake {
        accept_key: derive_accept_key(key.as_bytes()),
        encoding: known.unwrap_or_default(),
        named: known.is_some(),
    })
}

fn checked_device(device: String) -> Result<String, Fault> {
    if device.is_empty() || device.len() > DEVICE_BYTES_MAX {
        let message = format!(
            "device has {} bytes; it must have 1 to {DEVICE_BYTES_MAX}",
            device.len()
        );
        return Err(fault(ErrorCode::InvalidArgument, message));
    }
    if device.chars().any(char::is_control) {
        return Err(fault(
            ErrorCode::InvalidArgument,
            "device contains a control character",
        ));
    }
    Ok(device)
}
