//! The stateless connection tier: WebSocket and HTTP listeners, sessions, dispatch.
//!
//! It can be killed at any time and nothing acked is lost: what it holds is sockets, and for each
//! timeline that a local session is interested in one upstream subscription.

mod gateway;
mod options;
pub mod token;

pub use gateway::Gateway;
pub use options::{Error, GatewayOptions, Limits, Listen, MetricsRegistry, ReadyCheck};
