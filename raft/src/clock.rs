//! A node's time: its monotonic clock plus an offset that is taken from the wall clock only after a
//! comparison with the other nodes found the wall clock near their median.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use parking_lot::Mutex;

use crate::error::ClockFault;
use crate::peer_link::Link;
use crate::peers::Peers;

/// How often clocks are compared, and how soon again until the first comparison worked.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// How long a peer may take to tell its time.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// This machine's wall clock, microseconds since the Unix epoch.
pub(crate) fn wall_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct State {
    /// Microseconds that the monotonic clock is behind the time given.
    offset_us: u64,
    fault: Option<ClockFault>,
    skew_ms: i64,
    /// This clock is near the middle of all, however the two middle ones of an even number are chosen from: where
    /// one of two clocks is wrong, nobody can tell which.
    sure: bool,
}

/// A node's clock.
pub(crate) struct Clock {
    begin: Instant,
    skew_max_ms: u64,
    state: Mutex<State>,
}

impl Clock {
    /// A clock without peers needs no comparison.
    pub(crate) fn new(skew_max_ms: u64, alone: bool) -> Clock {
        Clock {
            begin: Instant::now(),
            skew_max_ms,
            state: Mutex::new(State {
                offset_us: wall_us(),
                fault: (!alone).then_some(ClockFault::NotCompared),
                skew_ms: 0,
                sure: true,
            }),
        }
    }

    /// Milliseconds since the Unix epoch. Never goes back between two good comparisons.
    pub(crate) fn now_ms(&self) -> Result<u64, ClockFault> {
        let state = self.state.lock();
        match state.fault {
            Some(fault) => Err(fault),
            None => Ok((state.offset_us + self.elapsed_us()) / 1000),
        }
    }

    /// Whether a span that this node's monotonic clock measures now can be relied on: the clock is near the others',
    /// beyond doubt, and the wall clock has gone no other way than it since they were compared.
    pub(crate) fn is_steady(&self, drift_max: Duration) -> bool {
        let state = self.state.lock();
        let drift_us = wall_us().abs_diff(state.offset_us + self.elapsed_us());
        state.fault.is_none() && state.sure && u128::from(drift_us) <= drift_max.as_micros()
    }

    pub(crate) fn skew_ms(&self) -> i64 {
        self.state.lock().skew_ms
    }

    pub(crate) fn fault(&self) -> Option<ClockFault> {
        self.state.lock().fault
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Takes what the peers' clocks show, as microseconds ahead of this node's wall clock.
    fn compare(&self, mut ahead_us: Vec<i64>) {
        ahead_us.push(0);
        let skew_us = -lower_median(&mut ahead_us);
        let upper_us = ahead_us[ahead_us.len() / 2];
        let skew_ms = skew_us / 1000;
        let mut state = self.state.lock();
        state.skew_ms = skew_ms;
        state.sure = upper_us.unsigned_abs() <= self.skew_max_ms * 1000;
        if skew_us.unsigned_abs() <= self.skew_max_ms * 1000 {
            state.offset_us = wall_us().saturating_sub(self.elapsed_us());
            state.fault = None;
        } else {
            state.fault = Some(ClockFault::Skewed {
                skew_ms,
                limit_ms: self.skew_max_ms,
            });
        }
    }
}

/// The median; the lower of the two middle ones of an even number.
fn lower_median(values: &mut [i64]) -> i64 {
    values.sort_unstable();
    values[(values.len() - 1) / 2]
}

/// Compares clocks for ever. Without any peer's answer nothing changes: such a node cannot commit either. One that
/// has no peers follows its own clock; one that does not know them yet has no time.
pub(crate) async fn run(clock: Arc<Clock>, peers: Arc<Peers>) {
    loop {
        let mut probes = Vec::new();
        for link in peers.links() {
            probes.push(tokio::spawn(async move { probe(&link).await }));
        }
        let mut ahead = Vec::with_capacity(probes.len());
        for probe in probes {
            if let Ok(Some(us)) = probe.await {
                ahead.push(us);
            }
        }
        let before = clock.fault();
        if !ahead.is_empty() || peers.is_alone() {
            clock.compare(ahead);
        }
        let after = clock.fault();
        if after != before
            && let Some(fault) = after
        {
            tracing::error!(%fault, "this node proposes nothing until its clock is set right");
        }
        let first = after == Some(ClockFault::NotCompared);
        tokio::time::sleep(if first {
            FIRST_INTERVAL
        } else {
            COMPARE_INTERVAL
        })
        .await;
    }
}

/// How far a peer's clock is ahead of this one, half the round trip taken for the way here.
async fn probe(link: &Link) -> Option<i64> {
    let begin = Instant::now();
    let answer = link
        .call(Ask::Clock(peer::ClockProbe {}), PROBE_TIMEOUT)
        .await;
    let Ok(Answer::Clock(reply)) = answer else {
        return None;
    };
    let way_us = begin.elapsed().as_micros() / 2;
    let then = i128::from(reply.wall_us) + i128::try_from(way_us).ok()?;
    i64::try_from(then - i128::from(wall_us())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_lower_one() {
        assert_eq!(lower_median(&mut [5, 0]), 0);
        assert_eq!(lower_median(&mut [3, 1, 2]), 2);
        assert_eq!(lower_median(&mut [9]), 9);
    }

    #[test]
    fn a_clock_gives_no_time_before_it_was_compared() {
        let clock = Clock::new(500, false);
        assert_eq!(clock.now_ms(), Err(ClockFault::NotCompared));
        clock.compare(vec![200_000, -100_000]);
        assert!(clock.now_ms().is_ok());
    }

    #[test]
    fn a_clock_far_ahead_of_two_others_stops_and_comes_back() {
        let clock = Clock::new(500, false);
        clock.compare(vec![-2_000_000, -2_100_000]);
        assert_eq!(
            clock.now_ms(),
            Err(ClockFault::Skewed {
                skew_ms: 2000,
                limit_ms: 500
            })
        );
        clock.compare(vec![-1_000, 2_000]);
        assert!(clock.now_ms().is_ok());
    }

    #[test]
    fn a_wall_clock_that_steps_makes_spans_unreliable_until_clocks_are_compared() {
        let clock = Clock::new(500, false);
        let drift_max = Duration::from_secs(60);
        assert!(!clock.is_steady(drift_max), "not compared yet");
        clock.compare(vec![0, 0]);
        assert!(clock.is_steady(drift_max));
        // As if the machine had stood still for two minutes.
        clock.state.lock().offset_us -= 120_000_000;
        assert!(!clock.is_steady(drift_max));
        clock.compare(vec![0, 0]);
        assert!(clock.is_steady(drift_max));
        clock.compare(vec![-2_000_000, -2_000_000]);
        assert!(!clock.is_steady(drift_max), "far from the others");
    }

    #[test]
    fn of_two_clocks_the_lower_one_is_trusted() {
        let lower = Clock::new(500, false);
        lower.compare(vec![3_000_000]);
        assert!(lower.now_ms().is_ok());
        // It may be the one that was paused.
        assert!(!lower.is_steady(Duration::from_secs(60)));
        lower.compare(vec![3_000_000, 1_000]);
        assert!(lower.is_steady(Duration::from_secs(60)));
        let upper = Clock::new(500, false);
        upper.compare(vec![-3_000_000]);
        assert!(upper.now_ms().is_err());
    }

    #[test]
    fn a_single_node_follows_its_own_clock() {
        let clock = Clock::new(500, true);
        let wall_ms = wall_us() / 1000;
        let now_ms = clock.now_ms().unwrap();
        assert!(now_ms.abs_diff(wall_ms) < 1000, "{now_ms} {wall_ms}");
    }
}
