//! A moment by both clocks of this machine.
//!
//! The monotonic clock stands still while the machine is suspended or paused, and goes on as if nothing had been.
//! The wall clock is set right after it. So a span counts as the longer one of what the two show: too long where
//! the wall clock was merely set forward, which costs a question more. A wall clock that is still wrong when the
//! machine goes on is noticed at the next comparison with the other nodes (`clock.rs`).

use std::ops::Add;
#[cfg(test)]
use std::ops::Sub;
use std::time::{Duration, Instant};

use crate::clock::wall_us;

/// See above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall_us: u64,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment {
            monotonic: Instant::now(),
            wall_us: wall_us(),
        }
    }

    /// How long ago it was.
    pub(crate) fn elapsed(self) -> Duration {
        self.until(Moment::now())
    }

    fn until(self, later: Moment) -> Duration {
        let wall = Duration::from_micros(later.wall_us.saturating_sub(self.wall_us));
        let monotonic = later.monotonic.saturating_duration_since(self.monotonic);
        monotonic.max(wall)
    }

    /// Whether it is earlier by the monotonic clock.
    pub(crate) fn is_earlier(self, other: Moment) -> bool {
        self.monotonic < other.monotonic
    }

    /// Whether it is earlier by both clocks.
    pub(crate) fn is_before(self, other: Moment) -> bool {
        self.monotonic < other.monotonic && self.wall_us < other.wall_us
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment {
            monotonic: self.monotonic + time,
            wall_us: self.wall_us.saturating_add(micros(time)),
        }
    }
}

#[cfg(test)]
impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, time: Duration) -> Moment {
        Moment {
            monotonic: self.monotonic - time,
            wall_us: self.wall_us.saturating_sub(micros(time)),
        }
    }
}

#[cfg(test)]
impl Moment {
    /// The same moment after the machine had stood still for so long.
    pub(crate) fn after_a_pause(self, time: Duration) -> Moment {
        Moment {
            wall_us: self.wall_us + micros(time),
            ..self
        }
    }

    /// The same moment after the wall clock was set back by so much.
    fn set_back(self, time: Duration) -> Moment {
        Moment {
            wall_us: self.wall_us - micros(time),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_span_is_as_long_as_the_longer_one_of_two_clocks_shows() {
        let began = Moment::now();
        assert_eq!(began.until(began + SECOND), SECOND);
        assert_eq!(
            began.until((began + SECOND).after_a_pause(HOUR)),
            HOUR + SECOND
        );
        // Neither clock makes it shorter.
        assert_eq!(began.until((began + SECOND).set_back(HOUR)), SECOND);
    }

    #[test]
    fn a_deadline_is_over_when_it_is_by_either_clock() {
        let now = Moment::now();
        let deadline = now + SECOND;
        assert!(now.is_before(deadline) && !(now + SECOND).is_before(deadline));
        assert!(!now.after_a_pause(HOUR).is_before(deadline));
        assert!(!(now + SECOND).set_back(HOUR).is_before(deadline));
    }
}
