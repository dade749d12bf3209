//! The protocol, without flaws: every rule in every reachable state.

use mailbox_lane_model::{Cluster, Direct, Scene};

use crate::checker::{Play, known, moves, scene, unknown};

/// Everything was sent and every move is over.
fn all_done(play: &Play, cluster: &Cluster) -> bool {
    let scene = &play.scene;
    let sent = scene
        .sends
        .iter()
        .zip(&cluster.ledger.accepted)
        .all(|(sends, accepted)| sends.len() == accepted.len());
    let moved = cluster.attempts.len() == scene.moves.len()
        && cluster.attempts.iter().all(|attempt| attempt.imported);
    sent && moved && *cluster == keep_rest(&scene.drained(cluster), cluster)
}

/// A drained state with another's wire and proposals, to compare the rest.
fn keep_rest(drained: &Cluster, other: &Cluster) -> Cluster {
    let mut cluster = drained.clone();
    cluster.wire = other.wire.clone();
    for (shard, other) in cluster.shards.iter_mut().zip(&other.shards) {
        shard.proposals = other.proposals.clone();
    }
    cluster
}

/// A message came without a lane seq, or with one that was acked in the same apply.
fn delivered_direct(_: &Play, cluster: &Cluster) -> bool {
    cluster.wire.items.is_empty()
        && cluster
            .ledger
            .delivered
            .iter()
            .flatten()
            .any(|numbers| !numbers.is_empty())
}

/// Both ends live in one shard while a row of their lane is still unacked.
fn together_with_rows(play: &Play, cluster: &Cluster) -> bool {
    cluster.shards.iter().any(|shard| {
        play.scene.slots().any(|source| {
            play.scene.slots().any(|destination| {
                let rows = shard
                    .live(source)
                    .is_some_and(|slot| !slot.lanes[usize::from(destination.0)].rows.is_empty());
                rows && source != destination && shard.live(destination).is_some()
            })
        })
    })
}

/// A move was given up after the source had stopped.
fn aborted_after_freeze(_: &Play, cluster: &Cluster) -> bool {
    cluster
        .attempts
        .iter()
        .any(|attempt| attempt.aborted && attempt.frozen)
}

fn play(scene: Scene) -> Play {
    Play {
        scene,
        must_reach: vec![("all done", all_done)],
    }
}

#[test]
fn two_shards_under_falling_leaders() {
    let mut scene = scene(&[0, 1], 2);
    scene.sends = vec![vec![known(1); 4], vec![]];
    scene.proposals_max = 2;
    play(scene).holds("two shards, four sends one way, two proposals under way");
}

#[test]
fn both_ways_with_refusals() {
    let mut scene = scene(&[0, 1], 2);
    scene.sends = vec![vec![known(1), unknown(1), known(1)], vec![known(0)]];
    play(scene).holds("two shards, both ways, one refused");
}

#[test]
fn three_shards() {
    let mut scene = scene(&[0, 1, 2], 3);
    scene.sends = vec![
        vec![known(1), known(2), unknown(1)],
        vec![known(0)],
        vec![known(1)],
    ];
    play(scene).holds("three shards, two senders to one slot, one refused");
}

#[test]
fn one_shard_delivers_at_once() {
    for direct in [Direct::WhenAcked, Direct::WhenDelivered, Direct::Numbered] {
        let mut scene = scene(&[0, 0], 1);
        scene.sends = vec![
            vec![known(1), unknown(1), known(0), known(1)],
            vec![known(0)],
        ];
        scene.direct = direct;
        let mut play = play(scene);
        play.must_reach.push(("delivered direct", delivered_direct));
        play.holds(&format!("one shard, {direct:?}"));
    }
}

/// The destination moves in with the source, and out again, while sends go on.
fn destination_moves(direct: Direct) {
    let mut scene = scene(&[0, 1], 2);
    scene.sends = vec![vec![known(1); 3], vec![]];
    scene.moves = vec![moves(1, 0), moves(1, 1)];
    scene.direct = direct;
    let mut play = play(scene);
    play.must_reach
        .push(("together with rows on the way", together_with_rows));
    play.holds(&format!("destination moves in and out, {direct:?}"));
}

#[test]
fn the_destination_moves_direct_when_acked() {
    destination_moves(Direct::WhenAcked);
}

#[test]
fn the_destination_moves_direct_when_delivered() {
    destination_moves(Direct::WhenDelivered);
}

#[test]
fn the_destination_moves_direct_and_numbered() {
    destination_moves(Direct::Numbered);
}

#[test]
fn the_source_moves_to_a_third_shard() {
    let mut scene = scene(&[0, 1], 3);
    scene.sends = vec![vec![known(1), unknown(1)], vec![]];
    scene.moves = vec![moves(0, 2)];
    play(scene).holds("source moves");
}

#[test]
fn both_ends_move_at_once() {
    let mut scene = scene(&[0, 1], 3);
    scene.sends = vec![vec![known(1), known(1)], vec![]];
    scene.moves = vec![moves(1, 2), moves(0, 2)];
    let mut play = play(scene);
    play.must_reach
        .push(("together with rows on the way", together_with_rows));
    play.holds("both ends move");
}

#[test]
fn neighbours_part_and_meet() {
    let mut scene = scene(&[0, 0], 2);
    scene.sends = vec![vec![known(1), unknown(1)], vec![]];
    scene.moves = vec![moves(1, 1), moves(0, 1)];
    let mut play = play(scene);
    play.must_reach.push(("delivered direct", delivered_direct));
    play.must_reach
        .push(("together with rows on the way", together_with_rows));
    play.holds("neighbours part and meet");
}

#[test]
fn a_move_is_given_up_and_tried_again() {
    let mut scene = scene(&[0, 1], 2);
    scene.sends = vec![vec![known(1), known(1)], vec![]];
    scene.moves = vec![moves(1, 0), moves(1, 0)];
    scene.aborts = true;
    let mut play = play(scene);
    play.must_reach
        .push(("aborted after the freeze", aborted_after_freeze));
    play.must_reach.retain(|(name, _)| *name != "all done");
    play.holds("aborted move");
}
