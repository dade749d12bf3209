//! Several shards on a node: each call, frame and stream goes to the shard that judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::metadata;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{
    self, ErrorCode, HeadsRequest, RegisterUserRequest, ResolveUserRequest, SendRequest,
    SubmitCall, SubmitRequest, SubscribeFrom, SubscribeRequest, SyncRange, SyncRequest,
    send_request, submit_result, user_ref,
};
use mailbox_client::{Auth, Client, ClientOptions, SubscribeEvent, user_handle, user_id};
use mailbox_engine::{GroupId, SlotId, UserId, slot_of_handle, slot_of_owner};
use rustix::process::Signal;

use crate::chat::{mailbox, text_to};
use crate::cluster::{Trio, with_secret_of};
use crate::growth::{all_told, map_by};
use crate::operate::{SECRET, write_config};
use crate::process::{Dev, Process, run};

const SHARDS: u16 = 4;
/// Enough for each shard to have users that are whole in it.
const SLOTS: u16 = 256;

/// The shard that holds a slot in a new cluster.
fn shard_of(slot: SlotId) -> u32 {
    u32::from(slot.0 / (SLOTS / SHARDS)) + 1
}

/// A user whose handle and mailbox are in one shard, so that registering them makes nothing that has
/// to travel to another one.
#[derive(Debug, Clone)]
struct Local {
    handle: String,
    shard: u32,
    /// The user's first group is in that shard too.
    group: bool,
}

/// Users of each shard, in the order of the shards, each the first one of its directory slot.
fn locals() -> Vec<Local> {
    let mut taken = BTreeSet::new();
    // A slot's counter gives its second founder another group.
    let mut founded = BTreeSet::new();
    let mut found: BTreeMap<u32, Vec<Local>> = BTreeMap::new();
    for number in 0..10_000 {
        let handle = format!("user{number}");
        let slot = slot_of_handle(&handle, SLOTS);
        let shard = shard_of(slot);
        let user = UserId::allocated(1, slot);
        let user_slot = slot_of_owner(user.0, SLOTS);
        let group = GroupId::allocated(1, user_slot);
        let group = shard_of(slot_of_owner(group.0, SLOTS)) == shard;
        if shard_of(user_slot) == shard && taken.insert(slot) {
            let group = group && founded.insert(user_slot);
            let of_shard = found.entry(shard).or_default();
            of_shard.push(Local {
                handle,
                shard,
                group,
            });
        }
    }
    assert_eq!(found.len(), usize::from(SHARDS));
    found.into_values().flatten().collect()
}

/// One user of each shard.
fn one_of_each() -> Vec<Local> {
    let mut users = locals();
    users.dedup_by_key(|user| user.shard);
    assert_eq!(users.len(), usize::from(SHARDS));
    users
}

fn register(handle: &str, client: &Client) -> RegisterUserRequest {
    RegisterUserRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        handle: handle.to_owned(),
    }
}

struct Server {
    process: Process,
    address: String,
    client: Client,
}

impl Server {
    async fn start(dir: &std::path::Path) -> Self {
        let file = write_config(dir, "");
        let shards = format!("cluster.shards={SHARDS}");
        let slots = format!("cluster.slot_count={SLOTS}");
        let args = ["server", "--json", "--config", &file];
        let process = Process::start(&[&args[..], &["--set", &shards, "--set", &slots]].concat());
        let address = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
        let auth = Auth::Secret {
            cluster_id: Some("test".into()),
            secret: SECRET.to_vec(),
        };
        let client = Client::connect(ClientOptions::new(vec![address.clone()], auth));
        let client = client.await.expect("connect");
        Self {
            process,
            address,
            client,
        }
    }

    async fn raw(&self) -> MailboxClient<tonic::transport::Channel> {
        let address = format!("http://{}", self.address);
        MailboxClient::connect(address).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shard_registers_sends_syncs_and_pushes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = &server.client;
    let map = client.shard_map().await.expect("a map");
    let ids: Vec<u32> = map.shards.iter().map(|shard| shard.shard).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    assert_eq!(map.slot_count, u32::from(SLOTS));

    let locals = one_of_each();
    let mut users = BTreeMap::new();
    for local in &locals {
        let registered = client.register_user(register(&local.handle, client)).await;
        let user = registered.expect("registered").user;
        assert_eq!(client.shard_of_owner(user), local.shard);
        users.insert(user, local.clone());
    }
    let (handle, mut events) = client.subscribe();
    for user in users.keys() {
        handle.add(mailbox(*user), 1).expect("subscribe");
    }
    // To oneself by id, and by handle on both sides.
    for (user, local) in &users {
        let sent = client.send(text_to(client, *user, *user, "by id")).await;
        assert_eq!(sent.expect("acked").seq, 1);
        let by_handle = SendRequest {
            sender: Some(user_handle(local.handle.clone())),
            destination: Some(send_request::Destination::User(user_handle(
                local.handle.clone(),
            ))),
            ..text_to(client, *user, *user, "by handle")
        };
        assert_eq!(client.send(by_handle).await.expect("acked").seq, 2);
    }
    let mut pushed: BTreeMap<u64, u64> = BTreeMap::new();
    while pushed.values().sum::<u64>() < 2 * users.len() as u64 {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv());
        match event.await.expect("in time").expect("open") {
            SubscribeEvent::Batch { timeline, messages } => {
                *pushed.entry(timeline.owner).or_default() += messages.len() as u64;
            }
            SubscribeEvent::Heads(_) => {}
            SubscribeEvent::Ended { error, .. } => panic!("ended: {error}"),
        }
    }
    let heads = client.heads(HeadsRequest {
        timelines: users.keys().map(|user| mailbox(*user)).collect(),
        ..HeadsRequest::default()
    });
    let heads = heads.await.expect("heads").heads;
    assert_eq!(heads.len(), users.len());
    assert!(heads.iter().all(|head| head.head == 2), "{heads:?}");
    assert!(server.process.stop(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_judged_and_read_in_its_own_shard() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = &server.client;
    let founders: Vec<Local> = locals().into_iter().filter(|user| user.group).collect();
    assert!(!founders.is_empty());
    for local in founders {
        let registered = client.register_user(register(&local.handle, client)).await;
        let user = registered.expect("registered").user;
        let created = client.create_group(v1::CreateGroupRequest {
            creator: Some(user_id(user)),
            name: "group".into(),
            ..v1::CreateGroupRequest::default()
        });
        let created = created.await.expect("created");
        assert_eq!(created.seq, 1);
        assert_eq!(client.shard_of_owner(created.group), local.shard);
        let send = SendRequest {
            destination: Some(send_request::Destination::Group(created.group)),
            ..text_to(client, user, user, "to the group")
        };
        assert_eq!(client.send(send).await.expect("acked").seq, 2);
        let request = SyncRequest {
            groups_of: Some(user_handle(local.handle.clone())),
            reader: Some(user_id(user)),
            ranges: vec![SyncRange {
                timeline: Some(v1::Timeline {
                    kind: v1::TimelineKind::Group as i32,
                    owner: created.group,
                }),
                after_seq: 0,
            }],
            ..SyncRequest::default()
        };
        let answer = client.sync(request).await.expect("synced");
        assert_eq!(answer.groups[0].group, created.group);
        assert_eq!(answer.pages[0].messages.len(), 2);
    }
    assert!(server.process.stop(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_another_shard_is_refused_with_the_maps_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = &server.client;
    let local = locals().remove(0);
    let registered = client.register_user(register(&local.handle, client)).await;
    let user = registered.expect("registered").user;
    let other = local.shard % u32::from(SHARDS) + 1;
    // The map is made after the start, and changes once more when the node has told who it is.
    let map = map_by(SECRET, &server.address, all_told(1)).await;
    assert!(map.epoch > 0, "{map:?}");
    let mut raw = server.raw().await;
    let check = |error: &v1::Error| {
        assert_eq!(error.code(), ErrorCode::WrongShard, "{error:?}");
        assert_eq!(error.map_epoch, map.epoch);
    };

    let frame = SubmitRequest {
        shard: other,
        calls: vec![SubmitCall {
            tag: 1,
            send: Some(text_to(client, user, user, "astray")),
        }],
    };
    let stream = with_secret_of(tokio_stream::once(frame), SECRET);
    let mut answers = raw.submit(stream).await.expect("open").into_inner();
    let answer = answers.message().await.unwrap().expect("an answer");
    let Some(submit_result::Result::Error(error)) = &answer.results[0].result else {
        panic!("taken: {answer:?}");
    };
    check(error);

    let sync = SyncRequest {
        shard: other,
        ranges: vec![SyncRange {
            timeline: Some(mailbox(user)),
            after_seq: 0,
        }],
        ..SyncRequest::default()
    };
    let refused = raw.sync(with_secret_of(sync, SECRET)).await;
    check(&CallError::from_status(&refused.expect_err("refused")).0);

    let subscribe = SubscribeRequest {
        shard: other,
        subscribe: vec![SubscribeFrom {
            timeline: Some(mailbox(user)),
            from_seq: 1,
        }],
        ..SubscribeRequest::default()
    };
    let (requests, outbound) = tokio::sync::mpsc::channel(1);
    requests.send(subscribe).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let mut feed = raw.subscribe(with_secret_of(stream, SECRET)).await;
    let feed = feed.as_mut().expect("open").get_mut();
    let ended = loop {
        let response = feed.message().await.unwrap().expect("open");
        if let Some(ended) = response.ended.into_iter().next() {
            break ended;
        }
    };
    assert_eq!(ended.timeline, Some(mailbox(user)));
    check(&ended.error.expect("a reason"));
    assert!(server.process.stop(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_shard_count_is_refused_with_both() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    drop(server.client);
    assert!(server.process.stop(Signal::TERM).success());
    let file = write_config(dir.path(), "");
    let slots = format!("cluster.slot_count={SLOTS}");
    let args = ["server", "--config", &file, "--set", &slots, "--set"];
    let ended = run(&[&args[..], &["cluster.shards=2"]].concat());
    assert!(!ended.status.success());
    assert!(
        ended.stderr.contains("shard_count 4") && ended.stderr.contains('2'),
        "{}",
        ended.stderr
    );
    let ended = run(&[&args[..], &["cluster.shards=257"]].concat());
    assert!(
        ended.stderr.contains("cluster.shards") && ended.stderr.contains("slot_count = 256"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_finds_every_handle_and_passes_calls_on() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let mut users = Vec::new();
    for local in one_of_each() {
        let registered = client.register_user(register(&local.handle, &client)).await;
        users.push((registered.expect("registered").user, local));
    }
    for address in trio.addresses() {
        let address = format!("http://{address}");
        let mut node = MailboxClient::connect(address).await.unwrap();
        for (user, local) in &users {
            let by_handle = v1::UserRef {
                user: Some(user_ref::User::Handle(local.handle.clone())),
            };
            let call = ResolveUserRequest {
                user: Some(by_handle.clone()),
            };
            let answer = node.resolve_user(trio.with_secret(call)).await;
            assert_eq!(answer.expect("resolved").into_inner().user, *user);
            // Its sender's shard may be led by another node than the handle's.
            let send = SendRequest {
                sender: Some(by_handle.clone()),
                destination: Some(send_request::Destination::User(by_handle)),
                ..text_to(&client, *user, *user, "to myself")
            };
            let sent = node.send(trio.with_secret(send)).await;
            assert_eq!(
                sent.expect("acked").into_inner().timeline,
                Some(mailbox(*user))
            );
        }
        let nobody = ResolveUserRequest {
            user: Some(user_handle("nobody")),
        };
        let unknown = node.resolve_user(trio.with_secret(nobody.clone())).await;
        let unknown = CallError::from_status(&unknown.expect_err("unknown"));
        assert_eq!(unknown.code(), ErrorCode::UnknownUser, "{unknown}");
        // Passed on once and no further: only the leader knows that there is nobody.
        let mut again = trio.with_secret(nobody);
        let once = "1".parse().unwrap();
        again.metadata_mut().insert(metadata::FORWARDED, once);
        let answer = node.resolve_user(again).await.expect_err("unknown");
        let code = CallError::from_status(&answer).code();
        assert!(
            matches!(code, ErrorCode::UnknownUser | ErrorCode::NotLeader),
            "{answer}"
        );
    }
}

/// A user in another shard than `from`, registered now.
async fn stranger_of(client: &Client, from: u64) -> u64 {
    for number in 0..64 {
        let handle = format!("stranger-{from}-{number}");
        let registered = client.register_user(register(&handle, client)).await;
        let user = registered.expect("registered").user;
        if client.shard_of_owner(user) != client.shard_of_owner(from) {
            return user;
        }
    }
    panic!("64 users are all in one shard");
}

/// The messages of a mailbox, once there are so many.
pub(crate) async fn messages(client: &Client, user: u64, count: usize) -> Vec<v1::Message> {
    let (handle, mut events) = client.subscribe();
    handle.add(mailbox(user), 1).expect("subscribe");
    let mut found = Vec::new();
    while found.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv());
        match event.await.expect("in time").expect("open") {
            SubscribeEvent::Batch { messages, .. } => found.extend(messages),
            SubscribeEvent::Heads(_) => {}
            SubscribeEvent::Ended { error, .. } => panic!("ended: {error}"),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dev_server_delivers_and_refuses_between_its_four_shards() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(dir.path(), &[]);
    let client = crate::chat::client(&dev).await;
    assert_eq!(client.shard_map().await.expect("a map").shards.len(), 4);
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    // A user may send as soon as the registration is answered, wherever the row had to go.
    let bob = stranger_of(&client, alice).await;
    for number in 0..5 {
        let text = format!("number {number}");
        let sent = client.send(text_to(&client, alice, bob, &text)).await;
        assert_eq!(sent.expect("acked").seq, number + 1);
    }
    let arrived = messages(&client, bob, 5).await;
    let texts: Vec<_> = arrived.iter().map(|row| row.body.as_ref()).collect();
    assert_eq!(
        texts,
        [
            b"number 0",
            b"number 1",
            b"number 2",
            b"number 3",
            b"number 4"
        ]
    );
    let back = client.send(text_to(&client, bob, alice, "thanks")).await;
    assert_eq!(back.expect("acked").seq, 6);

    // Nobody: acked, then told by a refusal in the sender's own mailbox.
    let nobody = (1 << 40..)
        .find(|user| client.shard_of_owner(*user) != client.shard_of_owner(alice))
        .unwrap();
    let before = messages(&client, alice, 6).await.len() as u64;
    let lost = client.send(text_to(&client, alice, nobody, "lost")).await;
    let lost = lost.expect("acked").seq;
    assert_eq!(lost, before + 1);
    let told = messages(&client, alice, 8).await.pop().unwrap();
    assert_eq!(told.refused_seq, lost);
    assert_eq!(told.refusal(), ErrorCode::UnknownUser);

    a_group_far_from_its_members(&client, alice, bob, nobody).await;
    assert!(dev.process.stop(Signal::TERM).success());
}

/// A group elsewhere than its members: the reply comes when their lists know of it.
async fn a_group_far_from_its_members(client: &Client, alice: u64, bob: u64, nobody: u64) {
    let created = client.create_group(v1::CreateGroupRequest {
        creator: Some(user_id(alice)),
        name: "far".into(),
        ..v1::CreateGroupRequest::default()
    });
    let group = created.await.expect("created").group;
    let join = client.join_group(v1::JoinGroupRequest {
        group,
        user: Some(user_id(bob)),
        ..v1::JoinGroupRequest::default()
    });
    let join_seq = join.await.expect("joined").join_seq;
    let nobody_joins = client.join_group(v1::JoinGroupRequest {
        group,
        user: Some(user_id(nobody)),
        ..v1::JoinGroupRequest::default()
    });
    let refused = nobody_joins.await.expect_err("nobody");
    assert_eq!(refused.code(), ErrorCode::UnknownUser, "{refused}");
    for (user, joined) in [(alice, 1), (bob, join_seq)] {
        let request = SyncRequest {
            groups_of: Some(user_id(user)),
            ..SyncRequest::default()
        };
        let groups = client.sync(request).await.expect("synced").groups;
        assert_eq!(groups.len(), 1, "{groups:?}");
        assert_eq!(groups[0].group, group);
        assert_eq!(groups[0].spans[0].join_seq, joined);
    }
    let left = client.leave_group(v1::LeaveGroupRequest {
        group,
        user: Some(user_id(bob)),
        ..v1::LeaveGroupRequest::default()
    });
    let left_seq = left.await.expect("left").left_seq;
    let request = SyncRequest {
        groups_of: Some(user_id(bob)),
        ..SyncRequest::default()
    };
    let groups = client.sync(request).await.expect("synced").groups;
    assert_eq!(groups[0].spans[0].left_seq, left_seq);
}
