//! `mailboxctl`: the subcommands and their dispatch.

mod capacity;
mod chat;
mod cluster;
mod dev_cluster;
mod dlq;
mod doctor;
mod gateway;
mod inspect;
mod merge_shard;
mod meta;
mod move_slot;
mod replay;
mod send;
mod shard;
mod show;
mod show_table;
mod split_shard;
mod status;
mod steps;
mod store_node;
mod tail;
mod timeline;
mod token;
mod top;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::output::OutputArgs;

/// Look into, talk to and exercise a mailbox cluster.
///
/// Begin with a server to talk to: `mailboxd dev` prints a URL, and a line to paste for each of two
/// users. Or make a cluster of three nodes: `mailboxctl dev-cluster`.
///
/// Results go to stdout, everything else to stderr; --json makes every result one line of JSON.
/// The exit status is 0 when all went well, 1 when not, 2 when the command line is wrong.
#[derive(Parser)]
#[command(name = "mailboxctl", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: Command,
}

// What a subcommand is for stands at its arguments.
#[derive(Subcommand)]
enum Command {
    Status(status::Args),
    /// Make a cluster, and see it as a whole
    #[command(subcommand)]
    Cluster(cluster::Command),
    #[command(subcommand)]
    Node(store_node::Command),
    #[command(subcommand)]
    Shard(shard::Command),
    #[command(subcommand)]
    Gateway(gateway::Command),
    #[command(subcommand)]
    Meta(meta::Command),
    Top(top::Args),
    Doctor(doctor::Args),
    Capacity(capacity::Args),
    /// Make the tokens with which users connect
    #[command(subcommand)]
    Token(token::Command),
    /// Make users
    #[command(subcommand)]
    User(user::Command),
    Chat(chat::Args),
    Send(send::Args),
    Tail(tail::Args),
    /// Read timelines from the store
    #[command(subcommand)]
    Timeline(timeline::Command),
    #[command(subcommand)]
    Dlq(dlq::Command),
    Inspect(inspect::Args),
    DevCluster(dev_cluster::Args),
    /// Play a recorded channel into a cluster and check that nothing is lost
    #[command(subcommand)]
    Replay(replay::Command),
    /// Print the completion script of a shell
    Completions {
        /// Whose script
        shell: clap_complete::Shell,
    },
}

/// Runs `mailboxctl` with the process's arguments.
pub fn mailboxctl() -> ExitCode {
    let cli = Cli::parse();
    crate::log_to_stderr();
    let output = cli.output;
    crate::exit_code(crate::block_on(run(cli.command, output)))
}

/// True: all went well. False: the command did its work and found something wrong.
async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Status(args) => status::run(args, output).await,
        Command::Cluster(command) => cluster::run(command, output).await,
        Command::Node(command) => store_node::run(command, output).await,
        Command::Shard(command) => shard::run(command, output).await,
        Command::Gateway(command) => gateway::run(command, output).await,
        Command::Meta(command) => meta::run(command, output).await,
        Command::Top(args) => top::run(args, output).await,
        Command::Doctor(args) => doctor::run(args, output).await,
        Command::Capacity(args) => capacity::run(&args, output),
        Command::Token(command) => token::run(command, output),
        Command::User(command) => user::run(command, output).await,
        Command::Chat(args) => chat::run(args, output).await,
        Command::Send(args) => send::run(args, output).await,
        Command::Tail(args) => tail::run(args, output).await,
        Command::Timeline(command) => timeline::run(command, output).await,
        Command::Dlq(command) => dlq::run(command, output).await,
        Command::Inspect(args) => inspect::run(&args, output),
        Command::DevCluster(args) => dev_cluster::run(args, output).await,
        Command::Replay(command) => replay::run(command, output).await,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "mailboxctl",
                &mut std::io::stdout(),
            );
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_may_stand_anywhere() {
        for line in [
            ["mailboxctl", "--json", "status"],
            ["mailboxctl", "status", "--json"],
            ["mailboxctl", "--output=json", "status"],
        ] {
            assert!(Cli::try_parse_from(line).unwrap().output.is_json());
        }
        assert!(
            !Cli::try_parse_from(["mailboxctl", "status"])
                .unwrap()
                .output
                .is_json()
        );
    }
}
