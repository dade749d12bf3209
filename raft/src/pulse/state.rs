//! What a node knows of its peers and of who leads its shards. Time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mailbox_api::peer;

use super::known_peer::Peer;
use super::{Pace, is_quorum};
use crate::election::Tried;

/// So many refusals are taken for those of a voter that has not yet noticed what this one has: this node asks again
/// before that one's own turn. Who goes on asking for what it is refused does so seldom.
const SOON_REFUSALS_MAX: usize = 2;

/// What openraft says of one replica here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Greatest term seen.
    pub(crate) term: u64,
    /// This node leads in that term.
    pub(crate) leads: bool,
    /// Whom the replica follows, or followed last; this node itself, if it led before it was restarted.
    pub(crate) leader: Option<u64>,
    /// The voters; two sets in a joint change.
    pub(crate) voters: Vec<BTreeSet<u64>>,
    /// All that hold a replica, voters and learners.
    pub(crate) nodes: BTreeSet<u64>,
}

/// What follows from a [`View`] and from what is known of the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// A majority of the voters answers this node, and none of that majority follows a later term.
    pub(crate) has_quorum: bool,
    /// The leader that the replica follows is alive, or may be.
    pub(crate) has_leader: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    Alive,
    /// openraft has just heard of a leader, and its node has not vouched yet; or it does so no more.
    Doubtful,
    Gone,
}

/// A shard that has no leader that is known to live.
#[derive(Debug)]
struct Vacancy {
    gone: bool,
    since: Instant,
    /// When this node stands for election, unless it learns of a leader before.
    stand_at: Instant,
    /// How long it waits for others to stand before it.
    turn: Duration,
    /// How often others would not vote for it.
    refusals: usize,
}

struct Local {
    view: View,
    /// The term in which this node has begun to hand its leadership over.
    resigned: Option<u64>,
    /// The term in which this node leads, as peers are told; 0 if it does not.
    vouched: u64,
    /// The version that brought this.
    version: u64,
    has_quorum: bool,
    /// A leader was known to live since this process started.
    was_led: bool,
    /// The term whose leader's process has ended: it was started again.
    lost: Option<u64>,
    vacancy: Option<Vacancy>,
    /// A round of questions is under way.
    stands: bool,
}

pub(super) struct State {
    node: u64,
    boot: u64,
    pace: Pace,
    shards: BTreeMap<u32, Local>,
    /// Shards that left this node, each with the version that said so.
    left: BTreeMap<u32, u64>,
    peers: BTreeMap<u64, Peer>,
    version: u64,
    epoch: u64,
    /// Peers that are reached again, or anew.
    returned: BTreeSet<u64>,
    dice: u64,
}

impl State {
    pub(super) fn new(node: u64, boot: u64, dice: u64, pace: Pace) -> State {
        State {
            node,
            boot,
            pace,
            shards: BTreeMap::new(),
            left: BTreeMap::new(),
            peers: BTreeMap::new(),
            version: 1,
            epoch: 0,
            returned: BTreeSet::new(),
            dice,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    fn random(&mut self, least: Duration, most: Duration) -> Duration {
        // xorshift64: nothing but spread is asked of it.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let span = most.saturating_sub(least).as_micros().max(1) as u64;
        least + Duration::from_micros(self.dice % span)
    }

    fn peer(&mut self, node: u64, now: Instant) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer::new(now))
    }

    pub(super) fn has_learner(&self, shard: u32, node: u64) -> bool {
        self.shards.get(&shard).is_some_and(|local| {
            let mut voters = local.view.voters.iter();
            local.view.nodes.contains(&node) && !voters.any(|set| set.contains(&node))
        })
    }

    pub(super) fn note(&mut self, shard: u32, view: View, now: Instant) -> Standing {
        for node in &view.nodes {
            if *node != self.node && !self.peers.contains_key(node) {
                self.peers.insert(*node, Peer::new(now));
            }
        }
        self.left.remove(&shard);
        let retry = self.random(self.pace.retry_min, self.pace.retry_max);
        let version = self.version + 1;
        let local = self.shards.entry(shard).or_insert_with(|| Local {
            view: View::default(),
            resigned: None,
            vouched: 0,
            version,
            has_quorum: false,
            was_led: false,
            lost: None,
            vacancy: None,
            stands: false,
        });
        if local.view.nodes != view.nodes && local.vouched != 0 {
            local.version = version;
            self.version = version;
        }
        // Somebody stands: let it come to an end.
        if view.term > local.view.term
            && let Some(vacancy) = &mut local.vacancy
        {
            vacancy.stand_at = vacancy.stand_at.max(now + retry);
        }
        if view.term != local.view.term {
            // What was refused was a term of before.
            for peer in self.peers.values_mut() {
                peer.refused.remove(&shard);
            }
        }
        local.view = view;
        self.judge(shard, now);
        self.standing(shard)
    }

    pub(super) fn standing(&self, shard: u32) -> Standing {
        let local = self.shards.get(&shard);
        Standing {
            has_quorum: local.is_some_and(|local| local.has_quorum),
            has_leader: local
                .is_some_and(|local| local.vacancy.as_ref().is_none_or(|vacancy| !vacancy.gone)),
        }
    }

    pub(super) fn forget(&mut self, shard: u32) {
        if self.shards.remove(&shard).is_some() {
            self.version += 1;
            self.left.insert(shard, self.version);
        }
    }

    pub(super) fn resign(&mut self, shard: u32, now: Instant) {
        if let Some(local) = self.shards.get_mut(&shard)
            && local.view.leads
        {
            local.resigned = Some(local.view.term);
            self.judge(shard, now);
        }
    }

    fn lead(&self, shard: u32, local: &Local) -> Lead {
        let view = &local.view;
        if view.leads {
            let stays = local.has_quorum && local.resigned != Some(view.term);
            return if stays { Lead::Alive } else { Lead::Gone };
        }
        let Some(leader) = view.leader.filter(|leader| *leader != self.node) else {
            return Lead::Gone;
        };
        let Some(peer) = self.peers.get(&leader).filter(|peer| peer.alive) else {
            return Lead::Gone;
        };
        if peer.vouches.get(&shard) == Some(&view.term) {
            return Lead::Alive;
        }
        // What is remembered from before a restart, the leader's or this node's, is worth nothing by itself.
        if local.was_led && local.lost != Some(view.term) {
            Lead::Doubtful
        } else {
            Lead::Gone
        }
    }

    /// How long this node waits before it stands: the voters take turns, which begin with another one in each
    /// shard, and whoever led last has none.
    fn turn(&mut self, shard: u32) -> Duration {
        let Some(local) = self.shards.get(&shard) else {
            return self.pace.retry_max;
        };
        let was_led = local.was_led;
        let former = local
            .view
            .leader
            .filter(|leader| *leader != self.node && was_led);
        let voters = local.view.voters.last().into_iter().flatten();
        let voters: Vec<u64> = voters
            .copied()
            .filter(|voter| Some(*voter) != former)
            .collect();
        let count = voters.len().max(1);
        let own = voters
            .iter()
            .position(|voter| *voter == self.node)
            .unwrap_or(count);
        let first = usize::try_from(shard).unwrap_or_default() % count;
        let turn = u32::try_from((own + count - first) % count).unwrap_or(u32::MAX);
        // After a start the nodes come up one by one, and nobody waits for them yet: each gets time to take its own.
        let spread = match was_led {
            true => self.pace.retry_min / 2,
            false => self.pace.retry_max,
        };
        let step = self.pace.retry_min / 4;
        spread.saturating_mul(turn) + self.random(Duration::ZERO, step)
    }

    /// Whatever may follow from a change: quorum, vouch, vacancy.
    fn judge(&mut self, shard: u32, now: Instant) {
        let Some(local) = self.shards.get(&shard) else {
            return;
        };
        let view = &local.view;
        let node = self.node;
        let supports = |voter: u64| {
            voter == node
                || self
                    .peers
                    .get(&voter)
                    .is_some_and(|peer| peer.supports(shard))
        };
        let has_quorum = view.leads && is_quorum(&view.voters, supports);
        let resigned = local.resigned == Some(view.term);
        let vouched = if has_quorum && !resigned {
            view.term
        } else {
            0
        };
        if let Some(local) = self.shards.get_mut(&shard) {
            if local.has_quorum != has_quorum {
                local.has_quorum = has_quorum;
                self.epoch += 1;
            }
            if local.vouched != vouched {
                self.version += 1;
                (local.vouched, local.version) = (vouched, self.version);
            }
        }
        self.judge_vacancy(shard, now);
    }

    fn judge_vacancy(&mut self, shard: u32, now: Instant) {
        let Some(local) = self.shards.get(&shard) else {
            return;
        };
        let lead = self.lead(shard, local);
        // The only voter has nobody to wait for.
        let alone = local
            .view
            .voters
            .iter()
            .all(|voters| voters.iter().eq([&self.node]));
        let (was_led, before) = (
            local.was_led,
            local.vacancy.as_ref().map(|vacancy| vacancy.gone),
        );
        let after = match lead {
            Lead::Alive => None,
            Lead::Doubtful => Some(false),
            Lead::Gone => Some(true),
        };
        if let Some(local) = self.shards.get_mut(&shard) {
            local.was_led |= lead == Lead::Alive;
        }
        if before == after {
            return;
        }
        self.epoch += 1;
        let wait = match lead {
            Lead::Alive => Duration::ZERO,
            _ if alone => Duration::ZERO,
            Lead::Doubtful => self.random(self.pace.retry_min, self.pace.retry_max),
            // A node that has just started hears of a leader soon, if there is one.
            Lead::Gone if !was_led => self.pace.interval * 2 + self.turn(shard),
            Lead::Gone => self.turn(shard),
        };
        if let Some(local) = self.shards.get_mut(&shard) {
            local.vacancy = after.map(|gone| Vacancy {
                gone,
                since: now,
                stand_at: now + wait,
                turn: wait,
                refusals: 0,
            });
        }
    }

    fn judge_all(&mut self, concerned: impl Fn(&View) -> bool, now: Instant) {
        let shards = self
            .shards
            .iter()
            .filter(|(_, local)| concerned(&local.view));
        let shards: Vec<u32> = shards.map(|(shard, _)| *shard).collect();
        for shard in shards {
            self.judge(shard, now);
        }
    }

    pub(super) fn would_depose(&self, shard: u32, candidate: u64, now: Instant) -> bool {
        let Some(local) = self.shards.get(&shard) else {
            return false;
        };
        // A leader that stands is none any more.
        if !local.view.leads && local.view.leader == Some(candidate) {
            return false;
        }
        // A leader that nobody has heard of yet vouches with its node's next pulse.
        let doubt = self.pace.retry_min / 2;
        match &local.vacancy {
            None => true,
            Some(vacancy) => !vacancy.gone && now < vacancy.since + doubt,
        }
    }

    pub(super) fn take(&mut self, from: u64, pulse: peer::Pulse, now: Instant) -> peer::PulseReply {
        let peer = self.peer(from, now);
        let mut changed = !peer.alive;
        let is_new = peer.boot != pulse.boot;
        let restarted = is_new && peer.boot != 0;
        if is_new {
            changed = true;
            (peer.boot, peer.known) = (pulse.boot, 0);
            peer.vouches.clear();
        }
        (peer.heard_at, peer.alive) = (now, true);
        if pulse.base <= peer.known && pulse.version > peer.known {
            changed = true;
            if pulse.base == 0 {
                peer.vouches.clear();
            }
            for vouch in pulse.vouches {
                match vouch.term {
                    0 => peer.vouches.remove(&vouch.shard),
                    term => peer.vouches.insert(vouch.shard, term),
                };
            }
            peer.known = pulse.version;
        }
        if restarted {
            // What it led is led no more until it vouches: openraft does not restore a leader.
            let followed = self.shards.values_mut();
            followed
                .filter(|local| local.view.leader == Some(from))
                .for_each(|local| local.lost = Some(local.view.term));
        }
        if changed {
            self.judge_all(|view| view.leader == Some(from), now);
        }
        self.reply(from)
    }

    fn reply(&self, to: u64) -> peer::PulseReply {
        let peer = self.peers.get(&to);
        let vouches = peer.into_iter().flat_map(|peer| &peer.vouches);
        let refused = vouches.filter_map(|(shard, term)| {
            let own = match self.shards.get(shard) {
                None => 0,
                Some(local) if local.view.term > *term => local.view.term,
                Some(_) => return None,
            };
            Some(peer::Vouch {
                shard: *shard,
                term: own,
            })
        });
        peer::PulseReply {
            boot: self.boot,
            version: peer.map_or(0, |peer| peer.known),
            refused: refused.collect(),
        }
    }

    /// What to tell a peer now.
    pub(super) fn pulse(&mut self, to: u64, now: Instant) -> peer::Pulse {
        let base = self.peer(to, now).told;
        let mut vouches = Vec::new();
        if base < self.version {
            for (shard, local) in self.shards.iter().filter(|(_, local)| local.version > base) {
                let here = local.view.nodes.contains(&to);
                let term = if here { local.vouched } else { 0 };
                // Who knows nothing need not be told of what is not.
                if term != 0 || base != 0 {
                    vouches.push(peer::Vouch {
                        shard: *shard,
                        term,
                    });
                }
            }
            let left = self
                .left
                .iter()
                .filter(|(_, version)| base != 0 && **version > base);
            vouches.extend(left.map(|(shard, _)| peer::Vouch {
                shard: *shard,
                term: 0,
            }));
        }
        peer::Pulse {
            boot: self.boot,
            base,
            version: self.version,
            vouches,
        }
    }

    /// A peer has answered what was sent at `sent_at`.
    pub(super) fn answered(
        &mut self,
        from: u64,
        sent_at: Instant,
        reply: peer::PulseReply,
        now: Instant,
    ) {
        let (lease, again_at) = (self.pace.lease, now + self.pace.retry_min);
        let peer = self.peers.entry(from).or_insert_with(|| Peer::new(now));
        peer.reached_at = peer.reached_at.max(Some(sent_at));
        let reached = peer.reached_at.is_some_and(|at| now < at + lease);
        let mut changed = peer.reached != reached;
        let shards = &self.shards;
        changed |= peer.refuses(&reply, again_at, |shard| {
            let local = shards.get(&shard);
            local.is_some_and(|local| local.vouched != 0 && local.version <= reply.version)
        });
        let returned = reached && (!peer.reached || peer.answering_boot != reply.boot);
        peer.reached = reached;
        (peer.answering_boot, peer.told) = (reply.boot, reply.version);
        if returned {
            self.returned.insert(from);
        }
        if changed {
            self.judge_all(|view| view.leads, now);
        }
    }

    pub(super) fn is_reached(&self, node: u64) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.reached)
    }

    /// Peers that were reached again since the last call.
    pub(super) fn take_returned(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.returned)
    }

    /// Shards led here of which `node` holds a replica.
    pub(super) fn led_with(&self, node: u64) -> Vec<u32> {
        let led = self
            .shards
            .iter()
            .filter(|(_, local)| local.view.leads && local.view.nodes.contains(&node));
        led.map(|(shard, _)| *shard).collect()
    }

    /// Shards led here.
    pub(super) fn led(&self) -> Vec<u32> {
        let led = self.shards.iter().filter(|(_, local)| local.view.leads);
        led.map(|(shard, _)| *shard).collect()
    }

    /// To be called often. `late` is by how much this call is: while this node stood still it could hear nobody.
    pub(super) fn look(&mut self, now: Instant, late: Duration) {
        let lease = self.pace.lease;
        let (mut silent, mut changed) = (Vec::new(), false);
        for (node, peer) in &mut self.peers {
            if late > self.pace.interval {
                peer.heard_at = (peer.heard_at + late).min(now);
            }
            let alive = now < peer.heard_at + lease;
            if peer.alive && !alive {
                peer.alive = false;
                silent.push(*node);
            }
            let reached = peer.reached_at.is_some_and(|at| now < at + lease);
            changed |= peer.reached && !reached;
            peer.reached &= reached;
            let refused = peer.refused.len();
            peer.refused.retain(|_, again_at| now < *again_at);
            changed |= peer.refused.len() != refused;
        }
        for node in silent {
            tracing::warn!(
                peer = node,
                "not heard of for {lease:?}: what it leads is vacant"
            );
            self.judge_all(|view| view.leader == Some(node), now);
        }
        if changed {
            self.judge_all(|view| view.leads, now);
        }
    }

    /// How long after the moment from which anybody could win this node stands.
    pub(super) fn turn_of(&self, shard: u32) -> Duration {
        let local = self.shards.get(&shard);
        let vacancy = local.and_then(|local| local.vacancy.as_ref());
        vacancy.map_or(Duration::ZERO, |vacancy| vacancy.turn)
    }

    /// If the shard has no leader, this node waits for its turn no longer.
    pub(super) fn hasten(&mut self, shard: u32, now: Instant) {
        let local = self.shards.get_mut(&shard);
        if let Some(vacancy) = local.and_then(|local| local.vacancy.as_mut()) {
            vacancy.stand_at = vacancy.stand_at.min(now);
        }
    }

    /// Shards for which this node is to stand now, each with its voters. [`State::stood`] is told of each.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(u32, Vec<BTreeSet<u64>>)> {
        let node = self.node;
        let is_due = |local: &Local| {
            !local.stands
                && !local.view.leads
                && local
                    .view
                    .voters
                    .iter()
                    .any(|voters| voters.contains(&node))
                && local
                    .vacancy
                    .as_ref()
                    .is_some_and(|vacancy| vacancy.stand_at <= now)
        };
        let due = self.shards.iter_mut().filter(|(_, local)| is_due(local));
        let due = due.map(|(shard, local)| {
            local.stands = true;
            (*shard, local.view.voters.clone())
        });
        due.collect()
    }

    /// A round of questions is over, and perhaps an election has begun.
    pub(super) fn stood(&mut self, shard: u32, tried: Tried, now: Instant) {
        let at_once = self.random(self.pace.interval / 2, self.pace.interval);
        let soon = self.random(self.pace.interval, self.pace.retry_min);
        let later = self.random(self.pace.retry_min, self.pace.retry_max);
        let Some(local) = self.shards.get_mut(&shard) else {
            return;
        };
        local.stands = false;
        if let Some(vacancy) = &mut local.vacancy {
            vacancy.refusals += usize::from(tried == Tried::Refused);
            let wait = match tried {
                Tried::Unheard => soon,
                Tried::Refused if vacancy.refusals <= SOON_REFUSALS_MAX => at_once,
                Tried::Refused | Tried::Election => later,
            };
            vacancy.stand_at = vacancy.stand_at.max(now + wait);
        }
    }
}
