//! A node's directory on a small ext4 that fills up. Skipped, with the reason printed, where such a
//! file system cannot be mounted (it takes root).

use std::path::Path;
use std::time::{Duration, Instant};

use mailbox_client::v1::ErrorCode;
use mailbox_client::{CallError, Client};
use mailbox_cluster::{Cluster, ClusterOptions, Node};

use crate::binary::mailboxd;
use crate::load::{Load, PATIENCE, ended, stop};
use crate::small_disk::SmallDisk;

/// `mailboxd --help`: could not start; storage fault while running.
const EXIT_NOT_STARTED: i32 = 1;
const EXIT_STORAGE_FAULT: i32 = 3;
const MIB: u64 = 1 << 20;
/// Close to the greatest body there may be.
const BIG_BODY: usize = 16_000;

/// What one node alone writes fits.
const DISK_OF_ONE_MIB: u64 = 256;
/// Room for what a node has when it falls behind, for the snapshot of [`SENT_MEANWHILE_MAX`] sends that
/// it catches up by, and for its log, all at once.
const DISK_OF_THREE_MIB: u64 = 1024;
/// How far the others go on beside the full disk. Each message of [`BIG_BODY`] is in two mailboxes.
const SENT_MEANWHILE_MAX: usize = 8000;

/// The data directory of node 1 on a disk of `mib` MiB, below `dir`; `None` where that is not possible.
fn small_disk(dir: &Path, mib: u64) -> Option<SmallDisk> {
    match SmallDisk::mount(&dir.join("node1/data"), mib) {
        Ok(disk) => Some(disk),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

async fn cluster(dir: &Path, nodes: usize, free_min: u64) -> Cluster {
    // Small enough for the disk: the log's buffers size its files.
    let extra_config = format!(
        "[node]\ndisk_free_min_percent = 0\ndisk_free_min_bytes = {free_min}\n\
         [memory]\nbudget_bytes = \"64 MiB\""
    );
    let options = ClusterOptions {
        nodes,
        dir: Some(dir.to_owned()),
        binary: Some(mailboxd()),
        extra_config,
        ..ClusterOptions::default()
    };
    Cluster::start(options).await.expect("a cluster")
}

/// Gives calls up soon: the nodes they need may be gone.
async fn impatient(cluster: &Cluster) -> Client {
    let mut options = cluster.client_options().unwrap();
    options.timeouts.deadline = Duration::from_secs(2);
    options.timeouts.attempt = Duration::from_secs(1);
    Client::connect(options).await.expect("connect")
}

/// Sends one by one until one is refused.
async fn first_refusal(load: &mut Load) -> CallError {
    let begun = Instant::now();
    loop {
        if let Some(error) = load.try_send(1, 100).await.pop() {
            return error;
        }
        assert!(begun.elapsed() < PATIENCE, "no send is refused");
    }
}

/// Sends until one is accepted again.
async fn first_accepted(load: &mut Load) {
    let begun = Instant::now();
    while let Some(error) = load.try_send(1, 100).await.pop() {
        assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
        assert!(begun.elapsed() < PATIENCE, "no send is accepted: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Lets the node go on as long as its disk takes writes at all.
fn without_minimum(node: &Node) {
    let config = std::fs::read_to_string(node.config_path()).unwrap();
    let (before, rest) = config.split_once("disk_free_min_bytes = ").unwrap();
    let rest = rest.split_once('\n').unwrap().1;
    let config = format!("{before}disk_free_min_bytes = 0\n{rest}");
    std::fs::write(node.config_path(), config).unwrap();
}

/// The node ends by itself, saying where.
async fn stops_with_a_fault(node: &Node) {
    let status = ended(node).await;
    let log = node.log_tail();
    let words = log.lines().last().unwrap_or_default();
    println!("node {} ended with {status}: {words}", node.id());
    assert_eq!(status.code(), Some(EXIT_STORAGE_FAULT), "{log}");
    assert!(words.contains(node.data_dir().to_str().unwrap()), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_node_refuses_sends_then_stops_and_comes_back_with_all_that_was_acked() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(dir.path(), DISK_OF_ONE_MIB) else {
        return;
    };
    let cluster = cluster(dir.path(), 1, 64 * MIB).await;
    let node = cluster.node(0);
    let mut load = Load::new(&cluster, 10).await;
    load.send(1000).await;
    load.hash_all(&cluster).await;
    load.send(1000).await;

    disk.leave(32 * MIB);
    let refusal = first_refusal(&mut load).await;
    println!("refused: {refusal}");
    assert_eq!(refusal.code(), ErrorCode::DiskFull);
    assert!(refusal.is_retryable());
    let words = &refusal.0.message;
    let dir_name = node.data_dir().to_str().unwrap();
    assert!(words.contains(dir_name), "{words}");
    assert!(words.contains(&(64 * MIB).to_string()), "{words}");
    let free = words
        .split_once(" has ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok())
        .expect("the free bytes");
    assert!((1..64 * MIB).contains(&free), "{words}");
    load.check_all(None).await;
    println!(
        "{} acked messages read while sends are refused",
        load.acked.len()
    );

    disk.empty();
    first_accepted(&mut load).await;
    load.send(100).await;

    stop(node).await;
    without_minimum(node);
    node.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    load.send(1000).await;
    disk.fill();
    println!("{} bytes are free", disk.free());
    load.client = impatient(&cluster).await;
    // What fits into files that exist is still acked, and counts.
    while node.pid().is_some() && load.try_send(16, BIG_BODY).await.is_empty() {}
    stops_with_a_fault(node).await;

    // A file that was being built is removed at the start, and would make room.
    let staging = node.data_dir().join("staging");
    for file in std::fs::read_dir(staging).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    disk.fill();
    node.start().unwrap();
    let status = ended(node).await;
    let log = node.log_tail();
    println!(
        "still full: {status}: {}",
        log.lines().last().unwrap_or_default()
    );
    assert_eq!(status.code(), Some(EXIT_NOT_STARTED), "{log}");
    assert!(log.lines().last().unwrap().contains(dir_name), "{log}");

    disk.empty();
    node.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    load.check_all(None).await;
    println!("{} acked messages read after all", load.acked.len());
    load.send(100).await;
    stop(node).await;
    drop(cluster);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_nodes_stops_and_catches_up_once_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(dir.path(), DISK_OF_THREE_MIB) else {
        return;
    };
    let cluster = cluster(dir.path(), 3, 0).await;
    let mut load = Load::new(&cluster, 10).await;
    load.send(1000).await;
    let node = cluster.node(0);
    if cluster.leader().await == Some(0) {
        // Another one is to lead, so that the whole cluster's work goes on beside the full disk.
        stop(node).await;
        node.start().unwrap();
        cluster.wait_ready(PATIENCE).await.unwrap();
    }
    disk.fill();
    let begun = Instant::now();
    while node.pid().is_some() {
        // A node that is slow to stop must not find more to catch up with than its disk can hold.
        if load.acked.len() < SENT_MEANWHILE_MAX {
            let failed = load.try_send(64, BIG_BODY).await;
            assert!(failed.is_empty(), "{}", failed[0]);
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(begun.elapsed() < PATIENCE, "node 1 goes on");
    }
    stops_with_a_fault(node).await;
    load.send(1000).await;
    println!("{} sends acked, all of them", load.acked.len());

    disk.empty();
    node.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    load.send(100).await;
    let index = load.hash_all(&cluster).await;
    load.check_all(Some(node.address())).await;
    println!("three equal hashes at index {index}");
    for node in cluster.nodes() {
        stop(node).await;
    }
    drop(cluster);
    drop(disk);
}
