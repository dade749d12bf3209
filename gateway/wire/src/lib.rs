//! Client frames, protobuf and JSON; no I/O.
//!
//! One set of messages ([`ClientFrame`], [`ServerFrame`]) and two encodings of it: [`binary`] for
//! devices, [`json`] for browsers, debugging and HTTP bodies. `gateway/PROTOCOL.md` describes every
//! one of them with an example. What a client may get wrong is refused at decoding, in words, so
//! that a decoded frame is a valid one. [`SyncKey`] is what a device holds and sends back.
//!
//! ```text
//!   bytes ── binary::decode_client ──┐
//!                                    ├─► ClientFrame { id, Request }
//!   text ─── json::decode_client ────┘
//! ```

pub mod binary;
mod frame;
pub mod json;
mod message;
mod sync_key;
mod timeline;

/// The generated protobuf messages.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/mailbox.client.v1.rs"));
}

pub use frame::{
    ClientFrame, DecodeError, Encoding, Fault, GoAway, Limits, Push, Reply, Request, Send, Sent,
    ServerFrame, Sync, Synced, Welcome,
};
pub use message::{Body, Message, MessageType};
pub use sync_key::{BadSyncKey, SYNC_KEY_GROUPS_MAX, SYNC_KEY_TEXT_BYTES_MAX, SyncKey};
pub use timeline::{BadDestination, Destination, Position, Timeline, UserRef};
