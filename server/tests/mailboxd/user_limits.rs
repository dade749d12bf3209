//! How many groups and devices a user may have, wherever the groups are.

use mailbox_api::CallError;
use mailbox_api::v1::{self, ErrorCode, RegisterUserRequest};
use mailbox_client::{Auth, Client, ClientOptions, user_id};
use rustix::process::Signal;

use crate::operate::{SECRET, write_config};
use crate::process::Process;

const GROUPS_MAX: usize = 2;

async fn register(client: &Client, number: usize) -> u64 {
    let call = RegisterUserRequest {
        handle: format!("user{number}"),
        ..RegisterUserRequest::default()
    };
    client.register_user(call).await.expect("registered").user
}

async fn create(client: &Client, creator: u64) -> Result<u64, CallError> {
    let call = v1::CreateGroupRequest {
        creator: Some(user_id(creator)),
        name: "group".into(),
        ..v1::CreateGroupRequest::default()
    };
    Ok(client.create_group(call).await?.group)
}

async fn join(client: &Client, user: u64, group: u64) -> Result<u64, CallError> {
    let call = v1::JoinGroupRequest {
        user: Some(user_id(user)),
        group,
        ..v1::JoinGroupRequest::default()
    };
    Ok(client.join_group(call).await?.join_seq)
}

async fn ack(client: &Client, user: u64, device: &str, group: u64) -> Result<u64, CallError> {
    let call = v1::AckCursorRequest {
        user: Some(user_id(user)),
        device: device.to_owned(),
        timeline: Some(v1::Timeline {
            kind: v1::TimelineKind::Group as i32,
            owner: group,
        }),
        seq: 1,
        ..v1::AckCursorRequest::default()
    };
    Ok(client.ack_cursor(call).await?.cursor)
}

fn assert_refused<T>(answer: Result<T, CallError>, code: ErrorCode, words: [&str; 2]) {
    let Err(error) = answer else {
        panic!("not {}", code.name())
    };
    assert_eq!(error.code(), code, "{error}");
    for part in words {
        assert!(error.0.message.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_refused_what_is_over_its_limits_in_any_shard() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_config(dir.path(), "");
    let mut args = vec!["server", "--json", "--config", &file];
    for option in [
        "cluster.slot_count=64",
        "cluster.shards=4",
        "cluster.user_groups_max=2",
        "cluster.user_devices_max=1",
    ] {
        args.extend(["--set", option]);
    }
    let process = Process::start(&args);
    let address = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let auth = Auth::Secret {
        cluster_id: Some("test".into()),
        secret: SECRET.to_vec(),
    };
    let client = Client::connect(ClientOptions::new(vec![address], auth));
    let client = client.await.expect("connect");

    let alice = register(&client, 0).await;
    let own = create(&client, alice).await.expect("one group");
    create(&client, alice).await.expect("two groups");
    let many = ["has 2 groups", "user_groups_max"];
    assert_refused(create(&client, alice).await, ErrorCode::TooManyGroups, many);

    // One in the shard of alice's list, which judges itself; one in another, which cannot.
    let home = client.shard_of_owner(alice);
    let (mut here, mut elsewhere) = (None, None);
    for number in 1.. {
        let founder = register(&client, number).await;
        for _ in 0..GROUPS_MAX {
            let group = create(&client, founder).await.expect("a group");
            match client.shard_of_owner(group) == home {
                true => here = Some(group),
                false => elsewhere = Some(group),
            }
        }
        if here.is_some() && elsewhere.is_some() {
            break;
        }
    }
    for group in [here, elsewhere].into_iter().flatten() {
        let joined = join(&client, alice, group).await;
        assert_refused(joined, ErrorCode::TooManyGroups, many);
    }
    // It is about alice, not about the groups.
    let bob = register(&client, 1_000_000).await;
    for group in [here, elsewhere].into_iter().flatten() {
        join(&client, bob, group).await.expect("joined");
    }

    assert_eq!(ack(&client, alice, "phone", own).await.expect("held"), 1);
    let devices = ["1 devices", "user_devices_max"];
    let second = ack(&client, alice, "desk", own).await;
    assert_refused(second, ErrorCode::TooManyDevices, devices);
    assert_eq!(ack(&client, alice, "phone", own).await.expect("held"), 1);
    assert!(process.stop(Signal::TERM).success());
}
