//! How the process ends, and the status that it ends with.

use std::time::Instant;

use mailbox_api::v1::{RegisterUserRequest, StatusRequest, admin_client::AdminClient};
use mailbox_client::{Auth, Client, ClientOptions};
use rustix::process::Signal;

use crate::chat::text_to;
use crate::cluster::{Trio, leader};
use crate::operate::{SECRET, write_config};
use crate::process::{PATIENCE, Process, run};

#[test]
fn help_lists_every_status_and_a_wrong_command_line_has_its_own() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for listed in [
        "0  stopped",
        "1  could not start",
        "2  ",
        "3  storage fault",
        "130  ",
    ] {
        assert!(help.stdout.contains(listed), "{listed}: {}", help.stdout);
    }
    assert_eq!(run(&["serve"]).status.code(), Some(2));
    assert_eq!(run(&["server", "--no-such-flag"]).status.code(), Some(2));
    let unknown = run(&["server", "--set", "node.no_such_option=1"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", unknown.stderr);
}

async fn client(grpc: &str) -> Client {
    let auth = Auth::Secret {
        cluster_id: Some("test".into()),
        secret: SECRET.to_vec(),
    };
    let options = ClientOptions::new(vec![grpc.to_owned()], auth);
    Client::connect(options).await.expect("connect")
}

async fn register(client: &Client, handle: &str) -> u64 {
    let request_id = client.new_message_id().as_bytes().to_vec().into();
    let call = RegisterUserRequest {
        request_id,
        handle: handle.to_owned(),
    };
    client.register_user(call).await.expect("registered").user
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_order_flushes_and_a_restart_has_nothing_to_replay() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_config(dir.path(), "");
    let process = Process::start(&["server", "--json", "--config", &file]);
    let grpc = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let node = client(&grpc).await;
    let (alice, bob) = (register(&node, "alice").await, register(&node, "bob").await);
    for number in 0..20 {
        let text = format!("number {number}");
        node.send(text_to(&node, alice, bob, &text))
            .await
            .expect("acked");
    }
    let before = node
        .status(Some(&grpc))
        .await
        .expect("status")
        .shards
        .remove(1);
    assert!(before.applied_index > before.flushed_index, "{before:?}");
    let stopped = process.stop(Signal::TERM);
    assert_eq!(stopped.code(), Some(0));

    let process = Process::start(&["server", "--json", "--config", &file]);
    let grpc = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let after = client(&grpc)
        .await
        .status(Some(&grpc))
        .await
        .expect("status");
    assert!(
        after.shards[1].flushed_index >= before.applied_index,
        "{after:?}"
    );
    assert_eq!(process.stop(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_stop_that_takes_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start(dir.path());
    let leader = leader(&trio).await;
    // Nobody can take the leadership over: the stop waits for that, seconds long.
    for (index, node) in trio.nodes.iter().enumerate() {
        if index != leader {
            node.as_ref().unwrap().signal(Signal::STOP);
        }
    }
    let process = trio.nodes[leader].take().unwrap();
    process.signal(Signal::TERM);
    // Another signal, so that the two do not become one while the process is busy.
    let ended = process.stop(Signal::INT);
    assert_eq!(ended.code(), Some(130), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_write_ends_the_process_with_the_status_of_a_storage_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_config(dir.path(), "");
    let stderr = dir.path().join("stderr");
    let process = Process::start_logged(&["server", "--json", "--config", &file], &stderr);
    let grpc = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let node = client(&grpc).await;
    let (alice, bob) = (register(&node, "alice").await, register(&node, "bob").await);
    node.send(text_to(&node, alice, bob, "before"))
        .await
        .expect("acked");
    // The next file of the log cannot be made in a directory that is gone.
    let log = dir.path().join("node").join("log");
    std::fs::remove_dir_all(&log).unwrap();
    let text = "x".repeat(16_000);
    let begun = Instant::now();
    let status = loop {
        let requests = (0..32).map(|_| text_to(&node, alice, bob, &text)).collect();
        let failed = tokio::time::timeout(PATIENCE / 10, node.send_batch(requests)).await;
        if failed.is_err() || failed.is_ok_and(|answers| answers.iter().any(Result::is_err)) {
            break process.wait();
        }
        assert!(begun.elapsed() < PATIENCE, "every write succeeds");
    };
    let words = std::fs::read_to_string(&stderr).unwrap();
    assert_eq!(status.code(), Some(3), "{words}");
    assert!(
        words.contains("storage fault") && words.contains(log.to_str().unwrap()),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let dir = tempfile::tempdir().unwrap();
    let file = write_config(dir.path(), "");
    let process = Process::start(&["server", "--json", "--config", &file]);
    let grpc = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{grpc}")).unwrap();
    let mut reflection = ServerReflectionClient::new(channel.connect().await.expect("connect"));
    let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("an open service")
        .into_inner();
    let answer = answers.message().await.unwrap().expect("an answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in [
        "mailbox.v1.Mailbox",
        "mailbox.v1.Admin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    // Without the secret the admin service is listed, and refuses.
    let mut admin = AdminClient::connect(format!("http://{grpc}"))
        .await
        .unwrap();
    let refused = admin
        .status(StatusRequest::default())
        .await
        .expect_err("no secret");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}
