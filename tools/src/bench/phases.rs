//! One load in phases: what a cluster does while it is left alone, and while something is done to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use mailbox_client::Client;
use serde::Serialize;

use super::cluster::{SpawnArgs, Spawned, register};
use super::ledger::{Audit, Courier, Ledger};
use super::load::{Clock, Runners, Shape};
use super::report::{percentile_ms, round};
use crate::output::grouped;

/// Load before the first calm phase, so that it begins calm.
const SETTLE: Duration = Duration::from_secs(5);
/// How long what is between shards at the end may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// The flags of a load in phases.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Load")]
pub(super) struct PhasesArgs {
    /// Sends begun per second; default: half of what the closed loop reached
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Seconds of the closed loop at the begin
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    fill: u64,
    /// Closed loop: sends on the way at any time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// Seconds of each calm phase
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    calm: u64,
    /// Users, registered before the clock starts
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    users: u32,
    /// Bytes of every body
    #[arg(long, value_name = "N", default_value_t = 100)]
    body_bytes: usize,
}

/// The flags of a bench that does something to a cluster of three under such a load.
#[derive(Debug, clap::Args)]
pub(super) struct CourseArgs {
    #[command(flatten)]
    pub(super) spawn: SpawnArgs,
    #[command(flatten)]
    pub(super) load: PhasesArgs,
}

impl CourseArgs {
    /// # Errors
    /// It is to be another cluster.
    pub(super) fn require_three(&self) -> anyhow::Result<()> {
        if self.spawn.spawn != Some(3) || self.spawn.profile.is_some() {
            bail!("only a cluster of three bears it, without --profile: say --spawn 3");
        }
        Ok(())
    }
}

/// How a cluster bore what was done to it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Course {
    shards: u64,
    users: u64,
    body_bytes: u64,
    fs: String,
    disk_fdatasync_per_s: f64,
    /// Of the open loop.
    rate: u64,
    phases: Vec<Phase>,
    #[serde(flatten)]
    audit: Audit,
}

impl Course {
    /// Nothing failed and nothing is lost.
    pub(super) fn is_good(&self) -> bool {
        self.audit.is_clean() && self.phases.iter().all(|phase| phase.errors == 0)
    }

    /// The course in words, a line for each thought.
    pub(super) fn human(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} shards, {} users, {} sends/s, {}-byte bodies, on {}",
            self.shards,
            grouped(self.users),
            grouped(self.rate),
            self.body_bytes,
            self.fs
        )];
        lines.extend(self.phases.iter().map(Phase::human));
        lines.push(self.audit.human());
        lines
    }
}

/// One phase. A send belongs to the phase in which it was due.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Phase {
    name: &'static str,
    seconds: f64,
    sends_per_s: f64,
    /// Sends that failed after all retries.
    errors: u64,
    p50_ms: f64,
    p99_ms: f64,
    /// From when the send was due that waited longest.
    longest_ms: f64,
    /// When it hurt.
    slow: Vec<SlowSecond>,
}

/// A second of a phase in which a send was due that took over 250 ms.
#[derive(Debug, Clone, Serialize)]
struct SlowSecond {
    /// From the phase's begin.
    second: u64,
    longest_ms: f64,
}

fn slow_second((second, longest_us): (u64, u64)) -> SlowSecond {
    SlowSecond {
        second,
        longest_ms: round(longest_us as f64 / 1000.0, 1),
    }
}

impl Phase {
    /// The phase as a line of a table.
    fn human(&self) -> String {
        format!(
            "{:<12} {:>6.1} s  {:>8.0} sends/s  {} errors  p50 {:.2} ms  p99 {:.2} ms  longest {:.0} ms",
            self.name,
            self.seconds,
            self.sends_per_s,
            self.errors,
            self.p50_ms,
            self.p99_ms,
            self.longest_ms
        )
    }
}

/// A load that goes on from phase to phase without a gap: first a closed loop, then an open one.
pub(super) struct Phases {
    client: Client,
    users: Arc<[u64]>,
    args: PhasesArgs,
    rate: u64,
    ledger: Arc<Ledger>,
    current: Option<Current>,
    done: Vec<Phase>,
}

struct Current {
    name: &'static str,
    begun: Instant,
    clock: Arc<Clock>,
    runners: Runners,
}

impl Phases {
    /// Registers the users, fills the cluster, and begins the open loop.
    ///
    /// # Errors
    /// A user could not be registered, or a runner panicked.
    pub(super) async fn start(client: &Client, args: &PhasesArgs) -> anyhow::Result<Self> {
        let mut phases = Self {
            client: client.clone(),
            users: register(client, args.users as usize).await?,
            args: args.clone(),
            rate: 0,
            ledger: Arc::default(),
            current: None,
            done: Vec::new(),
        };
        let closed = Shape::Closed {
            in_flight: args.in_flight as usize,
        };
        phases.begin("fill", closed).await?;
        tokio::time::sleep(Duration::from_secs(args.fill)).await;
        let half = (phases.sends_per_s() / 2.0) as u64;
        phases.rate = args.rate.unwrap_or(half).max(1);
        phases.enter("settle").await?;
        tokio::time::sleep(SETTLE).await;
        Ok(phases)
    }

    /// Begins a phase, and ends the one before with all its answers.
    ///
    /// # Errors
    /// A runner panicked.
    pub(super) async fn enter(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.begin(name, Shape::Open { rate: self.rate }).await
    }

    /// A phase in which nothing is done to the cluster, from its begin to its end.
    ///
    /// # Errors
    /// A runner panicked.
    pub(super) async fn calm(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.enter(name).await?;
        tokio::time::sleep(Duration::from_secs(self.args.calm)).await;
        Ok(())
    }

    /// Ends the load, waits until everything has arrived, and looks for every message.
    ///
    /// # Errors
    /// A runner panicked, items stay between shards, or a mailbox could not be read.
    pub(super) async fn finish(mut self, spawned: &Spawned) -> anyhow::Result<Course> {
        let last = self.current.take();
        if let Some(last) = &last {
            last.clock.stop();
        }
        self.close(last).await?;
        spawned.cluster.wait_lanes_drained(DRAIN_WITHIN).await?;
        eprintln!("reading {} mailboxes", self.users.len());
        let audit = self.ledger.audit(&self.client, &self.users).await?;
        let shards = self.client.shard_map().await?.shards.len();
        Ok(Course {
            shards: shards as u64,
            users: self.users.len() as u64,
            body_bytes: self.args.body_bytes as u64,
            fs: spawned.file_system.clone(),
            disk_fdatasync_per_s: round(spawned.fdatasync_per_s, 1),
            rate: self.rate,
            phases: self.done,
            audit,
        })
    }

    async fn begin(&mut self, name: &'static str, shape: Shape) -> anyhow::Result<()> {
        eprintln!("{name}");
        let clock = Clock::endless();
        let before = self.current.take();
        if let Some(before) = &before {
            before.clock.stop();
        }
        let runners = Runners::start(&clock, shape, |_| {
            let mut courier = Courier {
                client: self.client.clone(),
                users: Arc::clone(&self.users),
                body_bytes: self.args.body_bytes,
                ledger: Arc::clone(&self.ledger),
                rng: rand::make_rng(),
            };
            move || courier.send()
        });
        self.current = Some(Current {
            name,
            begun: Instant::now(),
            clock,
            runners,
        });
        self.close(before).await
    }

    /// Acks per second in the phase so far.
    fn sends_per_s(&self) -> f64 {
        let current = self.current.as_ref();
        current.map_or(0.0, |current| {
            current.clock.acked() as f64 / current.begun.elapsed().as_secs_f64()
        })
    }

    async fn close(&mut self, phase: Option<Current>) -> anyhow::Result<()> {
        let Some(phase) = phase else {
            return Ok(());
        };
        // Its last answers may come later; its sends were all handed over until now.
        let seconds = phase.begun.elapsed().as_secs_f64();
        let latencies = phase.runners.finish().await?;
        self.done.push(Phase {
            name: phase.name,
            seconds: round(seconds, 1),
            sends_per_s: round(phase.clock.acked() as f64 / seconds, 1),
            errors: phase.clock.errors(),
            p50_ms: percentile_ms(&latencies.us, 50.0),
            p99_ms: percentile_ms(&latencies.us, 99.0),
            longest_ms: round(latencies.us.max() as f64 / 1000.0, 1),
            slow: latencies.slow_us.into_iter().map(slow_second).collect(),
        });
        Ok(())
    }
}
