//! The two ways to load: a closed loop keeps a number of sends on the way, an open loop begins
//! sends at a fixed rate whatever the answers do.
//!
//! Latency runs from hand-over to ack. In an open loop it runs from the moment at which the send
//! was *due*: when the cluster stalls, sends that had to wait for their turn count with their wait
//! (no coordinated omission).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use tokio::task::JoinHandle;

/// Tasks that make load together.
const RUNNERS: usize = 4;
/// Greatest latency that is kept, in microseconds; a slower send counts as this.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Most sends that an open loop keeps unanswered per runner; beyond it sends wait, and their wait
/// counts in their latency.
pub(super) const OPEN_SENDS_MAX: usize = 50_000;
/// How long the last sends may take after the end.
const DRAIN: Duration = Duration::from_secs(30);
/// A run ends early at so many errors: a cluster that is down answers fast.
pub(super) const ERRORS_MAX: u64 = 10_000;
/// Longer than any run.
const ENDLESS: Duration = Duration::from_secs(7 * 86_400);
/// A send that takes longer is told apart with the second in which it was due.
const SLOW: Duration = Duration::from_millis(250);
/// Most such seconds that are told of, per runner; later ones count in the percentiles only.
const SLOW_SECONDS_MAX: usize = 600;
/// How often an open loop looks for sends that are due.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// How hard to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// So many sends on the way at any time.
    Closed { in_flight: usize },
    /// So many sends begun per second.
    Open { rate: u64 },
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A send was acked.
    Acked,
    /// A sync was answered: it counts apart from the sends.
    Read,
    Failed,
}

impl From<bool> for Ended {
    /// Of a send: whether it was acked.
    fn from(acked: bool) -> Self {
        if acked { Self::Acked } else { Self::Failed }
    }
}

/// Where a run stands; shared by its runners.
pub(super) struct Clock {
    begin: Instant,
    warm: Instant,
    end: Instant,
    over: AtomicBool,
    /// Acks inside the measured time.
    acked: AtomicU64,
    /// Syncs answered inside the measured time.
    read: AtomicU64,
    /// Errors, at any time.
    errors: AtomicU64,
}

impl Clock {
    /// A run that begins now.
    pub(super) fn start(warmup: Duration, measured: Duration) -> Arc<Self> {
        let begin = Instant::now();
        let warm = begin + warmup;
        Arc::new(Self {
            begin,
            warm,
            end: warm + measured,
            over: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            read: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// A run that begins now, counts from its begin, and lasts until [`Clock::stop`].
    pub(super) fn endless() -> Arc<Self> {
        Self::start(Duration::ZERO, ENDLESS)
    }

    /// Ends the run: nothing is handed over any more; what is on its way still counts.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Acks inside the measured time so far.
    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Syncs answered inside the measured time so far.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Errors so far, warm-up included.
    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Waits for the end of the warm-up.
    pub(super) async fn warmed_up(&self) {
        tokio::time::sleep_until(self.warm.into()).await;
    }

    /// Waits for the end of the measured time.
    pub(super) async fn ended(&self) {
        tokio::time::sleep_until(self.end.into()).await;
    }

    /// Whether a send that is handed over now counts.
    pub(super) fn is_measured(&self) -> bool {
        self.measures(Instant::now())
    }

    /// Whether what happens at this time counts.
    pub(super) fn measures(&self, now: Instant) -> bool {
        now >= self.warm && !self.is_over(now)
    }

    /// When the run began.
    pub(super) fn begin(&self) -> Instant {
        self.begin
    }

    /// Whether nothing is to be begun any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.end || self.over.load(Ordering::Relaxed)
    }
}

/// The tasks that make one run's load.
pub(super) struct Runners(Vec<JoinHandle<Latencies>>);

/// How long the operations of a run took.
pub(super) struct Latencies {
    /// All sends, in microseconds.
    pub(super) us: Histogram<u64>,
    /// All syncs, in microseconds.
    pub(super) reads_us: Histogram<u64>,
    /// The longest of each second in which a slow one was due, in microseconds; seconds count from the run's begin.
    pub(super) slow_us: BTreeMap<u64, u64>,
}

impl Latencies {
    fn new() -> Self {
        Self {
            us: histogram(),
            reads_us: histogram(),
            slow_us: BTreeMap::new(),
        }
    }

    /// Counts a send that was due so long after the run's begin.
    fn count(&mut self, due: Duration, took: Duration) {
        let us = micros(took);
        self.us.saturating_record(us);
        let second = due.as_secs();
        let room = self.slow_us.len() < SLOW_SECONDS_MAX || self.slow_us.contains_key(&second);
        if took > SLOW && room {
            let longest = self.slow_us.entry(second).or_default();
            *longest = us.max(*longest);
        }
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.us.add(&other.us)?;
        self.reads_us.add(&other.reads_us)?;
        for (second, us) in &other.slow_us {
            let longest = self.slow_us.entry(*second).or_default();
            *longest = (*us).max(*longest);
        }
        Ok(())
    }
}

impl Runners {
    /// Starts them, each with a share of the load and a source of its own: what the source returns
    /// has been handed over, and resolves to how it ended (to whether it was acked, if all are sends).
    pub(super) fn start<F, S>(
        clock: &Arc<Clock>,
        shape: Shape,
        mut source: impl FnMut(usize) -> F,
    ) -> Self
    where
        F: FnMut() -> S + Send + 'static,
        S: Future<Output: Into<Ended>> + Send + 'static,
    {
        let start = |runner| {
            let share = split(shape, RUNNERS, runner);
            tokio::spawn(run(Arc::clone(clock), share, source(runner)))
        };
        Self((0..RUNNERS).map(start).collect())
    }

    /// Waits for the last answers.
    pub(super) async fn finish(self) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::new();
        for runner in self.0 {
            latencies.add(&runner.await?)?;
        }
        Ok(latencies)
    }
}

/// One runner's share: it makes sends, one future each, and measures them.
async fn run<F, S>(clock: Arc<Clock>, shape: Shape, make: F) -> Latencies
where
    F: FnMut() -> S,
    S: Future<Output: Into<Ended>>,
{
    match shape {
        Shape::Closed { in_flight } => closed(&clock, in_flight, make).await,
        Shape::Open { rate } => open(&clock, rate, make).await,
    }
}

/// An empty histogram of latencies in microseconds.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are constants that fit")
}

/// Splits a load between runners, the remainder to the first ones.
fn split(shape: Shape, runners: usize, runner: usize) -> Shape {
    let share = |total: u64| {
        let (runners, runner) = (runners as u64, runner as u64);
        total / runners + u64::from(runner < total % runners)
    };
    match shape {
        Shape::Closed { in_flight } => {
            let share = usize::try_from(share(in_flight as u64)).unwrap_or(usize::MAX);
            Shape::Closed { in_flight: share }
        }
        Shape::Open { rate } => Shape::Open { rate: share(rate) },
    }
}

async fn closed<F, S>(clock: &Clock, in_flight: usize, mut make: F) -> Latencies
where
    F: FnMut() -> S,
    S: Future<Output: Into<Ended>>,
{
    let mut tally = Tally {
        clock,
        latencies: Latencies::new(),
    };
    let mut sends = FuturesUnordered::new();
    for _ in 0..in_flight {
        sends.push(timed(Instant::now(), make()));
    }
    while let Ok(Some(sent)) = tokio::time::timeout(DRAIN, sends.next()).await {
        let now = Instant::now();
        tally.count(sent, now);
        if !clock.is_over(now) {
            sends.push(timed(now, make()));
        }
    }
    tally.abandon(sends.len())
}

async fn open<F, S>(clock: &Clock, rate: u64, mut make: F) -> Latencies
where
    F: FnMut() -> S,
    S: Future<Output: Into<Ended>>,
{
    let mut tally = Tally {
        clock,
        latencies: Latencies::new(),
    };
    let mut sends = FuturesUnordered::new();
    let mut begun = 0_u64;
    let mut ticks = tokio::time::interval(TICK);
    while !clock.is_over(Instant::now()) {
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let due = due_by(Instant::now().duration_since(clock.begin), rate);
                while begun < due && sends.len() < OPEN_SENDS_MAX {
                    sends.push(timed(clock.begin + due_at(begun, rate), make()));
                    begun += 1;
                }
            }
            Some(sent) = sends.next() => tally.count(sent, Instant::now()),
        }
    }
    while let Ok(Some(sent)) = tokio::time::timeout(DRAIN, sends.next()).await {
        tally.count(sent, Instant::now());
    }
    tally.abandon(sends.len())
}

/// How many sends are due after `elapsed`.
pub(super) fn due_by(elapsed: Duration, rate: u64) -> u64 {
    u64::try_from(elapsed.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// When send `number`, from 0, is due: the first one after one period.
pub(super) fn due_at(number: u64, rate: u64) -> Duration {
    let nanos = (u128::from(number) + 1) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

async fn timed(begin: Instant, operation: impl Future<Output: Into<Ended>>) -> (Instant, Ended) {
    (begin, operation.await.into())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

struct Tally<'a> {
    clock: &'a Clock,
    latencies: Latencies,
}

impl Tally<'_> {
    /// Counts what ended well inside the measured time, and any error.
    fn count(&mut self, (begin, ended): (Instant, Ended), now: Instant) {
        let measured = now >= self.clock.warm && now < self.clock.end;
        let took = now.saturating_duration_since(begin);
        match ended {
            Ended::Failed => {
                if self.clock.errors.fetch_add(1, Ordering::Relaxed) + 1 >= ERRORS_MAX {
                    self.clock.over.store(true, Ordering::Relaxed);
                }
            }
            Ended::Acked if measured => {
                self.clock.acked.fetch_add(1, Ordering::Relaxed);
                let due = begin.saturating_duration_since(self.clock.begin);
                self.latencies.count(due, took);
            }
            Ended::Read if measured => {
                self.clock.read.fetch_add(1, Ordering::Relaxed);
                self.latencies.reads_us.saturating_record(micros(took));
            }
            Ended::Acked | Ended::Read => {}
        }
    }

    /// Sends without an answer long after the end are errors.
    fn abandon(self, sends: usize) -> Latencies {
        self.clock.errors.fetch_add(sends as u64, Ordering::Relaxed);
        self.latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        let shares = |shape| -> u64 {
            let share = |runner| match split(shape, 4, runner) {
                Shape::Closed { in_flight } => in_flight as u64,
                Shape::Open { rate } => rate,
            };
            (0..4).map(share).sum()
        };
        assert_eq!(shares(Shape::Closed { in_flight: 258 }), 258);
        assert_eq!(shares(Shape::Open { rate: 3 }), 3);
    }

    #[test]
    fn a_send_is_due_when_it_is_due() {
        assert_eq!(due_by(Duration::from_secs(2), 400), 800);
        assert_eq!(due_at(799, 400), Duration::from_secs(2));
        // Not later: a send that begins at its time has waited for nothing.
        assert_eq!(due_by(due_at(123, 400), 400), 124);
    }

    #[test]
    fn an_open_loop_counts_the_wait_of_a_stall() {
        let clock = Clock::start(Duration::ZERO, Duration::from_secs(60));
        let mut tally = Tally {
            clock: &clock,
            latencies: Latencies::new(),
        };
        let due = clock.begin + Duration::from_millis(1_200);
        tally.count((due, Ended::Acked), due + Duration::from_millis(500));
        tally.count((due, Ended::Acked), due + Duration::from_millis(200));
        assert!(tally.latencies.us.max() >= 499_000);
        assert_eq!(tally.latencies.slow_us, BTreeMap::from([(1, 500_000)]));
        assert_eq!((clock.acked(), clock.errors()), (2, 0));
    }

    #[test]
    fn syncs_count_apart_from_sends() {
        let clock = Clock::start(Duration::ZERO, Duration::from_secs(60));
        let mut tally = Tally {
            clock: &clock,
            latencies: Latencies::new(),
        };
        let begin = clock.begin;
        tally.count((begin, Ended::Read), begin + Duration::from_millis(500));
        tally.count((begin, Ended::Acked), begin + Duration::from_millis(2));
        let late = clock.end + Duration::from_secs(1);
        tally.count((begin, Ended::Read), late);
        assert_eq!((clock.acked(), clock.read(), clock.errors()), (1, 1, 0));
        assert!(
            tally.latencies.us.max() < 3_000,
            "a slow sync is no slow send"
        );
        assert_eq!(tally.latencies.reads_us.len(), 1);
        assert!(tally.latencies.slow_us.is_empty());
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_its_number_of_sends_and_counts_errors() {
        let clock = Clock::start(Duration::ZERO, Duration::from_secs(60));
        let (now, most, made) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let latencies = run(Arc::clone(&clock), Shape::Closed { in_flight: 8 }, || {
            let number = made.fetch_add(1, Ordering::Relaxed);
            let (now, most) = (&now, &most);
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::Relaxed);
                // Nothing but errors from 100 on: they end the run.
                number != 50 && number < 100
            }
        })
        .await;
        assert_eq!(most.load(Ordering::Relaxed), 8);
        assert_eq!(clock.acked(), 99);
        assert_eq!(latencies.us.len(), 99);
        assert!(clock.errors() >= ERRORS_MAX, "{}", clock.errors());
        assert_eq!(clock.acked() + clock.errors(), made.load(Ordering::Relaxed));
    }
}
