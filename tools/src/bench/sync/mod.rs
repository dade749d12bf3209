//! `mailbox-bench sync`: devices that were away read what they have missed.

mod fill;
mod page;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use hdrhistogram::Histogram;
use mailbox_client::Client;
use mailbox_cluster::{AuthKey, Cluster};
use mailbox_sdk as sdk;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

pub(super) use report::Report;

use super::cluster::{CpuByPart, SpawnArgs, Spawned, register};
use super::disk::Dropped;
use super::load::{Clock, Runners, Shape};
use super::profile::Profile;
use super::report::{per_send, percentile_ms, round};
use page::{Mailbox, Synced};

/// How long devices' tokens are valid: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);
/// Log-ins begun at a time.
const AT_ONCE: usize = 64;

/// Syncs of devices that have missed the newest messages of their mailboxes.
///
/// The mailboxes of --users are filled first. One sync then reads the newest --rows messages of one mailbox, page by
/// page (a gateway puts at most 500 messages or 256 KiB of bodies on a page), and looks at every seq; the exit status is
/// 1 if a sync failed or did not bring just these. The store is asked as a gateway asks it, or with --gateway a gateway
/// is, by devices over WebSockets.
///
/// By default mailboxes are hot: every one was read once before the clock starts, and they are drawn at random. With
/// --cold all memtables are flushed, all nodes stopped, their files dropped from the page cache as far as the system
/// takes that advice, and the nodes started again; then each mailbox is read once, and the run ends with the last
/// one. `disk_read_bytes_per_sync` tells how cold they were.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["spawn"]))]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) spawn: SpawnArgs,
    /// Messages that one sync reads: 25, 100 and 1000 are the usual ones
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) rows: u32,
    /// Mailboxes; the hotter and the fewer, the surer they are in the tail caches
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) users: u32,
    /// Messages that each mailbox holds at least; default: as many as one sync reads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) messages: Option<u32>,
    /// Read each mailbox once, after a restart without caches
    #[arg(long, conflicts_with = "gateway")]
    pub(super) cold: bool,
    /// Ask a gateway instead of the store
    #[arg(long)]
    pub(super) gateway: bool,
    /// WebSockets with --gateway, each of another user; their mailboxes are those that are read
    #[arg(long, value_name = "N", default_value_t = 256, requires = "gateway", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) connections: u32,
    /// Closed loop: syncs on the way at any time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) in_flight: u32,
    /// Open loop: syncs begun per second
    #[arg(long, value_name = "N", conflicts_with = "in_flight", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rate: Option<u64>,
    /// Seconds that are measured at most
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) seconds: u64,
    /// Seconds of load before anything is measured; none in a cold run
    #[arg(long, value_name = "S", default_value_t = 3)]
    pub(super) warmup: u64,
    /// Bytes of every body
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) body_bytes: usize,
}

impl Options {
    /// What the command line's defaults are, for a cluster that is spawned like this.
    pub(super) fn new(spawn: SpawnArgs) -> Self {
        Self {
            spawn,
            rows: 25,
            users: 1000,
            messages: None,
            cold: false,
            gateway: false,
            connections: 256,
            in_flight: 256,
            rate: None,
            seconds: 20,
            warmup: 3,
            body_bytes: 100,
        }
    }

    /// With no more syncs on the way than there are mailboxes to be read once.
    fn shape(&self) -> Shape {
        let most = if self.cold { self.users } else { u32::MAX };
        match self.rate {
            Some(rate) => Shape::Open { rate },
            None => Shape::Closed {
                in_flight: self.in_flight.min(most) as usize,
            },
        }
    }

    fn messages(&self) -> u32 {
        self.messages.unwrap_or(self.rows).max(self.rows)
    }

    fn warmup(&self) -> u64 {
        if self.cold { 0 } else { self.warmup }
    }

    fn clock(&self) -> Arc<Clock> {
        let seconds = Duration::from_secs;
        Clock::start(seconds(self.warmup()), seconds(self.seconds))
    }
}

/// Starts a cluster, fills it, measures and stops it.
///
/// # Errors
/// When the cluster does not start, or cannot be filled. Syncs that fail or bring other rows are no error here: the
/// report tells of them.
pub(super) async fn run(options: &Options) -> anyhow::Result<Report> {
    let nodes = options.spawn.spawn.context("say --spawn N")?;
    let spawned = Spawned::start(&options.spawn, nodes, options.gateway).await?;
    let report = measure(&spawned, options).await?;
    spawned.stop().await?;
    Ok(report)
}

/// Fills and measures a cluster that is there, started with gateways if the options ask one. A cold run restarts it.
///
/// # Errors
/// As [`run`].
pub(super) async fn measure(spawned: &Spawned, options: &Options) -> anyhow::Result<Report> {
    let cluster = &spawned.cluster;
    let client = cluster.client().await?;
    let users = register(&client, options.users as usize).await?;
    let messages = options.messages();
    let filled = fill::fill(cluster, &client, &users, messages, options.body_bytes).await?;
    if let Some(short) = filled.iter().find(|held| held.head < messages.into()) {
        bail!(
            "mailbox:{} ends at seq {}, but {messages} messages were sent to it",
            short.user,
            short.head
        );
    }
    let mut mailboxes = filled;
    mailboxes.shuffle(&mut rand::rng());
    let (way, dropped) = if options.gateway {
        mailboxes.truncate(options.connections as usize);
        (Way::Gateway(devices(cluster, &mailboxes).await?), None)
    } else if options.cold {
        let dropped = fill::chill(cluster, &client).await?;
        (Way::Store(client.clone()), Some(dropped))
    } else {
        (Way::Store(client.clone()), None)
    };
    let readers = Arc::new(Readers {
        way,
        mailboxes,
        rows: options.rows,
        pages: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
        wrong: AtomicU64::new(0),
        next: AtomicUsize::new(0),
    });
    if !options.cold {
        readers.read_all(options.in_flight as usize).await?;
    }
    let (window, latencies_us, clock) = Window::take(cluster, options, &readers).await?;
    if let Way::Gateway(devices) = &readers.way {
        for device in devices {
            device.close().await?;
        }
    }
    let shards = client.shard_map().await?.shards.len();
    let mut report = window.report(spawned, options, &readers, &latencies_us);
    report.shards = shards as u64;
    report.errors = clock.errors();
    report.dropped_files = dropped.map(|dropped: Dropped| dropped.files);
    report.dropped_bytes = dropped.map(|dropped| dropped.bytes);
    Ok(report)
}

/// One connection for each mailbox, over all gateways in turn.
async fn devices(cluster: &Cluster, mailboxes: &[Mailbox]) -> anyhow::Result<Vec<sdk::Client>> {
    let key = AuthKey::read(cluster.auth_key_file())?;
    let urls = cluster.nodes().iter().filter_map(|node| node.gateway_url());
    let urls: Vec<String> = urls.collect();
    if urls.is_empty() {
        bail!("there is no gateway");
    }
    let connects = mailboxes.iter().zip(urls.iter().cycle());
    let connects = connects.map(|(mailbox, url)| {
        let token = key.issue(&mailbox.user.to_string(), TOKEN_TTL);
        async move {
            let options = sdk::ConnectOptions {
                receive: false,
                device: "bench".to_owned(),
                ..sdk::ConnectOptions::new(url, token?.0)
            };
            anyhow::Ok(sdk::Client::connect(options).await?)
        }
    });
    let connects = futures_util::stream::iter(connects).buffered(AT_ONCE);
    connects.try_collect().await
}

/// Who is asked.
enum Way {
    Store(Client),
    /// One device for each mailbox, in the same order.
    Gateway(Vec<sdk::Client>),
}

/// All that reads.
struct Readers {
    way: Way,
    /// Shuffled.
    mailboxes: Vec<Mailbox>,
    rows: u32,
    pages: AtomicU64,
    /// Answered, right or wrong.
    syncs: AtomicU64,
    wrong: AtomicU64,
    /// Of a run that reads each mailbox once: the one whose turn it is.
    next: AtomicUsize,
}

impl Readers {
    /// Reads one mailbox; whether it was answered.
    async fn read(&self, number: usize) -> bool {
        let Some(mailbox) = self.mailboxes.get(number).copied() else {
            return false;
        };
        let synced = match &self.way {
            Way::Store(client) => page::from_store(client, mailbox, self.rows)
                .await
                .map_err(anyhow::Error::from),
            Way::Gateway(devices) => match devices.get(number) {
                Some(device) => page::from_gateway(device, mailbox, self.rows)
                    .await
                    .map_err(anyhow::Error::from),
                None => return false,
            },
        };
        match synced {
            Ok(Synced { pages, is_right }) => {
                self.pages.fetch_add(pages, Ordering::Relaxed);
                self.syncs.fetch_add(1, Ordering::Relaxed);
                self.wrong
                    .fetch_add(u64::from(!is_right), Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::error!(user = mailbox.user, %error, "sync");
                false
            }
        }
    }

    /// Reads every mailbox once, so that it is in every cache that takes it.
    async fn read_all(&self, at_once: usize) -> anyhow::Result<()> {
        let reads = (0..self.mailboxes.len()).map(|number| self.read(number));
        let reads = futures_util::stream::iter(reads).buffer_unordered(at_once);
        let failed = reads.filter(|read| std::future::ready(!read)).count().await;
        if failed > 0 {
            bail!("{failed} mailboxes could not be read before the clock started");
        }
        Ok(())
    }

    /// A mailbox at random.
    fn any(&self, rng: &mut SmallRng) -> usize {
        rng.random_range(0..self.mailboxes.len())
    }

    /// The mailbox whose turn it is; with the last one the run is over. The few that other runners begin in that moment
    /// read some mailbox a second time.
    fn in_turn(&self, clock: &Clock, rng: &mut SmallRng) -> usize {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number + 1 >= self.mailboxes.len() {
            clock.stop();
        }
        if number < self.mailboxes.len() {
            number
        } else {
            self.any(rng)
        }
    }
}

/// What was used inside the measured time.
struct Window {
    seconds: f64,
    syncs: u64,
    cpu: CpuByPart,
    read_bytes: u64,
}

impl Window {
    /// Loads, and looks at everything when the measured time begins and when it ends.
    async fn take(
        cluster: &Cluster,
        options: &Options,
        readers: &Arc<Readers>,
    ) -> anyhow::Result<(Self, Histogram<u64>, Arc<Clock>)> {
        let clock = options.clock();
        let look = || anyhow::Ok((CpuByPart::of(cluster)?, cluster.io_bytes().read));
        // The first look of a cold run comes before the first sync.
        let first = look()?;
        let begin = Instant::now();
        let runners = Runners::start(&clock, options.shape(), |_| {
            let (readers, clock) = (Arc::clone(readers), Arc::clone(&clock));
            let (cold, mut rng): (_, SmallRng) = (options.cold, rand::make_rng());
            move || {
                let number = match cold {
                    true => readers.in_turn(&clock, &mut rng),
                    false => readers.any(&mut rng),
                };
                let readers = Arc::clone(&readers);
                async move { readers.read(number).await }
            }
        });
        let (begin, (cpu, read), runners) = if options.cold {
            (begin, first, runners)
        } else {
            clock.warmed_up().await;
            (Instant::now(), look()?, runners)
        };
        let profile = match &options.spawn.profile {
            Some(dir) => Some(Profile::start(dir, cluster, options.seconds).await?),
            None => None,
        };
        let (latencies, (cpu_after, read_after), seconds, acked) = if options.cold {
            let latencies = runners.finish().await?;
            (latencies, look()?, begin.elapsed(), clock.acked())
        } else {
            clock.ended().await;
            let (after, seconds, acked) = (look()?, begin.elapsed(), clock.acked());
            (runners.finish().await?, after, seconds, acked)
        };
        if let Some(profile) = profile {
            let nodes = cluster.nodes().len();
            tokio::task::spawn_blocking(move || profile.finish(nodes)).await??;
        }
        let window = Self {
            seconds: seconds.as_secs_f64(),
            syncs: acked,
            cpu: cpu_after.since(cpu),
            read_bytes: read_after.saturating_sub(read),
        };
        Ok((window, latencies.us, clock))
    }

    /// The figures, per second and per sync.
    fn report(
        &self,
        spawned: &Spawned,
        options: &Options,
        readers: &Readers,
        latencies_us: &Histogram<u64>,
    ) -> Report {
        let (in_flight, rate, shape) = match options.shape() {
            Shape::Closed { in_flight } => (Some(in_flight as u64), None, "closed"),
            Shape::Open { rate } => (None, Some(rate), "open"),
        };
        let per_s = self.syncs as f64 / self.seconds;
        let percentile = |percent| percentile_ms(latencies_us, percent);
        let read = readers.mailboxes.len() as u64;
        let counted = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Report {
            nodes: spawned.cluster.nodes().len() as u64,
            shards: 0,
            users: options.users.into(),
            rows: options.rows.into(),
            messages: options.messages().into(),
            body_bytes: options.body_bytes as u64,
            cold: options.cold,
            dropped_files: None,
            dropped_bytes: None,
            gateway: options.gateway,
            connections: options.gateway.then_some(read),
            shape,
            in_flight,
            rate,
            warmup_s: options.warmup() as f64,
            seconds: round(self.seconds, 2),
            fs: spawned.file_system.clone(),
            syncs: self.syncs,
            syncs_per_s: round(per_s, 1),
            rows_per_s: round(per_s * f64::from(options.rows), 1),
            pages_per_sync: per_send(counted(&readers.pages), counted(&readers.syncs)),
            errors: 0,
            wrong: counted(&readers.wrong),
            p50_ms: percentile(50.0),
            p95_ms: percentile(95.0),
            p99_ms: percentile(99.0),
            p999_ms: percentile(99.9),
            store_cpu_us_per_sync: per_send(self.cpu.store_us, self.syncs),
            gateway_cpu_us_per_sync: per_send(self.cpu.gateway_us, self.syncs),
            generator_cpu_us_per_sync: per_send(self.cpu.generator_us, self.syncs),
            disk_read_bytes_per_sync: per_send(self.read_bytes, self.syncs),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;
    use rand::SeedableRng as _;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("sync").chain(line.split_whitespace());
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
            "--spawn 1 --rows 0",
            "--spawn 1 --cold --gateway",
            "--spawn 1 --connections 5",
            "--spawn 1 --rate 10 --in-flight 10",
        ] {
            assert!(options(line).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn a_mailbox_holds_what_one_sync_reads() {
        assert_eq!(options("--spawn 1 --rows 100").unwrap().messages(), 100);
        let fewer = options("--spawn 1 --rows 100 --messages 10").unwrap();
        assert_eq!(fewer.messages(), 100);
        let more = options("--spawn 1 --rows 100 --messages 500").unwrap();
        assert_eq!(more.messages(), 500);
    }

    #[tokio::test]
    async fn a_cold_run_reads_each_mailbox_once_and_ends_with_the_last() {
        let mailbox = |user| Mailbox { user, head: 25 };
        let readers = Readers {
            way: Way::Gateway(Vec::new()),
            mailboxes: (1..=40).map(mailbox).collect(),
            rows: 25,
            pages: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            next: AtomicUsize::new(0),
        };
        let clock = Clock::start(Duration::ZERO, Duration::from_secs(60));
        let mut rng = SmallRng::seed_from_u64(1);
        let mut read = BTreeSet::new();
        for _ in 0..40 {
            assert!(!clock.is_over(Instant::now()));
            read.insert(readers.in_turn(&clock, &mut rng));
        }
        assert_eq!(read.len(), 40);
        assert!(clock.is_over(Instant::now()));
        // Another runner may have been about to begin one.
        assert!(readers.in_turn(&clock, &mut rng) < 40);
    }
}
