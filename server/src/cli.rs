//! What `mailboxd` can be told on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Role};

/// A mailbox database for chat: store node, gateway, or both in one process.
#[derive(Debug, Parser)]
#[command(name = "mailboxd", version, after_help = crate::exit::TABLE)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The roles of the one binary, and its configuration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A store node and a gateway in one process, for trying and developing.
    Dev(DevArgs),
    /// A store node.
    Server(RoleArgs),
    /// A gateway: holds the clients' sockets, keeps nothing.
    Gateway(RoleArgs),
    /// Print, check or explain the configuration.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Flags of `mailboxd server` and `mailboxd gateway`.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// The TOML file; `mailboxd config default` prints one.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one option, over file and environment; may be repeated.
    #[arg(long = "set", value_name = "SECTION.OPTION=VALUE")]
    pub overrides: Vec<String>,
    /// One JSON object a line on stdout, once ready, in place of words.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `mailboxd dev`.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Where everything is kept, keys included; made if missing, used again if there.
    #[arg(long, default_value = "./mailbox-dev-data", value_name = "DIR")]
    pub dir: PathBuf,
    /// Where clients connect: HTTP and WebSocket.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub listen: String,
    /// Where tools connect: gRPC.
    #[arg(long, default_value = "127.0.0.1:7700", value_name = "HOST:PORT")]
    pub grpc_listen: String,
    /// Shards that the 64 slots are split into, for ever: a directory that was made with others is refused.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,
    /// One JSON object per line on stdout, in place of words.
    #[arg(long)]
    pub json: bool,
    /// What is logged to stderr.
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    pub log: String,
}

/// `mailboxd config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the documented file with every default.
    Default,
    /// Say what is wrong with a configuration; exit status 1 if anything is.
    Check {
        /// The TOML file.
        file: Option<PathBuf>,
        /// Which process it is for.
        #[arg(long, value_enum, default_value = "server")]
        role: Role,
        /// Sets one option, over file and environment; may be repeated.
        #[arg(long = "set", value_name = "SECTION.OPTION=VALUE")]
        overrides: Vec<String>,
        /// Print the resulting values as JSON.
        #[arg(long)]
        json: bool,
    },
    /// What an option or a section is about; without a name, all.
    Explain {
        /// `section` or `section.option`.
        topic: Option<String>,
    },
}

/// Runs `mailboxd config …` and returns what goes to stdout.
///
/// # Errors
/// What is wrong with the configuration.
pub fn run_config(command: &ConfigCommand) -> Result<String, config::Error> {
    match command {
        ConfigCommand::Default => Ok(config::default_document()),
        ConfigCommand::Explain { topic } => config::explain(topic.as_deref()),
        ConfigCommand::Check {
            file,
            role,
            overrides,
            json,
        } => {
            let config = Config::load(file.as_deref(), overrides, *role)?;
            if *json {
                let text = serde_json::to_string(&config)
                    .expect("plain structs of numbers and text serialise to JSON");
                return Ok(text + "\n");
            }
            Ok("the configuration is good\n".to_owned())
        }
    }
}
