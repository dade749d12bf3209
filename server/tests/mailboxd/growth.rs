//! Nodes that come to a cluster, are refused by it, and leave it; and what every node knows of all of them.

use std::path::Path;
use std::time::Duration;

use mailbox_api::v1::admin_client::AdminClient;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{
    self, ErrorCode, GetMapRequest, JoinClusterRequest, NodeStanding, RegisterUserRequest,
    RemoveNodeRequest, SetStandingRequest, ShardMapRequest, StatusRequest, WatchMapRequest,
};
use mailbox_api::{CallError, metadata};
use mailbox_client::{Auth, Client, ClientOptions, user_id};
use rustix::process::Signal;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::chat::text_to;
use crate::cluster::{SECRET, Trio, with_secret_of};
use crate::process::{Ended, PATIENCE, Process, run};

fn proven<T>(call: T) -> tonic::Request<T> {
    with_secret_of(call, SECRET.as_bytes())
}

async fn cluster(address: &str) -> ClusterClient<Channel> {
    ClusterClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

/// The map that a node tells, once it fits.
pub(crate) async fn map_with(
    address: &str,
    fits: impl Fn(&v1::ClusterMap) -> bool,
) -> v1::ClusterMap {
    map_by(SECRET.as_bytes(), address, fits).await
}

/// The same, of a cluster with another secret.
pub(crate) async fn map_by(
    secret: &[u8],
    address: &str,
    fits: impl Fn(&v1::ClusterMap) -> bool,
) -> v1::ClusterMap {
    let mut client = cluster(address).await;
    let begun = std::time::Instant::now();
    loop {
        let call = with_secret_of(GetMapRequest { after_epoch: 0 }, secret);
        let map = client.get_map(call).await;
        let map = map.unwrap().into_inner();
        if fits(&map) {
            return map;
        }
        assert!(begun.elapsed() < PATIENCE, "the map does not come: {map:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The greatest batch that the cluster knows a node to have synced, once it is more than `than`: who tells of less is
/// refused with it.
async fn known_batch(address: &str, map: &v1::ClusterMap, node: &v1::MapNode, than: u64) -> u64 {
    let mut client = cluster(address).await;
    let call = JoinClusterRequest {
        node: node.node,
        incarnation: node.incarnation,
        address: node.address.clone(),
        region: node.region.clone(),
        zone: node.zone.clone(),
        weight: node.weight,
        log_batch: 0,
        slot_count: map.slot_count,
        shard_count: map.shard_count,
    };
    let begun = std::time::Instant::now();
    loop {
        if let Err(status) = client.join_cluster(proven(call.clone())).await {
            let error = CallError::from_status(&status);
            let (_, known) = error.0.message.split_once("already synced batch ").unzip();
            let known = known.and_then(|known| known.split_once('.'));
            let known = known.and_then(|(known, _)| known.parse().ok());
            if let Some(known) = known.filter(|known| *known > than) {
                return known;
            }
            assert!(begun.elapsed() < PATIENCE, "no more than {than}: {error}");
        }
        assert!(begun.elapsed() < PATIENCE, "no more than {than}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every node has told who it is.
pub(crate) fn all_told(count: usize) -> impl Fn(&v1::ClusterMap) -> bool {
    move |map| map.nodes.len() == count && map.nodes.iter().all(|node| node.incarnation != 0)
}

fn run_args(args: &[String]) -> Ended {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run(&args)
}

struct Joined {
    process: Process,
    address: String,
}

fn start(args: &[String]) -> Joined {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = Process::start(&args);
    let address = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    Joined { process, address }
}

/// Repeats a call while the cluster settles.
async fn until_done<T, F>(mut call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let begun = std::time::Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => {
                let error = CallError::from_status(&status);
                assert!(
                    error.is_retryable() && begun.elapsed() < PATIENCE,
                    "{error}"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn register(mailbox: &MailboxClient<Channel>, handle: &str) -> u64 {
    let call = RegisterUserRequest {
        request_id: Uuid::now_v7().as_bytes().to_vec().into(),
        handle: handle.to_owned(),
    };
    let registered = until_done(|| {
        let (mut mailbox, call) = (mailbox.clone(), proven(call.clone()));
        async move { mailbox.register_user(call).await }
    });
    registered.await.user
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_joins_holds_nothing_and_passes_calls_on() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start_with(dir.path(), 64, 4);
    let first = map_with(&trio.addresses()[0], |map| map.epoch > 0).await;
    assert_eq!(first.cluster_id, "trio");
    assert_eq!((first.slot_count, first.shard_count), (64, 4));
    let shards: Vec<u32> = first.shards.iter().map(|shard| shard.shard).collect();
    assert_eq!(shards, [0, 1, 2, 3, 4]);
    assert!(first.shards[0].slots.is_empty() && first.shards[0].replicas.len() == 3);

    let options = ["node.zone=west", "node.weight=7"];
    let args = trio.joiner_args(dir.path(), 4, &trio.addresses()[1], &options);
    let fourth = start(&args);
    for address in trio.addresses().iter().chain([&fourth.address]) {
        let map = map_with(address, all_told(4)).await;
        let row = &map.nodes[3];
        assert_eq!((row.node, row.zone.as_str(), row.weight), (4, "west", 7));
        assert_eq!(row.address, fourth.address);
        assert_eq!(row.standing(), NodeStanding::Member);
    }

    let mut admin = AdminClient::connect(format!("http://{}", fourth.address))
        .await
        .unwrap();
    let status = admin
        .status(proven(StatusRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(status.shards.is_empty(), "{status:?}");
    let map = admin
        .shard_map(proven(ShardMapRequest {}))
        .await
        .unwrap()
        .into_inner();
    let told: Vec<u32> = map.shards.iter().map(|shard| shard.shard).collect();
    assert_eq!((told, map.nodes.len()), (vec![1, 2, 3, 4], 4));

    chat_through(&fourth.address).await;
    streams_name_a_leader(&fourth.address, trio.addresses()).await;
    assert!(fourth.process.stop(Signal::TERM).success());
}

/// Every kind of unary call, through a node that holds no shard.
async fn chat_through(address: &str) {
    let mailbox = MailboxClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let mut users = Vec::new();
    for number in 0..6 {
        users.push(register(&mailbox, &format!("user{number}")).await);
    }
    let id = || Uuid::now_v7().as_bytes().to_vec().into();
    for (number, user) in users.iter().enumerate() {
        let handle = mailbox_client::user_handle(format!("user{number}"));
        let call = v1::ResolveUserRequest { user: Some(handle) };
        let found = until_done(|| {
            let (mut mailbox, call) = (mailbox.clone(), proven(call.clone()));
            async move { mailbox.resolve_user(call).await }
        });
        assert_eq!(found.await.user, *user);
    }
    let create = v1::CreateGroupRequest {
        request_id: id(),
        creator: Some(user_id(users[0])),
        name: "a group".into(),
    };
    let group = until_done(|| {
        let (mut mailbox, call) = (mailbox.clone(), proven(create.clone()));
        async move { mailbox.create_group(call).await }
    });
    let group = group.await.group;
    for user in &users[1..] {
        let join = v1::JoinGroupRequest {
            request_id: id(),
            group,
            user: Some(user_id(*user)),
        };
        let joined = until_done(|| {
            let (mut mailbox, call) = (mailbox.clone(), proven(join.clone()));
            async move { mailbox.join_group(call).await }
        });
        assert!(joined.await.join_seq > 1);
    }
    let client = client(&[address]).await;
    for (number, to) in users.iter().enumerate() {
        let from = users[(number + 1) % users.len()];
        let send = text_to(&client, from, *to, "hello");
        let sent = until_done(|| {
            let (mut mailbox, call) = (mailbox.clone(), proven(send.clone()));
            async move { mailbox.send(call).await }
        });
        assert!(sent.await.seq > 0);
        let mark = v1::MarkReadRequest {
            request_id: id(),
            user: Some(user_id(*to)),
            conversation: Some(v1::mark_read_request::Conversation::Group(group)),
            seq: 1,
        };
        let marked = until_done(|| {
            let (mut mailbox, call) = (mailbox.clone(), proven(mark.clone()));
            async move { mailbox.mark_read(call).await }
        });
        assert_eq!(marked.await.read_mark, 1);
    }
    // The client was told of one node only, and has learnt the others from its map.
    let sent = client
        .send(text_to(&client, users[0], users[1], "over a stream"))
        .await;
    assert!(sent.expect("sent").seq > 1);
}

/// A stream for a shard that is not here is told where it is.
async fn streams_name_a_leader(address: &str, others: &[String]) {
    let mut mailbox = MailboxClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let first = v1::SubscribeRequest {
        shard: 2,
        ..v1::SubscribeRequest::default()
    };
    let error = mailbox.subscribe(proven(tokio_stream::once(first))).await;
    let error = CallError::from_status(&error.expect_err("not here"));
    assert_eq!(error.code(), ErrorCode::NotLeader, "{error}");
    assert!(others.contains(&error.0.leader_address), "{error:?}");
    assert!(error.0.map_epoch > 0);
    // What was passed on once is not passed on again.
    let mut call = proven(v1::HeadsRequest {
        shard: 2,
        ..v1::HeadsRequest::default()
    });
    call.metadata_mut()
        .insert(metadata::FORWARDED, "1".parse().unwrap());
    let error = mailbox.heads(call).await.expect_err("not here");
    assert_eq!(CallError::from_status(&error).code(), ErrorCode::NotLeader);
    let error = mailbox.heads(proven(v1::HeadsRequest {
        shard: 9,
        ..v1::HeadsRequest::default()
    }));
    let error = error.await.expect_err("there is none");
    let error = CallError::from_status(&error);
    // A caller with a newer map may know of one that a split has just made: it is to ask another node.
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.0.message.contains("names no shard 9"), "{error}");
}

async fn client(addresses: &[&str]) -> Client {
    let auth = Auth::Secret {
        cluster_id: Some("trio".into()),
        secret: SECRET.into(),
    };
    let addresses = addresses.iter().map(|address| (*address).to_owned());
    let options = ClientOptions::new(addresses.collect(), auth);
    Client::connect(options).await.expect("connect")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_removed_and_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let args = trio.joiner_args(dir.path(), 4, &trio.addresses()[0], &[]);
    let fourth = start(&args);
    let map = map_with(&fourth.address, all_told(4)).await;

    let mut through = cluster(&fourth.address).await;
    let watched = proven(WatchMapRequest {
        after_epoch: map.epoch,
    });
    let mut maps = through.watch_map(watched).await.unwrap().into_inner();
    let drain = SetStandingRequest {
        node: 4,
        standing: NodeStanding::Draining as i32,
    };
    let drained = through
        .set_standing(proven(drain))
        .await
        .unwrap()
        .into_inner();
    let again = through
        .set_standing(proven(drain))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(drained.epoch, again.epoch, "a repeat changes nothing");
    let seen = maps.message().await.unwrap().expect("the change is told");
    assert_eq!(seen.epoch, drained.epoch);
    assert_eq!(seen.nodes[3].standing(), NodeStanding::Draining);

    let used = through
        .remove_node(proven(RemoveNodeRequest { node: 1 }))
        .await;
    let used = CallError::from_status(&used.expect_err("it holds shards"));
    assert_eq!(used.code(), ErrorCode::NodeInUse, "{used}");
    let unknown = through
        .remove_node(proven(RemoveNodeRequest { node: 9 }))
        .await;
    let unknown = CallError::from_status(&unknown.expect_err("there is none"));
    assert_eq!(unknown.code(), ErrorCode::UnknownNode, "{unknown}");
    let mut any = cluster(&trio.addresses()[2]).await;
    let removed = any.remove_node(proven(RemoveNodeRequest { node: 4 })).await;
    assert!(removed.unwrap().into_inner().epoch > drained.epoch);
    assert_eq!(
        fourth.process.wait().code(),
        Some(1),
        "a node that was removed stops"
    );

    let ended = run_args(&args);
    assert!(!ended.status.success());
    assert!(
        ended.stderr.contains("node 4 was removed from the cluster"),
        "{}",
        ended.stderr
    );
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_belong_here_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    map_with(&trio.addresses()[0], all_told(3)).await;
    let join = &trio.addresses()[0];
    let elsewhere = |name: &str| format!("node.dir={}/{name}", dir.path().display());
    for (id, options, words) in [
        (
            5,
            vec!["cluster.id=green".to_owned()],
            "this is cluster `trio`, the call is for `green`",
        ),
        (
            1,
            vec![elsewhere("taken")],
            "node id 1 belongs to another data directory",
        ),
        (
            6,
            vec!["cluster.shards=2".to_owned()],
            "the cluster has 16 slots in 1 shards",
        ),
    ] {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let ended = run_args(&trio.joiner_args(dir.path(), id, join, &options));
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    // None of them is in the map.
    let map = map_with(join, |map| map.epoch > 0).await;
    assert_eq!(map.nodes.len(), 3);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_old_disk_is_refused_before_it_votes() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start(dir.path());
    let address = trio.addresses()[0].clone();
    let map = map_with(&address, all_told(3)).await;
    let known = known_batch(&address, &map, &map.nodes[2], 0).await;
    let stop = |trio: &mut Trio| {
        let node = trio.nodes[2].take().unwrap();
        assert!(node.stop(Signal::TERM).success());
    };
    let data = dir.path().join("node-3");
    let old = dir.path().join("old");
    stop(&mut trio);
    copy(&data, &old);
    trio.nodes[2] = Some(trio.node(dir.path(), 2));
    let mailbox = MailboxClient::connect(format!("http://{address}"));
    let mailbox = mailbox.await.unwrap();
    for number in 0..5 {
        register(&mailbox, &format!("user{number}")).await;
    }
    // What its log has synced since is told at its next start at the latest, or soon after it.
    let known = known_batch(&address, &map, &map.nodes[2], known).await;
    stop(&mut trio);
    trio.nodes[2] = Some(trio.node(dir.path(), 2));
    known_batch(&address, &map, &map.nodes[2], known).await;
    stop(&mut trio);

    std::fs::rename(&data, dir.path().join("new")).unwrap();
    copy(&old, &data);
    let ended = run_args(&trio.node_args(dir.path(), 2));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("is an old copy"), "{}", ended.stderr);

    // Nobody leads the meta shard: the one that is up knows it by itself, and must not elect a leader with it.
    let second = trio.nodes[1].take().unwrap();
    assert!(!second.stop(Signal::KILL).success());
    let ended = run_args(&trio.node_args(dir.path(), 2));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("is an old copy"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("it starts"), "{}", ended.stderr);
    trio.nodes[1] = Some(trio.node(dir.path(), 1));

    // A disk that is lost altogether is no better.
    std::fs::remove_dir_all(&data).unwrap();
    let ended = run_args(&trio.node_args(dir.path(), 2));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("another data directory"),
        "{}",
        ended.stderr
    );

    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(dir.path().join("new"), &data).unwrap();
    trio.nodes[2] = Some(trio.node(dir.path(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_outlives_a_restart_of_the_whole_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start_with(dir.path(), 16, 2);
    let args = trio.joiner_args(dir.path(), 4, &trio.addresses()[0], &["node.zone=east"]);
    let fourth = start(&args);
    let before = map_with(&trio.addresses()[0], all_told(4)).await;
    map_with(&fourth.address, |map| map.epoch == before.epoch).await;
    for node in trio.nodes.drain(..).flatten().chain([fourth.process]) {
        node.signal(Signal::KILL);
        node.wait();
    }

    // Alone it has no majority, but its map.
    let first = trio.node(dir.path(), 0);
    let alone = map_with(&trio.addresses()[0], |_| true).await;
    assert_eq!(
        (alone.epoch, alone.nodes),
        (before.epoch, before.nodes.clone())
    );
    let others: Vec<Process> = (1..3).map(|index| trio.node(dir.path(), index)).collect();
    // It finds the cluster by what it has kept, though nobody is where it once asked.
    let moved = ["cluster.join=[\"127.0.0.1:1\"]"];
    let fourth = start(&trio.joiner_args(dir.path(), 4, "127.0.0.1:1", &moved));
    let after = map_with(&trio.addresses()[2], |map| {
        map.nodes.iter().any(|node| node.address == fourth.address)
    });
    let after = after.await;
    assert!(after.epoch > before.epoch, "it has another port now");
    assert_eq!(after.nodes[3].incarnation, before.nodes[3].incarnation);
    let mailbox = MailboxClient::connect(format!("http://{}", fourth.address))
        .await
        .unwrap();
    register(&mailbox, "alice").await;
    drop((first, others));
}
