//! The fault harness: real processes, injected faults, recorded histories, checkers.
//!
//! ```text
//!  workload ──▶ client ──▶ mailboxd × 3 ◀── nemesis (kill, pause, partition, power …)
//!      └─────────┬──────────────────────────────┘
//!             history ──▶ checker ──▶ valid | unknown | invalid
//! ```
//!
//! Start reading at `run.rs` (what happens in a run), then `workload.rs` and `nemesis/kind.rs` (what there is to choose),
//! `history.rs` (what is recorded), `checker/mod.rs` (how it is judged) and `store.rs` (what is kept). A run that proves
//! nothing — too few acked sends, a fault that never came, a final read that failed — is `unknown`, never `valid`. Every
//! run prints its seed.

pub mod checker;
pub mod device;
pub mod edn;
pub mod events;
pub mod ground;
pub mod history;
pub mod nemesis;
pub mod options;
pub mod page;
pub mod people;
pub mod plot;
pub mod register;
pub mod run;
pub mod serve;
pub mod store;
pub mod timeline;
pub mod workload;

mod ending;
mod lines;
mod parallel;
mod population;
mod reader;
mod registrar;
mod sender;
mod wanderer;
mod watch;
