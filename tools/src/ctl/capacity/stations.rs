//! What simulated messages wait for: one server, and a log whose syncs take all that waits.

/// Simulated time since the start, or a span of it, in nanoseconds.
pub(super) type Ns = u64;

/// Microseconds of the sheet as simulated time.
pub(super) fn ns(us: f64) -> Ns {
    // A cast of what is below zero or no number is 0.
    (us * 1e3).round() as Ns
}

/// One server; first come, first served.
#[derive(Debug, Clone, Default)]
pub(super) struct Station {
    free_at: Ns,
    /// Time served so far, of what was to be counted.
    pub(super) busy: Ns,
}

impl Station {
    /// When what comes now and takes so long is done.
    pub(super) fn serve(&mut self, now: Ns, takes: Ns, counts: bool) -> Ns {
        self.free_at = self.free_at.max(now).saturating_add(takes);
        if counts {
            self.busy += takes;
        }
        self.free_at
    }
}

/// The writer of a node's shared log: everything that waits is one batch and one sync.
#[derive(Debug, Clone, Default)]
pub(super) struct LogWriter {
    /// The shard's entries that wait, by number.
    waiting: Vec<usize>,
    /// Entries of other shards that wait.
    others: u64,
    /// The shard's entries in the sync under way.
    syncing: Option<Vec<usize>>,
    /// Time in syncs so far, of what was to be counted; so the next two.
    pub(super) busy: Ns,
    pub(super) syncs: u64,
    pub(super) entries: u64,
}

impl LogWriter {
    /// An entry waits, of the shard or of another one.
    pub(super) fn queue(&mut self, entry: Option<usize>) {
        match entry {
            Some(entry) => self.waiting.push(entry),
            None => self.others += 1,
        }
    }

    /// Begins a sync of all that waits, if something does and none is under way: so many entries.
    pub(super) fn begin(&mut self) -> Option<u64> {
        let entries = self.waiting.len() as u64 + self.others;
        if self.syncing.is_some() || entries == 0 {
            return None;
        }
        self.syncing = Some(std::mem::take(&mut self.waiting));
        self.others = 0;
        Some(entries)
    }

    /// The sync just begun takes so long.
    pub(super) fn count(&mut self, entries: u64, takes: Ns) {
        self.busy += takes;
        self.syncs += 1;
        self.entries += entries;
    }

    /// The sync is through: the shard's entries in it.
    pub(super) fn end(&mut self) -> Vec<usize> {
        self.syncing.take().unwrap_or_default()
    }
}

/// How much longer work takes on so many cores that are so busy: the mean time in an M/M/c queue over that of service.
pub(super) fn slowdown(cores: f64, busy: f64) -> f64 {
    let (cores, busy) = (cores.round().max(1.0), busy.clamp(0.0, 0.999));
    let offered = cores * busy;
    // Erlang's B by its recursion, and from it C, the chance to wait.
    let mut blocked = 1.0;
    let mut server = 1.0;
    while server <= cores {
        blocked = offered * blocked / (server + offered * blocked);
        server += 1.0;
    }
    let waits = blocked / (1.0 - busy * (1.0 - blocked));
    1.0 + waits / (cores * (1.0 - busy))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const SERVICE_NS: f64 = 50_000.0;

    /// Mean time in a station over that of service, with Poisson arrivals that keep it so busy.
    fn time_in_station(busy: f64, seed: u64, service: impl Fn(&mut SmallRng) -> f64) -> f64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut station = Station::default();
        let (mut now, mut total) = (0.0, 0.0);
        let count = 400_000;
        for _ in 0..count {
            now -= (1.0 - rng.random::<f64>()).ln() * SERVICE_NS / busy;
            let takes = service(&mut rng);
            let end = station.serve(now as Ns, takes as Ns, true);
            total += end as f64 - now;
        }
        total / f64::from(count) / SERVICE_NS
    }

    #[track_caller]
    fn assert_within(found: f64, theory: f64, tolerance: f64) {
        assert!(
            (found / theory - 1.0).abs() < tolerance,
            "{found} is not {theory}"
        );
    }

    #[test]
    fn a_station_with_constant_service_is_m_d_1() {
        for busy in [0.3, 0.6, 0.8] {
            let found = time_in_station(busy, 7, |_| SERVICE_NS);
            assert_within(found, 1.0 + busy / (2.0 * (1.0 - busy)), 0.03);
        }
    }

    #[test]
    fn a_station_with_exponential_service_is_m_m_1() {
        for busy in [0.3, 0.6, 0.8] {
            let service = |rng: &mut SmallRng| -(1.0 - rng.random::<f64>()).ln() * SERVICE_NS;
            let found = time_in_station(busy, 7, service);
            assert_within(found, 1.0 / (1.0 - busy), 0.05);
        }
    }

    #[test]
    fn many_cores_wait_less_than_one() {
        // One core: M/M/1. Two: 1 / (1 - busy^2).
        assert_within(slowdown(1.0, 0.5), 2.0, 1e-9);
        assert_within(slowdown(2.0, 0.5), 1.0 / 0.75, 1e-9);
        let by_cores = [1.0, 2.0, 4.0, 32.0].map(|cores| slowdown(cores, 0.6));
        assert!(by_cores.is_sorted_by(|a, b| a > b), "{by_cores:?}");
        let by_load = [0.0, 0.3, 0.6, 0.9, 2.0].map(|busy| slowdown(16.0, busy));
        assert!(by_load.is_sorted(), "{by_load:?}");
        assert_within(slowdown(16.0, 0.0), 1.0, 1e-9);
    }

    #[test]
    fn a_sync_takes_all_that_waits_and_nothing_that_comes_later() {
        let mut log = LogWriter::default();
        assert_eq!(log.begin(), None, "nothing waits");
        log.queue(Some(1));
        log.queue(None);
        log.queue(Some(2));
        assert_eq!(log.begin(), Some(3));
        log.queue(Some(3));
        assert_eq!(log.begin(), None, "one sync at a time");
        assert_eq!(log.end(), [1, 2]);
        assert_eq!(log.begin(), Some(1));
        assert_eq!(log.end(), [3]);
        assert_eq!(log.begin(), None);
    }
}
