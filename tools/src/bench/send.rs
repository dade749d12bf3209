//! `mailbox-bench send`: 1:1 sends over gRPC, as a gateway makes them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Either;
use hdrhistogram::Histogram;
use mailbox_client::v1::{
    MessageType, SendRequest, SyncRange, SyncRequest, Timeline, TimelineKind, send_request,
};
use mailbox_client::{Client, content_crc, user_id};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::cluster::{SpawnArgs, Spawned, Usage, register};
use super::delivery::Delivery;
use super::load::{Clock, Ended, Runners, Shape};
use super::profile::Profile;
use super::report::{Report, per_send, percentile_ms, round};
use super::stages::StageFigures;
use crate::node::NodeArgs;
use crate::process;

/// Most messages that a sync asks for: a screen of a conversation.
const SYNC_MESSAGES: u32 = 25;

/// 1:1 sends over gRPC, as a gateway makes them.
///
/// Users are registered before the clock starts. Sender and recipient are drawn uniformly (from two
/// shards with --cross-shard, from one with --same-shard), bodies
/// are random bytes, every send has a fresh id. The default is a closed loop with --in-flight sends
/// on the way; --rate begins sends at a fixed rate instead and counts the wait of those that came
/// late. A warm-up is left out of all figures. With --syncs a part of the operations are syncs
/// of what a user's device has not seen yet.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["spawn", "target"]))]
pub(super) struct Args {
    #[command(flatten)]
    spawn: SpawnArgs,
    /// Load this cluster instead: gRPC addresses of its nodes
    #[arg(long, value_name = "ADDR", num_args = 1.., value_delimiter = ',')]
    target: Vec<String>,
    /// The secret of the cluster at --target
    #[arg(long, value_name = "FILE", env = "MAILBOX_SECRET_FILE")]
    secret_file: Option<std::path::PathBuf>,
    /// Draw every recipient from another shard than the sender's, and measure deliveries
    #[arg(long, conflicts_with = "same_shard")]
    cross_shard: bool,
    /// Draw every recipient from the sender's shard, and measure deliveries
    #[arg(long)]
    same_shard: bool,
    /// Of 100 operations so many are syncs instead of sends
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=99))]
    syncs: u8,
    #[command(flatten)]
    load: LoadArgs,
}

impl Args {
    /// What the command line would say.
    pub(super) fn new(spawn: SpawnArgs, load: LoadArgs, pairs: Pairs, syncs: u8) -> Self {
        Self {
            spawn,
            target: Vec::new(),
            secret_file: None,
            cross_shard: pairs == Pairs::CrossShard,
            same_shard: pairs == Pairs::SameShard,
            syncs,
            load,
        }
    }

    fn pairs(&self) -> Pairs {
        match (self.cross_shard, self.same_shard) {
            (true, _) => Pairs::CrossShard,
            (_, true) => Pairs::SameShard,
            (false, false) => Pairs::Any,
        }
    }
}

/// The flags of the load, the same over gRPC and through gateways.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LoadArgs {
    /// Seconds that are measured, after the warm-up
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub(super) seconds: u64,
    /// Seconds of load before anything is measured
    #[arg(long, value_name = "S", default_value_t = 3)]
    pub(super) warmup: u64,
    /// Closed loop: sends on the way at any time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) in_flight: u32,
    /// Open loop: sends begun per second
    #[arg(long, value_name = "N", conflicts_with = "in_flight", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rate: Option<u64>,
    /// Users, registered before the clock starts
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = parse_users)]
    pub(super) users: usize,
    /// Bytes of every body
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) body_bytes: usize,
}

fn parse_users(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(users) if users > 0 => Ok(users),
        _ => Err(format!("`{text}` is not a number of users, from 1")),
    }
}

impl LoadArgs {
    /// The load that was asked for.
    pub(super) fn shape(&self) -> Shape {
        match self.rate {
            Some(rate) => Shape::Open { rate },
            None => Shape::Closed {
                in_flight: self.in_flight as usize,
            },
        }
    }

    /// A run's clock, started now.
    pub(super) fn clock(&self) -> Arc<Clock> {
        Clock::start(
            Duration::from_secs(self.warmup),
            Duration::from_secs(self.seconds),
        )
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<Report> {
    let (spawned, client, nodes) = match args.spawn.spawn {
        Some(nodes) => {
            let spawned = Spawned::start(&args.spawn, nodes, false).await?;
            let client = spawned.cluster.client().await?;
            (Some(spawned), client, nodes)
        }
        None => {
            let node = NodeArgs {
                addresses: args.target.clone(),
                secret_file: args.secret_file.clone(),
                token: None,
                cluster_id: None,
                ca_file: None,
            };
            let client = node.connect().await?;
            let nodes = client.shard_map().await?.nodes.len();
            (None, client, nodes)
        }
    };
    let users = register(&client, args.load.users).await?;
    let shards = client.shard_map().await?.shards.len();
    let pairs = args.pairs();
    if pairs == Pairs::CrossShard && shards < 2 {
        bail!("--cross-shard needs a cluster of several shards: say --shards");
    }
    let users = Arc::new(Users::new(&client, users));
    let delivery = match pairs {
        Pairs::Any => None,
        Pairs::SameShard | Pairs::CrossShard => Some(Delivery::start(&client, users.all()).await?),
    };
    let clock = args.load.clock();
    let devices = Arc::new(Devices::default());
    let runners = Runners::start(&clock, args.load.shape(), |_| {
        let mut source = Source {
            client: client.clone(),
            users: Arc::clone(&users),
            pairs,
            syncs: args.syncs,
            devices: Arc::clone(&devices),
            body_bytes: args.load.body_bytes,
            delivery: delivery.clone(),
            clock: Arc::clone(&clock),
            rng: rand::make_rng(),
        };
        move || source.operate()
    });
    let measured = Measured::take(&clock, spawned.as_ref(), &args.load, &args.spawn).await?;
    let latencies = runners.finish().await?;
    let mut report = measured.report(&args.load, nodes, &clock, &latencies.us, spawned.as_ref());
    report.shards = shards as u64;
    if args.syncs > 0 {
        report.syncs_per_s = Some(measured.reads_per_s());
        report.sync_p50_ms = Some(percentile_ms(&latencies.reads_us, 50.0));
        report.sync_p99_ms = Some(percentile_ms(&latencies.reads_us, 99.0));
    }
    if let Some(delivery) = delivery {
        let delivered = delivery.finish().await;
        report.undelivered = Some(delivered.undelivered);
        report.delivery_p50_ms = Some(percentile_ms(&delivered.latencies_us, 50.0));
        report.delivery_p99_ms = Some(percentile_ms(&delivered.latencies_us, 99.0));
    }
    if let Some(spawned) = spawned {
        spawned.stop().await?;
    }
    Ok(report)
}

/// Makes the operations of one runner.
struct Source {
    client: Client,
    users: Arc<Users>,
    pairs: Pairs,
    /// Of 100 operations.
    syncs: u8,
    devices: Arc<Devices>,
    body_bytes: usize,
    delivery: Option<Arc<Delivery>>,
    clock: Arc<Clock>,
    rng: SmallRng,
}

impl Source {
    /// Hands one operation over, a send or a sync.
    fn operate(&mut self) -> impl Future<Output = Ended> + use<> {
        if self.syncs > 0 && self.rng.random_range(0..100) < self.syncs {
            let user = self.users.any(&mut self.rng);
            let devices = Arc::clone(&self.devices);
            Either::Left(devices.sync(self.client.clone(), user))
        } else {
            Either::Right(self.send().map(Ended::from))
        }
    }

    /// Hands one send over; resolves to whether it was acked.
    fn send(&mut self) -> impl Future<Output = bool> + use<> {
        let request = self.request();
        let client = self.client.clone();
        let watched = self.delivery.as_ref().filter(|_| self.clock.is_measured());
        let watched = watched.and_then(|delivery| delivery.watch(&request));
        async move {
            let sent = client.send(request).await;
            if let Some(watched) = watched {
                watched.answered(sent.is_ok());
            }
            match sent {
                Ok(_) => true,
                Err(error) => {
                    tracing::error!(%error, "send");
                    false
                }
            }
        }
    }

    fn request(&mut self) -> SendRequest {
        let (sender, recipient) = self.users.pair(self.pairs, &mut self.rng);
        let mut body = vec![0; self.body_bytes];
        self.rng.fill(body.as_mut_slice());
        direct(&self.client, sender, recipient, body)
    }
}

/// A 1:1 send with a fresh id.
pub(super) fn direct(client: &Client, sender: u64, recipient: u64, body: Vec<u8>) -> SendRequest {
    let id = client.new_message_id().into_bytes();
    SendRequest {
        sender: Some(user_id(sender)),
        destination: Some(send_request::Destination::User(user_id(recipient))),
        content_crc: content_crc(&id, MessageType::Opaque, &body),
        client_msg_id: Bytes::copy_from_slice(&id),
        r#type: MessageType::Opaque as i32,
        body: Bytes::from(body),
        shown_message_id: 0,
    }
}

/// One device of each user that has synced: what it has seen.
#[derive(Default)]
struct Devices {
    seen: Mutex<HashMap<u64, u64>>,
}

impl Devices {
    /// Asks for the messages of a user's mailbox that the device lacks, the oldest of them first.
    async fn sync(self: Arc<Self>, client: Client, user: u64) -> Ended {
        let after_seq = self.seen.lock().get(&user).copied().unwrap_or(0);
        let timeline = Timeline {
            kind: TimelineKind::Mailbox as i32,
            owner: user,
        };
        let request = SyncRequest {
            ranges: vec![SyncRange {
                timeline: Some(timeline),
                after_seq,
            }],
            limit: SYNC_MESSAGES,
            ..SyncRequest::default()
        };
        match client.sync(request).await {
            Ok(answer) => {
                let pages = answer.pages.iter();
                let last = pages.filter_map(|page| page.messages.last());
                if let Some(seq) = last.map(|message| message.seq).max() {
                    let mut seen = self.seen.lock();
                    let seen = seen.entry(user).or_default();
                    *seen = seq.max(*seen);
                }
                Ended::Read
            }
            Err(error) => {
                tracing::error!(%error, "sync");
                Ended::Failed
            }
        }
    }
}

/// Which shards sender and recipient are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Both from all users.
    Any,
    SameShard,
    CrossShard,
}

/// The users by shard; a shard without users is left out.
struct Users {
    by_shard: Vec<Vec<u64>>,
    count: usize,
}

impl Users {
    fn new(client: &Client, users: Arc<[u64]>) -> Self {
        Self::by(users, |user| client.shard_of_owner(user))
    }

    fn by(users: Arc<[u64]>, shard_of: impl Fn(u64) -> u32) -> Self {
        let mut by_shard: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for user in users.iter() {
            by_shard.entry(shard_of(*user)).or_default().push(*user);
        }
        Self {
            by_shard: by_shard.into_values().collect(),
            count: users.len(),
        }
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        self.by_shard.iter().flatten().copied()
    }

    /// A user, uniformly.
    fn any(&self, rng: &mut SmallRng) -> u64 {
        self.nth(rng.random_range(0..self.count)).1
    }

    /// A sender and a recipient, each uniformly among those that fit.
    fn pair(&self, pairs: Pairs, rng: &mut SmallRng) -> (u64, u64) {
        let (home, sender) = self.nth(rng.random_range(0..self.count));
        let own = &self.by_shard[home];
        let recipient = match pairs {
            Pairs::Any => self.any(rng),
            Pairs::SameShard => own[rng.random_range(0..own.len())],
            // All users of one shard: there is no other recipient.
            Pairs::CrossShard if own.len() == self.count => sender,
            Pairs::CrossShard => loop {
                let (shard, user) = self.nth(rng.random_range(0..self.count));
                if shard != home {
                    break user;
                }
            },
        };
        (sender, recipient)
    }

    fn nth(&self, mut number: usize) -> (usize, u64) {
        for (shard, users) in self.by_shard.iter().enumerate() {
            if let Some(user) = users.get(number) {
                return (shard, *user);
            }
            number -= users.len();
        }
        unreachable!("a number below the count of users")
    }
}

/// What was used inside the measured time.
pub(super) struct Measured {
    before: Option<Usage>,
    after: Option<Usage>,
    client_cpu_us: u64,
    seconds: f64,
    acked: u64,
    /// Syncs answered.
    read: u64,
}

impl Measured {
    /// Syncs answered in a second.
    fn reads_per_s(&self) -> f64 {
        round(self.read as f64 / self.seconds, 1)
    }

    /// Looks at all counters at the end of the warm-up and at the end of the measured time.
    /// Meanwhile profiles are recorded, if they are wanted.
    pub(super) async fn take(
        clock: &Clock,
        spawned: Option<&Spawned>,
        load: &LoadArgs,
        spawn: &SpawnArgs,
    ) -> anyhow::Result<Self> {
        let usage = async || match spawned {
            Some(spawned) => spawned.usage().await.map(Some),
            None => Ok(None),
        };
        clock.warmed_up().await;
        let begin = std::time::Instant::now();
        let before = usage().await?;
        let profile = match (spawned, &spawn.profile) {
            (Some(spawned), Some(dir)) => {
                Some(Profile::start(dir, &spawned.cluster, load.seconds).await?)
            }
            _ => None,
        };
        let cpu_before = process::own_cpu_us()?;
        clock.ended().await;
        let client_cpu_us = process::own_cpu_us()? - cpu_before;
        let after = usage().await?;
        let seconds = begin.elapsed().as_secs_f64();
        if let (Some(profile), Some(spawned)) = (profile, spawned) {
            let nodes = spawned.cluster.nodes().len();
            tokio::task::spawn_blocking(move || profile.finish(nodes)).await??;
        }
        Ok(Self {
            before,
            after,
            client_cpu_us,
            seconds,
            acked: clock.acked(),
            read: clock.read(),
        })
    }

    /// The figures, per second and per acked send.
    pub(super) fn report(
        &self,
        load: &LoadArgs,
        nodes: usize,
        clock: &Clock,
        latencies_us: &Histogram<u64>,
        spawned: Option<&Spawned>,
    ) -> Report {
        let used = |of: fn(&Usage) -> u64| {
            let (before, after) = (self.before.as_ref()?, self.after.as_ref()?);
            // Stored bytes may also shrink: compaction.
            Some(per_send(of(after).saturating_sub(of(before)), self.acked))
        };
        let fsyncs = self.before.and_then(|before| before.fsyncs);
        let fsyncs = fsyncs.zip(self.after.and_then(|after| after.fsyncs));
        let (in_flight, rate, shape) = match load.shape() {
            Shape::Closed { in_flight } => (Some(in_flight as u64), None, "closed"),
            Shape::Open { rate } => (None, Some(rate), "open"),
        };
        let percentile = |percent| percentile_ms(latencies_us, percent);
        Report {
            nodes: nodes as u64,
            shards: 1,
            users: load.users as u64,
            in_flight,
            rate,
            body_bytes: load.body_bytes as u64,
            shape,
            warmup_s: load.warmup as f64,
            fs: spawned.map(|spawned| spawned.file_system.clone()),
            fsync: true,
            sends_per_s: round(self.acked as f64 / self.seconds, 1),
            errors: clock.errors(),
            p50_ms: percentile(50.0),
            p95_ms: percentile(95.0),
            p99_ms: percentile(99.0),
            p999_ms: percentile(99.9),
            server_cpu_us_per_send: used(|usage| usage.cpu_us),
            client_cpu_us_per_send: per_send(self.client_cpu_us, self.acked),
            fsyncs_per_s: fsyncs.map(|(before, after)| {
                round(after.saturating_sub(before) as f64 / self.seconds, 1)
            }),
            disk_fdatasync_per_s: spawned.map(|spawned| round(spawned.fdatasync_per_s, 1)),
            bytes_per_send: used(|usage| usage.written_bytes),
            stored_bytes_per_send: used(|usage| usage.stored_bytes),
            undelivered: None,
            delivery_p50_ms: None,
            delivery_p99_ms: None,
            syncs_per_s: None,
            sync_p50_ms: None,
            sync_p99_ms: None,
            stages: self.stages(),
        }
    }

    fn stages(&self) -> StageFigures {
        let looks = self.before.zip(self.after);
        looks.map_or_else(StageFigures::default, |(before, after)| {
            let (before, after) = (before.stages, after.stages);
            after.figures(&before, self.acked, self.seconds)
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn pairs_are_drawn_from_the_shards_asked_for() {
        let shard_of = |user: u64| u32::try_from(user % 3).unwrap_or(0);
        let users = Users::by((1..=100).collect(), shard_of);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut crossed = 0;
        for _ in 0..1000 {
            let (a, b) = users.pair(Pairs::CrossShard, &mut rng);
            assert_ne!(shard_of(a), shard_of(b));
            let (a, b) = users.pair(Pairs::SameShard, &mut rng);
            assert_eq!(shard_of(a), shard_of(b));
            let (a, b) = users.pair(Pairs::Any, &mut rng);
            crossed += usize::from(shard_of(a) != shard_of(b));
        }
        assert!((500..900).contains(&crossed), "{crossed} of 1000");
    }
}
