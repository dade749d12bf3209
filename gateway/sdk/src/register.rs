//! Makes a token's handle a user, on a connection of its own.

use std::time::Instant;

use futures_util::{SinkExt as _, StreamExt as _};
use mailbox_wire::{ClientFrame, Reply, Request, ServerFrame};
use uuid::{NoContext, Timestamp, Uuid};

use crate::client::{first_connection, wrong_reply};
use crate::socket::{Open, Purpose, Socket, decode, message};
use crate::{ConnectOptions, Error, backoff};

/// The only request of a connection.
const ID: u32 = 1;

/// Registers `handle`, which must be the one that the token names; returns the new user's id.
///
/// Over breaks it is repeated with the same request id for `request_timeout`. A handle that is a
/// user already is refused with `HandleTaken`.
pub async fn register_user(options: &ConnectOptions, handle: &str) -> Result<u64, Error> {
    let begun = Instant::now();
    let mut request_id = None;
    let mut failures = 0;
    loop {
        let error = match attempt(options, handle, &mut request_id).await {
            Ok(user) => return Ok(user),
            Err(error) => error,
        };
        // Nothing was asked yet while there is no id: then it is as with any first connection.
        let repeatable = request_id.is_some() && error.is_retryable();
        if !repeatable || begun.elapsed() >= options.request_timeout {
            return Err(error);
        }
        tokio::time::sleep(backoff::pause(failures, options.backoff_max)).await;
        failures += 1;
    }
}

async fn attempt(
    options: &ConnectOptions,
    handle: &str,
    request_id: &mut Option<Uuid>,
) -> Result<u64, Error> {
    let open = first_connection(options, Purpose::Register).await?;
    let request_id = *request_id.get_or_insert_with(|| fresh_id(&open));
    let mut socket = open.socket;
    let request = Request::RegisterUser {
        handle: handle.to_owned(),
        request_id,
    };
    let waited = options.request_timeout;
    let asked = tokio::time::timeout(waited, ask(options, &mut socket, request)).await;
    let answer = asked.map_err(|_| Error::Timeout { waited })?;
    // What was asked for is known; the farewell may fail.
    let _ = socket.close(None).await;
    match answer? {
        Reply::UserRegistered { user } => Ok(user),
        other => Err(wrong_reply(&other)),
    }
}

/// A UUIDv7 on the gateway's clock.
fn fresh_id(open: &Open) -> Uuid {
    let ms = open.welcome.server_time_ms;
    let nanos = u32::try_from(ms % 1000 * 1_000_000).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(NoContext, ms / 1000, nanos))
}

async fn ask(
    options: &ConnectOptions,
    socket: &mut Socket,
    request: Request,
) -> Result<Reply, Error> {
    let broken = |reason: String| Error::Connect {
        url: options.url.split('?').next().unwrap_or_default().to_owned(),
        reason,
    };
    let frame = ClientFrame { id: ID, request };
    let bytes = options.encoding.encode_client(&frame);
    let sent = socket.send(message(options.encoding, bytes)).await;
    sent.map_err(|error| broken(error.to_string()))?;
    loop {
        let received = match socket.next().await {
            Some(Ok(received)) => received,
            Some(Err(error)) => return Err(broken(error.to_string())),
            None => return Err(broken("closed before its answer".into())),
        };
        match decode(options.encoding, received) {
            Some(Ok(ServerFrame::Reply { id: ID, reply })) => return Ok(reply),
            Some(Ok(ServerFrame::Error { id: ID, fault })) => return Err(Error::Refused(fault)),
            Some(Err(reason)) => return Err(broken(reason)),
            Some(Ok(_)) | None => {}
        }
    }
}
