//! A damaged row that nothing reads until a command needs it: the replica cannot judge the command as
//! the others do, so its node stops.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_client::{user_id, v1};
use mailbox_cluster::{Cluster, ClusterOptions, Node};

use crate::binary::mailboxd;
use crate::damage::{EXIT_STORAGE_FAULT, Flipped, files, heals, last_line};
use crate::load::{Load, PATIENCE, ended, follower, stop};

/// A name that fills a block of a file: no other row is damaged with it.
const NAME_BYTES: usize = 20 * 1024;

struct Group {
    id: u64,
    name: String,
}

/// What files hold of it uncompressed is as it was written: it is random.
fn long_name() -> String {
    let letters = b'0'..=b'z';
    let letters: Vec<_> = letters.filter(u8::is_ascii_alphanumeric).collect();
    (0..NAME_BYTES)
        .map(|_| char::from(letters[rand::random_range(0..letters.len())]))
        .collect()
}

async fn create(load: &Load, name: String) -> Group {
    let request = v1::CreateGroupRequest {
        request_id: Bytes::new(),
        creator: Some(user_id(load.users[0])),
        name: name.clone(),
    };
    let made = load.client.create_group(request).await;
    Group {
        id: made.expect("create a group").group,
        name,
    }
}

async fn join(load: &Load, group: &Group, user: u64) {
    let request = v1::JoinGroupRequest {
        request_id: Bytes::new(),
        group: group.id,
        user: Some(user_id(user)),
    };
    load.client.join_group(request).await.expect("join a group");
}

/// Waits until the node has applied what the leader has.
async fn catches_up(cluster: &Cluster, load: &Load, node: &Node) {
    let applied = async |node: &Node| {
        let status = load.client.status(Some(node.address())).await;
        let mut shards = status.expect("a status").shards.into_iter();
        let shard = shards.find(|one| one.shard == load.shard);
        shard.expect("it holds the shard").applied_index
    };
    let leader = cluster.leader().await.expect("a leader");
    let wanted = applied(cluster.node(leader)).await;
    let begun = Instant::now();
    while applied(node).await < wanted {
        assert!(begun.elapsed() < PATIENCE, "{}", node.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where the group's own row is. Its name is in its first message too, whose key is smaller, and in
/// the rows that later ones have replaced.
fn newest_row(state: &Path, group: &Group) -> (PathBuf, u64) {
    // The compression may have cut one.
    let needles = group.name.as_bytes().chunks_exact(40);
    let needles: Vec<_> = needles.take(50).collect();
    for path in files(state, "sst").into_iter().rev() {
        let bytes = std::fs::read(&path).unwrap();
        let last = |needle: &&[u8]| {
            bytes
                .windows(needle.len())
                .rposition(|part| part == *needle)
        };
        if let Some(at) = needles.iter().filter_map(last).max() {
            return (path, at as u64);
        }
    }
    panic!("no file in {} holds the name", state.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_that_a_command_needs_stops_the_node_that_serves_all_others() {
    let options = ClusterOptions {
        nodes: 3,
        binary: Some(mailboxd()),
        // All rows are in one slot, so that the groups' rows are neighbours in the files.
        extra_config: "[cluster]\nslot_count = 1\nbody_bytes_max = \"64 KiB\"".into(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await.expect("three nodes");
    let mut load = Load::new(&cluster, 10).await;
    load.send(400).await;
    // The first keeps what lies before it out of the second's block: opening reads that.
    let before = create(&load, long_name()).await;
    let group = create(&load, long_name()).await;
    let after = create(&load, long_name()).await;
    load.hash_all(&cluster).await;
    let damaged = cluster.node(follower(&cluster).await);
    let state = damaged.data_dir().join("state");
    stop(damaged).await;
    let byte = Flipped::new(newest_row(&state, &group));

    // It starts, and applies whatever needs other rows.
    damaged.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    load.send(200).await;
    for whole in [&before, &after] {
        join(&load, whole, load.users[1]).await;
    }
    catches_up(&cluster, &load, damaged).await;
    load.check_all(Some(damaged.address())).await;
    assert!(damaged.pid().is_some(), "{}", damaged.log_tail());

    join(&load, &group, load.users[1]).await;
    let status = ended(damaged).await;
    let words = last_line(damaged);
    println!("{status}: {words}");
    assert_eq!(status.code(), Some(EXIT_STORAGE_FAULT), "{words}");
    assert!(words.contains(byte.file_name()), "the file: {words}");
    // The tag of groups, and the group.
    let key = format!("06{:016x}", group.id);
    assert!(words.contains(&key), "key {key}: {words}");
    load.send(200).await;

    // Nothing was changed without the row: mended, it goes on with that very command.
    byte.restore();
    heals(&cluster, &mut load, damaged).await;
}
