//! `mailboxctl top` on a terminal and into a pipe.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;
mod terminal;

use std::process::Command;
use std::time::{Duration, Instant};

use mailbox_client::v1::{MessageType, RegisterUserRequest, SendRequest, send_request};
use mailbox_client::{Client, content_crc, user_id};
use mailbox_cluster::{Cluster, ClusterOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use daemon::mailboxd;
use terminal::Terminal;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(50);
/// Written when a program leaves the terminal's other screen.
const LEAVE: &str = "\u{1b}[?1049l";

async fn cluster() -> Cluster {
    let options = ClusterOptions {
        nodes: 1,
        shards: 4,
        binary: Some(mailboxd()),
        // How full the machine's own disk is, is not what is tested.
        extra_config: "[node]\ndisk_free_min_percent = 0\ndisk_free_min_bytes = \"0 B\"".to_owned(),
        ..ClusterOptions::default()
    };
    Cluster::start(options).await.unwrap()
}

fn top(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = Command::new(CTL);
    command
        .args(["top", "--interval", "200ms"])
        .args(args)
        .args(["--address", cluster.nodes()[0].address(), "--secret-file"])
        .arg(cluster.secret_file())
        // A terminal that every test machine knows.
        .env("TERM", "xterm-256color");
    command
}

async fn register(client: &Client, handle: &str) -> u64 {
    let call = RegisterUserRequest {
        handle: handle.to_owned(),
        ..RegisterUserRequest::default()
    };
    client.register_user(call).await.unwrap().user
}

async fn send(client: &Client, from: u64, to: u64) {
    let id = client.new_message_id();
    let request = SendRequest {
        sender: Some(user_id(from)),
        destination: Some(send_request::Destination::User(user_id(to))),
        client_msg_id: id.as_bytes().to_vec().into(),
        r#type: MessageType::Text as i32,
        content_crc: content_crc(id.as_bytes(), MessageType::Text, b"hi"),
        body: b"hi".to_vec().into(),
        shown_message_id: 0,
    };
    client.send(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_for_a_pipe_shows_rates_and_who_is_hot() {
    let cluster = cluster().await;
    let client = cluster.client().await.unwrap();
    let (alice, bob) = (
        register(&client, "alice").await,
        register(&client, "bob").await,
    );
    let sending = tokio::spawn(async move {
        loop {
            send(&client, alice, bob).await;
        }
    });
    let begun = Instant::now();
    loop {
        let output = tokio::task::block_in_place(|| top(&cluster, &["--json"]).output().unwrap());
        assert!(output.status.success(), "{output:?}");
        let picture: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rates = &picture["rates"];
        let both = ["sends_per_s", "deliveries_per_s"];
        let flows = both
            .iter()
            .all(|rate| rates[rate].as_f64().is_some_and(|rate| rate > 0.0));
        let hot = picture["hot"].as_array().unwrap();
        let is_hot = |user: u64| {
            let name = format!("mailbox:{user}");
            hot.iter().any(|line| line["timeline"] == *name)
        };
        if flows && is_hot(alice) && is_hot(bob) {
            assert_eq!(picture["serves"], true, "{picture}");
            assert!(picture["nodes"][0]["cpu_percent"].is_number(), "{picture}");
            assert!(picture["nodes"][0]["rss_bytes"].as_u64().unwrap() > 1 << 20);
            assert!(picture["interval_ms"].as_u64().unwrap() >= 200, "{picture}");
            break;
        }
        assert!(begun.elapsed() < WITHIN, "{picture}");
    }
    let output = tokio::task::block_in_place(|| top(&cluster, &["--hot", "0"]).output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("by shard") && !text.contains("hot timeline"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "no colours into a pipe: {text}");
    sending.abort();
}

/// Gives the window one size after the other until a word is drawn. Otherwise only what has changed is drawn, which
/// may be parts of words.
fn repaint_until(live: &Terminal, word: &str) {
    let begun = Instant::now();
    for columns in [160, 161].into_iter().cycle() {
        live.resize(columns, 40);
        std::thread::sleep(Duration::from_millis(100));
        if live.shown().contains(word) {
            return;
        }
        assert!(
            begun.elapsed() < WITHIN,
            "`{word}` is not drawn: {}",
            live.shown()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_view_takes_keys_and_gives_the_terminal_back() {
    let cluster = cluster().await;
    tokio::task::block_in_place(|| {
        let mut live = Terminal::run_sized(top(&cluster, &[]), 60, 30);
        live.wait_for("serves; losing one more node");
        live.wait_for("q quit");
        assert!(!live.is_cooked());
        // The last column has no room until the window is wider.
        assert!(!live.shown().contains("address"));
        repaint_until(&live, "address");
        live.press(b"?");
        repaint_until(&live, "PgDn");
        live.press(b"\x03");
        assert!(live.program.wait().success());
        live.wait_for(LEAVE);
        assert!(live.is_cooked());

        let mut killed = Terminal::run_sized(top(&cluster, &["--sort", "lag"]), 120, 30);
        killed.wait_for("by lag");
        let pid = i32::try_from(killed.program.0.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        assert!(killed.program.wait().success());
        killed.wait_for(LEAVE);
        assert!(killed.is_cooked());
    });
}
