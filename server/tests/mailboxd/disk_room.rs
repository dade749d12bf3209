//! A node with less free space than it must keep: what each kind of client is told, and what goes on.

use std::path::Path;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{ErrorCode, RegisterUserRequest, SyncRange, SyncRequest};
use mailbox_client::{Auth, Client, ClientOptions};
use mailbox_gateway::token::{TokenSigner, issue};
use rustix::process::Signal;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::chat::{mailbox, text_to};
use crate::cluster::with_secret_of;
use crate::http;
use crate::operate::{SECRET, write_config};
use crate::process::Process;
use crate::ws::Socket;

const KEY: &str = "an HS256 key of at least thirty-two bytes";

fn server(file: &str, more: &[&str]) -> (Process, String) {
    let process = Process::start(&[&["server", "--json", "--config", file], more].concat());
    let grpc = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    (process, grpc)
}

async fn connect(grpc: &str) -> Client {
    let auth = Auth::Secret {
        cluster_id: Some("test".into()),
        secret: SECRET.to_vec(),
    };
    let options = ClientOptions::new(vec![grpc.to_owned()], auth);
    Client::connect(options).await.expect("connect")
}

/// The whole size of the disk that `dir` is on: more than it can ever have free.
fn needed(dir: &Path) -> u64 {
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_blocks * stat.f_frsize
}

/// The three values are there for whoever reads the words.
fn check_words(words: &str, dir: &Path) {
    let needed = needed(dir);
    let path = dir.join("node");
    assert!(words.contains(path.to_str().unwrap()), "the path: {words}");
    assert!(words.contains(&needed.to_string()), "needed: {words}");
    let free = words
        .split_once(" has ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(free.is_some_and(|free| free < needed), "free: {words}");
}

/// A node without room, that had some when two users and a message came.
struct FullNode {
    process: Process,
    client: Client,
    grpc: String,
    file: String,
    alice: u64,
    bob: u64,
}

async fn full_node(dir: &Path) -> FullNode {
    let key = dir.join("key");
    std::fs::write(&key, KEY).unwrap();
    let auth = format!("[auth]\nhs256_secret_file = \"{}\"\n", key.display());
    let file = write_config(dir, &auth);
    let (process, grpc) = server(&file, &[]);
    let client = connect(&grpc).await;
    let mut users = Vec::new();
    for handle in ["alice", "bob"] {
        let call = RegisterUserRequest {
            request_id: client.new_message_id().as_bytes().to_vec().into(),
            handle: handle.to_owned(),
        };
        users.push(client.register_user(call).await.expect("registered").user);
    }
    let (alice, bob) = (users[0], users[1]);
    let first = text_to(&client, alice, bob, "before");
    client.send(first).await.expect("acked");
    assert!(process.stop(Signal::TERM).success());

    let minimum = format!("node.disk_free_min_bytes={}", needed(dir));
    let (process, grpc) = server(&file, &["--set", &minimum]);
    FullNode {
        process,
        client: connect(&grpc).await,
        grpc,
        file,
        alice,
        bob,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_clients_are_told_path_free_and_needed_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = full_node(dir.path()).await;
    let send = || text_to(&node.client, node.alice, node.bob, "no");
    let error = node.client.send(send()).await.expect_err("a streamed send");
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
    check_words(&error.0.message, dir.path());

    let mut unary = MailboxClient::connect(format!("http://{}", node.grpc))
        .await
        .unwrap();
    let call = with_secret_of(send(), SECRET);
    let status = unary.send(call).await.expect_err("a unary send");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let error = CallError::from_status(&status);
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
    check_words(status.message(), dir.path());

    let request = SyncRequest {
        ranges: vec![SyncRange {
            timeline: Some(mailbox(node.bob)),
            after_seq: 0,
        }],
        ..SyncRequest::default()
    };
    let page = node.client.sync(request).await.expect("a read");
    let page = &page.pages[0];
    assert_eq!((page.head, page.messages.len()), (1, 1));
    assert!(node.process.stop(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_websocket_clients_are_told_path_free_and_needed_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = full_node(dir.path()).await;
    let config = std::fs::read_to_string(&node.file).unwrap();
    let address = format!("1 = \"{}\"", node.grpc);
    let config = config.replacen("1 = \"127.0.0.1:0\"", &address, 1)
        + "[gateway]\nlisten = \"127.0.0.1:0\"\nconnections_max = 64\n";
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let gateway = Process::start(&["gateway", "--json", "--config", file.to_str().unwrap()]);
    let ready = gateway.says();
    let listen = ready["ready"]["listen"].as_str().unwrap();
    let signer = TokenSigner::hs256(KEY.as_bytes()).unwrap();
    let token = issue(&signer, &"@alice".parse().unwrap(), Duration::from_secs(60)).unwrap();

    let id = node.client.new_message_id().to_string();
    let send = json!({ "to": "@bob", "client_msg_id": id, "text": "no" });
    let answer = http::post(listen, "/v1/chat/send", Some(&token), &send.to_string());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (507, "DiskFull"),
        "{}",
        answer.body
    );
    let error = &answer.json()["error"];
    assert_eq!(error["retryable"], json!(true));
    check_words(error["message"].as_str().unwrap(), dir.path());

    let mut socket = Socket::connect(listen, &token).await;
    let frame = json!({ "id": 7, "send": send });
    socket.say(Message::text(frame.to_string())).await;
    let answer = socket.next_with("error").await;
    assert_eq!(answer["id"], json!(7), "{answer}");
    assert_eq!(answer["error"]["code"], "DiskFull", "{answer}");
    check_words(answer["error"]["message"].as_str().unwrap(), dir.path());

    let page = http::get(listen, "/v1/chat/sync?limit=10", Some(&token));
    let page = page.json();
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(1), "{page}");
    assert!(gateway.stop(Signal::TERM).success());
    assert!(node.process.stop(Signal::TERM).success());
}
