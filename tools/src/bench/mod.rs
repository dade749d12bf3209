//! `mailbox-bench`: the subcommands and their dispatch.

mod bars;
mod cluster;
mod compare;
mod delivery;
mod disk;
mod gateway;
mod group;
mod grow;
mod idle;
mod ledger;
mod load;
#[cfg(feature = "peers")]
mod peer;
mod phases;
mod profile;
mod report;
mod rest;
mod restart;
mod send;
mod socket;
mod stages;
mod suite;
mod sync;
mod websocket;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::OutputArgs;
use phases::CourseArgs;
use restart::RestartArgs;

/// Load a mailbox cluster and measure it.
///
/// Each run prints what was reached and what it cost: CPU and bytes per send, on the servers and
/// here. The generator shares the machine with a cluster that it spawns, so compare runs of one
/// machine only. tools/README.md says how every figure is measured. An error during a run makes
/// the exit status 1.
#[derive(Parser)]
#[command(name = "mailbox-bench", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: Command,
}

// What a subcommand is for stands at its arguments.
#[derive(Subcommand)]
enum Command {
    Send(send::Args),
    Gateway(Box<gateway::Args>),
    Group(Box<group::Options>),
    Sync(Box<sync::Options>),
    Idle(idle::Args),
    Suite(Box<suite::Args>),
    Compare(compare::Args),
    /// Grow a cluster of 3 nodes to 5 and shrink it to 3 others, under load; then look for every message
    ///
    /// A closed loop fills the cluster for --fill seconds. Then an open loop runs through to the end: a calm
    /// phase, two nodes join and get their share of replicas and leaders, a calm phase on five nodes, the first
    /// two nodes are drained and removed, a calm phase. At the end both mailboxes of every send are read. The
    /// exit status is 1 if a send failed, or if one is missing, doubled or in another order.
    Grow(Box<CourseArgs>),
    /// Restart every node in turn, kill a leader, and kill all nodes at once, under load; then look for every message
    ///
    /// A closed loop fills the cluster for --fill seconds. Then an open loop runs through to the end: a calm
    /// phase; each node is stopped as an operator would (SIGTERM) and started again, the next one when it has
    /// caught up; kill -9 of the node that leads most shards, --kills times; kill -9 of all nodes at once. At the end both
    /// mailboxes of every send are read. The exit status is 1 if a send failed, or if one is missing, doubled or in another order.
    Restart(Box<RestartArgs>),
    #[cfg(feature = "peers")]
    Peer(Box<peer::Args>),
}

/// Runs `mailbox-bench` with the process's arguments.
pub fn mailbox_bench() -> ExitCode {
    let cli = Cli::parse();
    crate::log_to_stderr();
    let output = cli.output;
    crate::exit_code(crate::block_on(async move {
        let report = match cli.command {
            Command::Send(args) => send::run(args).await?,
            Command::Gateway(args) => gateway::run(*args).await?,
            Command::Group(options) => {
                let report = group::run(&options).await?;
                output.print(&report, group::Report::human)?;
                return Ok(report.is_good());
            }
            Command::Sync(options) => {
                let report = sync::run(&options).await?;
                output.print(&report, sync::Report::human)?;
                return Ok(report.is_good());
            }
            Command::Idle(args) => {
                output.print(&idle::run(args).await?, idle::Report::human)?;
                return Ok(true);
            }
            Command::Suite(args) => return Box::pin(suite::run(*args, output)).await,
            Command::Compare(args) => {
                let report = compare::run(&args)?;
                output.print(&report, compare::Report::human)?;
                return Ok(report.is_good());
            }
            Command::Grow(args) => {
                let report = grow::run(&args).await?;
                output.print(&report, grow::Report::human)?;
                return Ok(report.is_good());
            }
            Command::Restart(args) => {
                let report = restart::run(&args).await?;
                output.print(&report, restart::Report::human)?;
                return Ok(report.is_good());
            }
            #[cfg(feature = "peers")]
            Command::Peer(args) => {
                let report = peer::command(*args).await?;
                output.print(&report, peer::Report::human)?;
                return Ok(report.is_good());
            }
        };
        output.print(&report, report::Report::human)?;
        Ok(report.errors == 0)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "peers")]
    #[test]
    fn a_peer_is_named_and_its_load_has_bounds() {
        for line in [
            &["mailbox-bench", "peer"][..],
            &["mailbox-bench", "peer", "kafka"],
            &["mailbox-bench", "peer", "nats", "--in-flight", "0"],
            &["mailbox-bench", "peer", "nats", "--rounds", "0"],
            &["mailbox-bench", "peer", "redis", "--users", "1"],
            &["mailbox-bench", "peer", "redis", "--body-bytes", "16385"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?} was taken");
        }
        for peer in ["nats", "nats-batch", "etcd", "redis", "postgres"] {
            let flags = "--seconds 5 --in-flight 8 --rounds 3 --json";
            let line = ["mailbox-bench", "peer", peer]
                .into_iter()
                .chain(flags.split(' '));
            assert!(Cli::try_parse_from(line).unwrap().output.is_json());
        }
    }

    #[test]
    fn a_cluster_is_spawned_or_named_but_not_both() {
        for line in [
            &["mailbox-bench", "send"][..],
            &[
                "mailbox-bench",
                "send",
                "--spawn",
                "3",
                "--target",
                "127.0.0.1:7700",
            ],
            &["mailbox-bench", "send", "--spawn", "2"],
            &["mailbox-bench", "idle", "--seconds", "0"],
            &["mailbox-bench", "send", "--spawn", "3", "--syncs", "100"],
            &["mailbox-bench", "suite", "--rounds", "0"],
            &["mailbox-bench", "suite", "--within", "45"],
            &["mailbox-bench", "compare", "a.jsonl"],
            &["mailbox-bench", "compare", "a", "b", "--fail-above", "-1"],
            &[
                "mailbox-bench",
                "send",
                "--spawn",
                "3",
                "--rate",
                "10",
                "--in-flight",
                "10",
            ],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?} was taken");
        }
        let line = [
            "mailbox-bench",
            "send",
            "--spawn",
            "3",
            "--seconds",
            "20",
            "--json",
        ];
        assert!(Cli::try_parse_from(line).unwrap().output.is_json());
    }
}
