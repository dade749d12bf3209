//! The state without a network: pulses are handed over by hand, time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Pace;
use super::state::{Standing, State, View};
use crate::election::Tried;

const PACE: Pace = Pace {
    interval: Duration::from_millis(200),
    lease: Duration::from_millis(1200),
    retry_min: Duration::from_millis(700),
    retry_max: Duration::from_millis(1200),
};
const SHARD: u32 = 7;

/// Three nodes that hold one shard.
struct Nodes {
    now: Instant,
    states: BTreeMap<u64, State>,
}

fn view(term: u64, leads: bool, leader: Option<u64>) -> View {
    let all = BTreeSet::from([1, 2, 3]);
    View {
        term,
        leads,
        leader,
        voters: vec![all.clone()],
        nodes: all,
    }
}

fn new_state(node: u64, boot: u64) -> State {
    State::new(node, boot, node * 7919, PACE)
}

impl Nodes {
    fn new() -> Nodes {
        let states = (1..=3).map(|node| (node, new_state(node, 100 + node)));
        Nodes {
            now: Instant::now(),
            states: states.collect(),
        }
    }

    fn at(&mut self, node: u64) -> &mut State {
        self.states.get_mut(&node).unwrap()
    }

    fn note(&mut self, node: u64, view: View) -> Standing {
        let now = self.now;
        self.at(node).note(SHARD, view, now)
    }

    /// One leads, the others follow, and all have heard of all.
    fn led_by(leader: u64, term: u64) -> Nodes {
        let mut nodes = Nodes::new();
        for node in 1..=3 {
            nodes.note(node, view(term, node == leader, Some(leader)));
        }
        nodes.exchange(&[1, 2, 3]);
        nodes.exchange(&[1, 2, 3]);
        nodes
    }

    fn tell(&mut self, from: u64, to: u64) {
        let now = self.now;
        let pulse = self.at(from).pulse(to, now);
        let reply = self.at(to).take(from, pulse, now);
        self.at(from).answered(to, now, reply, now);
    }

    /// Everybody of `among` tells everybody else.
    fn exchange(&mut self, among: &[u64]) {
        for from in among {
            for to in among.iter().filter(|to| *to != from) {
                self.tell(*from, *to);
            }
        }
    }

    /// Time passes in the steps of a node's clock, and `among` hear each other.
    fn pass(&mut self, time: Duration, among: &[u64]) {
        let end = self.now + time;
        while self.now < end {
            self.now += PACE.interval / 2;
            let now = self.now;
            self.states
                .values_mut()
                .for_each(|state| state.look(now, Duration::ZERO));
            self.exchange(among);
        }
    }

    fn standing(&mut self, node: u64) -> Standing {
        self.at(node).standing(SHARD)
    }

    fn would_depose(&mut self, node: u64, candidate: u64) -> bool {
        let now = self.now;
        self.at(node).would_depose(SHARD, candidate, now)
    }

    fn is_due(&mut self, node: u64) -> bool {
        let now = self.now;
        !self.at(node).due(now).is_empty()
    }
}

#[test]
fn a_led_shard_stays_led_and_its_pulses_say_nothing_new() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.pass(Duration::from_secs(60), &[1, 2, 3]);
    assert!(nodes.standing(1).has_quorum);
    for node in [2, 3] {
        assert!(nodes.standing(node).has_leader && nodes.would_depose(node, 5 - node));
        assert!(!nodes.is_due(node));
    }
    let now = nodes.now;
    assert!(nodes.at(1).pulse(2, now).vouches.is_empty());
}

#[test]
fn when_the_leader_falls_silent_one_follower_stands_well_before_the_other() {
    for shard in [0, 1] {
        let mut nodes = Nodes::led_by(1, 4);
        for node in 1..=3 {
            let now = nodes.now;
            nodes.at(node).note(shard, view(4, node == 1, Some(1)), now);
        }
        nodes.exchange(&[1, 2, 3]);
        let fell = nodes.now;
        let mut stood = BTreeMap::new();
        while stood.len() < 2 {
            nodes.pass(PACE.interval / 2, &[2, 3]);
            let after = nodes.now - fell;
            for node in [2, 3] {
                let now = nodes.now;
                if nodes.at(node).due(now).iter().any(|(due, _)| *due == shard) {
                    stood.insert(node, after);
                }
            }
            assert!(after < Duration::from_secs(3), "{stood:?}");
        }
        // The shard decides who is first.
        let (first, second) = if shard == 0 { (2, 3) } else { (3, 2) };
        assert!(stood[&first] >= PACE.lease && stood[&first] < PACE.lease + PACE.interval * 2);
        assert!(
            stood[&second] >= stood[&first] + PACE.interval / 2,
            "{stood:?}"
        );
    }
}

/// How long a node whose leader is gone waits after each of some tries that end alike, and then when it is hastened.
fn waits(tried: Tried) -> (Vec<Duration>, Duration) {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.pass(PACE.lease, &[2, 3]);
    let next = |nodes: &mut Nodes| {
        let begun = nodes.now;
        while !nodes.is_due(2) {
            nodes.pass(PACE.interval / 2, &[2, 3]);
        }
        let waited = nodes.now - begun;
        let now = nodes.now;
        nodes.at(2).stood(SHARD, tried, now);
        waited
    };
    next(&mut nodes);
    let waits = (0..4).map(|_| next(&mut nodes)).collect();
    let now = nodes.now;
    nodes.at(2).hasten(SHARD, now);
    (waits, next(&mut nodes))
}

#[test]
fn who_is_refused_asks_again_soon_but_not_for_ever() {
    let soon = |wait: &Duration| *wait <= PACE.interval + PACE.interval / 2;
    let later = |wait: &Duration| *wait >= PACE.retry_min;
    let (waits_refused, hastened) = waits(Tried::Refused);
    // The try before the first of these was refused too.
    assert!(waits_refused[..2].iter().all(soon), "{waits_refused:?}");
    assert!(waits_refused[2..].iter().all(later), "{waits_refused:?}");
    assert_eq!(hastened, Duration::ZERO);
    let (waits_elected, _) = waits(Tried::Election);
    assert!(waits_elected.iter().all(later), "{waits_elected:?}");
    let (waits_unheard, _) = waits(Tried::Unheard);
    let between = |wait: &Duration| *wait >= PACE.interval && *wait < PACE.retry_max;
    assert!(waits_unheard.iter().all(between), "{waits_unheard:?}");
}

#[test]
fn a_leader_without_a_majority_does_not_lead_and_is_not_vouched_for() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.pass(PACE.lease * 2, &[2, 3]);
    assert!(!nodes.standing(1).has_quorum && !nodes.would_depose(1, 2));
    // Half a majority is none: only itself and nobody else.
    let now = nodes.now;
    assert!(
        nodes
            .at(1)
            .pulse(2, now)
            .vouches
            .iter()
            .all(|vouch| vouch.term == 0)
    );
    nodes.exchange(&[1, 2, 3]);
    assert!(nodes.standing(1).has_quorum);
}

#[test]
fn a_leader_that_was_restarted_is_no_leader() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.states.insert(1, new_state(1, 999));
    nodes.note(1, view(4, false, Some(1)));
    nodes.exchange(&[1, 2, 3]);
    for node in 1..=3 {
        assert!(!nodes.standing(node).has_leader && !nodes.would_depose(node, 2));
    }
    // At once: nobody waits for the lease. And if the first cannot win, the second stands soon after: they have not
    // just come up, nor does anybody wait for who has.
    let begun = nodes.now;
    let mut stood = BTreeMap::new();
    while stood.len() < 2 {
        nodes.pass(PACE.interval / 2, &[1, 2, 3]);
        let after = nodes.now - begun;
        let due: Vec<u64> = [2, 3]
            .into_iter()
            .filter(|node| nodes.is_due(*node))
            .collect();
        stood.extend(due.into_iter().map(|node| (node, after)));
        assert!(after < PACE.lease, "{stood:?}");
    }
    let first = stood.values().min();
    assert!(
        first.is_some_and(|first| *first <= PACE.interval),
        "{stood:?}"
    );
}

#[test]
fn a_voter_that_follows_a_later_term_supports_nobody_before() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.note(2, view(5, false, None));
    nodes.exchange(&[1, 2]);
    assert!(nodes.standing(1).has_quorum, "two of three still follow");
    nodes.note(3, view(5, false, Some(2)));
    nodes.exchange(&[1, 2, 3]);
    assert!(!nodes.standing(1).has_quorum);
}

#[test]
fn a_new_leader_is_trusted_before_its_node_has_vouched_but_not_for_long() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.note(3, view(5, false, Some(2)));
    assert!(nodes.standing(3).has_leader && nodes.would_depose(3, 1));
    nodes.pass(PACE.retry_min, &[1, 2, 3]);
    assert!(!nodes.would_depose(3, 1), "node 2 never said that it leads");
    nodes.note(2, view(5, true, Some(2)));
    nodes.exchange(&[1, 2, 3]);
    assert!(nodes.standing(3).has_leader && nodes.would_depose(3, 1));
}

#[test]
fn a_leader_that_hands_over_is_free_to_be_deposed() {
    let mut nodes = Nodes::led_by(1, 4);
    let now = nodes.now;
    nodes.at(1).resign(SHARD, now);
    nodes.pass(PACE.retry_min, &[1, 2, 3]);
    for node in 1..=3 {
        assert!(!nodes.would_depose(node, 2));
    }
    assert!(
        nodes.standing(1).has_quorum,
        "until somebody takes over it leads"
    );
    // In a later term it may lead again.
    nodes.note(1, view(6, true, Some(1)));
    nodes.note(2, view(6, false, Some(1)));
    nodes.exchange(&[1, 2, 3]);
    assert!(nodes.would_depose(2, 3));
}

#[test]
fn a_receiver_that_was_restarted_is_told_everything_again() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.states.insert(2, new_state(2, 999));
    nodes.note(2, view(4, false, Some(1)));
    assert!(
        !nodes.standing(2).has_leader,
        "what it remembers is worth nothing"
    );
    nodes.tell(1, 2);
    nodes.tell(1, 2);
    assert!(nodes.standing(2).has_leader);
    let returned = nodes.at(1).take_returned();
    assert!(returned.contains(&2), "its leaders are to speak to it");
}

#[test]
fn a_node_that_stood_still_does_not_take_it_for_silence() {
    let mut nodes = Nodes::led_by(1, 4);
    let stop = Duration::from_secs(5);
    nodes.now += stop;
    let now = nodes.now;
    nodes.at(2).look(now, stop);
    assert!(nodes.standing(2).has_leader);
    nodes.at(3).look(now, Duration::ZERO);
    assert!(!nodes.standing(3).has_leader);
    // A leader, though, has no answer that is young enough.
    nodes.at(1).look(now, stop);
    assert!(!nodes.standing(1).has_quorum);
}

#[test]
fn a_shard_that_left_is_vouched_for_no_more() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.at(1).forget(SHARD);
    nodes.exchange(&[1, 2, 3]);
    let now = nodes.now;
    nodes.pass(PACE.retry_min, &[1, 2, 3]);
    assert!(!nodes.would_depose(2, 3), "{:?}", nodes.now - now);
    // One that holds no replica says so, and does not count.
    let mut nodes = Nodes::led_by(1, 4);
    nodes.at(2).forget(SHARD);
    nodes.at(3).forget(SHARD);
    nodes.exchange(&[1, 2, 3]);
    assert!(!nodes.standing(1).has_quorum);
}

#[test]
fn a_refusal_is_not_forgiven_at_once() {
    let mut nodes = Nodes::led_by(1, 4);
    nodes.at(2).forget(SHARD);
    nodes.at(3).forget(SHARD);
    nodes.exchange(&[1, 2, 3]);
    let version = nodes.at(1).version();
    // Each round brings an answer, and none of them another vouch.
    for _ in 0..100 {
        nodes.exchange(&[1, 2, 3]);
        assert!(!nodes.standing(1).has_quorum);
    }
    assert_eq!(nodes.at(1).version(), version);
    // Whoever holds a replica again is asked in time.
    nodes.note(2, view(4, false, Some(1)));
    nodes.pass(PACE.retry_min + PACE.interval, &[1, 2, 3]);
    assert!(nodes.standing(1).has_quorum);
}
