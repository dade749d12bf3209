//! A subscriber over a real socket that does not read for a while.

use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{SubscribeFrom, SubscribeRequest, SubscribeResponse};
use tonic::transport::Endpoint;

use crate::chat::{client, mailbox, text_to};
use crate::cluster::with_secret_of;
use crate::process::{Dev, PATIENCE};

/// More entries than a stream may be behind before it has to read the store.
const SENDS: u64 = 600;
/// Together far more than sockets, windows and queues hold.
const BODY_BYTES: usize = 12_000;
/// HTTP/2's least: the server is held back soon.
const WINDOW: u32 = 65_535;

fn seqs_of(answer: &SubscribeResponse) -> Vec<u64> {
    let messages = answer.batches.iter().flat_map(|batch| &batch.messages);
    messages.map(|message| message.seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_falls_back_to_the_store_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let cluster = client(&dev).await;
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    let bob: u64 = dev.user("bob", "id").parse().unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", dev.text("grpc")))
        .unwrap()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let mut slow = MailboxClient::new(channel.connect().await.expect("connect"));
    let secret = std::fs::read(dir.path().join("mailbox.secret")).unwrap();
    let (requests, outbound) = tokio::sync::mpsc::channel(1);
    let stream = with_secret_of(
        tokio_stream::wrappers::ReceiverStream::new(outbound),
        secret.trim_ascii_end(),
    );
    let subscribe = SubscribeRequest {
        subscribe: vec![SubscribeFrom {
            timeline: Some(mailbox(bob)),
            from_seq: 1,
        }],
        shard: 1,
        ..SubscribeRequest::default()
    };
    requests.send(subscribe).await.unwrap();
    let mut answers = slow.subscribe(stream).await.expect("open").into_inner();
    // A first message on its way over the stream: the subscription is live.
    cluster
        .send(text_to(&cluster, alice, bob, "first"))
        .await
        .expect("acked");
    let mut seqs: Vec<u64> = Vec::new();
    while seqs.is_empty() {
        let answer = answers.message().await.expect("open").expect("an answer");
        seqs.extend(seqs_of(&answer));
    }

    // One entry each, none of them read meanwhile.
    let text = "x".repeat(BODY_BYTES);
    for _ in 0..SENDS {
        cluster
            .send(text_to(&cluster, alice, bob, &text))
            .await
            .expect("acked");
    }
    while seqs.len() < 1 + usize::try_from(SENDS).unwrap() {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.expect("in time").expect("open").expect("an answer");
        seqs.extend(seqs_of(&answer));
    }
    let all: Vec<u64> = (1..=SENDS + 1).collect();
    assert_eq!(seqs, all, "dense, in order, once");

    let page = crate::http::get(&dev.gateway(), "/metrics", None).body;
    let rereads = page
        .lines()
        .find_map(|line| line.strip_prefix("mailbox_server_feed_rereads_total "))
        .and_then(|count| count.parse::<u64>().ok());
    assert!(
        rereads.is_some_and(|count| count > 0),
        "the store was read: {rereads:?}"
    );
}
