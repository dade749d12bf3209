//! `mailbox-bench group`: one group whose members are all online.
//!
//! ```text
//!   run ── spawns the cluster ──► measure ── registers, joins, logs in ──► Crowd (one thread)
//!                                    └── looks at CPU and counts when the measured time begins and ends
//! ```

mod crowd;
mod member;
mod order;
mod report;
mod tally;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mailbox_client::Client;
use mailbox_client::user_id;
use mailbox_client::v1::{
    CreateGroupRequest, HeadsRequest, JoinGroupRequest, Timeline, TimelineKind,
};
use mailbox_cluster::{AuthKey, Cluster, Node};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

pub(super) use report::Report;

use super::cluster::{CpuByPart, SpawnArgs, Spawned, register};
use super::load::{Clock, Shape};
use super::profile::Profile;
use super::report::{per_send, percentile_ms, round};
use super::socket::{Login, Socket, trusting};
use crowd::{Cast, Crowd, Outcome};
use tally::{Counts, STAMP_BYTES};

/// How long members' tokens are valid: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);
/// Log-ins and joins begun at a time.
const AT_ONCE: usize = 64;
/// How long joins may take to reach the members' lists of groups.
const LISTED_WITHIN: Duration = Duration::from_secs(60);
/// How long a gateway that is not wanted may take to stop; it promises 10 s.
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// Push frames that gateways dropped.
const PUSHES_DROPPED: &str = "mailbox_gateway_pushes_dropped_total";
/// `cluster.group_members_max`, unless more members are asked for.
const MEMBERS_DEFAULT_MAX: u32 = 500;

/// A group whose members are all online: posts of some, deliveries to all.
///
/// Every member is one user with one WebSocket, spread over --gateways; the first --senders of them post, and all are
/// pushed every message. A delivery counts when the member has decoded the message and it is the next one: seq =
/// last + 1. A member whose push was dropped is told to, and syncs. The exit status is 1 if a member lacks a message,
/// got one out of order, or if anything was refused.
///
/// The default is a closed loop: --in-flight posts on the way at any time, each until the last member has it. --rate
/// posts at a fixed rate instead and counts the wait of those that came late. A warm-up is left out of all rates and
/// latencies. Compare `--tls` with a run without it to see what TLS costs.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["spawn"]))]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) spawn: SpawnArgs,
    /// Members of the group, each with one WebSocket
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub(super) members: u32,
    /// Members that post, in turn
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) senders: u32,
    /// Gateways that the members are spread over; at most one for each node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
    pub(super) gateways: u16,
    /// TLS between members and gateways
    #[arg(long)]
    pub(super) tls: bool,
    /// Closed loop: posts on the way at any time, each until every member has decoded it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub(super) in_flight: u32,
    /// Open loop: posts begun per second
    #[arg(long, value_name = "N", conflicts_with = "in_flight", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rate: Option<u64>,
    /// Seconds that are measured, after the warm-up
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) seconds: u64,
    /// Seconds of load before anything is measured
    #[arg(long, value_name = "S", default_value_t = 3)]
    pub(super) warmup: u64,
    /// Bytes of every body; the first 8 tell when it was posted
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = parse_body_bytes)]
    pub(super) body_bytes: usize,
}

fn parse_body_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes >= STAMP_BYTES => Ok(bytes),
        _ => Err(format!(
            "`{text}` is not a number of bytes, from {STAMP_BYTES}"
        )),
    }
}

impl Options {
    /// What the command line's defaults are, for a cluster that is spawned like this.
    pub(super) fn new(spawn: SpawnArgs) -> Self {
        Self {
            spawn,
            members: 500,
            senders: 8,
            gateways: 1,
            tls: false,
            in_flight: 64,
            rate: None,
            seconds: 20,
            warmup: 3,
            body_bytes: 100,
        }
    }

    fn shape(&self) -> Shape {
        match self.rate {
            Some(rate) => Shape::Open { rate },
            None => Shape::Closed {
                in_flight: self.in_flight as usize,
            },
        }
    }

    fn senders(&self) -> usize {
        self.senders.min(self.members) as usize
    }

    fn clock(&self) -> Arc<Clock> {
        let seconds = Duration::from_secs;
        Clock::start(seconds(self.warmup), seconds(self.seconds))
    }
}

/// Starts a cluster, measures and stops it.
///
/// # Errors
/// When the cluster does not start, or a connection breaks during the run. Messages that are missing or misplaced are
/// no error here: the report tells of them.
pub(super) async fn run(options: &Options) -> anyhow::Result<Report> {
    let nodes = options.spawn.spawn.context("say --spawn N")?;
    if usize::from(options.gateways) > nodes {
        bail!(
            "{} gateways for {nodes} node(s): each node has one beside it; say --gateways {nodes} or less",
            options.gateways
        );
    }
    let members_max = options.members.max(MEMBERS_DEFAULT_MAX);
    let spawned = Spawned::start_as(&options.spawn, nodes, |cluster| {
        cluster.gateway = true;
        cluster.gateway_tls = options.tls;
        let config = format!("cluster.group_members_max = {members_max}\n");
        cluster.extra_config.push_str(&config);
    })
    .await?;
    let report = measure(&spawned, options).await?;
    spawned.stop().await?;
    Ok(report)
}

/// Measures with a cluster that is there, started with gateways, TLS and room for the members as the options say.
/// Gateways beyond `gateways` are stopped.
///
/// # Errors
/// As [`run`].
pub(super) async fn measure(spawned: &Spawned, options: &Options) -> anyhow::Result<Report> {
    let cluster = &spawned.cluster;
    let used = keep_gateways(cluster, usize::from(options.gateways)).await?;
    let client = cluster.client().await?;
    let shards = client.shard_map().await?.shards.len();
    let users = register(&client, options.members as usize).await?;
    let (group, head) = gather(cluster, &client, &users).await?;
    let sockets = log_in(cluster, used, &users).await?;
    let cast = Cast {
        group,
        head,
        sockets,
        senders: options.senders(),
        body_bytes: options.body_bytes,
        shape: options.shape(),
    };
    let crowd = tokio::task::spawn_blocking(|| Crowd::new(cast)?.settle());
    let crowd = crowd.await??;
    let dropped_before = pushes_dropped(used).await?;
    let clock = options.clock();
    let counts = Arc::new(Mutex::new(Counts::default()));
    let run = {
        let (clock, counts) = (Arc::clone(&clock), Arc::clone(&counts));
        tokio::task::spawn_blocking(move || crowd.run(&clock, &counts))
    };
    let (window, outcome) = Window::take(cluster, options, &clock, &counts, run).await?;
    let dropped = pushes_dropped(used).await?;
    let dropped = dropped.zip(dropped_before);
    let dropped = dropped.map(|(after, before)| after.saturating_sub(before));
    if let Some(refusal) = &outcome.first_refusal {
        tracing::error!(refusal, "the first refusal");
    }
    Ok(window.report(spawned, options, shards, dropped, &outcome))
}

/// Stops all gateways but the first ones, which would take a share of the machine for nothing.
async fn keep_gateways(cluster: &Cluster, wanted: usize) -> anyhow::Result<&[Node]> {
    let nodes = cluster.nodes();
    let (used, spare) = nodes
        .split_at_checked(wanted)
        .with_context(|| format!("{wanted} gateways for {} node(s)", nodes.len()))?;
    for node in spare {
        node.stop_gateway(STOP_WITHIN).await?;
    }
    Ok(used)
}

/// Makes the group, with every user in it; its id and its head.
async fn gather(cluster: &Cluster, client: &Client, users: &[u64]) -> anyhow::Result<(u64, u64)> {
    let [founder, others @ ..] = users else {
        bail!("a group has members");
    };
    let made = client.create_group(CreateGroupRequest {
        creator: Some(user_id(*founder)),
        name: "bench".to_owned(),
        ..CreateGroupRequest::default()
    });
    let group = made.await.context("create the group")?.group;
    let joins = others.iter().map(|user| {
        client.join_group(JoinGroupRequest {
            group,
            user: Some(user_id(*user)),
            ..JoinGroupRequest::default()
        })
    });
    let joins = futures_util::stream::iter(joins).buffer_unordered(AT_ONCE);
    joins
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
        .context("join the group")?;
    // A gateway finds a member's groups in the member's own list.
    cluster.wait_lanes_drained(LISTED_WITHIN).await?;
    let kind = TimelineKind::Group as i32;
    let timeline = Timeline { kind, owner: group };
    let request = HeadsRequest {
        timelines: vec![timeline],
        ..HeadsRequest::default()
    };
    let heads = client.heads(request).await.context("ask for the head")?;
    let head = heads.heads.first().context("the group has no head")?.head;
    Ok((group, head))
}

/// One WebSocket for each user, over the gateways in turn.
async fn log_in(
    cluster: &Cluster,
    gateways: &[Node],
    users: &[u64],
) -> anyhow::Result<Vec<Socket>> {
    let key = AuthKey::read(cluster.auth_key_file())?;
    let mut places = Vec::with_capacity(gateways.len());
    for node in gateways {
        let url = node.gateway_url().context("a node has no gateway")?;
        places.push((url, node.gateway_certificate().map(trusting).transpose()?));
    }
    let mut logins = Vec::with_capacity(users.len());
    for (user, (url, tls)) in users.iter().zip(places.iter().cycle()) {
        logins.push(Login {
            url: url.clone(),
            token: key.issue(&user.to_string(), TOKEN_TTL)?.0,
            device: "bench".to_owned(),
            tls: tls.clone(),
        });
    }
    let sockets = logins.iter().map(Socket::log_in);
    let sockets = futures_util::stream::iter(sockets).buffered(AT_ONCE);
    sockets.try_collect().await
}

/// Push frames that gateways have dropped so far; `None` if they do not count them.
async fn pushes_dropped(gateways: &[Node]) -> anyhow::Result<Option<u64>> {
    let mut sum = Some(0);
    for node in gateways {
        let dropped = node.gateway_metric(PUSHES_DROPPED).await?;
        sum = sum.zip(dropped).map(|(sum, dropped)| sum + dropped);
    }
    Ok(sum)
}

/// What happened and what was used inside the measured time.
struct Window {
    seconds: f64,
    before: Counts,
    after: Counts,
    cpu: CpuByPart,
}

impl Window {
    /// Looks at everything when the measured time begins and when it ends, then waits for the outcome. A run that ends
    /// before its time has failed, and its error is told at once.
    async fn take(
        cluster: &Cluster,
        options: &Options,
        clock: &Clock,
        counts: &Mutex<Counts>,
        mut run: JoinHandle<anyhow::Result<Outcome>>,
    ) -> anyhow::Result<(Self, Outcome)> {
        unless_ended(clock.warmed_up(), &mut run).await?;
        let profile = match &options.spawn.profile {
            Some(dir) => Some(Profile::start(dir, cluster, options.seconds).await?),
            None => None,
        };
        let (begin, before, cpu) = (Instant::now(), *counts.lock(), CpuByPart::of(cluster)?);
        unless_ended(clock.ended(), &mut run).await?;
        let (seconds, after) = (begin.elapsed().as_secs_f64(), *counts.lock());
        let cpu = CpuByPart::of(cluster)?.since(cpu);
        let window = Self {
            seconds,
            before,
            after,
            cpu,
        };
        let outcome = run.await??;
        if let Some(profile) = profile {
            let nodes = cluster.nodes().len();
            tokio::task::spawn_blocking(move || profile.finish(nodes)).await??;
        }
        Ok((window, outcome))
    }

    /// The figures, per second and per delivery.
    fn report(
        &self,
        spawned: &Spawned,
        options: &Options,
        shards: usize,
        pushes_dropped: Option<u64>,
        outcome: &Outcome,
    ) -> Report {
        let (in_flight, rate, shape) = match options.shape() {
            Shape::Closed { in_flight } => (Some(in_flight as u64), None, "closed"),
            Shape::Open { rate } => (None, Some(rate), "open"),
        };
        let grown = |of: fn(&Counts) -> u64| of(&self.after).saturating_sub(of(&self.before));
        let deliveries = grown(|counts| counts.deliveries);
        let per_s = |count: u64| round(count as f64 / self.seconds, 1);
        let percentile = |percent| percentile_ms(&outcome.latencies_us, percent);
        let counts = outcome.counts;
        Report {
            nodes: spawned.cluster.nodes().len() as u64,
            shards: shards as u64,
            gateways: u64::from(options.gateways),
            members: u64::from(options.members),
            senders: options.senders() as u64,
            connections: u64::from(options.members),
            tls: options.tls,
            body_bytes: options.body_bytes as u64,
            shape,
            in_flight,
            rate,
            warmup_s: options.warmup as f64,
            seconds: round(self.seconds, 2),
            fs: spawned.file_system.clone(),
            fsync: true,
            sends_per_s: per_s(grown(|counts| counts.acked)),
            deliveries_per_s: per_s(deliveries),
            delivery_p50_ms: percentile(50.0),
            delivery_p95_ms: percentile(95.0),
            delivery_p99_ms: percentile(99.0),
            delivery_p999_ms: percentile(99.9),
            missing: outcome.missing,
            out_of_order: outcome.out_of_order,
            errors: counts.refused + counts.syncs_refused + counts.unanswered(),
            pushes_dropped,
            sync_notices: counts.notices,
            synced_deliveries: counts.synced,
            messages_per_push: per_send(
                deliveries.saturating_sub(grown(|counts| counts.synced)),
                grown(|counts| counts.pushes),
            ),
            wire_bytes_per_delivery: per_send(grown(|counts| counts.wire_bytes), deliveries),
            store_cpu_us_per_delivery: fine(self.cpu.store_us, deliveries),
            gateway_cpu_us_per_delivery: fine(self.cpu.gateway_us, deliveries),
            generator_cpu_us_per_delivery: fine(self.cpu.generator_us, deliveries),
        }
    }
}

/// `total / deliveries`, to more digits than a send's figures have: a delivery takes a small part of what a send does.
fn fine(total: u64, deliveries: u64) -> f64 {
    match deliveries {
        0 => 0.0,
        deliveries => round(total as f64 / deliveries as f64, 3),
    }
}

/// Waits for a time of the run, or for the run's untimely end.
async fn unless_ended(
    time: impl Future<Output = ()>,
    run: &mut JoinHandle<anyhow::Result<Outcome>>,
) -> anyhow::Result<()> {
    tokio::select! {
        () = time => Ok(()),
        ended = run => match ended? {
            Ok(_) => Err(anyhow!("the run ended before its time")),
            Err(error) => Err(error.context("the run ended before its time")),
        },
    }
}

#[cfg(test)]
mod stand_in;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("group").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options)
    }

    #[test]
    fn a_program_gets_the_defaults_of_the_command_line() {
        let parsed = options("--spawn 1").unwrap();
        let made = Options::new(parsed.spawn.clone());
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for line in [
            "",
            "--spawn 3 --members 1",
            "--spawn 3 --gateways 0",
            "--spawn 3 --rate 10 --in-flight 10",
            "--spawn 3 --body-bytes 7",
            "--spawn 3 --seconds 0",
        ] {
            assert!(options(line).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn no_more_members_post_than_there_are() {
        assert_eq!(options("--spawn 1 --members 5").unwrap().senders(), 5);
        assert_eq!(options("--spawn 1 --members 50").unwrap().senders(), 8);
    }
}
