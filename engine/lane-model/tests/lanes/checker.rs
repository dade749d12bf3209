//! The model checker over a scene.

use std::collections::BTreeSet;
use std::time::Instant;

use mailbox_lane_model::{
    Action, Cluster, Direct, Flaw, Rule, Scene, Send, ShardId, SlotId, SlotMove,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// Something that a state may show.
pub(crate) type Condition = fn(&Play, &Cluster) -> bool;

/// A scene as the checker takes it.
#[derive(Clone)]
pub(crate) struct Play {
    pub(crate) scene: Scene,
    /// States that must be reachable, or the scene shows less than it claims.
    pub(crate) must_reach: Vec<(&'static str, Condition)>,
}

impl Model for Play {
    type State = Cluster;
    type Action = Action;

    fn init_states(&self) -> Vec<Cluster> {
        vec![self.scene.start()]
    }

    fn actions(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        self.scene.actions(cluster, actions);
    }

    fn next_state(&self, cluster: &Cluster, action: Action) -> Option<Cluster> {
        self.scene.step(cluster, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // The checker takes plain functions, so each rule needs its own.
        let mut properties = vec![
            always(Rule::AcceptedOnce, |play, state| {
                Rule::AcceptedOnce.holds(&play.scene, state)
            }),
            always(Rule::OnceAndInOrder, |play, state| {
                Rule::OnceAndInOrder.holds(&play.scene, state)
            }),
            always(Rule::MarksBounded, |play, state| {
                Rule::MarksBounded.holds(&play.scene, state)
            }),
            always(Rule::OneOwner, |play, state| {
                Rule::OneOwner.holds(&play.scene, state)
            }),
            always(Rule::NothingLost, |play, state| {
                Rule::NothingLost.holds(&play.scene, state)
            }),
            always(Rule::Drains, |play, state| {
                Rule::Drains.holds(&play.scene, state)
            }),
        ];
        assert_eq!(properties.len(), Rule::ALL.len(), "a rule is not checked");
        let reach = self.must_reach.iter();
        properties.extend(reach.map(|(name, condition)| Property::sometimes(name, *condition)));
        properties
    }
}

#[expect(clippy::disallowed_methods, reason = "a check tells how long it took")]
fn now() -> Instant {
    Instant::now()
}

fn always(rule: Rule, condition: Condition) -> Property<Play> {
    Property::always(rule.name(), condition)
}

impl Play {
    /// Explores every state and asserts that all rules hold in each, and that all that must be reached is.
    pub(crate) fn holds(self, title: &str) {
        let started = now();
        let checker = self.checker().threads(2).spawn_bfs().join();
        println!(
            "{title}: {} states, depth {}, {:.1?}",
            checker.unique_state_count(),
            checker.max_depth(),
            started.elapsed()
        );
        checker.assert_properties();
    }

    /// Asserts that with a flaw planted the checker finds a state in which that rule is broken.
    pub(crate) fn breaks(mut self, flaw: Flaw, rule: Rule) {
        self.scene.flaw = Some(flaw);
        self.must_reach.clear();
        let started = now();
        let until = HasDiscoveries::AnyOf(BTreeSet::from([rule.name()]));
        let checker = self
            .checker()
            .threads(2)
            .finish_when(until)
            .spawn_bfs()
            .join();
        let discovery = checker.discoveries().remove(rule.name());
        let path = discovery.expect("the planted flaw is found");
        let actions = path.into_actions();
        println!(
            "{flaw:?} breaks '{}' in {} steps, found after {} states, {:.1?}: {actions:?}",
            rule.name(),
            actions.len(),
            checker.unique_state_count(),
            started.elapsed()
        );
    }
}

/// A scene without moves, in which nothing is sent yet.
pub(crate) fn scene(homes: &[u8], shards: u8) -> Scene {
    Scene {
        homes: homes.iter().map(|home| ShardId(*home)).collect(),
        shards,
        sends: vec![Vec::new(); homes.len()],
        moves: Vec::new(),
        aborts: false,
        proposals_max: 1,
        direct: Direct::WhenAcked,
        flaw: None,
    }
}

pub(crate) fn known(to: u8) -> Send {
    Send {
        to: SlotId(to),
        known: true,
    }
}

pub(crate) fn unknown(to: u8) -> Send {
    Send {
        to: SlotId(to),
        known: false,
    }
}

pub(crate) fn moves(slot: u8, to: u8) -> SlotMove {
    SlotMove {
        slot: SlotId(slot),
        to: ShardId(to),
    }
}
