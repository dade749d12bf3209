//! What a user gets of groups: by sync, and by push.

use mailbox_sdk::{Client, Destination};
use serde_json::{Value, json};

use crate::drive::{RawSocket, Rig, gateway, next_message, until};
use crate::store::FakeStore;

const BOB: u64 = 18;

/// With this group in a shard of its own.
async fn rig_with_apart(group: u64) -> Rig {
    let store = FakeStore::start(&["alice", "bob", "carol"]).await;
    store.put_apart(group).await;
    let gateway = gateway(&store, |_| {}).await;
    Rig { store, gateway }
}

/// Bob joins groups that alice makes, and goes.
async fn groups_of_bob(rig: &Rig, alice: &Client, wanted: &[u64]) {
    let bob = rig.sdk("bob").await;
    for group in wanted {
        assert_eq!(alice.create_group("friends").await.unwrap(), *group);
        assert_eq!(bob.join_group(*group).await.unwrap(), 2);
    }
    until(|| rig.store.is_subscribed("mailbox:18")).await;
    bob.close().await.unwrap();
    until(|| !rig.store.is_subscribed("mailbox:18")).await;
}

/// The answer to a sync.
async fn sync(socket: &mut RawSocket, sync: Value) -> Value {
    socket
        .send(&json!({"id": 7, "sync": sync}).to_string())
        .await;
    loop {
        let frame = socket.next().await;
        if frame["id"] == json!(7) {
            return frame;
        }
    }
}

/// The rows of a page.
fn rows(page: &Value) -> Vec<String> {
    let messages = page["synced"]["messages"].as_array();
    let rows = messages.unwrap_or_else(|| panic!("{page}")).iter();
    let rows = rows.map(|row| (row["timeline"].as_str(), row["seq"].as_str()));
    rows.map(|(timeline, seq)| format!("{}/{}", timeline.unwrap(), seq.unwrap()))
        .collect()
}

/// The seq at which a page says that the client stands in a group.
fn position(page: &Value, group: u64) -> Value {
    let positions = page["synced"]["positions"].as_array();
    let mut positions = positions.unwrap_or_else(|| panic!("{page}")).iter();
    let there = positions.find(|it| it["timeline"] == json!(format!("group:{group}")));
    there.map_or(Value::Null, |it| it["seq"].clone())
}

/// Asks from a key that has all but the groups of a shard that nobody serves.
async fn assert_unavailable(bob: &mut RawSocket, key: &Value) {
    let answer = sync(bob, json!({"key": key})).await;
    assert_eq!(answer["error"]["code"], "Unavailable", "{answer}");
    assert_eq!(answer["error"]["retryable"], true);
}

#[tokio::test]
async fn a_shard_that_nobody_serves_takes_neither_the_connection_nor_the_mailbox_away() {
    let rig = rig_with_apart(65).await;
    let alice = rig.sdk("alice").await;
    groups_of_bob(&rig, &alice, &[65]).await;
    rig.store.serve_apart(false);
    rig.store.send_text(17, BOB, "hello");
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    let page = sync(&mut bob, json!({})).await;
    assert_eq!(rows(&page), ["mailbox:18/1"]);
    assert_eq!(page["synced"]["more"], true);
    let key = &page["synced"]["key"];
    assert_unavailable(&mut bob, key).await;
    // What is sent to him meanwhile is pushed, and given by sync.
    rig.store.send_text(17, BOB, "still there?");
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "mailbox:18");
    let page = sync(&mut bob, json!({"key": key})).await;
    assert_eq!(rows(&page), ["mailbox:18/2"]);
    assert_eq!(page["synced"]["more"], true);

    rig.store.serve_apart(true);
    let page = sync(&mut bob, json!({"key": page["synced"]["key"]})).await;
    assert_eq!(rows(&page), ["group:65/2"]);
    assert_eq!(page["synced"]["more"], false);
    assert_eq!(position(&page, 65), "2");
    // By that sync he is among those who are pushed the group.
    alice.send(&Destination::Group(65), "hi").await.unwrap();
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "group:65");
}

#[tokio::test]
async fn a_shard_that_goes_while_rows_are_read_keeps_back_its_own_groups_only() {
    // Of this one the list says how far it goes.
    let rig = rig_with_apart(66).await;
    let alice = rig.sdk("alice").await;
    groups_of_bob(&rig, &alice, &[65, 66]).await;
    rig.store.serve_apart(false);
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    let page = sync(&mut bob, json!({})).await;
    assert_eq!(rows(&page), ["group:65/2"]);
    assert_eq!(page["synced"]["more"], true);
    let key = &page["synced"]["key"];
    assert_unavailable(&mut bob, key).await;
    rig.store.serve_apart(true);
    let page = sync(&mut bob, json!({"key": key})).await;
    assert_eq!(rows(&page), ["group:66/2"]);
    assert_eq!(page["synced"]["more"], false);
}

/// A group of alice's with bob in it for the third time: of seqs 2 and 3, 4 and 5, and from 6 on.
async fn third_time(rig: &Rig) {
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    assert_eq!(alice.create_group("friends").await.unwrap(), 65);
    for left_seq in [3, 5] {
        bob.join_group(65).await.unwrap();
        assert_eq!(bob.leave_group(65).await.unwrap(), left_seq);
    }
    assert_eq!(bob.join_group(65).await.unwrap(), 6);
}

/// A question from one who holds a group up to this seq.
fn holding(seq: u64) -> Value {
    json!({"have": [{"timeline": "group:65", "seq": seq.to_string()}]})
}

#[tokio::test]
async fn who_lacks_rows_of_a_membership_that_is_forgotten_begins_again() {
    let rig = Rig::start().await;
    third_time(&rig).await;
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    let page = sync(&mut bob, holding(2)).await;
    assert_eq!(
        rows(&page),
        ["group:65/3", "group:65/4", "group:65/5", "group:65/6"]
    );
    // First the group forgets, then the list.
    rig.store.freeze_list(BOB);
    rig.store.keep_spans(BOB, 65, 1);
    for list_knows in [false, true] {
        if list_knows {
            rig.store.thaw_list(BOB);
        }
        for held in [2, 4] {
            let answer = sync(&mut bob, holding(held)).await;
            assert_eq!(answer["error"]["code"], "Resync", "{answer}");
        }
        let page = sync(&mut bob, json!({})).await;
        assert_eq!(rows(&page), ["group:65/6"]);
        assert_eq!(page["synced"]["more"], false);
        let page = sync(&mut bob, holding(5)).await;
        assert_eq!(rows(&page), ["group:65/6"]);
    }
}

#[tokio::test]
async fn who_joined_again_may_hold_more_than_an_old_list_knows_of() {
    let rig = Rig::start().await;
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    assert_eq!(alice.create_group("friends").await.unwrap(), 65);
    bob.join_group(65).await.unwrap();
    assert_eq!(bob.leave_group(65).await.unwrap(), 3);
    rig.store.freeze_list(BOB);
    assert_eq!(bob.join_group(65).await.unwrap(), 4);
    let mut raw = RawSocket::connect(&rig.url(), "bob").await;
    let page = sync(&mut raw, holding(4)).await;
    assert_eq!(rows(&page), [""; 0]);
    assert_eq!(position(&page, 65), "4");
    alice.send(&Destination::Group(65), "hi").await.unwrap();
    let page = sync(&mut raw, holding(4)).await;
    assert_eq!(rows(&page), ["group:65/5"]);
    assert_eq!(page["synced"]["more"], false);
    // A key of another history is still found out.
    let answer = sync(&mut raw, holding(9)).await;
    assert_eq!(answer["error"]["code"], "Resync", "{answer}");
}

#[tokio::test]
async fn what_is_held_of_a_group_is_kept_until_the_list_knows_of_the_join() {
    let rig = Rig::start().await;
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    assert_eq!(alice.create_group("friends").await.unwrap(), 65);
    rig.store.freeze_list(BOB);
    assert_eq!(bob.join_group(65).await.unwrap(), 2);
    let mut raw = RawSocket::connect(&rig.url(), "bob").await;
    let mut page = sync(&mut raw, holding(2)).await;
    for list_knows in [false, true] {
        if list_knows {
            rig.store.thaw_list(BOB);
        }
        assert_eq!(position(&page, 65), "2");
        page = sync(&mut raw, json!({"key": page["synced"]["key"]})).await;
        assert_eq!(rows(&page), [""; 0]);
    }
    alice.send(&Destination::Group(65), "hi").await.unwrap();
    let page = sync(&mut raw, json!({"key": page["synced"]["key"]})).await;
    assert_eq!(rows(&page), ["group:65/3"]);
}

#[tokio::test]
async fn who_was_let_in_by_a_list_from_before_the_leave_goes_with_the_next_list() {
    let rig = Rig::start().await;
    let alice = rig.sdk("alice").await;
    assert_eq!(alice.create_group("friends").await.unwrap(), 65);
    let bob = rig.sdk("bob").await;
    bob.join_group(65).await.unwrap();
    rig.store.freeze_list(BOB);
    assert_eq!(bob.leave_group(65).await.unwrap(), 3);
    bob.close().await.unwrap();
    until(|| !rig.store.is_subscribed("mailbox:18")).await;
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    alice
        .send(&Destination::Group(65), "too late")
        .await
        .unwrap();
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "group:65", "the list says so");
    let old_list = rig.store.thaw_list(BOB);
    let page = sync(&mut bob, json!({})).await;
    assert_eq!(rows(&page), ["group:65/2", "group:65/3"]);
    // The old list changes nothing any more.
    rig.store.show_list(BOB, old_list);
    sync(&mut bob, json!({})).await;
    alice
        .send(&Destination::Group(65), "bob is gone")
        .await
        .unwrap();
    while next_message(&alice).await.text() != Some("bob is gone") {}
    alice
        .send(&"@bob".parse().unwrap(), "are you?")
        .await
        .unwrap();
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "mailbox:18");
}

#[tokio::test]
async fn who_was_let_in_after_the_leave_had_come_to_others_goes_with_the_next_list() {
    let rig = Rig::start().await;
    let alice = rig.sdk("alice").await;
    assert_eq!(alice.create_group("friends").await.unwrap(), 65);
    let bob = rig.sdk("bob").await;
    bob.join_group(65).await.unwrap();
    rig.store.freeze_list(BOB);
    rig.store.freeze_head(65);
    assert_eq!(bob.leave_group(65).await.unwrap(), 3);
    bob.close().await.unwrap();
    until(|| !rig.store.is_subscribed("mailbox:18")).await;
    // The group is subscribed to for alice, and that is behind the leave.
    alice.send(&Destination::Group(65), "later").await.unwrap();
    while next_message(&alice).await.text() != Some("later") {}
    let mut bob = RawSocket::connect(&rig.url(), "bob").await;
    alice
        .send(&Destination::Group(65), "too late")
        .await
        .unwrap();
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "group:65", "the list says so");
    rig.store.thaw_list(BOB);
    rig.store.thaw_head(65);
    let page = sync(&mut bob, json!({})).await;
    assert_eq!(rows(&page), ["group:65/2", "group:65/3"]);
    alice
        .send(&Destination::Group(65), "bob is gone")
        .await
        .unwrap();
    while next_message(&alice).await.text() != Some("bob is gone") {}
    alice
        .send(&"@bob".parse().unwrap(), "are you?")
        .await
        .unwrap();
    let push = bob.next_with("push").await;
    assert_eq!(push["push"]["timeline"], "mailbox:18");
}
