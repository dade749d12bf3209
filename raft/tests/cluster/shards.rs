//! Many shards on the same nodes.

use std::collections::BTreeSet;

use mailbox_engine::{Command, Reply, ShardId};
use mailbox_raft::Node;
use tokio::runtime::Runtime;

use crate::nodes::{Cluster, eventually};

const SHARDS: u16 = 6;

/// Proposes to every shard, wherever it is led; the nodes that led, by index.
fn use_all(cluster: &Cluster) -> BTreeSet<usize> {
    let mut led = BTreeSet::new();
    for shard in (1..=u32::from(SHARDS)).map(ShardId) {
        led.insert(eventually("a leader takes a proposal", || {
            cluster.nodes.iter().position(|node| {
                let shard = node.shard_of(shard);
                let ready = shard.leadership().is_ready();
                ready
                    && matches!(
                        node.run(shard.propose(vec![Command::Cut])).as_deref(),
                        Ok([Reply::Cut { .. }])
                    )
            })
        }));
    }
    led
}

#[test]
fn every_shard_is_led_and_comes_back() {
    let mut cluster = Cluster::start(3, |options| options.shard_count = SHARDS);
    use_all(&cluster);
    let slots: Vec<u16> = (1..=u32::from(SHARDS))
        .flat_map(|shard| cluster.nodes[0].shard_of(ShardId(shard)).engine().slots())
        .map(|slot| slot.0)
        .collect();
    assert_eq!(slots, (0..16).collect::<Vec<u16>>());
    for node in &mut cluster.nodes {
        node.stop();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    assert!(!use_all(&cluster).is_empty());
}

#[test]
fn a_bootstrap_that_was_cut_short_goes_on_under_its_own_options_only() {
    let mut cluster = Cluster::start(1, |options| options.shard_count = 2);
    cluster.nodes[0].stop();
    let options = cluster.nodes[0].options.clone();
    // As if it had been killed before the last step.
    std::fs::remove_file(options.dir.join("IDENTITY")).unwrap();
    let runtime = Runtime::new().unwrap();
    for shards in [1, 4] {
        let mut other = options.clone();
        other.shard_count = shards;
        let refused = runtime.block_on(Node::start(other)).err().unwrap();
        let words = refused.to_string();
        assert!(
            words.contains("no IDENTITY") && words.contains(&format!("one of {shards} shards")),
            "{words}"
        );
    }
    cluster.nodes[0].start();
    eventually("it serves", || {
        let shard = cluster.nodes[0].shard_of(ShardId(2));
        shard.leadership().is_ready().then_some(())
    });
    assert!(options.dir.join("IDENTITY").exists());
}
