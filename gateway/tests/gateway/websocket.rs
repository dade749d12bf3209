//! WebSockets without the SDK: what goes over the wire.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message as WsMessage;

use crate::drive::{RawSocket, Rig, limits, token, until};

fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[tokio::test]
async fn a_json_chat_by_hand() {
    let rig = Rig::start().await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    let welcome = alice.next().await;
    assert_eq!(welcome["welcome"]["user"], "17");
    assert_eq!(welcome["welcome"]["device"], "raw");
    assert_eq!(welcome["welcome"]["limits"]["in_flight_max"], 32);
    bob.next_with("welcome").await;

    let send = json!({"id": 1, "send": {"to": "@bob", "client_msg_id": id(), "text": "hi"}});
    alice.send(&send.to_string()).await;
    let sent = alice.next_with("sent").await;
    assert_eq!(
        (&sent["id"], &sent["sent"]["seq"]),
        (&json!(1), &json!("1"))
    );
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "mailbox:18");
    assert_eq!(push["push"]["prev_seq"], "0");
    assert_eq!(push["push"]["messages"][0]["text"], "hi");

    bob.send(
        &json!({"id": 2, "sync": {"have": [{"timeline": "mailbox:18", "seq": "1"}]}}).to_string(),
    )
    .await;
    let page = bob.next_with("synced").await;
    assert_eq!(page["synced"]["messages"], json!([]));
    assert_eq!(
        page["synced"]["positions"],
        json!([{"timeline": "mailbox:18", "seq": "1"}])
    );
}

#[tokio::test]
async fn malformed_frames_get_words_and_harm_nothing() {
    let rig = Rig::start().await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    for (frame, id, word) in [
        ("{", json!(null), "EOF"),
        (r#"{"id":5,"send":{"too":"@bob"}}"#, json!(5), "`too`"),
        (r#"{"id":6}"#, json!(6), "no request"),
        (r#"{"ping":{}}"#, json!(null), "id is missing"),
        (r#"{"id":7,"ping":{},"sync":{}}"#, json!(7), "more than one"),
        (
            r#"{"id":8,"join_group":{"group":65,"request_id":"x"}}"#,
            json!(8),
            "decimal string",
        ),
    ] {
        alice.send(frame).await;
        let answer = alice.next_with("error").await;
        assert_eq!(answer["error"]["code"], "InvalidArgument");
        assert_eq!(answer["id"], id, "{answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(word),
            "{word}: {answer}"
        );
    }
    alice.send(r#"{"id":9,"ping":{}}"#).await;
    alice.next_with("pong").await;
    assert_eq!(rig.store.seqs(17), 0);
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_connection() {
    let rig = Rig::with(limits(|limits| limits.frame_bytes_max = 1000)).await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    alice.send(&"x".repeat(2000)).await;
    loop {
        match alice.next_message().await {
            Ok(WsMessage::Close(Some(frame))) => {
                assert_eq!(u16::from(frame.code), 1009);
                break;
            }
            Ok(_) => {}
            Err(error) => panic!("no farewell: {error}"),
        }
    }
}

/// Sends to bob with pauses, so that each is a push of its own: a batch over the queue's bytes would
/// become a hint at once.
async fn send_one_by_one(rig: &Rig, count: u64, text: &str) -> u64 {
    for _ in 0..count {
        rig.store.send_text(17, 18, text);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    count
}

#[tokio::test]
async fn a_slow_consumer_is_told_to_sync_and_misses_nothing() {
    let rig = Rig::with(limits(|limits| limits.queue_frames_max = 4)).await;
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    bob.next_with("welcome").await;
    // Bob does not read; what is sent exceeds what kernel and queue take.
    let text = "x".repeat(16_000);
    let mut sent = 0;
    loop {
        sent += send_one_by_one(&rig, 50, &text).await;
        let (_, metrics) = rig.http("GET /metrics", "").await;
        if !metrics.contains("mailbox_gateway_pushes_dropped_total 0") {
            break;
        }
        assert!(sent < 20_000, "the queue is not bounded");
    }
    // Now he reads: pushes without gaps, then a hint, then sync gives the rest.
    let (mut held, mut notified) = (0_u64, false);
    while !notified {
        let frame = bob.next().await;
        if let Some(push) = frame.get("push") {
            assert_eq!(push["prev_seq"], json!(held.to_string()));
            let last = push["messages"].as_array().unwrap().last().unwrap();
            held = last["seq"].as_str().unwrap().parse().unwrap();
        }
        notified = frame.get("notify").is_some();
    }
    let mut key = String::new();
    loop {
        let have = json!([{"timeline": "mailbox:18", "seq": held.to_string()}]);
        let sync = json!({"id": 1, "sync": {"key": key, "have": have}});
        bob.send(&sync.to_string()).await;
        let page = bob.next_with("synced").await["synced"].clone();
        for message in page["messages"].as_array().unwrap() {
            held += 1;
            assert_eq!(message["seq"], json!(held.to_string()));
        }
        key = page["key"].as_str().unwrap().to_owned();
        if page["more"] == json!(false) {
            break;
        }
    }
    assert_eq!(held, sent);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let rig = Rig::with(limits(|limits| {
        limits.queue_frames_max = 4;
        limits.write_stall_timeout = Duration::from_millis(300);
    }))
    .await;
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    bob.next_with("welcome").await;
    assert_eq!(rig.gateway.connections(), 1);
    let text = "x".repeat(16_000);
    let filling = async {
        while rig.gateway.connections() == 1 {
            send_one_by_one(&rig, 50, &text).await;
        }
    };
    tokio::time::timeout(crate::drive::PATIENCE, filling)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_silent_client_is_closed_and_a_ping_counts_as_a_sign_of_life() {
    let rig = Rig::with(limits(|limits| {
        limits.idle_timeout = Duration::from_millis(600)
    }))
    .await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    for number in 1..8 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        alice
            .send(&json!({"id": number, "ping": {}}).to_string())
            .await;
        alice.next_with("pong").await;
    }
    match alice.next_message().await {
        Ok(WsMessage::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 1008),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_over_the_cap_wait_and_are_all_answered() {
    let rig = Rig::with(limits(|limits| limits.in_flight_max = 4)).await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    for number in 1..=100 {
        let send = json!({"to": "@bob", "client_msg_id": id(), "text": number.to_string()});
        alice
            .send(&json!({"id": number, "send": send}).to_string())
            .await;
    }
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 100 {
        let sent = alice.next_with("sent").await;
        assert!(
            answered.insert(sent["id"].as_u64().unwrap()),
            "answered twice"
        );
    }
    let (_, page) = rig.json("bob", "GET /v1/chat/sync", "").await;
    let texts: Vec<_> = page["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["text"])
        .collect();
    let wanted: Vec<_> = (1..=100).map(|number| json!(number.to_string())).collect();
    assert_eq!(
        texts,
        wanted.iter().collect::<Vec<_>>(),
        "in the order in which they were sent"
    );
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_places_come_back() {
    let rig = Rig::with(limits(|limits| limits.connections_max = 1)).await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    let url = format!("{}/v1/ws?access_token={}", rig.url(), token("bob"));
    assert!(tokio_tungstenite::connect_async(&url).await.is_err());
    alice.0.close(None).await.unwrap();
    while alice.0.next().await.is_some() {}
    until(|| rig.gateway.connections() == 0).await;
    let again = async {
        while tokio_tungstenite::connect_async(&url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::drive::PATIENCE, again)
        .await
        .unwrap();
}

#[tokio::test]
async fn one_subscription_serves_all_sessions_and_ends_with_the_last() {
    let rig = Rig::start().await;
    let mut first = RawSocket::connect(&rig.url(), "bob").await;
    let mut second = RawSocket::connect(&rig.url(), "bob").await;
    until(|| rig.store.is_subscribed("mailbox:18")).await;
    let (_, metrics) = rig.http("GET /metrics", "").await;
    assert!(
        metrics.contains("mailbox_gateway_subscriptions_open 1\n"),
        "{metrics}"
    );
    rig.store.send_text(17, 18, "to both");
    first.next_with("push").await;
    second.next_with("push").await;
    drop(first);
    rig.store.send_text(17, 18, "to one");
    second.next_with("push").await;
    drop(second);
    until(|| !rig.store.is_subscribed("mailbox:18")).await;
}

#[tokio::test]
async fn a_drain_says_go_away_and_ends_when_clients_have_left() {
    let rig = Rig::start().await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    let address = rig.gateway.local_addr();
    let begun = std::time::Instant::now();
    let drain = tokio::spawn(rig.gateway.shutdown(Duration::from_secs(15)));
    let go_away = alice.next_with("go_away").await;
    assert_eq!(go_away["go_away"]["after_ms_max"], 7500);
    alice.send(r#"{"id":1,"ping":{}}"#).await;
    alice.next_with("pong").await;
    assert!(
        tokio::net::TcpStream::connect(address).await.is_err(),
        "it accepts no more"
    );
    alice.0.close(None).await.unwrap();
    while alice.0.next().await.is_some() {}
    drain.await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it waited though all had left"
    );
}

#[tokio::test]
async fn a_drain_closes_who_stays() {
    let rig = Rig::start().await;
    let mut alice = RawSocket::connect(&rig.url(), "alice").await;
    alice.next_with("welcome").await;
    let drain = tokio::spawn(rig.gateway.shutdown(Duration::from_millis(500)));
    alice.next_with("go_away").await;
    match alice.next_message().await {
        Ok(WsMessage::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("{other:?}"),
    }
    drain.await.unwrap();
}

#[tokio::test]
async fn one_user_has_a_bounded_number_of_connections() {
    let rig = Rig::with(limits(|limits| limits.user_connections_max = 2)).await;
    let first = RawSocket::connect(&rig.url(), "alice").await;
    let _second = RawSocket::connect(&rig.url(), "alice").await;
    let url = format!("{}/v1/ws?access_token={}", rig.url(), token("alice"));
    let refused = tokio_tungstenite::connect_async(&url).await.unwrap_err();
    let tokio_tungstenite::tungstenite::Error::Http(response) = refused else {
        panic!("{refused}");
    };
    assert_eq!(response.status(), 429);
    let body = String::from_utf8(response.into_body().unwrap()).unwrap();
    assert!(body.contains("user_connections_max"), "{body}");
    assert!(body.contains("\"retryable\":true"), "{body}");
    // Others are not concerned, and a place that is given up is free again.
    let _bob = RawSocket::connect(&rig.url(), "bob").await;
    drop(first);
    rig.sdk("alice").await;
}
