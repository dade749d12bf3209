//! The executor on a pretended cluster, killed at every call and begun anew.

mod fake;
mod world;

use std::sync::Arc;

use mailbox_engine::{ShardId, Standing};
use mailbox_placement::{Goals, plan};
use parking_lot::Mutex;

use super::effects::Effects as _;
use super::executor::Executor;
use super::journal::Journal;
use super::look::{Liveness, look};
use crate::metrics::PlacementMetrics;
use fake::{CUTS, Cut, Fake};

const PAUSE_MS: u64 = 1000;
/// Far more than any change here takes.
const ROUNDS_MAX: usize = 4000;
const SHARDS: u32 = 4;

fn goals() -> Goals {
    Goals {
        dead_after_ms: 20 * PAUSE_MS,
        ..Goals::default()
    }
}

fn executor(fake: &Fake, automatic: bool) -> Executor<Fake> {
    Executor {
        effects: Arc::new(fake.clone()),
        goals: goals(),
        automatic,
        pause_ms: PAUSE_MS,
        journal: Arc::new(Journal::new(PlacementMetrics::default())),
        liveness: Arc::default(),
        brake: Arc::default(),
        seen: Arc::default(),
    }
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(test);
}

/// Nothing is planned, and the map names what there is.
async fn is_at_rest(fake: &Fake, liveness: &Mutex<Liveness>) -> bool {
    let mut liveness = liveness.lock().clone();
    let sight = look(fake, &mut liveness, &Default::default()).await;
    let sight = sight.unwrap();
    sight.unlike.is_empty() && !fake.is_moving() && plan(&sight.state, &goals()).is_empty()
}

/// One executor, until there is nothing left to do or it is killed. False if it was killed.
async fn execute(fake: &Fake, automatic: bool) -> bool {
    let executor = executor(fake, automatic);
    let (journal, liveness) = (
        Arc::clone(&executor.journal),
        Arc::clone(&executor.liveness),
    );
    let running = executor.run();
    tokio::pin!(running);
    let watching = async {
        for _ in 0..ROUNDS_MAX {
            let before = (fake.done(), fake.calls());
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
            let idle = before == (fake.done(), fake.calls()) && journal.busy().is_empty();
            if idle && is_at_rest(fake, &liveness).await {
                return;
            }
        }
        panic!(
            "no rest after {ROUNDS_MAX} looks: {:?}, {:?}",
            fake.map_now(),
            journal.read()
        );
    };
    tokio::select! {
        biased;
        () = fake.killed.notified() => false,
        () = &mut running => unreachable!("it works until it is dropped"),
        () = watching => true,
    }
}

/// The executor, begun again on another node whenever it is killed, until there is nothing left to do.
async fn to_rest(fake: &Fake) {
    while !execute(fake, true).await {
        fake.begin();
    }
    fake.assert_at_rest();
}

/// Nodes 4 and 5 are new, and node 1 is to go.
fn growing(seed: u64) -> Fake {
    let fake = Fake::new(5, SHARDS, goals().lag_max, seed);
    fake.set_standing(1, Standing::Draining);
    fake
}

fn assert_even(fake: &Fake, nodes: &[u64]) {
    let held: Vec<(usize, usize)> = nodes.iter().map(|node| fake.held_by(*node)).collect();
    let replicas = held.iter().map(|(replicas, _)| *replicas);
    let leaders = held.iter().map(|(_, leaders)| *leaders);
    let spread = |counts: Vec<usize>| counts.iter().max().unwrap() - counts.iter().min().unwrap();
    assert!(spread(replicas.collect()) <= 2, "{held:?}");
    assert!(spread(leaders.collect()) <= 1, "{held:?}");
}

#[test]
fn one_shard_at_a_time_changes_its_leader_where_shards_are_few() {
    block_on(async {
        let fake = Fake::new(5, 32, goals().lag_max, 7);
        fake.set_standing(1, Standing::Draining);
        to_rest(&fake).await;
        assert!(fake.transfers().len() > 5, "{:?}", fake.transfers());
        assert_eq!(fake.transfers_at_once(), 1);
        assert_eq!(fake.held_by(1), (0, 0));
    });
}

#[test]
fn a_learner_that_has_caught_up_is_promoted_before_the_pause_is_over() {
    block_on(async {
        let fake = Fake::new(4, SHARDS, goals().lag_max, 7);
        fake.set_quick();
        fake.set_standing(3, Standing::Draining);
        let executor = executor(&fake, true);
        let promoted = async {
            while fake.held_by(4).0 == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = promoted => {}
            () = executor.run() => {}
        }
        assert!(fake.now_ms() < PAUSE_MS, "{} ms", fake.now_ms());
    });
}

#[test]
fn leaders_change_once_a_pause_however_soon_replicas_move_on() {
    block_on(async {
        let fake = Fake::new(5, 32, goals().lag_max, 7);
        fake.set_quick();
        fake.set_standing(1, Standing::Draining);
        to_rest(&fake).await;
        assert_eq!(fake.held_by(1), (0, 0));
        let transfers = fake.transfers();
        assert!(transfers.len() > 5, "{transfers:?}");
        let mut pairs = transfers.windows(2);
        assert!(
            pairs.all(|pair| pair[1] - pair[0] >= PAUSE_MS),
            "{transfers:?}"
        );
    });
}

#[test]
fn nodes_come_and_go_and_all_ends_even() {
    block_on(async {
        let fake = Fake::new(5, SHARDS, goals().lag_max, 7);
        to_rest(&fake).await;
        assert_even(&fake, &[1, 2, 3, 4, 5]);
        for gone in [1, 2] {
            fake.set_standing(gone, Standing::Draining);
        }
        to_rest(&fake).await;
        assert_eq!(fake.held_by(1), (0, 0));
        assert_eq!(fake.held_by(2), (0, 0));
        assert_even(&fake, &[3, 4, 5]);
        for gone in [1, 2] {
            fake.set_standing(gone, Standing::Removed);
        }
        let before = fake.done();
        to_rest(&fake).await;
        assert_eq!(fake.done(), before, "there was nothing to do");
    });
}

#[test]
fn a_shard_that_splits_is_left_alone_until_it_has_split() {
    block_on(async {
        let fake = growing(5);
        let shard = ShardId(1);
        let before = fake.map_now().shards[&shard].clone();
        assert!(before.replica(1).is_some());
        fake.set_splitting(&[shard]);
        to_rest(&fake).await;
        assert_eq!(fake.map_now().shards[&shard], before);
        assert_eq!(fake.held_by(1).0, 1);
        fake.set_splitting(&[]);
        to_rest(&fake).await;
        assert_eq!(fake.held_by(1), (0, 0));
    });
}

#[test]
fn killed_at_any_call_another_goes_on() {
    block_on(async {
        let fake = growing(3);
        to_rest(&fake).await;
        let calls = fake.calls();
        assert!(calls > 30, "{calls} calls are too few to show anything");
        for cut in CUTS {
            for at in 1..=calls {
                let fake = growing(3);
                fake.kill_at(at, cut);
                assert!(!execute(&fake, true).await, "it is killed at call {at}");
                fake.begin();
                to_rest(&fake).await;
                assert_eq!(fake.held_by(1), (0, 0), "{cut:?} at {at}");
                assert_even(&fake, &[2, 3, 4, 5]);
            }
        }
    });
}

#[test]
fn killed_again_and_again_it_gets_there_all_the_same() {
    block_on(async {
        for seed in 0..150 {
            let fake = growing(seed);
            let mut kills = 0;
            loop {
                if kills < 40 {
                    // Neither few calls nor the same number each time: each executor gets somewhere else.
                    let cut = CUTS[usize::try_from((seed + kills) % 3).unwrap()];
                    fake.kill_at(1 + (seed * 7 + kills * 5) % 11, cut);
                }
                kills += 1;
                if execute(&fake, true).await {
                    break;
                }
                fake.begin();
            }
            fake.assert_at_rest();
            assert_eq!(fake.held_by(1), (0, 0), "seed {seed}");
            assert_even(&fake, &[2, 3, 4, 5]);
        }
    });
}

#[test]
fn a_dead_node_is_replaced_after_its_time_and_not_before() {
    block_on(async {
        for seed in 0..30 {
            let fake = Fake::new(5, SHARDS, goals().lag_max, seed);
            to_rest(&fake).await;
            fake.set_down(2, true);
            let (held, _) = fake.held_by(2);
            assert!(held > 0);
            fake.kill_at(3 + seed % 9, Cut::Late);
            to_rest_with_dead(&fake, 2).await;
            assert_eq!(fake.held_by(2), (0, 0), "seed {seed}");
            fake.set_down(2, false);
            to_rest(&fake).await;
            assert_even(&fake, &[1, 2, 3, 4, 5]);
        }
    });
}

/// To rest, and on until the dead node's time has come.
async fn to_rest_with_dead(fake: &Fake, node: u64) {
    for _ in 0..200 {
        while !execute(fake, true).await {
            fake.begin();
        }
        if fake.held_by(node).0 == 0 {
            return;
        }
        let executor = executor(fake, true);
        let waits = async {
            // As one executor: the next one counts the time anew.
            while fake.held_by(node).0 > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = waits => {}
            () = fake.killed.notified() => fake.begin(),
            () = executor.run() => {}
        }
    }
    panic!("node {node} still holds {:?}", fake.held_by(node));
}

/// The executor, for so many pauses.
async fn for_pauses(fake: &Fake, pauses: u64) {
    let until = fake.now_ms() + pauses * PAUSE_MS;
    let executor = executor(fake, true);
    let passed = async {
        while fake.now_ms() < until {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = passed => {}
        () = executor.run() => {}
    }
}

#[test]
fn a_leadership_that_always_comes_back_is_given_ever_more_seldom() {
    block_on(async {
        let fake = Fake::new(3, SHARDS, goals().lag_max, 5);
        to_rest(&fake).await;
        fake.set_shy(3);
        let before = fake.transfers().len();
        for_pauses(&fake, 200).await;
        let transfers = fake.transfers().len() - before;
        // Without a brake there is one after each pause: a shard or two are led by too few.
        assert!((2..80).contains(&transfers), "{transfers} transfers");
    });
}

#[test]
fn a_panic_costs_its_step_and_nothing_else() {
    block_on(async {
        let fake = growing(9);
        fake.panic_once();
        to_rest(&fake).await;
        assert_eq!(fake.held_by(1), (0, 0));
    });
}

#[test]
fn without_placement_only_what_operators_ask_for_is_done() {
    block_on(async {
        let fake = Fake::new(5, SHARDS, goals().lag_max, 11);
        let executor = executor(&fake, false);
        let rounds = async {
            for _ in 0..2000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = rounds => {}
            () = executor.run() => {}
        }
        assert_eq!(fake.held_by(4), (0, 0));
        assert_eq!(fake.done(), 0, "nobody has asked for anything");
        fake.set_standing(1, Standing::Draining);
        let executor = self::executor(&fake, false);
        let emptied = async {
            while fake.held_by(1).0 > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = emptied => {}
            () = executor.run() => {}
        }
    });
}
