//! All members and the posts of some of them, on one thread: it sleeps until a socket has something, takes it, and
//! hands over the posts that are due.
//!
//! In a closed loop a post is on its way until the last member has decoded it, not only until it is acked: acks come
//! long before hundreds of members have their copies, and a window over acks would measure how fast a gateway drops.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::member::{Decoder, Member};
use super::tally::{Counts, STAMP_BYTES, Tally};
use crate::bench::load::{self, Clock, Shape};
use crate::bench::socket::{Scratch, Socket};

/// How long the members' first syncs may take.
const SETTLE: Duration = Duration::from_secs(30);
/// How long the last deliveries may take after the end.
const DRAIN: Duration = Duration::from_secs(10);
/// Sockets that one look tells of.
const READY_MAX: usize = 1024;
/// Longest sleep: the end of the run has to be seen.
const LOOK: Duration = Duration::from_millis(50);
/// A gateway closes a connection after 300 s of silence.
const PING_EVERY: Duration = Duration::from_secs(60);

/// What the crowd is made of.
pub(super) struct Cast {
    pub(super) group: u64,
    /// Of the group when the members logged in.
    pub(super) head: u64,
    /// One for each member; the first ones post.
    pub(super) sockets: Vec<Socket>,
    pub(super) senders: usize,
    pub(super) body_bytes: usize,
    pub(super) shape: Shape,
}

/// The members.
pub(super) struct Crowd {
    poll: Poll,
    members: Vec<Member>,
    senders: usize,
    /// Who posted last.
    sender: usize,
    base: u64,
    body_bytes: usize,
    shape: Shape,
    rng: SmallRng,
    decoder: Decoder,
    scratch: Scratch,
    tally: Tally,
}

/// What came of a run.
pub(super) struct Outcome {
    /// Messages that a member lacks; each member that lacks one counts.
    pub(super) missing: u64,
    /// Gaps and repeats that the gateway did not explain.
    pub(super) out_of_order: u64,
    pub(super) counts: Counts,
    pub(super) first_refusal: Option<String>,
    pub(super) latencies_us: Histogram<u64>,
}

impl Crowd {
    /// Takes the sockets over.
    pub(super) fn new(cast: Cast) -> anyhow::Result<Self> {
        let poll = Poll::new().context("make a poll")?;
        let (head, count) = (cast.head, u32::try_from(cast.sockets.len())?);
        let mut members = Vec::with_capacity(cast.sockets.len());
        for (number, socket) in cast.sockets.into_iter().enumerate() {
            let mut member = Member::new(socket, head);
            let registered = member.socket().register(poll.registry(), Token(number));
            registered.with_context(|| format!("watch the socket of member {number}"))?;
            members.push(member);
        }
        Ok(Self {
            poll,
            senders: cast.senders.clamp(1, members.len().max(1)),
            sender: 0,
            members,
            base: head,
            body_bytes: cast.body_bytes.max(STAMP_BYTES),
            shape: cast.shape,
            rng: rand::make_rng(),
            decoder: Decoder::default(),
            scratch: Scratch::new(),
            tally: Tally::new(cast.group, count, head),
        })
    }

    /// Has every member sync once, as a device does after its welcome: then the gateway knows its group for sure.
    pub(super) fn settle(mut self) -> anyhow::Result<Self> {
        let until = Instant::now() + SETTLE;
        for member in &mut self.members {
            member.sync(self.tally.group);
            member.flush()?;
        }
        let mut ready = Events::with_capacity(READY_MAX);
        while self.members.iter().any(Member::is_syncing) {
            if Instant::now() > until {
                let waiting = self.members.iter().filter(|member| member.is_syncing());
                bail!(
                    "{} members have no answer to their first sync after {SETTLE:?}",
                    waiting.count()
                );
            }
            self.turn(&mut ready, LOOK)?;
        }
        match self.tally.first_refusal.take() {
            Some(refusal) => bail!("a member's first sync was refused: {refusal}"),
            None => Ok(self),
        }
    }

    /// Loads until the clock says that it is over, then waits for what is on its way. `counts` is where others
    /// may look meanwhile.
    pub(super) fn run(
        mut self,
        clock: &Arc<Clock>,
        counts: &Mutex<Counts>,
    ) -> anyhow::Result<Outcome> {
        self.tally.begin(Arc::clone(clock));
        let mut ready = Events::with_capacity(READY_MAX);
        let mut pinged = Instant::now();
        let mut until = None;
        loop {
            let now = Instant::now();
            if clock.is_over(now) {
                let until = *until.get_or_insert(now + DRAIN);
                if self.is_drained() || now > until {
                    return Ok(self.finish());
                }
            } else {
                self.post(now.saturating_duration_since(clock.begin()))?;
            }
            if now.saturating_duration_since(pinged) > PING_EVERY {
                pinged = now;
                self.ping()?;
            }
            *counts.lock() = self.tally.counts;
            let patience = match self.shape {
                Shape::Closed { .. } => LOOK,
                Shape::Open { .. } => load::TICK,
            };
            self.turn(&mut ready, patience)?;
            self.check_refusals()?;
        }
    }

    /// Sleeps until a socket has something or `patience` is over, and takes what is there.
    fn turn(&mut self, ready: &mut Events, patience: Duration) -> anyhow::Result<()> {
        match self.poll.poll(ready, Some(patience)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled.context("wait for the sockets")?,
        }
        for socket in &*ready {
            let Token(number) = socket.token();
            if let Some(member) = self.members.get_mut(number) {
                let served = member.serve(&mut self.scratch, &mut self.decoder, &mut self.tally);
                served.with_context(|| format!("member {number}"))?;
            }
        }
        Ok(())
    }

    /// Hands over what is due at this time since the begin, by the senders in turn.
    fn post(&mut self, elapsed: Duration) -> anyhow::Result<()> {
        let counts = &self.tally.counts;
        let completed = self.tally.completion.through().saturating_sub(self.base);
        let due = posts_due(self.shape, elapsed, counts, completed);
        for number in counts.posted..counts.posted + due {
            let due = match self.shape {
                Shape::Closed { .. } => elapsed,
                Shape::Open { rate } => load::due_at(number, rate),
            };
            let body = self.body(due);
            self.sender = (self.sender + 1) % self.senders;
            if let Some(member) = self.members.get_mut(self.sender) {
                member.post(self.tally.group, body);
            }
        }
        self.tally.counts.posted += due;
        if due > 0 {
            for sender in self.members.iter_mut().take(self.senders) {
                sender.flush()?;
            }
        }
        Ok(())
    }

    /// When it was due, and random bytes.
    fn body(&mut self, due: Duration) -> Bytes {
        let mut body = vec![0; self.body_bytes];
        self.rng.fill(body.as_mut_slice());
        if let Some(stamp) = body.first_chunk_mut::<STAMP_BYTES>() {
            let due = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
            *stamp = due.to_be_bytes();
        }
        Bytes::from(body)
    }

    fn ping(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.ping();
            member.flush()?;
        }
        Ok(())
    }

    fn check_refusals(&self) -> anyhow::Result<()> {
        let counts = self.tally.counts;
        if counts.refused + counts.syncs_refused < load::ERRORS_MAX {
            return Ok(());
        }
        bail!(
            "{} posts and {} syncs were refused, the first with {}",
            counts.refused,
            counts.syncs_refused,
            self.tally.first_refusal.as_deref().unwrap_or("no reason")
        )
    }

    fn is_drained(&self) -> bool {
        let all = self.tally.completion.through() >= self.tally.head;
        all && self.tally.counts.unanswered() == 0
    }

    fn finish(mut self) -> Outcome {
        let orders = self.members.iter().map(Member::order);
        let (mut missing, mut out_of_order) = (0, 0);
        for order in orders {
            missing += self.tally.head.saturating_sub(order.held());
            out_of_order += order.out_of_order();
        }
        Outcome {
            missing,
            out_of_order,
            counts: self.tally.counts,
            first_refusal: self.tally.first_refusal.take(),
            latencies_us: self.tally.into_latencies_us(),
        }
    }
}

/// How many posts are to be handed over now. `completed`: those that every member has decoded.
fn posts_due(shape: Shape, elapsed: Duration, counts: &Counts, completed: u64) -> u64 {
    match shape {
        Shape::Closed { in_flight } => {
            // A refused one is on its way to nobody.
            let over = completed + counts.refused;
            (over + in_flight as u64).saturating_sub(counts.posted)
        }
        Shape::Open { rate } => {
            let due = load::due_by(elapsed, rate).saturating_sub(counts.posted);
            let room = (load::OPEN_SENDS_MAX as u64).saturating_sub(counts.unanswered());
            due.min(room)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_keeps_its_posts_on_the_way_until_all_have_them() {
        let shape = Shape::Closed { in_flight: 8 };
        let due = |counts: &Counts, completed| posts_due(shape, Duration::ZERO, counts, completed);
        let mut counts = Counts::default();
        assert_eq!(due(&counts, 0), 8);
        counts.posted = 8;
        counts.acked = 8;
        assert_eq!(due(&counts, 0), 0, "acked, but not everybody has them");
        assert_eq!(due(&counts, 3), 3);
        counts.refused = 1;
        assert_eq!(due(&counts, 3), 4);
    }

    #[test]
    fn an_open_loop_posts_by_the_clock_up_to_a_bound() {
        let shape = Shape::Open { rate: 1000 };
        let second = Duration::from_secs(1);
        let mut counts = Counts::default();
        assert_eq!(posts_due(shape, second, &counts, 0), 1000);
        counts.posted = 400;
        assert_eq!(posts_due(shape, second, &counts, 0), 600);
        counts.posted = load::OPEN_SENDS_MAX as u64;
        let hour = Duration::from_secs(3600);
        assert_eq!(posts_due(shape, hour, &counts, 0), 0, "nothing is answered");
        counts.acked = 10;
        assert_eq!(posts_due(shape, hour, &counts, 0), 10);
    }
}
