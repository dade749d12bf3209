//! `mailbox-bench peer`: other systems under the load of `mailbox-bench send`, for comparison.
//!
//! A peer does the same work. One send is the sender's copy, the recipient's copy and something that makes a repeat
//! harmless, all durable before the ack. Each is started as real processes in a throw-away directory, configured as
//! durable as it can be, asked first whether it does this work, and driven by the same loop that drives a cluster of
//! ours. Where a choice was open, it is the one that is better for the peer.

mod account;
mod driver;
mod etcd;
mod message;
mod nats;
mod postgres;
mod redis;
mod report;
mod resp;
mod servers;
mod usage;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::signal::unix::{SignalKind, signal};

use super::cluster;
use super::disk;
use super::load::{Clock, Runners, Shape};
use super::report::{per_send, percentile_ms, round};
use crate::process;
use driver::Driver;
use message::{Message, Source};
use nats::Publish;
pub(crate) use report::{Report, Round};
use servers::Servers;

/// What to do about a peer that is not there.
const FIX: &str = "install it with tools/scripts/peers.sh";

/// Put another system under the same load: NATS JetStream, etcd, Redis or PostgreSQL
///
/// The peer does the same work as a cluster under `send`: one send is the sender's copy, the recipient's copy and an
/// id that makes a repeat harmless, durable before the ack. It is started for each round in a new directory, asked
/// first whether a send and its repeat leave one copy in each mailbox, loaded by a closed loop, and stopped.
/// tools/scripts/peers.sh installs the peers; tools/README.md says how each is configured, and why.
///
/// The figures of several rounds are their medians. Each peer's figure on another machine of two cores is printed
/// beside; one that reaches less than three quarters of it is told of, with what the machine had to give.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The system to load
    #[arg(value_enum)]
    peer: Kind,
    /// Rounds, each with new processes and no data; figures are medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where the peer keeps its data; a new directory in it is made and removed again
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, default_value = "./target/bench")]
    dir: PathBuf,
    #[command(flatten)]
    load: Load,
}

/// The load of one round.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    /// Seconds that are measured, after the warm-up
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,
    /// Seconds of load before anything is measured
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub(crate) warmup: u64,
    /// Sends on the way at any time, 1 to 2048; default: those of the peer's known figure, which are 768 for nats,
    /// 64 for nats-batch, etcd and redis, 256 for postgres
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub(crate) in_flight: Option<u32>,
    /// Mailboxes, at least 2
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(2..=100_000_000))]
    pub(crate) users: u64,
    /// Bytes of every body, at most 16384
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=16_384))]
    pub(crate) body_bytes: u32,
    /// Take a DIR in memory, where an fsync costs and proves nothing
    #[arg(long)]
    pub(crate) allow_tmpfs: bool,
    /// The `nats-server` to run; default: the one on PATH, else where `go install` puts it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) nats_server: Option<PathBuf>,
}

/// A system to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// NATS JetStream, three servers: two messages on the mailboxes' subjects, with ids
    Nats,
    /// The same, as an atomic batch of two
    NatsBatch,
    /// etcd, three nodes: one transaction of an id and two rows, if the id is new
    Etcd,
    /// Redis, one node, not replicated: one script of SET NX and two XADD
    Redis,
    /// PostgreSQL, one node, not replicated: one transaction of an id, two heads and two rows
    Postgres,
}

impl Kind {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::NatsBatch => "nats-batch",
            Self::Etcd => "etcd",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// Sends per second that were seen on a machine of two cores with an fdatasync of 0.4 ms, the generator on it.
    pub(crate) fn expected_sends_per_s(self) -> f64 {
        match self {
            Self::Nats => 6900.0,
            Self::NatsBatch => 3000.0,
            Self::Etcd => 2100.0,
            Self::Redis => 16_100.0,
            Self::Postgres => 6700.0,
        }
    }

    /// Sends on the way when that was seen. For NATS by its rate and its median latency.
    fn expected_in_flight(self) -> u32 {
        match self {
            Self::Nats => 768,
            Self::NatsBatch | Self::Etcd | Self::Redis => 64,
            Self::Postgres => 256,
        }
    }
}

/// A peer that runs and takes sends.
struct Started {
    driver: Driver,
    nodes: u64,
    /// As it says itself.
    version: String,
}

/// `mailbox-bench peer`: all rounds, until a signal ends them.
pub(super) async fn command(args: Args) -> anyhow::Result<Report> {
    let rounds = async {
        let mut rounds = Vec::new();
        for number in 1..=args.rounds {
            eprintln!("{}: round {number} of {}", args.peer.name(), args.rounds);
            rounds.push(Box::pin(run(args.peer, &args.load, &args.dir)).await?);
        }
        Report::of(args.peer, &rounds)
    };
    until_interrupted(rounds).await
}

/// Does `work` until it is done, or until a Ctrl-C or a SIGTERM: then the work is dropped, and with it its processes
/// and their files. Whoever runs several peers wraps all of it: once this was called, a Ctrl-C does nothing else.
///
/// # Errors
/// Those of the work, or it was interrupted.
pub(crate) async fn until_interrupted<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let name = tokio::select! {
        done = work => return done,
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
    };
    bail!("{name}: what ran is stopped, and its files are removed")
}

/// One round: starts the peer in a new directory in `dir`, loads it, stops it and removes the directory. Takes
/// `load.warmup` + `load.seconds` and some ten seconds more. Dropped, it stops the peer at once.
///
/// # Errors
/// The peer is not installed, does not start within a minute, does not do the work, or ended during the round. Sends
/// that failed are no error here: the round counts them.
pub(crate) async fn run(kind: Kind, load: &Load, dir: &Path) -> anyhow::Result<Round> {
    let (file_system, fdatasync_per_s) = cluster::probe(dir, load.allow_tmpfs)?;
    let in_flight = load.in_flight.unwrap_or(kind.expected_in_flight());
    let mut servers = Servers::new(dir)?;
    eprintln!("starting {} in {}", kind.name(), servers.dir().display());
    let started = Box::pin(start(kind, load, in_flight, &mut servers)).await;
    let started = started.with_context(|| format!("start {}", kind.name()))?;
    prove(&started.driver).await?;
    let mut round = drive(&started.driver, load, in_flight, &servers).await?;
    servers.require_running()?;
    round.version = started.version;
    round.nodes = started.nodes;
    round.fs = file_system;
    round.disk_fdatasync_per_s = self::round(fdatasync_per_s, 1);
    // Its clients first: a server may wait for them.
    drop(started.driver);
    servers.stop().await?;
    Ok(round)
}

async fn start(
    kind: Kind,
    load: &Load,
    in_flight: u32,
    servers: &mut Servers,
) -> anyhow::Result<Started> {
    match kind {
        Kind::Nats => nats::start(load, Publish::Singly, servers).await,
        Kind::NatsBatch => nats::start(load, Publish::Batch, servers).await,
        Kind::Etcd => etcd::start(servers).await,
        Kind::Redis => redis::start(in_flight, servers).await,
        Kind::Postgres => postgres::start(load, in_flight, servers).await,
    }
}

/// A send and its repeat must leave one copy in each mailbox. Nothing else has been sent yet.
async fn prove(driver: &Driver) -> anyhow::Result<()> {
    let message = Message::draw(2, 100, &mut SmallRng::seed_from_u64(0));
    for attempt in ["a first send", "its repeat"] {
        driver.send(&message).await.context(attempt)?;
    }
    let copies = driver.copies([message.sender, message.recipient]).await;
    let copies = copies.context("count the copies of a send")?;
    ensure!(
        copies == 2,
        "a send and its repeat left {copies} copies, not 2: this peer does not do the work"
    );
    Ok(())
}

/// Ends a load whose round is given up.
struct StopOnDrop(Arc<Clock>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Loads the peer and measures. What only its start knows is filled in by whoever started it.
async fn drive(
    driver: &Driver,
    load: &Load,
    in_flight: u32,
    servers: &Servers,
) -> anyhow::Result<Round> {
    let clock = Clock::start(
        Duration::from_secs(load.warmup),
        Duration::from_secs(load.seconds),
    );
    let stop = StopOnDrop(Arc::clone(&clock));
    let runners = begin(&clock, driver, load, in_flight);
    clock.warmed_up().await;
    let (begun, cpu_before) = (Instant::now(), process::own_cpu_us()?);
    let (server_before, stored_before) = (servers.cpu_us(), disk::stored_bytes(servers.dir())?);
    clock.ended().await;
    let seconds = begun.elapsed().as_secs_f64();
    let server_cpu_us = servers.cpu_us().saturating_sub(server_before);
    let client_cpu_us = process::own_cpu_us()?.saturating_sub(cpu_before);
    // Files that are written anew may also shrink.
    let stored = disk::stored_bytes(servers.dir())?.saturating_sub(stored_before);
    let acked = clock.acked();
    let latencies = runners.finish().await?.us;
    drop(stop);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let busy_us = (server_cpu_us + client_cpu_us) as f64;
    let percentile = |percent| percentile_ms(&latencies, percent);
    Ok(Round {
        version: String::new(),
        nodes: 0,
        users: load.users,
        in_flight: u64::from(in_flight),
        body_bytes: u64::from(load.body_bytes),
        warmup_s: load.warmup as f64,
        fs: String::new(),
        sends_per_s: round(acked as f64 / seconds, 1),
        errors: clock.errors(),
        p50_ms: percentile(50.0),
        p95_ms: percentile(95.0),
        p99_ms: percentile(99.0),
        p999_ms: percentile(99.9),
        server_cpu_us_per_send: per_send(server_cpu_us, acked),
        client_cpu_us_per_send: per_send(client_cpu_us, acked),
        disk_fdatasync_per_s: 0.0,
        stored_bytes_per_send: per_send(stored, acked),
        cores: cores as u64,
        busy_percent: round(busy_us / seconds / 1e4 / cores as f64, 1),
    })
}

fn begin(clock: &Arc<Clock>, driver: &Driver, load: &Load, in_flight: u32) -> Runners {
    let shape = Shape::Closed {
        in_flight: in_flight as usize,
    };
    Runners::start(clock, shape, |_| {
        let mut source = Source {
            driver: driver.clone(),
            users: load.users,
            body_bytes: load.body_bytes as usize,
            rng: rand::make_rng(),
        };
        move || source.send()
    })
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::redis::tests::Fake;
    use super::*;

    fn load(users: u64) -> Load {
        Load {
            seconds: 1,
            warmup: 0,
            in_flight: Some(16),
            users,
            body_bytes: 100,
            allow_tmpfs: true,
            nats_server: None,
        }
    }

    #[test]
    fn a_peer_is_called_as_on_the_command_line() {
        for kind in Kind::value_variants() {
            let value = kind.to_possible_value().unwrap();
            assert_eq!(kind.name(), value.get_name());
        }
    }

    #[tokio::test]
    async fn a_peer_that_keeps_two_copies_of_a_send_and_its_repeat_is_taken() {
        let fake = Arc::new(Fake::default());
        let driver = Driver::Redis(fake.client(1).await);
        prove(&driver).await.unwrap();
        // Another message between the two, as a repeat would be that is taken for one.
        let error = prove(&driver).await.unwrap_err().to_string();
        assert!(error.contains("left 4 copies, not 2"), "{error}");
    }

    #[tokio::test]
    async fn every_ack_of_the_load_is_a_message_that_the_peer_has() {
        let fake = Arc::new(Fake::that_takes(500));
        let driver = Driver::Redis(fake.client(16).await);
        let clock = Clock::endless();
        let runners = begin(&clock, &driver, &load(1000), 16);
        // What it refuses from then on ends the run.
        while clock.errors() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        clock.stop();
        let latencies = runners.finish().await.unwrap().us;
        assert_eq!(fake.sent.lock().len(), 500);
        assert_eq!(clock.acked(), 500);
        assert_eq!(latencies.len(), 500);
    }

    #[tokio::test]
    async fn a_round_counts_what_was_acked_and_what_was_refused() {
        let fake = Arc::new(Fake::that_takes(0));
        let driver = Driver::Redis(fake.client(16).await);
        let dir = tempfile::tempdir().unwrap();
        let servers = Servers::new(dir.path()).unwrap();
        let round = drive(&driver, &load(1000), 16, &servers).await.unwrap();
        assert_eq!(
            (round.sends_per_s, round.in_flight, round.users),
            (0.0, 16, 1000)
        );
        assert!(round.errors > 0);
    }

    #[tokio::test]
    async fn work_that_is_done_is_not_interrupted() {
        assert_eq!(until_interrupted(async { Ok(7) }).await.unwrap(), 7);
        let failed = until_interrupted(async { anyhow::Result::<()>::Err(anyhow::anyhow!("no")) });
        assert_eq!(failed.await.unwrap_err().to_string(), "no");
    }
}
