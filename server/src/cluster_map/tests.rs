//! Which map counts, what is kept on disk, and who is asked.

use mailbox_engine::SlotId;

use super::*;

fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.node.dir = dir.to_owned();
    config.node.zone = "own".into();
    config.cluster.slot_count = 16;
    config.cluster.shards = 2;
    config.cluster.nodes = (1..=3).map(|node| (node, format!("h:{node}"))).collect();
    config
}

fn map(config: &Config, epoch: u64) -> ClusterMap {
    let mut map = configured(config);
    map.epoch = epoch;
    map
}

#[test]
fn what_is_configured_is_a_map_and_says_of_others_only_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let map = configured(&config(dir.path()));
    assert_eq!(map.check(), Ok(()));
    assert_eq!(map.shards.len(), 3);
    assert_eq!(map.shards[&ShardId(2)].slots, [(SlotId(8), SlotId(15))]);
    assert_eq!(map.nodes[&1].zone, "own");
    assert_eq!(map.nodes[&2].zone, "");
}

#[test]
fn a_map_that_is_older_or_no_map_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let maps = Maps::open(&config, None);
    assert_eq!(maps.now().cluster.epoch, 0);
    let mut watch = maps.watch();
    assert!(maps.take(map(&config, 5)));
    assert!(watch.has_changed().unwrap());
    watch.mark_unchanged();
    assert!(!maps.take(map(&config, 4)), "older");
    assert!(!maps.take(map(&config, 5)), "the same");
    let mut other = map(&config, 5);
    other.nodes.get_mut(&2).unwrap().address = "h:9".into();
    assert!(!maps.take(other), "of an epoch there is one map");
    let mut holed = map(&config, 6);
    holed.shards.get_mut(&ShardId(1)).unwrap().slots.clear();
    assert!(!maps.take(holed), "a slot is nowhere");
    let mut of_others = config.clone();
    of_others.cluster.slot_count = 32;
    assert!(!maps.take(map(&of_others, 7)), "other constants");
    assert!(!watch.has_changed().unwrap());
    assert_eq!(maps.now().cluster, map(&config, 5));
}

#[test]
fn a_node_starts_with_the_map_that_it_has_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut kept = map(&config, 9);
    let row = kept.shards.get_mut(&ShardId(1)).unwrap();
    row.replicas[2].role = ReplicaRole::Learner { replaces: Some(1) };
    row.replicas[1].role = ReplicaRole::Learner { replaces: None };
    kept.nodes.get_mut(&3).unwrap().standing = Standing::Removed;
    kept.nodes.get_mut(&2).unwrap().incarnation = u64::MAX;
    assert!(Maps::open(&config, None).take(kept.clone()));

    assert_eq!(Maps::open(&config, None).now().cluster, kept);
    // What the cluster tells at the start may be newer.
    let maps = Maps::open(&config, Some(map(&config, 10)));
    assert_eq!(maps.now().cluster.epoch, 10);
    let maps = Maps::open(&config, Some(map(&config, 8)));
    assert_eq!(maps.now().cluster.epoch, 10);
    // Whatever is wrong with the file, others are asked.
    for damage in ["", "{}", "not JSON"] {
        std::fs::write(dir.path().join("MAP"), damage).unwrap();
        assert_eq!(Maps::open(&config, None).now().cluster.epoch, 0);
    }
}

#[test]
fn a_map_of_the_file_gives_way_to_a_told_one_of_its_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    assert!(Maps::open(&config, None).take(map(&config, 3)));
    let file = dir.path().join("MAP");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("h:2", "h:7")).unwrap();
    let maps = Maps::open(&config, None);
    assert_eq!(maps.now().cluster.nodes[&2].address, "h:7");
    assert!(maps.take(map(&config, 3)));
    assert_eq!(maps.now().cluster, map(&config, 3));
}

#[test]
fn a_leader_that_was_seen_is_asked_first_then_every_voter_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = map(&config(dir.path()), 1);
    let row = told.shards.get_mut(&ShardId(1)).unwrap();
    row.replicas[2].role = ReplicaRole::Learner { replaces: None };
    let view = View::new(told, (9, "here:9".into()));
    let (leaders, shard) = (Leaders::default(), ShardId(1));
    let guess = |tried: &[u64]| {
        let place = leaders.guess(&view, shard, tried);
        place.map(|place| (place.node, place.address))
    };
    let voters: Vec<_> = (0..4).filter_map(|_| guess(&[])).map(|it| it.0).collect();
    assert_eq!(voters, [1, 2, 1, 2]);
    leaders.saw(shard, 3);
    assert_eq!(guess(&[]), Some((3, "h:3".to_owned())));
    assert_eq!(guess(&[3, 1]), Some((2, "h:2".to_owned())));
    assert_eq!(guess(&[3, 1, 2]), None);
    leaders.forget(shard, 2);
    assert_eq!(guess(&[]), Some((3, "h:3".to_owned())));
    leaders.forget_node(3);
    assert_eq!(leaders.seen(shard), None);
    // A leader that the map does not have is not known to be anywhere.
    leaders.saw(shard, 8);
    assert!(guess(&[]).is_some_and(|(node, _)| node < 3));
}

#[test]
fn of_a_replica_that_the_map_has_elsewhere_others_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    let told = map(&config(dir.path()), 1);
    let (leaders, shard) = (Leaders::default(), ShardId(1));
    let asked = |own: u64, tried: &[u64]| {
        let view = View::new(told.clone(), (own, "here:1".into()));
        let place = leaders.guess_beside(&view, shard, tried);
        place.map(|place| place.node)
    };
    assert_eq!(asked(1, &[]), None, "its replica would know");
    // A split has made it on node 9, too late.
    assert!(asked(9, &[2]).is_some_and(|node| node != 2));
    leaders.saw(shard, 3);
    assert_eq!(asked(9, &[]), Some(3));
    assert_eq!(asked(1, &[]), None);
    assert_eq!(asked(9, &[1, 2, 3]), None);
}

#[test]
fn a_node_that_has_moved_knows_where_it_is_before_the_map_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.cluster.nodes.insert(1, "moved:1".into());
    let mut told = map(&config, 2);
    told.nodes.get_mut(&1).unwrap().address = "h:1".into();
    let maps = Maps::open(&config, Some(told));
    let view = maps.now();
    assert_eq!(view.place(1).unwrap().address, "moved:1");
    assert_eq!(view.place(2).unwrap().address, "h:2");
    assert_eq!(view.place(7), None);
}

#[test]
fn the_protocols_map_is_read_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = map(&config(dir.path()), 4);
    let row = told.shards.get_mut(&ShardId(2)).unwrap();
    row.replicas[2].role = ReplicaRole::Learner { replaces: Some(1) };
    row.replicas[1].role = ReplicaRole::Learner { replaces: None };
    told.nodes.get_mut(&1).unwrap().standing = Standing::Draining;
    let out = map_out(&told, "blue");
    assert_eq!(out.cluster_id, "blue");
    assert_eq!(convert::map_in(out.clone()), Ok(told));
    let mut bad = out;
    bad.slot_count = 1 << 16;
    assert!(convert::map_in(bad).is_err());
}
