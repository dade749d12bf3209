//! Single situations, each with the one thing that should come of it.

use mailbox_placement::{Goals, NodeId, Replica, Role, ShardId, Standing, State, Step, plan};

use crate::cluster::{Cluster, NO_TROUBLE, ROUND_MS, nodes, shard};
use crate::random::{play_come_and_go, play_to_end, play_to_rest};
use crate::rest::{assert_at_rest, held_by, leader_imbalance, replicas};

/// Shards spread evenly over `per_zone` nodes in each of three zones, in every combination in turn.
fn even_state(per_zone: u64, shards: u32) -> State {
    let voters = |id: u32| {
        let id = u64::from(id);
        let (first, second) = (id % per_zone, id / per_zone % per_zone);
        let third = (first + second + id / (per_zone * per_zone)) % per_zone;
        let mut voters = [first + 1, second + per_zone + 1, third + 2 * per_zone + 1];
        voters.rotate_left((id / (per_zone * per_zone) % 3) as usize);
        voters
    };
    State {
        now_ms: 0,
        nodes: nodes(&[per_zone as usize; 3]),
        shards: (0..shards).map(|id| shard(id, &voters(id))).collect(),
    }
}

fn calm(state: State) -> Cluster {
    Cluster::new(state, Goals::default(), NO_TROUBLE, 1)
}

#[test]
fn an_even_cluster_is_left_alone() {
    let state = even_state(3, 27);
    assert_eq!(plan(&state, &Goals::default()), []);
}

#[test]
fn equal_input_gives_equal_steps() {
    let mut state = even_state(4, 40);
    state.nodes[3].standing = Standing::Draining;
    let goals = Goals::default();
    let steps = plan(&state, &goals);
    assert!(!steps.is_empty());
    assert_eq!(steps, plan(&state, &goals));
}

#[test]
fn a_node_that_returns_in_time_causes_no_moves() {
    let mut cluster = calm(even_state(3, 27));
    cluster.set_down(2);
    for _ in 0..cluster.goals.dead_after_ms / ROUND_MS - 1 {
        cluster.round();
    }
    cluster.set_up(2);
    cluster.settle(100);
    assert_eq!(
        (
            cluster.done.added,
            cluster.done.promoted,
            cluster.done.removed
        ),
        (0, 0, 0)
    );
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
}

#[test]
fn a_dead_node_is_replaced_after_the_delay_and_not_before() {
    let mut cluster = calm(even_state(3, 27));
    cluster.set_down(2);
    let since = cluster.state.now_ms;
    while cluster.state.now_ms + ROUND_MS < since + cluster.goals.dead_after_ms {
        cluster.round();
        assert_eq!(cluster.done.added, 0, "at {} ms", cluster.state.now_ms);
    }
    cluster.settle(200);
    assert_eq!(held_by(&cluster.state, 2), 0);
    assert_eq!(
        cluster.done.added, 9,
        "as many moves as the node had replicas"
    );
    assert_at_rest(&cluster.state, &cluster.goals);
}

#[test]
fn a_removed_node_is_replaced_at_once() {
    let mut state = even_state(3, 27);
    state.nodes[1].standing = Standing::Removed;
    // Raft has elected others long since.
    for shard in &mut state.shards {
        if shard.leader == Some(NodeId(2)) {
            shard.leader = Some(shard.replicas[1].node);
        }
    }
    let steps = plan(&state, &Goals::default());
    let replaces = |step: &&Step| matches!(step, Step::AddLearner { replaces: Some(node), .. } if *node == NodeId(2));
    assert!(steps.iter().any(|step| replaces(&step)), "{steps:?}");
}

#[test]
fn draining_moves_leaders_first_and_empties_the_node() {
    let mut cluster = calm(even_state(3, 27));
    cluster.node(5).standing = Standing::Draining;
    let steps = plan(&cluster.state, &cluster.goals);
    let led = cluster
        .state
        .shards
        .iter()
        .filter(|shard| shard.leader == Some(NodeId(5)))
        .count();
    let handed = steps
        .iter()
        .filter(|step| matches!(step, Step::TransferLeader { from, .. } if *from == NodeId(5)));
    assert_eq!(handed.count(), led);
    cluster.settle(200);
    assert_eq!(held_by(&cluster.state, 5), 0);
    assert_eq!(cluster.done.added, 9);
    assert_at_rest(&cluster.state, &cluster.goals);
}

fn transfers(steps: &[Step]) -> usize {
    let transfers = steps.iter();
    let transfers = transfers.filter(|step| matches!(step, Step::TransferLeader { .. }));
    transfers.count()
}

#[test]
fn few_of_all_shards_change_their_leader_at_a_time() {
    let limits = Goals::default().limits;
    for (shards, at_once) in [(0, 1), (27, 1), (127, 1), (128, 2), (640, 10), (10_000, 16)] {
        assert_eq!(limits.transfers_at_once(shards), at_once, "{shards}");
    }
}

/// Begins a move to a node that never comes to its end.
fn add_learner_that_lags(cluster: &mut Cluster, node: u64) {
    let learner = Replica {
        node: NodeId(node),
        role: Role::Learner { replaces: None },
        lag: None,
    };
    let mut shards = cluster.state.shards.iter_mut();
    let shard = shards.find(|it| it.replica(learner.node).is_none());
    let shard = shard.expect("some shard is elsewhere");
    shard.replicas.push(learner);
}

#[test]
fn a_node_that_may_not_lead_is_freed_while_replicas_move_too() {
    let mut cluster = calm(even_state(3, 27));
    add_learner_that_lags(&mut cluster, 6);
    cluster.node(5).may_lead = false;
    let steps = plan(&cluster.state, &cluster.goals);
    let off_it =
        |step: &&Step| matches!(step, Step::TransferLeader { from, .. } if *from == NodeId(5));
    assert!(steps.iter().any(|step| off_it(&step)), "{steps:?}");
}

#[test]
fn where_shards_are_few_leaders_are_made_even_when_replicas_have_come_to_rest() {
    for shards in [27, 270] {
        let mut cluster = calm(even_state(3, shards));
        cluster.node(5).may_lead = false;
        cluster.settle(400);
        cluster.node(5).may_lead = true;
        let uneven = transfers(&plan(&cluster.state, &cluster.goals));
        assert!(uneven > 0, "it leads nothing of {shards}");
        add_learner_that_lags(&mut cluster, 6);
        let meanwhile = transfers(&plan(&cluster.state, &cluster.goals));
        assert_eq!(meanwhile > 0, shards >= 64, "{meanwhile} of {shards}");
    }
}

#[test]
fn a_node_that_may_not_lead_is_freed_of_what_it_leads_and_given_nothing() {
    let mut cluster = calm(even_state(3, 27));
    cluster.node(5).may_lead = false;
    cluster.settle(200);
    let led = cluster.state.shards.iter();
    let led = led.filter(|shard| shard.leader == Some(NodeId(5)));
    assert_eq!(led.count(), 0);
    assert_eq!(cluster.done.added, 0, "its replicas stay");
    // A drain does not make it the heir either, though it leads least.
    cluster.node(1).standing = Standing::Draining;
    let steps = plan(&cluster.state, &cluster.goals);
    let to_it = |step: &Step| matches!(step, Step::TransferLeader { to, .. } if *to == NodeId(5));
    assert!(!steps.is_empty() && !steps.iter().any(to_it), "{steps:?}");
}

#[test]
fn a_node_without_room_is_given_no_replica() {
    let mut cluster = calm(even_state(3, 27));
    cluster.node(2).has_room = false;
    let before = held_by(&cluster.state, 2);
    cluster.node(1).standing = Standing::Draining;
    cluster.settle(200);
    assert_eq!(held_by(&cluster.state, 1), 0);
    assert_eq!(held_by(&cluster.state, 2), before);
}

#[test]
fn a_drain_that_is_called_off_stops() {
    let mut cluster = calm(even_state(3, 27));
    cluster.node(5).standing = Standing::Draining;
    cluster.round();
    cluster.node(5).standing = Standing::Member;
    cluster.settle(200);
    assert!(cluster.done.added <= cluster.goals.limits.moves_max);
    assert!(held_by(&cluster.state, 5) >= 7);
    assert_at_rest(&cluster.state, &cluster.goals);
}

#[test]
fn a_new_node_gets_its_share_and_no_more() {
    let mut cluster = calm(even_state(3, 90));
    let mut new = cluster.state.nodes[0].clone();
    new.id = NodeId(10);
    cluster.state.nodes.push(new);
    cluster.settle(500);
    // Its zone holds a replica of each shard, on four nodes now instead of three.
    let share = held_by(&cluster.state, 10);
    assert!((20..=23).contains(&share), "{share} replicas");
    // Where it ends level with another, a last move may go there.
    assert!(
        cluster.done.added <= share + 2,
        "moves beyond the {share} to the new node"
    );
    assert_at_rest(&cluster.state, &cluster.goals);
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
}

#[test]
fn a_shard_that_goes_is_not_moved_for_evenness_but_kept_sound() {
    let mut cluster = calm(even_state(3, 90));
    let mut new = cluster.state.nodes[0].clone();
    new.id = NodeId(10);
    cluster.state.nodes.push(new);
    for shard in &mut cluster.state.shards {
        shard.goes = true;
    }
    cluster.settle(500);
    assert_eq!(held_by(&cluster.state, 10), 0);
    // What must be, must be.
    cluster.state.nodes[0].standing = Standing::Draining;
    cluster.settle(500);
    assert_eq!(held_by(&cluster.state, 1), 0);
    assert!(held_by(&cluster.state, 10) > 0);
}

#[test]
fn three_nodes_grow_to_five_and_back() {
    let state = State {
        now_ms: 0,
        nodes: nodes(&[1, 1, 1]),
        shards: (0..16).map(|id| shard(id, &[1, 2, 3])).collect(),
    };
    let mut cluster = calm(state);
    cluster.settle(100);
    for id in [4, 5] {
        let mut new = cluster.state.nodes[0].clone();
        (new.id, new.zone) = (NodeId(id), format!("z{id}"));
        cluster.state.nodes.push(new);
    }
    cluster.settle(300);
    let (most, fewest) = replicas(&cluster.state, &cluster.goals);
    assert!(most - fewest <= 2, "{fewest} to {most} replicas");
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
    for id in [4, 5] {
        cluster.node(id).standing = Standing::Draining;
    }
    cluster.settle(300);
    assert_eq!(
        (held_by(&cluster.state, 4), held_by(&cluster.state, 5)),
        (0, 0)
    );
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
}

#[test]
fn capacity_is_what_shares_are_measured_by() {
    let mut state = even_state(3, 90);
    for node in state.nodes.iter_mut().filter(|node| node.id.0 % 3 == 0) {
        node.weight = 2;
    }
    let mut cluster = calm(state);
    cluster.settle(500);
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
    let (heavy, light) = (held_by(&cluster.state, 3), held_by(&cluster.state, 1));
    assert!(
        (43..=47).contains(&heavy) && (21..=24).contains(&light),
        "{heavy} and {light}"
    );
}

#[test]
fn leaders_give_way_along_a_chain() {
    // Node 1 leads too much and shares nothing with node 3, who leads nothing: node 2 passes one on.
    let mut shards: Vec<_> = (0..3).map(|id| shard(id, &[1, 2])).collect();
    shards.extend((3..5).map(|id| shard(id, &[2, 3])));
    shards.push(shard(5, &[3, 2]));
    shards[5].leader = Some(NodeId(2));
    let state = State {
        now_ms: 0,
        nodes: nodes(&[1, 1, 1]),
        shards,
    };
    let goals = Goals {
        replication: 2,
        replica_slack_percent: 1000,
        ..Goals::default()
    };
    let mut cluster = Cluster::new(state, goals, NO_TROUBLE, 1);
    cluster.settle(20);
    assert!(leader_imbalance(&cluster.state, &cluster.goals) < 1.0);
    assert_eq!(cluster.done.added, 0);
}

#[test]
fn a_shard_without_a_majority_is_not_touched() {
    let mut state = even_state(3, 27);
    let far = Goals::default().dead_after_ms * 2;
    state.now_ms = far;
    let lost: Vec<NodeId> = state.shards[0].replicas[..2]
        .iter()
        .map(|held| held.node)
        .collect();
    for node in state
        .nodes
        .iter_mut()
        .filter(|node| lost.contains(&node.id))
    {
        node.down_since_ms = Some(0);
    }
    let steps = plan(&state, &Goals::default());
    assert!(!steps.is_empty());
    assert!(
        steps.iter().all(|step| step.shard() != ShardId(0)),
        "{steps:?}"
    );
}

#[test]
fn a_replica_too_many_goes_the_dead_one_first() {
    let mut state = even_state(3, 3);
    state.shards[0] = shard(0, &[1, 4, 7, 2]);
    state.nodes[6].down_since_ms = Some(0);
    let gone = Step::RemoveReplica {
        shard: ShardId(0),
        epoch: 1,
        node: NodeId(7),
    };
    assert!(plan(&state, &Goals::default()).contains(&gone));
}

#[test]
fn of_voters_too_many_one_that_must_stay_keeps_no_other_from_going() {
    // Node 1 is to be emptied, but two others are away, and without it they would be half.
    let mut state = State {
        now_ms: 0,
        nodes: nodes(&[1; 5]),
        shards: vec![shard(0, &[2, 1, 3, 4, 5])],
    };
    state.nodes[0].standing = Standing::Draining;
    for away in [3, 4] {
        state.nodes[away].down_since_ms = Some(0);
    }
    let gone = Step::RemoveReplica {
        shard: ShardId(0),
        epoch: 1,
        node: NodeId(4),
    };
    assert_eq!(plan(&state, &Goals::default()), [gone]);
    // Three of four are a majority, as are two of three.
    let mut cluster = calm(state);
    cluster.settle(20);
    assert_eq!((held_by(&cluster.state, 1), cluster.done.removed), (0, 2));
}

#[test]
fn a_learner_on_a_lost_node_is_given_up() {
    let mut state = even_state(3, 3);
    let role = Role::Learner { replaces: None };
    let learner = Replica {
        node: NodeId(9),
        role,
        lag: None,
    };
    state.shards[0].replicas.push(learner);
    state.nodes[8].standing = Standing::Removed;
    let gone = Step::RemoveReplica {
        shard: ShardId(0),
        epoch: 1,
        node: NodeId(9),
    };
    assert!(plan(&state, &Goals::default()).contains(&gone));
}

#[test]
fn shards_with_the_fewest_live_voters_come_first() {
    let mut state = even_state(3, 9);
    state.now_ms = Goals::default().dead_after_ms;
    state.nodes[0].down_since_ms = Some(0);
    // One more of five voters is gone from shard 4 than from the others.
    for shard in &mut state.shards {
        shard.leader = shard
            .replicas
            .iter()
            .map(|held| held.node)
            .find(|node| *node != NodeId(1));
    }
    state.shards[4] = shard(4, &[2, 5]);
    let mut goals = Goals::default();
    goals.limits.moves_max = 1;
    let steps = plan(&state, &goals);
    let added = steps
        .iter()
        .find(|step| matches!(step, Step::AddLearner { .. }));
    assert!(added.is_some());
    let live = |id: ShardId| {
        let shard = state.shards.iter().find(|shard| shard.id == id);
        shard.map(|shard| {
            shard
                .voters()
                .filter(|voter| voter.node != NodeId(1))
                .count()
        })
    };
    assert_eq!(added.and_then(|step| live(step.shard())), Some(2));
}

#[test]
fn regions_come_before_zones_where_asked() {
    let mut state = State {
        now_ms: 0,
        nodes: nodes(&[1, 1, 1, 1, 1]),
        shards: vec![shard(0, &[1, 2, 3])],
    };
    for (node, region) in state.nodes.iter_mut().zip(["a", "a", "a", "b", "c"]) {
        region.clone_into(&mut node.region);
    }
    let goals = Goals {
        spread: mailbox_placement::Spread::Regions,
        ..Goals::default()
    };
    let mut cluster = Cluster::new(state.clone(), goals, NO_TROUBLE, 1);
    cluster.settle(100);
    assert_eq!(
        (held_by(&cluster.state, 4), held_by(&cluster.state, 5)),
        (1, 1)
    );
    assert_eq!(
        plan(&state, &Goals::default()),
        [],
        "by zones it is as good as can be"
    );
}

/// Five shards of one replica each, two on node 1, two on node 2 and one on node 3: as even as can be. The
/// first is being moved from node 1 to node 2, which would end with more to undo.
fn needless_move() -> (State, Goals) {
    let at = [1, 1, 2, 2, 3];
    let mut state = State {
        now_ms: 0,
        nodes: nodes(&[3]),
        shards: (0..5).map(|id| shard(id, &[at[id as usize]])).collect(),
    };
    let replaces = Some(NodeId(1));
    state.shards[0].replicas.push(Replica {
        node: NodeId(2),
        role: Role::Learner { replaces },
        lag: None,
    });
    let goals = Goals {
        replication: 1,
        ..Goals::default()
    };
    (state, goals)
}

#[test]
fn a_move_given_up_calls_for_no_other() {
    let (state, goals) = needless_move();
    let mut cluster = Cluster::new(state, goals, NO_TROUBLE, 1);
    cluster.settle(100);
    assert_eq!((cluster.done.added, cluster.done.removed), (0, 1));
}

#[test]
fn two_moves_against_each_other_are_not_both_given_up() {
    // Node 3 has one less than its share if both are, or none is. Either is enough.
    let (mut state, goals) = needless_move();
    state.shards[2].replicas.push(Replica {
        node: NodeId(1),
        role: Role::Learner {
            replaces: Some(NodeId(2)),
        },
        lag: None,
    });
    let mut cluster = Cluster::new(state, goals, NO_TROUBLE, 1);
    for _ in 0..20 {
        cluster.round();
    }
    assert_eq!((cluster.done.added, cluster.done.removed), (0, 0));
}

#[test]
fn a_move_waits_for_a_change_whose_end_is_open() {
    let (mut state, goals) = needless_move();
    state.shards[0].changing = true;
    // Promoted, node 2 would have one to give to node 1; removed, it would not.
    assert_eq!(plan(&state, &goals), []);
    state.shards[0] = shard(0, &[2]);
    let [Step::AddLearner { node, replaces, .. }] = plan(&state, &goals)[..] else {
        panic!("one move");
    };
    assert_eq!((node, replaces), (NodeId(1), Some(NodeId(2))));
}

#[test]
fn a_change_that_waits_for_a_lost_majority_takes_nobodys_turn() {
    // Shard 0 is to go from nodes 1, 2, 3 to nodes 4, 2, 3, of which only 3 is up. It leads shard 1 as well.
    let mut state = State {
        now_ms: 0,
        nodes: nodes(&[1; 6]),
        shards: vec![shard(0, &[3, 1, 2]), shard(1, &[3, 1, 5])],
    };
    let replaces = Some(NodeId(1));
    state.shards[0].replicas.push(Replica {
        node: NodeId(4),
        role: Role::Learner { replaces },
        lag: Some(0),
    });
    state.shards[0].changing = true;
    state.nodes[0].standing = Standing::Draining;
    for away in [1, 3] {
        state.nodes[away].down_since_ms = Some(0);
    }
    let mut goals = Goals::default();
    (goals.limits.moves_max, goals.limits.node_moves_max) = (1, 1);
    let [Step::AddLearner { shard, node, .. }] = plan(&state, &goals)[..] else {
        panic!("one move");
    };
    assert_eq!((shard, node), (ShardId(1), NodeId(6)));
}

#[test]
fn found_at_random_two_shards_whose_moves_called_for_each_other() {
    let cluster = play_to_rest(13_118_248_349_034_293_491, &[3, 2, 3, 3], 27);
    assert_at_rest(&cluster.state, &cluster.goals);
}

#[test]
fn found_at_random_a_waiting_change_that_kept_its_leader_from_a_drain() {
    let cluster = play_come_and_go(2_742_510_015_668_087_955, &[4, 4, 1, 1], 15);
    assert_at_rest(&cluster.state, &cluster.goals);
}

#[test]
fn found_at_random_voters_too_many_with_a_leaving_one_among_them() {
    let cluster = play_to_end(13_491_244_765_329_852_787, &[4, 4], 26);
    assert_at_rest(&cluster.state, &cluster.goals);
    let cluster = play_come_and_go(4_605_542_144_375_770_765, &[1, 3, 4, 4], 22);
    assert_at_rest(&cluster.state, &cluster.goals);
}
