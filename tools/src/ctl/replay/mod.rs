//! `mailboxctl replay`: plays a recorded channel into a cluster and checks every message.
//!
//! ```text
//!  files ─ input ─▶ lines ─ line, script ─▶ sends ─ play ─▶ acks ─ check, verify ─▶ report
//!                                                   │
//!                       schedule: which nick has which socket; pause: the longest silence
//! ```

mod check;
mod input;
mod line;
mod pause;
mod play;
mod report;
mod schedule;
mod script;
mod socket;
mod stage;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mailbox_cluster::Cluster;

use self::report::{DryRun, Report};
use self::script::Script;
use self::stage::Stage;
use crate::chaos;
use crate::duration;
use crate::node::{NodeArgs, parse_nodes};
use crate::output::OutputArgs;

/// Play a recorded channel into a cluster and check that nothing is lost.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Irc(Box<IrcArgs>),
}

/// Play IRC logs: every line once to a group, directed lines also 1:1.
///
/// All input, in file-name order, is one channel and becomes one group. A chat line is
/// `[hh:mm] <nick> text`; other lines are skipped. A line that begins with `othernick:` is also sent
/// to that nick, 1:1. Every nick registers and joins first. One nick's lines go one after another,
/// each after the last was acked; different nicks run in parallel. All of it goes through real
/// gateways, over at most --connections WebSockets.
///
/// Blanks at the ends of a nick are dropped, since no handle has any: `<nick >` is `<nick>`.
///
/// Then everything is read back and compared: every user's mailbox, the group's timeline through
/// each node (where nodes can be asked), each gateway and by 100 users, its head by every other user. The exit status is 1 unless every
/// message was acked and none is missing, duplicated or misordered.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["spawn", "gateway", "dry_run"]))]
pub(crate) struct IrcArgs {
    /// Text files, folders of them, or .tar.gz archives
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Sends per second, 1:1 ones included; without it as fast as acks come
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// WebSockets open at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Start a cluster of so many nodes (1 or 3) on this machine and stop it at the end
    #[arg(long, value_name = "N", value_parser = parse_nodes())]
    spawn: Option<usize>,
    /// Shards of a spawned cluster
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Use these gateways, as ws://host:port, and nothing else of the cluster; with --secret-file
    /// (and --address) the group is also read from each node's own replica
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "auth_key")]
    gateway: Vec<String>,
    /// The key with which the gateways check tokens: makes one for each nick
    #[arg(long, value_name = "FILE", env = "MAILBOX_AUTH_KEY")]
    auth_key: Option<PathBuf>,
    /// Only count lines, nicks and directed lines
    #[arg(long)]
    dry_run: bool,
    /// Keep a spawned cluster's data here; without it they are removed at the end
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, requires = "spawn")]
    dir: Option<PathBuf>,
    /// The `mailboxd` to spawn; default: the one beside this program
    #[arg(long, value_name = "FILE", env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
    /// Kill -9 the leader of the group's shard again and again while lines are sent, and restart it
    /// one second later
    #[arg(long, value_name = "TIME", requires = "spawn", value_parser = duration::parse)]
    kill_leader_every: Option<Duration>,
    /// Kill -9 a node or a gateway, chosen by --seed, again and again while lines are sent, and restart
    /// it one second later
    #[arg(long, value_name = "TIME", requires = "spawn", conflicts_with = "kill_leader_every", value_parser = duration::parse)]
    kill_random_every: Option<Duration>,
    /// Kill -9 all nodes when so many percent of the sends are acked, and restart them
    #[arg(
        long,
        value_name = "PERCENT",
        requires = "spawn",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u8).range(1..100)
    )]
    kill_all_at: Vec<u8>,
    /// At the end stop the nodes, verify all their files and compare their state hashes
    #[arg(long, requires = "spawn")]
    inspect: bool,
    /// Chooses the 100 users that read the whole group, and what --kill-random-every kills
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Irc(args) => irc(*args, output).await,
    }
}

async fn irc(args: IrcArgs, output: OutputArgs) -> anyhow::Result<bool> {
    let script = Script::read(&input::read(&args.paths)?);
    if args.dry_run {
        output.print(&DryRun::new(&script), DryRun::human)?;
        return Ok(true);
    }
    if script.sends.is_empty() {
        bail!("the input has no chat line, `[hh:mm] <nick> text`");
    }
    let mut report = Report::new(&script);
    let stage = Stage::set(&args, &script).await?;
    let script = Arc::new(script);
    let played = perform(&args, &script, &stage).await?;
    report.acked = played.acks.iter().flatten().count() as u64;
    report.longest_pause_ms = played.longest_pause_ms;
    report.kills = played.kills;
    report.seconds = played.seconds;
    stage.wait_ready().await?;
    let verdict = check::check(
        &script,
        &played,
        &stage,
        args.seed,
        usize::from(args.connections),
    )
    .await
    .context("read everything back")?;
    for finding in &verdict.findings {
        eprintln!("found: {finding}");
    }
    report.take(&verdict);
    report.gateways_only = stage.client.is_none();
    if args.inspect {
        report.inspected = Some(stage.stop_and_inspect().await?);
    } else {
        stage.stop().await?;
    }
    output.print(&report, Report::human)?;
    Ok(report.is_good())
}

/// Plays the script, with whatever kills were asked for.
async fn perform(
    args: &IrcArgs,
    script: &Arc<Script>,
    stage: &Stage,
) -> anyhow::Result<play::Played> {
    let player = play::Player::new(Arc::clone(script), stage, args.rate);
    let killer = killer(args, stage)?;
    let all_killer = match &stage.cluster {
        Some(cluster) if !args.kill_all_at.is_empty() => {
            let points = kill_points(&args.kill_all_at, script.sends.len() as u64);
            Some(tokio::spawn(kill_all_at(
                Arc::clone(cluster),
                player.progress(),
                points,
            )))
        }
        _ => None,
    };
    let mut played = player.play(usize::from(args.connections)).await?;
    if let Some(killer) = killer {
        played.kills += killer.stop().await?;
    }
    if let Some(killer) = all_killer {
        played.kills += killer.await??;
    }
    Ok(played)
}

/// What kills one process after the other, if that was asked for.
fn killer(args: &IrcArgs, stage: &Stage) -> anyhow::Result<Option<chaos::Killer>> {
    let Some(cluster) = &stage.cluster else {
        return Ok(None);
    };
    if let Some(every) = args.kill_leader_every {
        // Every line goes through the shard of the group: its leader's death is felt most.
        let client = stage.client.as_ref();
        let client = client.context("a spawned cluster has a client")?;
        let shard = client.shard_of_owner(stage.group);
        let killer = chaos::kill_leader_every(Arc::clone(cluster), shard, every);
        return Ok(Some(killer));
    }
    let random = args
        .kill_random_every
        .map(|every| chaos::kill_random_every(Arc::clone(cluster), args.seed, every));
    Ok(random)
}

/// Numbers of acked sends, ascending, for percentages in any order.
fn kill_points(percents: &[u8], sends: u64) -> Vec<u64> {
    let mut points: Vec<_> = percents
        .iter()
        .map(|&percent| sends * u64::from(percent) / 100)
        .collect();
    points.sort_unstable();
    points
}

/// Kills all nodes each time that so many sends are acked. Returns the kills.
async fn kill_all_at(
    cluster: Arc<Cluster>,
    mut progress: play::Progress,
    points: Vec<u64>,
) -> anyhow::Result<u64> {
    let mut kills = 0;
    for point in points {
        if !progress.reached(point).await {
            break;
        }
        kills += chaos::kill_all(&cluster).await?;
    }
    Ok(kills)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_points_are_ascending_numbers_of_acks() {
        assert_eq!(kill_points(&[75, 25, 50], 83_751), [20_937, 41_875, 62_813]);
    }
}
