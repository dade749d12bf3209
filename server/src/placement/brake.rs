//! Keeps the executor from doing the same thing to a shard again and again.
//!
//! A step that failed may fail in the same way at once, and a leadership may come back at once from a node that
//! cannot keep it. Each repetition costs an election or a copy, so each waits twice as long as the one before.

use std::collections::BTreeMap;

use mailbox_placement::{ShardId, Step};
use parking_lot::Mutex;

use super::journal::name_of;

/// How long the second attempt waits, in milliseconds.
const FIRST_WAIT_MS: u64 = 1_000;
/// The longest wait.
const WAIT_MS_MAX: u64 = 60_000;
/// After so long without an attempt all is forgotten.
const FORGET_MS: u64 = 2 * WAIT_MS_MAX;

/// What was tried of late, by shard and kind of step. Times are [`super::effects::Effects::now_ms`].
#[derive(Debug, Default)]
pub(super) struct Brake {
    tried: Mutex<BTreeMap<(ShardId, &'static str), Tried>>,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    times: u32,
    last_ms: u64,
}

impl Tried {
    fn waits_until(self) -> u64 {
        let doublings = self.times.saturating_sub(1).min(16);
        self.last_ms + (FIRST_WAIT_MS << doublings).min(WAIT_MS_MAX)
    }
}

impl Brake {
    /// Whether a step may begin now.
    pub(super) fn allows(&self, step: &Step, now_ms: u64) -> bool {
        let tried = self.tried.lock();
        let tried = tried.get(&(step.shard(), name_of(step)));
        tried.is_none_or(|tried| now_ms >= tried.waits_until())
    }

    /// A step has ended. What succeeded is done with, except that a leadership may be handed back.
    pub(super) fn ended(&self, step: &Step, done: bool, now_ms: u64) {
        let key = (step.shard(), name_of(step));
        let mut all = self.tried.lock();
        all.retain(|_, tried| now_ms < tried.last_ms + FORGET_MS);
        if done && !matches!(step, Step::TransferLeader { .. }) {
            all.remove(&key);
            return;
        }
        let tried = all.entry(key).or_insert(Tried {
            times: 0,
            last_ms: now_ms,
        });
        tried.times = tried.times.saturating_add(1);
        tried.last_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use mailbox_placement::NodeId;

    use super::*;

    fn transfer(to: u64) -> Step {
        Step::TransferLeader {
            shard: ShardId(1),
            epoch: 1,
            from: NodeId(1),
            to: NodeId(to),
        }
    }

    /// How long each of some attempts had to wait that came as soon as they might.
    fn waits(brake: &Brake, step: &Step, done: bool, mut now_ms: u64) -> Vec<u64> {
        let wait = |_| {
            let begun = now_ms;
            while !brake.allows(step, now_ms) {
                now_ms += 500;
            }
            brake.ended(step, done, now_ms);
            now_ms - begun
        };
        (0..8).map(wait).collect()
    }

    #[test]
    fn each_repetition_waits_twice_as_long_as_the_one_before() {
        let remove = Step::RemoveReplica {
            shard: ShardId(1),
            epoch: 1,
            node: NodeId(1),
        };
        let doubled = [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000];
        assert_eq!(waits(&Brake::default(), &remove, false, 0), doubled);
        assert_eq!(waits(&Brake::default(), &remove, true, 0), [0; 8]);
        // A leadership that is always handed back was transferred well each time.
        assert_eq!(waits(&Brake::default(), &transfer(2), true, 0), doubled);
    }

    #[test]
    fn others_do_not_wait_and_all_is_forgotten_in_time() {
        let brake = Brake::default();
        for _ in 0..3 {
            brake.ended(&transfer(2), true, 10_000);
        }
        assert!(!brake.allows(&transfer(3), 13_000));
        let other = Step::TransferLeader {
            shard: ShardId(2),
            epoch: 1,
            from: NodeId(1),
            to: NodeId(2),
        };
        assert!(brake.allows(&other, 10_000));
        let later = 10_000 + FORGET_MS;
        brake.ended(&other, true, later);
        assert_eq!(waits(&brake, &transfer(2), true, later)[..2], [0, 1_000]);
    }
}
