//! Nodes that are configured for other cluster options than the cluster has.

use std::path::Path;

use mailbox_api::v1::RegisterUserRequest;
use rustix::process::Signal;

use crate::cluster::Trio;
use crate::process;

const OTHER: &str = "cluster.group_members_max=501";

/// Runs a node under another option, to its end.
fn run_otherwise(trio: &Trio, dir: &Path, index: usize) -> process::Ended {
    let mut args = trio.node_args(dir, index);
    args.extend(["--set".to_owned(), OTHER.to_owned()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    process::run(&args)
}

fn assert_refused(ended: &process::Ended) {
    assert!(!ended.status.success(), "{}", ended.stdout);
    for words in [
        "cluster.group_members_max is 501 in this node's configuration and 500 in the cluster",
        "set this node's to the cluster's values",
    ] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_group_members_max_is_told_so_and_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::configure(dir.path());
    for index in 0..2 {
        let node = trio.node(dir.path(), index);
        trio.nodes.push(Some(node));
    }
    let client = trio.client().await;
    let call = RegisterUserRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        handle: "alice".to_owned(),
    };
    client
        .register_user(call)
        .await
        .expect("two of three serve");

    // A fresh node learns the cluster's options from the others.
    let ended = tokio::task::block_in_place(|| run_otherwise(&trio, dir.path(), 2));
    assert_refused(&ended);

    // One that has them in its own files does not even begin to serve.
    let stopped = trio.nodes[0].take().unwrap();
    let ended = tokio::task::block_in_place(|| {
        assert!(stopped.stop(Signal::TERM).success());
        run_otherwise(&trio, dir.path(), 0)
    });
    assert_refused(&ended);
    assert_eq!(ended.stdout, "", "it was never ready");

    // Mended, both are let in.
    for index in [0, 2] {
        let node = trio.node(dir.path(), index);
        match trio.nodes.get_mut(index) {
            Some(place) => *place = Some(node),
            None => trio.nodes.push(Some(node)),
        }
    }
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}
