//! The HTTP calls, and the upgrade to a WebSocket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use mailbox_api::v1::ErrorCode;
use mailbox_wire::{Fault, Sync as SyncFrame, UserRef, json};
use serde::Deserialize;
use tracing::Instrument as _;

use crate::convert::{fault, fault_from_call, http_status};
use crate::gateway::Shared;
use crate::upgrade;

/// The calls and their handlers.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let limit = DefaultBodyLimit::max(shared.answerer.limits.frame_bytes_max);
    Router::new()
        .route("/v1/ws", get(upgrade::websocket))
        .route("/v1/chat/send", post(send))
        .route("/v1/chat/sync", get(sync))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(limit)
        .with_state(shared)
}

/// What every call with a user takes from the query. The token is never logged, so neither is the
/// query.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct SyncQuery {
    #[serde(default)]
    key: String,
    #[serde(default)]
    limit: u32,
}

/// Who asks: the bearer of a good token who is a registered user.
async fn authenticate(
    shared: &Shared,
    headers: &HeaderMap,
    credentials: &Credentials,
) -> Result<u64, Fault> {
    let sub = bearer(shared, headers, credentials)?;
    registered(shared, sub).await
}

/// Whom a good token names, registered or not.
pub(crate) fn bearer(
    shared: &Shared,
    headers: &HeaderMap,
    credentials: &Credentials,
) -> Result<UserRef, Fault> {
    let refuse = |error: crate::token::TokenError| {
        shared
            .answerer
            .metrics
            .refused
            .get_or_create(&[("reason", "token")])
            .inc();
        fault(ErrorCode::Unauthenticated, error.to_string())
    };
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then_some(token.trim())
    });
    let token = bearer
        .or(credentials.access_token.as_deref())
        .ok_or(crate::token::TokenError::Missing)
        .map_err(refuse)?;
    shared.keys.verify(token).map_err(refuse)
}

/// The id of the user that a token names.
pub(crate) async fn registered(shared: &Shared, sub: UserRef) -> Result<u64, Fault> {
    let client = &shared.answerer.client;
    shared
        .users
        .id_of(client, sub)
        .await
        .map_err(|error| match error.code() {
            ErrorCode::UnknownUser | ErrorCode::InvalidHandle => {
                let message = format!(
                    "the token's sub is not a registered user: {}",
                    error.0.message
                );
                fault(ErrorCode::Unauthenticated, message)
            }
            _ => fault_from_call(error),
        })
}

async fn send(
    State(shared): State<Arc<Shared>>,
    Query(credentials): Query<Credentials>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let answer = async {
        let user = authenticate(&shared, &headers, &credentials).await?;
        let body = body.map_err(|rejection| {
            let max = shared.answerer.limits.frame_bytes_max;
            let message = format!("{rejection}; the limit of a request is {max} bytes");
            fault(ErrorCode::BodyTooLarge, message)
        })?;
        let send = json::send_from_json(&body)
            .map_err(|error| fault(ErrorCode::InvalidArgument, error.to_string()))?;
        count(&shared, "http_send");
        let span = tracing::debug_span!("http_send", user, to = %send.to);
        shared.answerer.send(user, send).instrument(span).await
    };
    match answer.await {
        Ok(sent) => json_response(StatusCode::OK, json::sent_to_json(&sent)),
        Err(fault) => refusal(&shared, &fault),
    }
}

async fn sync(
    State(shared): State<Arc<Shared>>,
    Query(credentials): Query<Credentials>,
    query: Result<Query<SyncQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let user = authenticate(&shared, &headers, &credentials).await?;
        let Query(query) =
            query.map_err(|rejection| fault(ErrorCode::InvalidArgument, rejection.to_string()))?;
        count(&shared, "http_sync");
        let sync = SyncFrame {
            key: query.key,
            limit: query.limit,
            have: Vec::new(),
        };
        let span = tracing::debug_span!("http_sync", user);
        shared.answerer.sync(user, sync).instrument(span).await
    };
    match answer.await {
        Ok(mut page) => {
            // A plain HTTP client has no pushes to fit in, so it needs the key only.
            page.synced.positions = Vec::new();
            json_response(StatusCode::OK, json::synced_to_json(&page.synced))
        }
        Err(fault) => refusal(&shared, &fault),
    }
}

async fn healthz() -> Response {
    json_response(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}"))
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let ready = if shared.stop.is_cancelled() {
        Err("this gateway is draining".to_owned())
    } else {
        (shared.ready)()
    };
    match ready {
        Ok(()) => json_response(
            StatusCode::OK,
            Bytes::from_static(b"{\"status\":\"ready\"}"),
        ),
        Err(reason) => refusal_response(&fault(ErrorCode::Unavailable, reason)),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &shared.registry.lock());
    match encoded {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (
                [(header::CONTENT_TYPE, HeaderValue::from_static(kind))],
                text,
            )
                .into_response()
        }
        Err(_) => refusal_response(&fault(ErrorCode::Internal, "the metrics cannot be written")),
    }
}

async fn not_found(uri: Uri) -> Response {
    // The path only: the query may carry a token.
    let message = format!("there is no {}", uri.path());
    let fault = fault(ErrorCode::InvalidArgument, message);
    json_response(StatusCode::NOT_FOUND, json::fault_to_json(&fault))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    let fault = fault(ErrorCode::InvalidArgument, message);
    json_response(StatusCode::METHOD_NOT_ALLOWED, json::fault_to_json(&fault))
}

fn count(shared: &Shared, request: &'static str) {
    shared
        .answerer
        .metrics
        .requests
        .get_or_create(&[("request", request)])
        .inc();
}

/// An answer that says no, counted.
pub(crate) fn refusal(shared: &Shared, fault: &Fault) -> Response {
    shared.answerer.count_fault(fault);
    refusal_response(fault)
}

fn refusal_response(fault: &Fault) -> Response {
    let status = http_status(fault);
    let mut response = json_response(status, json::fault_to_json(fault));
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, bearer);
    }
    if fault.retry_after_ms > 0 {
        let seconds = HeaderValue::from(fault.retry_after_ms.div_ceil(1000));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn json_response(status: StatusCode, body: Bytes) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], Body::from(body)).into_response()
}
