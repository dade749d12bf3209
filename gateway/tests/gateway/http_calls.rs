//! The HTTP calls.

use mailbox_api::v1::ErrorCode;
use serde_json::json;

use crate::drive::{Rig, limits, token};

fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[tokio::test]
async fn a_message_is_sent_and_synced() {
    let rig = Rig::start().await;
    let body = json!({"to": "@bob", "client_msg_id": id(), "text": "hi"}).to_string();
    let (status, sent) = rig.json("alice", "POST /v1/chat/send", &body).await;
    assert_eq!(
        (status, &sent["timeline"], &sent["seq"]),
        (200, &json!("mailbox:17"), &json!("1"))
    );
    assert!(sent["message_id"].as_str().unwrap().parse::<u64>().is_ok());
    let again = rig.json("alice", "POST /v1/chat/send", &body).await;
    assert_eq!(again, (200, sent), "a repeat returns the first reply");

    let (status, page) = rig.json("bob", "GET /v1/chat/sync", "").await;
    assert_eq!((status, &page["more"]), (200, &json!(false)));
    assert_eq!(page["messages"][0]["text"], "hi");
    assert_eq!(page["messages"][0]["sender"], "17");
    assert!(page.get("positions").is_none());
    let next = format!("GET /v1/chat/sync?key={}", page["key"].as_str().unwrap());
    let (_, page) = rig.json("bob", &next, "").await;
    assert_eq!(page["messages"], json!([]));
}

#[tokio::test]
async fn pages_hold_what_was_asked_and_the_key_goes_on() {
    let rig = Rig::start().await;
    for number in 0..5 {
        rig.store.send_text(17, 18, &number.to_string());
    }
    let (mut key, mut seen) = (String::new(), Vec::new());
    loop {
        let call = format!("GET /v1/chat/sync?key={key}&limit=2");
        let (_, page) = rig.json("bob", &call, "").await;
        let messages = page["messages"].as_array().unwrap();
        assert!(messages.len() <= 2);
        seen.extend(
            messages
                .iter()
                .map(|message| message["text"].as_str().unwrap().to_owned()),
        );
        key = page["key"].as_str().unwrap().to_owned();
        if page["more"] == json!(false) {
            break;
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn refusals_have_their_status_code_and_words() {
    let rig = Rig::start().await;
    let send =
        |to: &str, text: &str| json!({"to": to, "client_msg_id": id(), "text": text}).to_string();
    let first = send("@bob", "one");
    rig.json("alice", "POST /v1/chat/send", &first).await;
    let big = "x".repeat(20_000);
    let cases = [
        (404, "UnknownUser", send("@nobody", "hi")),
        (409, "IdReused", first.replace("one", "two")),
        (413, "BodyTooLarge", send("@bob", &big)),
        (
            400,
            "InvalidArgument",
            first.replace("\"text\"", "\"txet\""),
        ),
        (400, "InvalidArgument", send("bob", "hi")),
        (400, "InvalidArgument", "{".to_owned()),
        (
            400,
            "InvalidArgument",
            first.replace(&first[first.find("id\":\"").unwrap() + 5..][..36], "7"),
        ),
        (403, "NotAMember", send("group:65", "hi")),
    ];
    let before = rig.store.seqs(17);
    for (status, code, body) in cases {
        let (got, answer) = rig.json("alice", "POST /v1/chat/send", &body).await;
        assert_eq!(
            (got, &answer["error"]["code"]),
            (status, &json!(code)),
            "{body}: {answer}"
        );
        assert_eq!(answer["error"]["retryable"], json!(false));
        assert_ne!(answer["error"]["message"], json!(""));
    }
    assert_eq!(rig.store.seqs(17), before, "a refusal changes nothing");

    let unknown = first.replace("\"text\"", "\"txet\"");
    let (_, answer) = rig.json("alice", "POST /v1/chat/send", &unknown).await;
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("`txet`"),
        "{answer}"
    );

    let over = format!("GET /v1/chat/sync?key={}", "A".repeat(40));
    let (status, answer) = rig.json("alice", &over, "").await;
    assert_eq!((status, &answer["error"]["code"]), (410, &json!("Resync")));
}

#[tokio::test]
async fn a_key_from_another_history_gets_resync() {
    let rig = Rig::start().await;
    for _ in 0..5 {
        rig.store.send_text(17, 18, "hi");
    }
    let (_, page) = rig.json("bob", "GET /v1/chat/sync?limit=2", "").await;
    let old = format!("GET /v1/chat/sync?key={}", page["key"].as_str().unwrap());
    rig.store.trim(18, 4);
    let (status, answer) = rig.json("bob", &old, "").await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (410, &json!("Resync")),
        "trimmed past it"
    );
    let (status, page) = rig.json("bob", "GET /v1/chat/sync", "").await;
    assert_eq!(
        (status, page["messages"].as_array().unwrap().len()),
        (200, 1)
    );

    let other = Rig::start().await;
    let ahead = format!("GET /v1/chat/sync?key={}", page["key"].as_str().unwrap());
    let (status, answer) = other.json("bob", &ahead, "").await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (410, &json!("Resync")),
        "{answer}"
    );
}

#[tokio::test]
async fn bad_tokens_are_refused_and_never_shown() {
    let rig = Rig::start().await;
    let none = jsonwebtoken_none();
    let tampered = format!("{}x", token("alice"));
    let cases = [
        ("", "no token"),
        ("garbage", "malformed"),
        (none.as_str(), "algorithm"),
        (tampered.as_str(), "signature"),
        (&token("stranger"), "not a registered user"),
    ];
    for (bad, word) in &cases {
        let head = if bad.is_empty() {
            "GET /v1/chat/sync".to_owned()
        } else {
            format!("GET /v1/chat/sync\nauthorization: Bearer {bad}")
        };
        let (status, body) = rig.http(&head, "").await;
        assert_eq!(status, 401, "{word}: {body}");
        assert!(
            body.contains("Unauthenticated") && body.contains(word),
            "{word}: {body}"
        );
        assert!(bad.is_empty() || !body.contains(bad), "{body}");
        let upgrade = format!(
            "GET /v1/ws?access_token={bad}\nconnection: upgrade\nupgrade: websocket\n\
             sec-websocket-version: 13\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
        );
        let (status, body) = rig.http(&upgrade, "").await;
        assert_eq!(status, 401, "{word}: {body}");
    }
}

/// A token with `alg: none`.
fn jsonwebtoken_none() -> String {
    // {"alg":"none","typ":"JWT"} . {"sub":"@alice","exp":9999999999} . no signature
    "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.\
     eyJzdWIiOiJAYWxpY2UiLCJleHAiOjk5OTk5OTk5OTl9."
        .to_owned()
}

#[tokio::test]
async fn health_readiness_metrics_and_what_is_not_there() {
    let rig = Rig::with(|options| {
        options.ready = std::sync::Arc::new(|| Err("no store yet".to_owned()));
    })
    .await;
    assert_eq!(rig.http("GET /healthz", "").await.0, 200);
    let (status, body) = rig.http("GET /readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("no store yet"));
    rig.json("alice", "GET /v1/chat/sync", "").await;
    let (status, body) = rig.http("GET /metrics", "").await;
    assert_eq!(status, 200);
    assert!(
        body.contains("mailbox_gateway_requests_total{request=\"http_sync\"} 1"),
        "{body}"
    );
    assert_eq!(rig.http("GET /v2", "").await.0, 404);
    assert_eq!(rig.http("GET /v1/chat/send", "").await.0, 405);
    assert_eq!(rig.http("GET /v1/ws", "").await.0, 400);
}

#[tokio::test]
async fn a_retryable_refusal_is_repeated_for_the_client_or_told_as_such() {
    let rig = Rig::with(limits(|limits| limits.frame_bytes_max = 30_000)).await;
    rig.store
        .refuse(&[ErrorCode::Unavailable, ErrorCode::Retry]);
    let body = json!({"to": "@bob", "client_msg_id": id(), "text": "hi"}).to_string();
    let (status, sent) = rig.json("alice", "POST /v1/chat/send", &body).await;
    assert_eq!((status, &sent["seq"]), (200, &json!("1")), "{sent}");
    let (status, answer) = rig
        .json("alice", "POST /v1/chat/send", &"x".repeat(40_000))
        .await;
    assert_eq!(status, 413);
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("30000"),
        "{answer}"
    );
}
