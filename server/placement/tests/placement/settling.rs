//! Leaders are not made even with the help of a node that has just started.

use mailbox_placement::{Goals, NodeId, ShardId, Standing, State, Step, plan};

use crate::cluster::{nodes, shard};

/// Three nodes that all hold every shard. `led` says how many each of them leads.
fn state(led: [usize; 3]) -> State {
    let leaders = (1_u64..).zip(led);
    let leaders = leaders.flat_map(|(node, count)| std::iter::repeat_n(node, count));
    let shards = (1..).zip(leaders).map(|(id, leader)| {
        let mut voters = [1, 2, 3];
        voters.swap(0, leader as usize - 1);
        shard(id, &voters)
    });
    State {
        now_ms: 0,
        nodes: nodes(&[1, 1, 1]),
        shards: shards.collect(),
    }
}

/// Who hands a leadership to whom.
fn transfers(state: &State) -> Vec<(u64, u64)> {
    let steps = plan(state, &Goals::default());
    let transfer = |step: &Step| match step {
        Step::TransferLeader { from, to, .. } => (from.0, to.0),
        other => panic!("{other:?}"),
    };
    steps.iter().map(transfer).collect()
}

#[test]
fn it_gets_none_until_it_has_settled() {
    let mut state = state([5, 4, 0]);
    state.nodes[2].up_for_ms = Goals::default().settle_ms - 1;
    assert_eq!(transfers(&state), []);
    state.nodes[2].up_for_ms += 1;
    let moved = transfers(&state);
    assert_eq!(moved.len(), 3);
    assert!(moved.iter().all(|(_, to)| *to == 3), "{moved:?}");
}

#[test]
fn nor_does_it_lose_any() {
    let mut state = state([4, 0, 5]);
    state.nodes[2].up_for_ms = 0;
    assert_eq!(
        transfers(&state),
        [(1, 2), (1, 2)],
        "the others are even among themselves"
    );
}

#[test]
fn who_may_not_lead_loses_them_at_once() {
    let mut state = state([0, 0, 2]);
    state.nodes[2].up_for_ms = 0;
    state.nodes[2].may_lead = false;
    let moved = transfers(&state);
    assert_eq!(moved.len(), 2);
    assert!(moved.iter().all(|(from, _)| *from == 3), "{moved:?}");
}

#[test]
fn it_settles_for_no_longer_than_others_were_up_before() {
    let mut state = state([9, 0, 0]);
    for (node, up_for_ms) in state.nodes.iter_mut().zip([7_000, 4_000, 1_000]) {
        node.up_for_ms = up_for_ms;
    }
    let moved = transfers(&state);
    assert!(moved.iter().all(|(_, to)| *to == 2), "{moved:?}");
    assert_eq!(moved.len(), 4);
}

#[test]
fn where_all_have_just_started_nobody_is_waited_for() {
    let mut state = state([9, 0, 0]);
    for node in &mut state.nodes {
        node.up_for_ms = 1;
    }
    assert_eq!(transfers(&state).len(), 6);
}

#[test]
fn who_leaves_does_not_wait_for_it() {
    let mut state = state([1, 1, 0]);
    state.nodes[2].up_for_ms = 0;
    state.nodes[0].standing = Standing::Draining;
    let steps = plan(&state, &Goals::default());
    let moved = |step: &&Step| step.shard() == ShardId(1);
    let first = steps.iter().find(moved).expect("its shard is led on");
    assert!(
        matches!(first, Step::TransferLeader { from, .. } if *from == NodeId(1)),
        "{first:?}"
    );
}
