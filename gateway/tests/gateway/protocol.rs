//! Plays every example of PROTOCOL.md against a gateway before a fresh store.

use std::collections::HashMap;

use bytes::Bytes;
use mailbox_sdk::Encoding;
use serde_json::Value;

use crate::drive::{RawSocket, Rig};

const PROTOCOL: &str = include_str!("../../PROTOCOL.md");

/// A fenced block: its language line, its lines, and the line it begins at.
struct Block {
    language: String,
    lines: Vec<String>,
    at: usize,
}

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (at, line) in PROTOCOL.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(language), false) => {
                blocks.push(Block {
                    language: language.to_owned(),
                    lines: Vec::new(),
                    at: at + 1,
                });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => blocks.last_mut().unwrap().lines.push(line.to_owned()),
            (None, false) => {}
        }
    }
    blocks
}

/// Replaces what differs from run to run: the clock.
fn settled(mut value: Value) -> Value {
    for part in ["welcome", "pong"] {
        if let Some(time) = value
            .get_mut(part)
            .and_then(|part| part.get_mut("server_time_ms"))
        {
            assert!(time.as_str().unwrap().parse::<u64>().unwrap() >= 1_700_000_000_000);
            *time = "1700000000000".into();
        }
    }
    value
}

/// One user's socket, and what it gave that no example has asked for yet.
struct Played {
    socket: RawSocket,
    unclaimed: Vec<Value>,
}

impl Played {
    async fn expect(&mut self, wanted: &Value, at: usize) {
        loop {
            if let Some(found) = self.unclaimed.iter().position(|frame| frame == wanted) {
                self.unclaimed.remove(found);
                return;
            }
            // An answer that is there under its id, but different, will not come any more.
            let id = wanted.get("id").filter(|id| !id.is_null());
            let other = self
                .unclaimed
                .iter()
                .find(|frame| id.is_some() && frame.get("id") == id);
            assert!(
                other.is_none(),
                "line {at}:\nwanted {wanted}\ngot    {}",
                other.unwrap()
            );
            let next = tokio::time::timeout(crate::drive::PATIENCE / 4, self.socket.next());
            match next.await {
                Ok(frame) => self.unclaimed.push(settled(frame)),
                Err(_) => panic!("line {at}:\nwanted {wanted}\ngot    {:?}", self.unclaimed),
            }
        }
    }
}

#[tokio::test]
async fn every_example_is_what_happens() {
    let rig = Rig::start().await;
    let mut users: HashMap<String, Played> = HashMap::new();
    let mut played = 0;
    for block in blocks() {
        match block.language.as_str() {
            "frames" => {
                for (offset, line) in block.lines.iter().enumerate() {
                    let at = block.at + offset + 1;
                    play_frame(&rig, &mut users, line, at).await;
                    played += 1;
                }
            }
            "http" => {
                play_http(&rig, &block).await;
                played += 1;
            }
            "example server" => {
                let bytes = Bytes::from(block.lines.join("\n"));
                round_trip(&bytes, block.at, false);
                played += 1;
            }
            other => panic!("line {}: what is a {other:?} block?", block.at),
        }
    }
    assert!(played > 40, "only {played} examples were found");
}

async fn play_frame(rig: &Rig, users: &mut HashMap<String, Played>, line: &str, at: usize) {
    let (who, frame) = line.split_once(' ').unwrap();
    let (user, from_client) = match who.strip_suffix('>') {
        Some(user) => (user, true),
        None => (who.strip_suffix('<').unwrap(), false),
    };
    if !users.contains_key(user) {
        // dave is the one who is no user yet.
        let device = match user {
            "dave" => "default&register=true",
            _ => "default",
        };
        let socket = RawSocket::connect_as(&rig.url(), user, device).await;
        users.insert(
            user.to_owned(),
            Played {
                socket,
                unclaimed: Vec::new(),
            },
        );
    }
    let played = users.get_mut(user).unwrap();
    if from_client {
        played.socket.send(frame).await;
    } else {
        let wanted = serde_json::from_str(frame).unwrap();
        played.expect(&wanted, at).await;
    }
    let is_meant_to_fail = frame.contains("too") || frame == r#"{"ping":{}}"#;
    if !is_meant_to_fail {
        round_trip(&Bytes::from(frame.to_owned()), at, from_client);
    }
}

/// An example says the same in both encodings, and nothing in it is skipped.
fn round_trip(json: &Bytes, at: usize, from_client: bool) {
    let again = if from_client {
        let frame = Encoding::Json
            .decode_client(json)
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        let binary = Encoding::Proto.encode_client(&frame);
        Encoding::Json.encode_client(&Encoding::Proto.decode_client(&binary).unwrap())
    } else {
        let frame = Encoding::Json
            .decode_server(json)
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        let binary = Encoding::Proto.encode_server(&frame);
        Encoding::Json.encode_server(&Encoding::Proto.decode_server(&binary).unwrap())
    };
    let mut wanted: Value = serde_json::from_slice(json).unwrap();
    let mut got: Value = serde_json::from_slice(&again).unwrap();
    // The defaults that a client may write or leave out.
    for value in [&mut wanted, &mut got] {
        if let Some(sync) = value.get_mut("sync").and_then(Value::as_object_mut) {
            sync.retain(|_, value| *value != "" && *value != 0);
        }
    }
    assert_eq!(got, wanted, "line {at}");
}

async fn play_http(rig: &Rig, block: &Block) {
    let mut lines = block.lines.iter();
    let (call, user) = lines.next().unwrap().split_once(" as ").unwrap();
    let body = if call.starts_with("POST") {
        lines.next().unwrap()
    } else {
        ""
    };
    let status: u16 = lines.next().unwrap().parse().unwrap();
    let wanted: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let (got_status, got) = rig.json(user, call, body).await;
    assert_eq!((got_status, got), (status, wanted), "line {}", block.at);
}

#[test]
fn every_part_of_the_protocol_has_an_example() {
    let requests = [
        "send",
        "sync",
        "mark_read",
        "ack",
        "create_group",
        "join_group",
        "leave_group",
        "resolve_user",
        "register_user",
        "ping",
    ];
    let parts = [
        "welcome",
        "error",
        "sent",
        "synced",
        "marked_read",
        "acked",
        "group_created",
        "joined_group",
        "left_group",
        "user",
        "user_registered",
        "pong",
        "push",
        "notify",
        "go_away",
    ];
    let examples: String = blocks().into_iter().flat_map(|block| block.lines).collect();
    for name in requests.into_iter().chain(parts) {
        assert!(examples.contains(&format!("\"{name}\":{{")), "{name}");
    }
    // The schema has no part that these lists, and so the page, forget.
    let schema = include_str!("../../wire/proto/mailbox/client/v1/client.proto");
    for (oneof, known) in [
        ("oneof request {", &requests[..]),
        ("oneof frame {", &parts[..]),
    ] {
        let body = schema
            .split(oneof)
            .nth(1)
            .unwrap()
            .split('}')
            .next()
            .unwrap();
        let fields = body
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        for field in fields {
            assert!(known.contains(&field), "{field}");
        }
    }
}

#[test]
fn every_error_code_is_in_the_table() {
    for code in (1..256).filter_map(|number| mailbox_api::v1::ErrorCode::try_from(number).ok()) {
        assert!(PROTOCOL.contains(&format!("`{}`", code.name())), "{code:?}");
    }
}
