//! Pauses between attempts: full jitter below a doubling bound, so that a herd spreads out.

use std::time::Duration;

/// Bound of the first pause.
const FIRST: Duration = Duration::from_millis(100);

/// A pause before the attempt after `failures` failed ones.
pub(crate) fn pause(failures: u32, max: Duration) -> Duration {
    let bound = FIRST.saturating_mul(1 << failures.min(16)).min(max);
    bound.mul_f64(rand::random::<f64>())
}

/// A random time in a window of milliseconds.
pub(crate) fn within(min_ms: u32, max_ms: u32) -> Duration {
    let width = f64::from(max_ms.saturating_sub(min_ms));
    Duration::from_millis(u64::from(min_ms))
        + Duration::from_secs_f64(width * rand::random::<f64>() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_their_bounds() {
        for failures in 0..40 {
            assert!(pause(failures, Duration::from_secs(10)) <= Duration::from_secs(10));
        }
        assert!(pause(0, Duration::from_secs(10)) <= FIRST);
        let at = within(100, 200).as_millis();
        assert!((100..=200).contains(&at));
        assert_eq!(within(5, 1), Duration::from_millis(5));
    }
}
