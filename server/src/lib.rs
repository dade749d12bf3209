//! gRPC services, administration and configuration of a mailbox node.

mod cli;
pub mod config;
mod limits;
mod logging;

pub use cli::{Cli, Command, ConfigCommand, DevArgs, RoleArgs, run_config};
