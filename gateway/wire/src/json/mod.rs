//! The `mailbox.v1.json` encoding, and the bodies of the HTTP calls.
//!
//! Every 64-bit integer is a decimal string; timelines and destinations are text (`mailbox:17`,
//! `@bob`); text goes into `text`, other bytes into `body`, in base64. A gateway refuses fields
//! that it does not know (a misspelt one must not pass for one left out); a client skips them.

mod client;
mod field;
mod server;

pub use client::{decode_client, encode_client, send_from_json};
pub use field::{U64, quoted};
pub use server::{decode_server, encode_server, fault_to_json, sent_to_json, synced_to_json};
