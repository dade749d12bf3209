//! The fault harness: real processes, injected faults, recorded histories, checkers.
//!
//! ```text
//!  workload ──▶ client ──▶ mailboxd × 3 ◀── nemesis (kill -9, SIGSTOP)
//!      └─────────┬──────────────────────────────┘
//!             history ──▶ checker ──▶ valid | unknown | invalid
//! ```
//!
//! Start reading at `history.rs` (what is recorded), then `checker/mod.rs` (how it is judged) and `store.rs` (what is
//! kept). A run that proves nothing — too few acked sends, a fault that never came, a final read that failed — is
//! `unknown`, never `valid`. Every run prints its seed.

pub mod checker;
pub mod edn;
pub mod events;
pub mod history;
pub mod nemesis;
pub mod page;
pub mod smoke;
pub mod store;
pub mod timeline;

mod device;
mod reader;
mod sender;
