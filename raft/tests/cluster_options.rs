//! The cluster's options, from the first leader's configuration to a node that has another.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_engine::{
    ClusterOptions, Command, RegisterUser, Reply, SetClusterOptions, ShardId, UserLimits,
};
use mailbox_raft::{Error, Node, NodeOptions, Shard, Timing};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(40);
const OWN: ClusterOptions = ClusterOptions {
    group_members_max: 7,
    body_bytes_max: 100,
    dedup_window_ms: 3_600_000,
    user_limits: Some(UserLimits {
        devices_max: 5,
        groups_max: 6,
    }),
    dead_letters_max: Some(8),
};

fn options(dir: &std::path::Path) -> NodeOptions {
    // A cluster of one calls no peer.
    let members = BTreeMap::from([(1, "127.0.0.1:1".to_owned())]);
    let mut options = NodeOptions::new(1, "test", dir, members, b"secret".to_vec());
    options.engine.slot_count = 4;
    options.engine.memtable_age_ms_max = u64::MAX;
    options.log.wal_ahead_bytes = 0;
    options.disk_free_min_bytes = 0;
    options.timing = Timing {
        heartbeat_ms: 100,
        election_min_ms: 500,
        election_max_ms: 1000,
    };
    options.cluster_options = OWN;
    options
}

fn configured_otherwise(dir: &std::path::Path) -> NodeOptions {
    let mut options = options(dir);
    options.cluster_options.group_members_max = 8;
    options.cluster_options.dedup_window_ms = 7_200_000;
    options
}

fn shard(node: &Node) -> Shard {
    node.shard(ShardId(1)).unwrap()
}

/// Looks until it is so. Waiting without an end in sight fails.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "in {WAIT:?} it was not so: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn options_of(node: &Node) -> ClusterOptions {
    let shard = shard(node);
    eventually("the shard has options", async || {
        shard.engine().cluster_options()
    })
    .await
}

async fn propose(node: &Node, command: Command) -> Reply {
    let shard = shard(node);
    eventually("the command is applied", async || {
        let replies = shard.propose(vec![command.clone()]).await;
        replies.ok().map(|mut replies| replies.remove(0))
    })
    .await
}

fn assert_names_both(error: &str) {
    for words in [
        "cluster.group_members_max is 8 in this node's configuration and 7 in the cluster",
        "cluster.dedup_window_ms is 7200000 in this node's configuration and 3600000 in the cluster",
        "set this node's to the cluster's values",
    ] {
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_gets_its_options_before_anybody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(options(dir.path())).await.unwrap();
    assert_eq!(options_of(&node).await, OWN);
    // Nobody is ever refused for want of them.
    let other = tempfile::tempdir().unwrap();
    let fresh = Node::start(options(other.path())).await.unwrap();
    let call = RegisterUser {
        request_id: Uuid::now_v7(),
        handle: "alice".to_owned(),
    };
    let reply = propose(&fresh, Command::RegisterUser(call)).await;
    assert!(matches!(reply, Reply::UserRegistered { .. }), "{reply:?}");
    for node in [node, fresh] {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_configured_otherwise_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(options(dir.path())).await.unwrap();
    options_of(&node).await;
    node.shutdown().await.unwrap();
    drop(node);
    let refused = Node::start(configured_otherwise(dir.path())).await.err();
    let Some(error @ Error::ClusterOptions { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_names_both(&error.to_string());
    // It changed nothing, and mending the configuration is enough.
    let node = Node::start(options(dir.path())).await.unwrap();
    assert_eq!(options_of(&node).await, OWN);
    node.shutdown().await.unwrap();
}

#[test]
fn a_node_that_learns_of_them_from_its_log_stops() {
    let dir = tempfile::tempdir().unwrap();
    let run = |body: &dyn Fn(&tokio::runtime::Runtime)| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        body(&runtime);
        // As a crash would: nothing is flushed.
        runtime.shutdown_timeout(Duration::from_secs(5));
    };
    run(&|runtime| {
        let node = runtime.block_on(Node::start(options(dir.path()))).unwrap();
        runtime.block_on(options_of(&node));
        assert_eq!(shard(&node).engine().flushed(), None);
    });
    run(&|runtime| {
        let started = runtime.block_on(eventually("the killed one's files are free", async || {
            let started = Node::start(configured_otherwise(dir.path())).await;
            assert!(!matches!(started, Err(Error::ClusterOptions { .. })));
            started.ok()
        }));
        let node: Arc<Node> = started;
        let misfit = runtime.block_on(async {
            let mut misfit = node.misfit();
            let told = tokio::time::timeout(WAIT, misfit.wait_for(Option::is_some)).await;
            told.unwrap().unwrap().clone().unwrap()
        });
        assert_names_both(&misfit);
        assert_eq!(*node.fault().borrow(), None, "its storage is well");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_command_does_not_stop_the_nodes_that_run() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(options(dir.path())).await.unwrap();
    options_of(&node).await;
    let changed = configured_otherwise(dir.path()).cluster_options;
    let call = SetClusterOptions {
        options: changed,
        if_absent: false,
    };
    let reply = propose(&node, Command::SetClusterOptions(call)).await;
    assert_eq!(reply, Reply::ClusterOptions { options: changed });
    assert_eq!(options_of(&node).await, changed);
    assert_eq!(*node.misfit().borrow(), None);
    node.shutdown().await.unwrap();
    drop(node);
    // When it starts again it must be configured like the cluster.
    assert!(Node::start(options(dir.path())).await.is_err());
    let node = Node::start(configured_otherwise(dir.path())).await.unwrap();
    assert_eq!(options_of(&node).await, changed);
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_gets_the_defaults_of_what_is_not_configured() {
    let dir = tempfile::tempdir().unwrap();
    let mut silent = options(dir.path());
    silent.cluster_options.dead_letters_max = None;
    let node = Node::start(silent).await.unwrap();
    let expected = ClusterOptions {
        dead_letters_max: ClusterOptions::default().dead_letters_max,
        ..OWN
    };
    assert!(expected.dead_letters_max.is_some());
    assert_eq!(options_of(&node).await, expected);
    assert_eq!(*node.misfit().borrow(), None);
    node.shutdown().await.unwrap();
}

/// Nodes of the older build may still be there, and stop at an entry with an option that they do not know.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_cluster_gets_of_the_options_that_it_lacks_those_that_are_configured() {
    let dir = tempfile::tempdir().unwrap();
    let older = ClusterOptions {
        user_limits: None,
        dead_letters_max: None,
        ..OWN
    };
    let node = Node::start(options(dir.path())).await.unwrap();
    options_of(&node).await;
    let call = SetClusterOptions {
        options: older,
        if_absent: false,
    };
    let reply = propose(&node, Command::SetClusterOptions(call)).await;
    assert_eq!(reply, Reply::ClusterOptions { options: older });
    node.shutdown().await.unwrap();
    drop(node);
    let silent = ClusterOptions {
        dead_letters_max: None,
        ..OWN
    };
    for configured in [silent, OWN] {
        let mut next = options(dir.path());
        next.cluster_options = configured;
        let node = Node::start(next).await.unwrap();
        let shard = shard(&node);
        // A leader proposes all that it wants in one entry: what that does not bring does not come.
        let completed = eventually("the shard has what is configured", async || {
            let now = shard.engine().cluster_options()?;
            (!now.lacks_some_of(&configured)).then_some(now)
        });
        assert_eq!(completed.await, configured);
        assert_eq!(*node.misfit().borrow(), None);
        node.shutdown().await.unwrap();
    }
}
