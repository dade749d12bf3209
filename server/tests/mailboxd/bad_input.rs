//! Bad input gets a clear error and changes nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mailbox_api::v1::{ErrorCode, UserRef, user_ref};
use mailbox_client::{Auth, Client, ClientOptions};
use mailbox_gateway::token::{TokenSigner, issue};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::chat::{client, head_of, mailbox, text_to};
use crate::http::{Answer, post};
use crate::process::Dev;
use crate::ws::Socket;

fn send(dev: &Dev, token: Option<&str>, to: &str, id: &str, text: &str) -> Answer {
    let body = json!({ "to": to, "client_msg_id": id, "text": text });
    post(&dev.gateway(), "/v1/chat/send", token, &body.to_string())
}

fn id_at(ms: u64) -> String {
    let time = uuid::Timestamp::from_unix_time(ms / 1000, 0, 0, 0);
    Uuid::new_v7(time).to_string()
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn each_bad_send_is_refused_with_its_code_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let alice = dev.user("alice", "token");
    let token = Some(alice.as_str());
    let id = || Uuid::now_v7().to_string();
    let now = u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap();
    let day = 24 * 3600 * 1000;

    // A first good message sets replicated time: the window is judged by it.
    assert_eq!(send(&dev, token, "@bob", &id(), "good").status, 200);
    let before = head_of(&dev, "bob");
    for (answer, status, code, named) in [
        (
            send(&dev, token, "@bob", &id(), &"x".repeat(16 * 1024)),
            413,
            "BodyTooLarge",
            "16383",
        ),
        (
            send(&dev, token, "@nobody", &id(), "hi"),
            404,
            "UnknownUser",
            "nobody",
        ),
        (
            send(&dev, token, "@bob", &id_at(now - 8 * day), "hi"),
            409,
            "IdExpired",
            "",
        ),
        (
            send(&dev, token, "@bob", &id_at(now + day), "hi"),
            409,
            "IdFromFuture",
            "",
        ),
        (
            send(&dev, token, "@bob", "not-a-uuid", "hi"),
            400,
            "InvalidArgument",
            "malformed",
        ),
        (
            send(&dev, token, "", &id(), "hi"),
            400,
            "InvalidArgument",
            "destination",
        ),
        (
            post(
                &dev.gateway(),
                "/v1/chat/send",
                token,
                "{\"to\": \"@bob\", ",
            ),
            400,
            "InvalidArgument",
            "",
        ),
        (
            send(&dev, None, "@bob", &id(), "hi"),
            401,
            "Unauthenticated",
            "token",
        ),
        (
            send(&dev, Some("nonsense"), "@bob", &id(), "hi"),
            401,
            "Unauthenticated",
            "JWT",
        ),
    ] {
        assert_eq!(answer.code(), code, "{}", answer.body);
        assert!(answer.body.contains(named), "{named}: {}", answer.body);
        let fits = answer.status == status || (status == 409 && answer.status / 100 == 4);
        assert!(fits, "{code} as {}: {}", answer.status, answer.body);
    }
    assert_eq!(head_of(&dev, "bob"), before, "nothing has changed");
}

#[test]
fn a_bad_token_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let key = std::fs::read(dir.path().join("auth.key")).unwrap();
    let signer = TokenSigner::hs256(key.trim_ascii_end()).unwrap();
    let good = issue(&signer, &"@alice".parse().unwrap(), Duration::from_secs(60)).unwrap();
    let (_, claims_and_signature) = good.split_once('.').unwrap();
    let (claims, signature) = claims_and_signature.split_once('.').unwrap();
    let header = |text: &str| URL_SAFE_NO_PAD.encode(text);

    let none = format!("{}.{claims}.", header(r#"{"alg":"none","typ":"JWT"}"#));
    let other = format!(
        "{}.{claims}.{signature}",
        header(r#"{"alg":"HS512","typ":"JWT"}"#)
    );
    let stranger = TokenSigner::hs256(b"an unknown key of at least thirty-two bytes").unwrap();
    let foreign = issue(
        &stranger,
        &"@alice".parse().unwrap(),
        Duration::from_secs(60),
    )
    .unwrap();
    // Signed as it should be, in its time.
    let expired = jsonwebtoken::encode(
        &jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256),
        &json!({ "sub": "@alice", "exp": 1_000_000_000 }),
        &jsonwebtoken::EncodingKey::from_secret(key.trim_ascii_end()),
    )
    .unwrap();
    let id = Uuid::now_v7().to_string();
    assert_eq!(
        send(&dev, Some(&good), "@bob", &id, "hi").status,
        200,
        "the good one works"
    );
    let before = head_of(&dev, "bob");
    for (token, named) in [
        (none, "algorithm"),
        (other, "algorithm"),
        (foreign, "signature"),
        (expired, "expired"),
    ] {
        let answer = send(
            &dev,
            Some(&token),
            "@bob",
            &Uuid::now_v7().to_string(),
            "hi",
        );
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert_eq!(answer.code(), "Unauthenticated");
        assert!(answer.body.contains(named), "{named}: {}", answer.body);
        assert!(!answer.body.contains(&token), "a token is never repeated");
    }
    assert_eq!(head_of(&dev, "bob"), before, "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let token = dev.user("alice", "token");
    let frame = |id: u64, text: &str| {
        let msg_id = Uuid::now_v7().to_string();
        json!({ "id": id, "send": { "to": "@bob", "client_msg_id": msg_id, "text": text } })
            .to_string()
    };
    let mut socket = Socket::connect(&dev.gateway(), &token).await;
    socket.say(Message::text(frame(1, "good"))).await;
    assert_eq!(socket.next_with("sent").await["sent"]["seq"], "1");
    let before = head_of(&dev, "bob");
    let cut_off = frame(2, "cut off");
    let unknown_field = frame(3, "unknown field").replace("\"to\"", "\"too\"");
    let two_requests = frame(4, "two").replace("\"send\"", "\"ping\":{},\"send\"");
    for bad in [
        &cut_off[..cut_off.len() - 2],
        "",
        "[]",
        "7",
        unknown_field.as_str(),
        two_requests.as_str(),
        &frame(5, "no number").replace("\"id\":5", "\"id\":\"five\""),
    ] {
        socket.say(Message::text(bad)).await;
        let answer = socket.next_with("error").await;
        assert_eq!(
            answer["error"]["code"], "InvalidArgument",
            "{bad}: {answer}"
        );
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(head_of(&dev, "bob"), before, "nothing has changed");
    // The connection is as good as before.
    socket.say(Message::text(frame(9, "good again"))).await;
    assert_eq!(socket.next_with("sent").await["sent"]["seq"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_refuses_strangers_and_users_who_act_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let cluster = client(&dev).await;
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    let bob: u64 = dev.user("bob", "id").parse().unwrap();
    let before = head_of(&dev, "bob");

    let stranger = async |auth: Auth| {
        let options = ClientOptions::new(vec![dev.text("grpc")], auth);
        let connected = Client::connect(options).await;
        match connected {
            Err(error) => error,
            Ok(client) => client
                .send(text_to(&client, alice, bob, "hi"))
                .await
                .expect_err("refused"),
        }
    };
    let secret = std::fs::read(dir.path().join("mailbox.secret")).unwrap();
    let secret = secret.trim_ascii_end().to_vec();
    let wrong = Auth::Secret {
        cluster_id: None,
        secret: b"0123456789abcdef0123".to_vec(),
    };
    let error = stranger(wrong).await;
    assert_eq!(error.code(), ErrorCode::Unauthenticated, "{error}");
    assert!(error.0.message.contains("wrong cluster secret"), "{error}");
    let elsewhere = Auth::Secret {
        cluster_id: Some("elsewhere".into()),
        secret,
    };
    let error = stranger(elsewhere).await;
    assert_eq!(error.code(), ErrorCode::WrongCluster, "{error}");
    assert_eq!(head_of(&dev, "bob"), before, "nothing has changed");

    // A user's token acts for its own user, and for nobody else.
    let auth = Auth::Token(dev.user("alice", "token"));
    let own = Client::connect(ClientOptions::new(vec![dev.text("grpc")], auth))
        .await
        .unwrap();
    own.send(text_to(&own, alice, bob, "mine"))
        .await
        .expect("for oneself");
    let before = (head_of(&dev, "alice"), head_of(&dev, "bob"));
    let error = own
        .send(text_to(&own, bob, alice, "not mine"))
        .await
        .expect_err("for bob");
    assert_eq!(error.code(), ErrorCode::Forbidden, "{error}");
    let error = own
        .sync(mailbox_api::v1::SyncRequest {
            ranges: vec![mailbox_api::v1::SyncRange {
                timeline: Some(mailbox(bob)),
                after_seq: 0,
            }],
            reader: Some(UserRef {
                user: Some(user_ref::User::Id(bob)),
            }),
            ..Default::default()
        })
        .await
        .expect_err("as bob");
    assert_eq!(error.code(), ErrorCode::Forbidden, "{error}");

    // A damaged body is found before it is stored.
    let mut damaged = text_to(&cluster, alice, bob, "hello");
    damaged.content_crc ^= 1;
    let error = cluster.send(damaged).await.expect_err("damaged");
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
    let after = (head_of(&dev, "alice"), head_of(&dev, "bob"));
    assert_eq!(after, before, "nothing has changed");
}
