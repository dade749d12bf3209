//! The stateless connection tier: WebSocket and HTTP listeners, sessions, dispatch.
//!
//! It can be killed at any time and nothing acked is lost: what it holds is sockets, and for each
//! timeline that a local session is interested in one upstream subscription.
//!
//! ```text
//!   gateway.rs     accept, TLS, drain ──► http.rs ──► upgrade.rs ──► connection.rs (a task each)
//!                                            │                          │ requests    ▲ frames
//!                                            └────────► session.rs ◄────┘          queue.rs
//!                                                          │                          ▲
//!                                                mailbox-client ── subscription ► dispatch.rs
//! ```
//!
//! `registration.rs` tells the cluster that the gateway is there.

mod clock;
mod coalesce;
mod connection;
mod convert;
mod dispatch;
mod gateway;
mod http;
mod memberships;
mod metrics;
mod options;
mod outlet;
mod queue;
mod registration;
mod session;
mod stream;
mod sync;
pub mod token;
mod upgrade;
mod users;

pub use gateway::Gateway;
pub use options::{Error, GatewayOptions, Limits, Listen, MetricsRegistry, ReadyCheck};
pub use registration::Registration;
