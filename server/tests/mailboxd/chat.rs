//! `mailboxd dev` from a client's socket to the disk and back.

use mailbox_api::v1::{
    self, MessageType, SendRequest, SyncRange, SyncRequest, Timeline, TimelineKind, send_request,
};
use mailbox_client::{Auth, Client, ClientOptions, SubscribeEvent};
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::http;
use crate::process::Dev;

fn send_text(dev: &Dev, from: &str, to: &str, id: Uuid, text: &str) -> http::Answer {
    let body = json!({ "to": to, "client_msg_id": id.to_string(), "text": text });
    let token = dev.user(from, "token");
    http::post(
        &dev.gateway(),
        "/v1/chat/send",
        Some(&token),
        &body.to_string(),
    )
}

fn synced_texts(dev: &Dev, user: &str) -> Vec<String> {
    let token = dev.user(user, "token");
    let answer = http::get(&dev.gateway(), "/v1/chat/sync?limit=100", Some(&token));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let page = answer.json();
    assert_eq!(page["more"], json!(false), "{page}");
    let messages = page["messages"].as_array().expect("messages");
    messages
        .iter()
        .filter_map(|message| message["text"].as_str())
        .map(str::to_owned)
        .collect()
}

pub(crate) async fn client(dev: &Dev) -> Client {
    let secret = std::path::Path::new(&dev.text("dir")).join("mailbox.secret");
    let auth = Auth::secret_file(&secret, None).expect("the secret");
    let options = ClientOptions::new(vec![dev.text("grpc")], auth);
    Client::connect(options).await.expect("connect")
}

pub(crate) fn mailbox(user: u64) -> Timeline {
    Timeline {
        kind: TimelineKind::Mailbox as i32,
        owner: user,
    }
}

#[test]
fn two_users_chat_and_a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    for handle in ["alice", "bob"] {
        let line = dev.user(handle, "command");
        assert!(
            line.contains("mailboxctl chat --url ws://") && line.contains("--token"),
            "{line}"
        );
    }
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let sent = send_text(&dev, "alice", "@bob", first, "hello bob");
    assert_eq!(sent.status, 200, "{}", sent.body);
    let first_answer = sent.json();
    assert_eq!(first_answer["seq"], "1");
    let timeline = format!("mailbox:{}", dev.user("alice", "id"));
    assert_eq!(first_answer["timeline"].as_str(), Some(timeline.as_str()));
    assert_eq!(
        send_text(&dev, "bob", "@alice", second, "hello alice").status,
        200
    );
    assert_eq!(synced_texts(&dev, "alice"), ["hello bob", "hello alice"]);
    assert_eq!(synced_texts(&dev, "bob"), ["hello bob", "hello alice"]);

    let id = dev.user("bob", "id");
    let stopped = dev.process.stop(Signal::INT);
    assert!(stopped.success(), "{stopped}");

    let dev = Dev::start(dir.path());
    assert_eq!(dev.user("bob", "id"), id, "the same users");
    assert_eq!(synced_texts(&dev, "bob"), ["hello bob", "hello alice"]);
    let again = send_text(&dev, "alice", "@bob", first, "hello bob");
    assert_eq!(
        again.json(),
        first_answer,
        "a repeat returns the first reply"
    );
    let other = send_text(&dev, "alice", "@bob", first, "something else");
    assert_eq!(other.code(), "IdReused", "{}", other.body);
    assert_eq!(synced_texts(&dev, "bob").len(), 2);
    assert!(dev.process.stop(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_gives_what_was_and_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let client = client(&dev).await;
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    let bob: u64 = dev.user("bob", "id").parse().unwrap();
    let send = async |count: usize| {
        let mut requests = Vec::new();
        for number in 0..count {
            requests.push(text_to(&client, alice, bob, &format!("number {number}")));
        }
        for answer in client.send_batch(requests).await {
            answer.expect("acked");
        }
    };
    send(40).await;
    let (handle, mut events) = client.subscribe();
    handle.add(mailbox(bob), 1).expect("subscribe");
    let mut seqs: Vec<u64> = Vec::new();
    let mut sent_more = false;
    while seqs.len() < 100 {
        let event = tokio::time::timeout(std::time::Duration::from_secs(30), events.recv());
        match event.await.expect("in time").expect("open") {
            SubscribeEvent::Batch { messages, .. } => {
                seqs.extend(messages.iter().map(|message| message.seq));
            }
            SubscribeEvent::Heads(_) => {}
            SubscribeEvent::Ended { error, .. } => panic!("ended: {error}"),
        }
        if !sent_more && seqs.len() >= 40 {
            sent_more = true;
            send(60).await;
        }
    }
    assert_eq!(
        seqs,
        (1..=100).collect::<Vec<u64>>(),
        "dense, in order, once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_at_its_limits_and_the_next_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let client = client(&dev).await;
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    let bob: u64 = dev.user("bob", "id").parse().unwrap();
    let requests = (0..30)
        .map(|_| text_to(&client, alice, bob, &"x".repeat(1000)))
        .collect();
    for answer in client.send_batch(requests).await {
        answer.expect("acked");
    }
    let mut after = 0;
    let mut pages = 0;
    loop {
        let request = SyncRequest {
            ranges: vec![SyncRange {
                timeline: Some(mailbox(bob)),
                after_seq: after,
            }],
            limit: 20,
            limit_bytes: 8_000,
            ..SyncRequest::default()
        };
        let page = client.sync(request).await.expect("sync").pages.remove(0);
        assert_eq!(page.head, 30);
        assert!(
            page.messages.len() <= 10,
            "{} messages",
            page.messages.len()
        );
        for message in &page.messages {
            after += 1;
            assert_eq!(message.seq, after);
        }
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert_eq!(after, 30);
    assert!(pages > 2);
}

/// A well-formed send.
pub(crate) fn text_to(client: &Client, from: u64, to: u64, text: &str) -> SendRequest {
    let id = client.new_message_id();
    SendRequest {
        sender: Some(user(from)),
        destination: Some(send_request::Destination::User(user(to))),
        client_msg_id: id.as_bytes().to_vec().into(),
        r#type: MessageType::Text as i32,
        body: text.as_bytes().to_vec().into(),
        content_crc: mailbox_client::content_crc(id.as_bytes(), MessageType::Text, text.as_bytes()),
        shown_message_id: 0,
    }
}

fn user(id: u64) -> v1::UserRef {
    v1::UserRef {
        user: Some(v1::user_ref::User::Id(id)),
    }
}

/// The greatest seq of a user's mailbox, as a page of sync tells it.
pub(crate) fn head_of(dev: &Dev, user: &str) -> Value {
    let token = dev.user(user, "token");
    http::get(&dev.gateway(), "/v1/chat/sync?limit=1000", Some(&token)).json()["messages"].clone()
}
