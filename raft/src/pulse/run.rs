//! The node's one clock: pulses go out, silence is noticed, vacant shards are stood for.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use openraft::async_runtime::instant::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{Pulse, QUIET};
use crate::election::{self, Patience, Tried};
use crate::peers::Peers;

/// Unanswered pulses to one peer: a peer that is slower is as good as silent.
const UNANSWERED_MAX: usize = 4;
/// Shards that this node stands for at once. The others wait their turn: a vote is a synced write on two nodes.
const ELECTIONS_AT_ONCE: usize = 64;
/// How often the leaders here are looked over for ones that have been quiet for long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Heartbeats of single shards that one sweep sends.
const SWEEP_MAX: usize = 64;

struct Answered {
    from: u64,
    sent_at: Instant,
    reply: Option<peer::PulseReply>,
}

type Calls = FuturesUnordered<Pin<Box<dyn Future<Output = Answered> + Send>>>;

struct Beat {
    pulse: Arc<Pulse>,
    peers: Arc<Peers>,
    calls: Calls,
    unanswered: HashMap<u64, usize>,
    elections: JoinSet<()>,
    room: Arc<Semaphore>,
    swept_at: Instant,
}

/// Runs until the node stops.
pub(crate) async fn run(pulse: Arc<Pulse>, peers: Arc<Peers>) {
    let step = pulse.pace.interval / 2;
    let mut ticks = tokio::time::interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat = Beat {
        calls: Calls::new(),
        unanswered: HashMap::new(),
        elections: JoinSet::new(),
        room: Arc::new(Semaphore::new(ELECTIONS_AT_ONCE)),
        swept_at: Instant::now(),
        pulse: Arc::clone(&pulse),
        peers,
    };
    let (mut last, mut odd) = (Instant::now(), true);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = Instant::now();
                let late = now.saturating_duration_since(last).saturating_sub(step);
                last = now;
                odd = !odd;
                if !odd {
                    beat.send(now);
                }
                beat.look(now, late).await;
            }
            () = pulse.news.notified() => beat.send(Instant::now()),
            Some(answered) = beat.calls.next(), if !beat.calls.is_empty() => {
                beat.answered(answered).await;
            }
        }
    }
}

impl Beat {
    fn send(&mut self, now: Instant) {
        let lease = self.pulse.pace.lease;
        for link in self.peers.links() {
            let unanswered = self.unanswered.entry(link.node).or_default();
            if *unanswered >= UNANSWERED_MAX {
                continue;
            }
            *unanswered += 1;
            let ask = Ask::Pulse(self.pulse.with(|state| state.pulse(link.node, now)));
            let from = link.node;
            self.calls.push(Box::pin(async move {
                let reply = match link.call(ask, lease).await {
                    Ok(Answer::Pulse(reply)) => Some(reply),
                    Ok(_) | Err(_) => None,
                };
                Answered {
                    from,
                    sent_at: now,
                    reply,
                }
            }));
        }
    }

    async fn answered(&mut self, answered: Answered) {
        let Answered {
            from,
            sent_at,
            reply,
        } = answered;
        if let Some(unanswered) = self.unanswered.get_mut(&from) {
            *unanswered = unanswered.saturating_sub(1);
        }
        let Some(reply) = reply else {
            return;
        };
        let now = Instant::now();
        let quiet = self.pulse.with(|state| {
            state.answered(from, sent_at, reply, now);
            let returned = state.take_returned();
            let led = returned.into_iter().flat_map(|node| state.led_with(node));
            led.collect::<Vec<u32>>()
        });
        // Whoever comes back learns from its leaders what it missed, though nothing new is written.
        for shard in quiet {
            self.heartbeat(shard).await;
        }
    }

    async fn look(&mut self, now: Instant, late: Duration) {
        let due = self.pulse.with(|state| {
            state.look(now, late);
            state.due(now)
        });
        for (shard, voters) in due {
            let (pulse, peers) = (Arc::clone(&self.pulse), Arc::clone(&self.peers));
            let room = Arc::clone(&self.room);
            self.elections.spawn(async move {
                pulse.outwait_promise(shard, peers.node()).await;
                let _room = room.acquire().await;
                let tried = match pulse.elector(shard) {
                    Some((raft, ballot)) => {
                        let patience = Patience {
                            majority: pulse.pace.lease,
                            others: pulse.pace.interval,
                        };
                        election::stand(&raft, &ballot, &peers, shard, &voters, patience).await
                    }
                    None => Tried::Unheard,
                };
                pulse.with(|state| state.stood(shard, tried, Instant::now()));
            });
        }
        while self.elections.try_join_next().is_some() {}
        if now >= self.swept_at + SWEEP_INTERVAL {
            self.swept_at = now;
            self.sweep().await;
        }
    }

    /// A leader that has been quiet for long speaks once: what a pulse cannot see, such as a follower whose log
    /// went back, shows then.
    async fn sweep(&mut self) {
        let quiet = |shard: &u32| {
            self.pulse.raft(*shard).is_some_and(|raft| {
                let metrics = raft.data_metrics();
                let metrics = metrics.borrow_watched();
                let acked = metrics.last_quorum_acked;
                acked.is_none_or(|acked| acked.elapsed() > QUIET)
            })
        };
        let led = self.pulse.with(|state| state.led());
        let quiet: Vec<u32> = led.into_iter().filter(quiet).take(SWEEP_MAX).collect();
        for shard in quiet {
            self.heartbeat(shard).await;
        }
    }

    async fn heartbeat(&mut self, shard: u32) {
        if let Some(raft) = self.pulse.raft(shard) {
            // A replica that stops needs none.
            let _ = raft.trigger().heartbeat().await;
        }
    }
}
