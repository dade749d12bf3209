//! Watches who leads, for the times in which nobody does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mailbox_client::{Client, v1};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::device::Gateways;
use crate::history::{Leaderless, Op, Recorder};
use crate::sender::Ends;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// A node that does not answer within this time leads nothing.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// What a replica that leads says that it is.
const LEADER: &str = "leader";

/// Asks all nodes again and again.
pub(crate) struct Watch {
    pub(crate) client: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) gateways: Gateways,
}

/// Since when each shard has no leader, if it has none.
#[derive(Debug, Default)]
struct Shards(BTreeMap<u32, Option<u64>>);

impl Watch {
    pub(crate) async fn run(self, ends: Ends) {
        let mut shards = Shards::default();
        while !ends.is_over() {
            let now_ns = self.recorder.now_ns();
            let (statuses, all_answered) = self.look().await;
            for over in shards.take(&statuses, all_answered, now_ns) {
                self.recorder.record(Op::Leaderless(over));
            }
            sleep(LOOK).await;
        }
        for over in shards.end(self.recorder.now_ns()) {
            self.recorder.record(Op::Leaderless(over));
        }
    }

    /// What those say that answer, and whether all do.
    async fn look(&self) -> (Vec<v1::StatusResponse>, bool) {
        let mut asked = JoinSet::new();
        for address in self.gateways.addresses() {
            let client = self.client.clone();
            asked.spawn(timeout(ANSWER_WITHIN, async move {
                client.status(Some(&address)).await
            }));
        }
        let count = asked.len();
        let mut statuses = Vec::new();
        while let Some(answer) = asked.join_next().await {
            if let Ok(Ok(Ok(status))) = answer {
                statuses.push(status);
            }
        }
        let all_answered = statuses.len() == count;
        (statuses, all_answered)
    }
}

impl Shards {
    /// Times without a leader that are over.
    fn take(
        &mut self,
        statuses: &[v1::StatusResponse],
        all_answered: bool,
        now_ns: u64,
    ) -> Vec<Leaderless> {
        let replicas = || statuses.iter().flat_map(|status| &status.shards);
        let there: BTreeSet<u32> = replicas().map(|replica| replica.shard).collect();
        let led = replicas().filter(|replica| replica.role == LEADER);
        let led: BTreeSet<u32> = led.map(|replica| replica.shard).collect();
        for shard in &there {
            self.0.entry(*shard).or_default();
        }
        if all_answered {
            // It was merged into another.
            self.0.retain(|shard, _| there.contains(shard));
        }
        let mut over = Vec::new();
        for (&shard, since) in &mut self.0 {
            match (led.contains(&shard), *since) {
                (false, None) => *since = Some(now_ns),
                (true, Some(from_ns)) => {
                    *since = None;
                    over.push(Leaderless {
                        shard,
                        from_ns,
                        until_ns: now_ns,
                    });
                }
                (true, None) | (false, Some(_)) => {}
            }
        }
        over
    }

    fn end(self, now_ns: u64) -> impl Iterator<Item = Leaderless> {
        self.0.into_iter().filter_map(move |(shard, since)| {
            Some(Leaderless {
                shard,
                from_ns: since?,
                until_ns: now_ns,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(replicas: &[(u32, &str)]) -> v1::StatusResponse {
        let shards = replicas.iter().map(|(shard, role)| v1::ShardStatus {
            shard: *shard,
            role: (*role).to_owned(),
            ..v1::ShardStatus::default()
        });
        v1::StatusResponse {
            shards: shards.collect(),
            ..v1::StatusResponse::default()
        }
    }

    #[test]
    fn the_time_between_two_leaders_is_told() {
        let mut shards = Shards::default();
        let led = [
            status(&[(1, "leader"), (2, "follower")]),
            status(&[(2, "leader")]),
        ];
        assert_eq!(shards.take(&led, true, 5), []);
        assert_eq!(shards.take(&led[..1], false, 10), [], "2 has none now");
        assert_eq!(shards.take(&[], false, 12), [], "nor has 1");
        let over = shards.take(&led, true, 20);
        let of = |shard, from_ns| Leaderless {
            shard,
            from_ns,
            until_ns: 20,
        };
        assert_eq!(over, [of(1, 12), of(2, 10)]);
        assert_eq!(shards.end(30).count(), 0);
    }

    #[test]
    fn a_shard_that_is_nowhere_any_more_needs_no_leader() {
        let mut shards = Shards::default();
        shards.take(&[status(&[(1, "leader"), (3, "leader")])], true, 5);
        assert_eq!(shards.take(&[status(&[(1, "leader")])], true, 10), []);
        assert_eq!(shards.end(30).count(), 0);
    }

    #[test]
    fn a_time_that_does_not_end_is_told_at_the_end() {
        let mut shards = Shards::default();
        shards.take(&[status(&[(1, "candidate")])], true, 5);
        let open: Vec<_> = shards.end(30).collect();
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].from_ns, open[0].until_ns), (5, 30));
    }
}
