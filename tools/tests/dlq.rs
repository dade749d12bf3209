//! `mailboxctl dlq` as an operator uses it: letters are seen, judged, requeued and dropped.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::process::{Command, Output};

use mailbox_client::v1::{MessageType, RegisterUserRequest, SendRequest, send_request};
use mailbox_client::{Client, content_crc, user_id};
use mailbox_cluster::{Cluster, ClusterOptions};
use mailbox_engine::{SlotId, UserId, slot_of_handle, slot_of_owner};
use serde_json::{Value, json};

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");

struct Operator {
    address: String,
    secret: String,
}

impl Operator {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(CTL)
            .arg("dlq")
            .args(args)
            .args(["--address", &self.address, "--secret-file", &self.secret])
            .output()
            .unwrap()
    }

    /// One JSON value a line, and whether the command says that all went well.
    fn json(&self, args: &[&str]) -> (Vec<Value>, bool) {
        let output = self.run(&[args, &["--json"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let values = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (values.collect(), output.status.success())
    }

    /// The words of a command, and whether it says that all went well.
    fn words(&self, args: &[&str]) -> (String, bool) {
        let output = self.run(args);
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8(text).unwrap(), output.status.success())
    }
}

async fn register(client: &Client, handle: &str) -> u64 {
    let call = RegisterUserRequest {
        handle: handle.to_owned(),
        ..RegisterUserRequest::default()
    };
    client.register_user(call).await.unwrap().user
}

async fn send(client: &Client, from: u64, to: u64, text: &str) {
    let id = client.new_message_id();
    let kind = MessageType::Text;
    let call = SendRequest {
        sender: Some(user_id(from)),
        destination: Some(send_request::Destination::User(user_id(to))),
        client_msg_id: id.as_bytes().to_vec().into(),
        r#type: kind as i32,
        body: text.as_bytes().to_vec().into(),
        content_crc: content_crc(id.as_bytes(), kind, text.as_bytes()),
        ..SendRequest::default()
    };
    client.send(call).await.unwrap();
}

/// A handle that nobody has, and the user that it will make: the first one of its directory slot.
fn stranger(slots: u16, alice: u64) -> (String, UserId) {
    let used = SlotId(u16::try_from(alice & 0xFFFF).unwrap());
    let handles = (0..).map(|number| format!("late{number}"));
    let mut free = handles.filter(|handle| slot_of_handle(handle, slots) != used);
    let handle = free.next().unwrap();
    let user = UserId::allocated(1, slot_of_handle(&handle, slots));
    (handle, user)
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_seen_requeued_and_dropped() {
    let cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        shards: 4,
        extra_config: "[cluster]\ndead_letters_max = 3\n".to_owned(),
        binary: Some(mailboxd()),
        ..ClusterOptions::default()
    });
    let cluster = cluster.await.unwrap();
    let operator = Operator {
        address: cluster.node(0).address().to_owned(),
        secret: cluster.secret_file().to_str().unwrap().to_owned(),
    };
    assert_eq!(
        operator.words(&["list"]),
        ("no dead letter waits\n".to_owned(), true)
    );

    let client = cluster.client().await.unwrap();
    let slots = u16::try_from(client.shard_map().await.unwrap().slot_count).unwrap();
    let alice = register(&client, "alice").await;
    let (handle, late) = stranger(slots, alice);
    let slot = slot_of_owner(late.0, slots);
    for text in ["one", "two", "three"] {
        send(&client, alice, late.0, text).await;
    }
    cluster
        .wait_lanes_drained(std::time::Duration::from_secs(30))
        .await
        .unwrap();

    assert_listed(&operator, slot, slots, late);
    assert_refused(&operator, slot);
    assert_eq!(register(&client, &handle).await, late.0);
    assert_resolved(&operator, slot, late);
    for (name, value) in [
        ("mailbox_dead_letters_waiting", 1),
        ("mailbox_dead_letters_written_total", 3),
        ("mailbox_dead_letters_requeued_total", 1),
        ("mailbox_dead_letters_dropped_total", 1),
        ("mailbox_dead_letters_unseen_total", 0),
    ] {
        let found = cluster.node(0).metric(name).await.unwrap();
        assert_eq!(found, Some(value), "{name}");
    }

    // Each of three further letters takes the place of one: of the requeued, the dropped and the waiting one.
    let nobody = (2..).map(|number| UserId::allocated(number, SlotId(0)));
    let mut nobody = nobody.filter(|user| slot_of_owner(user.0, slots) == slot);
    let nobody = nobody.next().unwrap();
    for unseen in [0, 0, 1] {
        send(&client, alice, nobody.0, "for nobody").await;
        cluster
            .wait_lanes_drained(std::time::Duration::from_secs(30))
            .await
            .unwrap();
        let (words, well) = operator.words(&["list"]);
        let told = words.contains("have taken the places of 1 that nobody had requeued or dropped");
        assert!(well && told == (unseen == 1), "{words}");
        let name = "mailbox_dead_letters_unseen_total";
        let found = cluster.node(0).metric(name).await.unwrap();
        assert_eq!(found, Some(unseen));
    }
}

fn letter(slot: SlotId, seq: u64) -> String {
    format!("{slot}/{seq}")
}

fn assert_listed(operator: &Operator, slot: SlotId, slots: u16, late: UserId) {
    let (listed, well) = operator.json(&["list"]);
    assert!(well);
    let texts: Vec<_> = listed.iter().map(|letter| letter["text"].clone()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!(listed[1]["letter"], format!("{slot}/2"));
    assert_eq!(listed[1]["recipient"], late.0.to_string());
    assert_eq!(listed[1]["code"], "UnknownUser");
    let (some, well) = operator.words(&["list", "--limit", "2"]);
    assert!(
        well && some.contains("3 wait, in 1 slot(s)") && some.contains("there are more"),
        "{some}"
    );
    let other = (slot.0 + 1) % slots;
    let (none, _) = operator.json(&["list", "--slot", &other.to_string()]);
    assert!(none.is_empty(), "{none:?}");
    let (wrong, well) = operator.words(&["list", "--slot", &slots.to_string()]);
    assert!(!well && wrong.contains("there is no slot"), "{wrong}");
}

/// While nothing has been mended.
fn assert_refused(operator: &Operator, slot: SlotId) {
    let (one, gone) = (letter(slot, 1), letter(slot, 9));
    let (refused, well) = operator.words(&["requeue", &one]);
    assert!(
        !well && refused.contains("there is no user") && refused.contains("It stays"),
        "{refused}"
    );
    let (refused, well) = operator.json(&["requeue", &one, "--dry-run"]);
    assert!(
        !well && refused[0]["state"] == "refused" && refused[0]["dry_run"] == true,
        "{refused:?}"
    );
    let (absent, well) = operator.words(&["show", &gone]);
    assert!(!well && absent.contains("has 1 to 3"), "{absent}");
}

/// The first is requeued, the second dropped, the third waits.
fn assert_resolved(operator: &Operator, slot: SlotId, late: UserId) {
    let (one, two) = (letter(slot, 1), letter(slot, 2));
    let (possible, well) = operator.json(&["requeue", &one, &two, "--dry-run"]);
    assert!(
        well && possible.iter().all(|one| one["state"] == "possible"),
        "{possible:?}"
    );
    let (possible, well) = operator.json(&["drop", &one, "--dry-run"]);
    assert!(well && possible[0]["state"] == "possible", "{possible:?}");
    assert_eq!(operator.json(&["list"]).0.len(), 3, "nothing was changed");
    for _ in 0..2 {
        let (done, well) = operator.json(&["requeue", &one]);
        assert!(
            well && done[0]["state"] == "requeued" && done[0]["seq"] == "1",
            "{done:?}"
        );
    }
    let (dropped, well) = operator.json(&["drop", &two, &one]);
    assert!(!well);
    let states: Vec<_> = dropped.iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states, ["dropped", "refused"]);
    assert_eq!(dropped[1]["code"], "DeadLetterResolved");
    for (command, id, state) in [("drop", &two, "dropped"), ("requeue", &one, "requeued")] {
        let (before, well) = operator.json(&[command, id, "--dry-run"]);
        assert!(well && before[0]["state"] == state, "{before:?}");
        let (words, well) = operator.words(&[command, id, "--dry-run"]);
        assert!(
            well && words.contains(&format!("was {state} before"))
                && words.contains("nothing to do"),
            "{words}"
        );
    }

    let (waiting, _) = operator.json(&["list"]);
    assert_eq!(waiting.len(), 1);
    let (all, _) = operator.json(&["list", "--all"]);
    let standings: Vec<_> = all
        .iter()
        .map(|letter| letter["standing"].clone())
        .collect();
    assert_eq!(
        standings,
        [json!("requeued"), json!("dropped"), json!("waiting")]
    );
    let (shown, well) = operator.words(&["show", &one]);
    assert!(
        well && shown.contains(&format!("as seq 1 of mailbox:{late}")),
        "{shown}"
    );
}
