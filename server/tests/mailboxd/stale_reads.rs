//! Reads that say how stale they may be: followers answer them, or pass them to the leader.

use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::metadata;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{
    ErrorCode, HeadsRequest, RegisterUserRequest, SyncRange, SyncRequest, SyncResponse,
};
use mailbox_client::Client;
use tonic::Status;
use tonic::transport::Channel;

use crate::chat::{mailbox, text_to};
use crate::cluster::{Trio, leader};

/// Longer than a test takes: a replica that has once asked its leader keeps it.
const LONG_MS: u32 = 3_600_000;

fn sync(user: u64, after_seq: u64, max_staleness_ms: Option<u32>) -> SyncRequest {
    SyncRequest {
        shard: 1,
        ranges: vec![SyncRange {
            timeline: Some(mailbox(user)),
            after_seq,
        }],
        max_staleness_ms,
        ..SyncRequest::default()
    }
}

async fn registered(client: &Client) -> u64 {
    let call = RegisterUserRequest {
        handle: "alice".into(),
        ..RegisterUserRequest::default()
    };
    client.register_user(call).await.expect("registered").user
}

/// Asks a node until it knows its leader.
async fn answered(
    trio: &Trio,
    node: &mut MailboxClient<Channel>,
    call: &SyncRequest,
) -> SyncResponse {
    for _ in 0..500 {
        match node.sync(trio.with_secret(call.clone())).await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not answered");
}

fn code(refused: Result<tonic::Response<SyncResponse>, Status>) -> ErrorCode {
    CallError::from_status(&refused.expect_err("refused")).code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_answers_within_a_bound_and_the_leader_whoever_is_ahead_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let client = trio.client().await;
    let user = registered(&client).await;
    let sent = client.send(text_to(&client, user, user, "first")).await;
    assert_eq!(sent.expect("acked").seq, 1);
    let leader = leader(&trio).await;
    let follower = &trio.addresses()[(leader + 1) % 3];
    let mut node = MailboxClient::connect(format!("http://{follower}"))
        .await
        .unwrap();

    let answer = answered(&trio, &mut node, &sync(user, 0, Some(LONG_MS))).await;
    assert_eq!(
        (answer.pages[0].head, answer.pages[0].messages.len()),
        (1, 1)
    );
    let age = answer.staleness_ms.expect("it says how stale it is");
    assert!((1..=LONG_MS).contains(&age), "a follower's own rows: {age}");

    // Whoever holds more than the follower has (here: than anybody has) is the leader's to answer.
    let ahead = answered(&trio, &mut node, &sync(user, 5, Some(LONG_MS))).await;
    assert_eq!(ahead.staleness_ms, Some(0), "{ahead:?}");
    // What was passed on once is not passed on again.
    let mut forwarded = trio.with_secret(sync(user, 5, Some(LONG_MS)));
    let once = "1".parse().unwrap();
    forwarded.metadata_mut().insert(metadata::FORWARDED, once);
    assert_eq!(code(node.sync(forwarded).await), ErrorCode::TooStale);

    // Without a bound it is the leader that answers, and it says nothing of age.
    let whole = answered(&trio, &mut node, &sync(user, 0, None)).await;
    assert_eq!(whole.staleness_ms, None);
    let nothing = node.sync(trio.with_secret(sync(user, 0, Some(0)))).await;
    assert_eq!(code(nothing), ErrorCode::InvalidArgument);

    let heads = HeadsRequest {
        shard: 1,
        timelines: vec![mailbox(user)],
        max_staleness_ms: Some(LONG_MS),
        ..HeadsRequest::default()
    };
    let heads = node.heads(trio.with_secret(heads)).await;
    let heads = heads.expect("answered").into_inner();
    assert!(heads.staleness_ms.is_some_and(|age| age >= 1), "{heads:?}");
    assert_eq!(heads.heads[0].head, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_asks_replicas_in_turn_and_gets_no_less_than_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let client = trio.client().await;
    let user = registered(&client).await;
    let (mut by_followers, mut held) = (0, 0);
    for number in 1..=60 {
        let sent = client.send(text_to(&client, user, user, "x")).await;
        let seq = sent.expect("acked").seq;
        assert_eq!(seq, number);
        let bound = 1000;
        let answer = client.sync(sync(user, held, Some(bound))).await;
        let answer = answer.expect("answered");
        let age = answer.staleness_ms.expect("it says how stale it is");
        assert!(age <= bound, "{age}");
        by_followers += u64::from(age > 0);
        let page = &answer.pages[0];
        // A head below what is held would be taken for a key that cannot be used.
        assert!(page.head >= held, "{} {held}", page.head);
        let seqs = page.messages.iter().map(|message| message.seq);
        assert!(seqs.eq(held + 1..=page.head));
        held = page.head;
    }
    assert!(by_followers > 0, "replicas have answered");
    let answer = client.sync(sync(user, held, None)).await.expect("answered");
    assert_eq!(answer.pages[0].head, 60);
}
