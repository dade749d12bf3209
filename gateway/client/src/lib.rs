//! The store client of gateways and tools: routing, batching and retry.
//!
//! ```text
//!  send ──▶ in-flight limits ──▶ shard ──▶ leader's node ──▶ Submit stream (many sends a frame)
//!                 ▲                           │
//!                 └── NotLeader, broken ◀─────┘   the same id again, until the call's deadline
//! ```
//!
//! One [`Client`] per process is meant to be shared: it is cheap to clone and keeps one connection
//! to each node that it uses. A mutating call is repeated with the same id, so that it happens at
//! most once however often it is sent; after a retryable error at the deadline its outcome is
//! unknown, and the caller may go on with the same id.

mod attempts;
mod calls;
mod channel;
mod client;
mod clock;
mod dead_letters;
mod follow;
mod gate;
mod gateways;
mod learning;
mod map;
mod node;
mod operate;
mod options;
mod pending;
mod retry;
mod router;
mod submit;
mod subscribe;
mod suspicion;
mod wanted;

pub use client::{Client, user_handle, user_id};
pub use mailbox_api::{CallError, v1};
pub use options::{Auth, ClientOptions, Limits, Timeouts, Tls};
pub use subscribe::{SubscribeEvent, SubscribeHandle};

/// The crc that travels with a message: crc32 (IEEE) over the 16 bytes of `client_msg_id`, the type
/// as one byte, and the body. Made once, by whoever took the content from the user.
pub fn content_crc(client_msg_id: &[u8], kind: v1::MessageType, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(client_msg_id);
    hasher.update(&[kind as u8]);
    hasher.update(body);
    hasher.finalize()
}
