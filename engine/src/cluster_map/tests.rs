//! Maps, and what is none.

use proptest::prelude::*;

use super::*;

pub(crate) fn map_node() -> impl Strategy<Value = MapNode> {
    let standing = prop_oneof![
        Just(Standing::Member),
        Just(Standing::Draining),
        Just(Standing::Removed)
    ];
    let texts = ("\\PC{1,20}", "\\PC{0,10}", "\\PC{0,10}");
    (texts, any::<u32>(), standing, any::<u64>()).prop_map(
        |((address, region, zone), weight, standing, incarnation)| MapNode {
            address,
            region,
            zone,
            weight,
            standing,
            incarnation,
        },
    )
}

pub(crate) fn map_replica() -> impl Strategy<Value = MapReplica> {
    let learner = any::<Option<u64>>().prop_map(|replaces| ReplicaRole::Learner { replaces });
    let role = prop_oneof![Just(ReplicaRole::Voter), learner];
    (any::<u64>(), role).prop_map(|(node, role)| MapReplica { node, role })
}

pub(crate) fn map_shard() -> impl Strategy<Value = MapShard> {
    let spans = proptest::collection::vec(any::<(u16, u16)>(), 0..5);
    let replicas = proptest::collection::vec(map_replica(), 0..5);
    (any::<u64>(), spans, replicas).prop_map(|(epoch, spans, replicas)| MapShard {
        epoch,
        slots: spans
            .into_iter()
            .map(|(first, last)| (SlotId(first), SlotId(last)))
            .collect(),
        replicas,
    })
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

proptest! {
    #[test]
    fn node_rows_are_read_as_written(node in map_node()) {
        let bytes = encoded(|out| node.encode(out));
        prop_assert_eq!(MapNode::decode(&bytes), Ok(node));
    }

    #[test]
    fn shard_rows_are_read_as_written(shard in map_shard()) {
        let bytes = encoded(|out| shard.encode(out));
        prop_assert_eq!(MapShard::decode(&bytes), Ok(shard));
    }

    #[test]
    fn the_maps_row_is_read_as_written(epoch: u64, slot_count: u16, shard_count: u16) {
        let row = MapRow { epoch, slot_count, shard_count };
        prop_assert_eq!(MapRow::decode(&row.encode()), Ok(row));
    }

    #[test]
    fn any_bytes_are_a_row_or_refused(bytes: Vec<u8>) {
        let _ = MapNode::decode(&bytes);
        let _ = MapShard::decode(&bytes);
        let _ = MapRow::decode(&bytes);
    }
}

fn voter(node: u64) -> MapReplica {
    let role = ReplicaRole::Voter;
    MapReplica { node, role }
}

pub(crate) fn small_map() -> ClusterMap {
    let node = |number| MapNode {
        address: format!("h:{number}"),
        region: String::new(),
        zone: format!("zone {number}"),
        weight: 100,
        standing: Standing::Member,
        incarnation: 0,
    };
    let shard = |slots: &[(u16, u16)]| MapShard {
        epoch: 1,
        slots: slots
            .iter()
            .map(|(first, last)| (SlotId(*first), SlotId(*last)))
            .collect(),
        replicas: (1..=3).map(voter).collect(),
    };
    ClusterMap {
        epoch: 1,
        slot_count: 8,
        shard_count: 2,
        nodes: (1..=3).map(|number| (number, node(number))).collect(),
        shards: BTreeMap::from([
            (ShardId::META, shard(&[])),
            (ShardId(1), shard(&[(0, 2), (5, 5)])),
            (ShardId(2), shard(&[(3, 4), (6, 7)])),
        ]),
    }
}

type Twist = fn(&mut ClusterMap);

#[test]
fn what_no_cluster_can_be_is_refused() {
    assert_eq!(small_map().check(), Ok(()));
    let spans = |map: &mut ClusterMap, spans: &[(u16, u16)]| {
        let spans = spans.iter();
        let slots = spans.map(|(first, last)| (SlotId(*first), SlotId(*last)));
        map.shards.get_mut(&ShardId(2)).unwrap().slots = slots.collect();
    };
    for bad in [
        &[(3, 4), (6, 6)][..],
        &[(3, 5), (6, 7)],
        &[(4, 4), (6, 7)],
        &[(3, 4), (6, 8)],
    ] {
        let mut map = small_map();
        spans(&mut map, bad);
        assert_eq!(map.check(), Err(MapFault::Slots), "{bad:?}");
    }
    let twists: [(Twist, MapFault); 6] = [
        (
            |map| map.shards.get_mut(&ShardId(1)).unwrap().replicas.clear(),
            MapFault::Replicas,
        ),
        (
            |map| {
                let replicas = &mut map.shards.get_mut(&ShardId(1)).unwrap().replicas;
                replicas.push(voter(1));
            },
            MapFault::Replicas,
        ),
        (
            |map| {
                let replicas = &mut map.shards.get_mut(&ShardId(1)).unwrap().replicas;
                replicas.push(voter(9));
            },
            MapFault::UnknownNode,
        ),
        (
            |map| map.nodes.get_mut(&1).unwrap().address.clear(),
            MapFault::Node,
        ),
        (
            |map| map.nodes.get_mut(&1).unwrap().zone = "x".repeat(65),
            MapFault::Node,
        ),
        (
            |map| {
                map.shards.remove(&ShardId::META);
            },
            MapFault::MetaShard,
        ),
    ];
    for (twist, fault) in twists {
        let mut map = small_map();
        twist(&mut map);
        assert_eq!(map.check(), Err(fault));
    }
}
