//! Gateways before a store in this process: HTTP calls, WebSockets in both encodings, the SDK.

// Helpers of tests are tests, but clippy knows only functions marked as such.
#![allow(clippy::unwrap_used)]

mod drive;
mod groups;
mod http_calls;
mod protocol;
mod sdk;
mod store;
mod websocket;
