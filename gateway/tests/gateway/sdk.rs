//! The SDK against a gateway.

use std::time::Duration;

use mailbox_api::v1::ErrorCode;
use mailbox_gateway::Listen;
use mailbox_sdk::{
    Body, Client, ConnectOptions, Destination, Encoding, Error, Event, MessageType, Timeline,
    register_user,
};

use crate::drive::{
    Door, PATIENCE, Rig, gateway, id_token, limits, next_message, tls, token, token_for, until,
};

fn to(text: &str) -> Destination {
    text.parse().unwrap()
}

#[tokio::test]
async fn messages_are_sent_and_received_in_both_encodings() {
    for encoding in [Encoding::Json, Encoding::Proto] {
        let rig = Rig::start().await;
        let alice = Client::connect(rig.options("alice", encoding))
            .await
            .unwrap();
        let bob = Client::connect(rig.options("bob", encoding)).await.unwrap();
        assert_eq!((alice.user(), bob.user()), (17, 18));
        let sent = alice.send(&to("@bob"), "hi").await.unwrap();
        assert_eq!((sent.timeline, sent.seq), (Timeline::Mailbox(17), 1));
        let got = next_message(&bob).await;
        assert_eq!((got.text(), got.sender, got.seq), (Some("hi"), 17, 1));
        let raw = Body::Opaque(vec![0, 255, 7].into());
        alice.send(&to("18"), raw).await.unwrap();
        let got = next_message(&bob).await;
        assert_eq!(
            (got.kind, &got.body[..]),
            (MessageType::OPAQUE, &[0, 255, 7][..])
        );
        // The sender's own device sees what it sent, too.
        assert_eq!(next_message(&alice).await.text(), Some("hi"));
        assert_eq!(
            bob.resolve_user(&"@alice".parse().unwrap()).await.unwrap(),
            (17, "alice".into())
        );
        assert_eq!(bob.mark_read(&to("@alice"), 2).await.unwrap(), 2);
        assert_eq!(bob.ack(Timeline::Mailbox(18), 2).await.unwrap(), 2);
        assert!(bob.ping().await.unwrap() < PATIENCE);
        let error = bob.ack(Timeline::Mailbox(17), 1).await.unwrap_err();
        assert!(
            matches!(&error, Error::Refused(fault) if fault.code == "Forbidden"),
            "{error}"
        );
        alice.close().await.unwrap();
        assert!(matches!(
            alice.send(&to("@bob"), "x").await,
            Err(Error::Closed)
        ));
    }
}

#[tokio::test]
async fn a_send_is_repeated_with_its_id_and_is_there_once() {
    let rig = Rig::start().await;
    let alice = rig.sdk("alice").await;
    let id = alice.new_message_id();
    assert_eq!(id.get_version_num(), 7);
    let first = alice.send_with_id(&to("@bob"), id, "once").await.unwrap();
    let again = alice.send_with_id(&to("@bob"), id, "once").await.unwrap();
    assert_eq!(first, again);
    let error = alice
        .send_with_id(&to("@bob"), id, "other")
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Refused(fault) if fault.code == "IdReused"),
        "{error}"
    );
    assert_eq!(rig.store.seqs(17), 1);
}

#[tokio::test]
async fn members_are_pushed_a_group_from_their_join_to_their_leave() {
    let rig = Rig::start().await;
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    let group = alice.create_group("friends").await.unwrap();
    let there = Destination::Group(group);
    assert_eq!(next_message(&alice).await.kind, MessageType::GROUP_CREATED);
    alice.send(&there, "before bob").await.unwrap();
    let error = bob.send(&there, "not yet").await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused(fault) if fault.code == "NotAMember"),
        "{error}"
    );
    let join_seq = bob.join_group(group).await.unwrap();
    let joined = next_message(&bob).await;
    assert_eq!(
        (joined.kind, joined.seq),
        (MessageType::MEMBER_JOINED, join_seq)
    );
    alice.send(&there, "hi bob").await.unwrap();
    assert_eq!(next_message(&bob).await.text(), Some("hi bob"));
    let left_seq = bob.leave_group(group).await.unwrap();
    let left = next_message(&bob).await;
    assert_eq!((left.kind, left.seq), (MessageType::MEMBER_LEFT, left_seq));
    alice.send(&there, "bob is gone").await.unwrap();
    alice.send(&to("@bob"), "are you?").await.unwrap();
    assert_eq!(
        next_message(&bob).await.text(),
        Some("are you?"),
        "nothing after the leave"
    );
    // And again: the second span begins where it begins.
    let again = bob.join_group(group).await.unwrap();
    assert_eq!(next_message(&bob).await.seq, again);
    // A fresh device syncs both spans and nothing between.
    let other = rig.sdk("bob").await;
    let mut group_seqs = Vec::new();
    while group_seqs.last() != Some(&again) {
        let message = next_message(&other).await;
        if message.timeline == Timeline::Group(group) {
            group_seqs.push(message.seq);
        }
    }
    assert_eq!(group_seqs, [join_seq, join_seq + 1, left_seq, again]);
}

#[tokio::test]
async fn who_has_left_is_not_let_in_again_by_an_old_list() {
    let rig = Rig::start().await;
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    let group = alice.create_group("friends").await.unwrap();
    bob.join_group(group).await.unwrap();
    assert_eq!(next_message(&bob).await.kind, MessageType::MEMBER_JOINED);
    rig.store.freeze_list(18);
    bob.leave_group(group).await.unwrap();
    assert_eq!(next_message(&bob).await.kind, MessageType::MEMBER_LEFT);
    bob.sync(mailbox_sdk::Sync::default()).await.unwrap();
    let there = Destination::Group(group);
    alice.send(&there, "bob is gone").await.unwrap();
    alice.send(&to("@bob"), "are you?").await.unwrap();
    assert_eq!(next_message(&bob).await.text(), Some("are you?"));
}

#[tokio::test]
async fn a_group_that_is_on_its_way_keeps_nothing_from_its_founder() {
    let rig = Rig::start().await;
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    rig.store.list_early(18, 99);
    alice.send(&to("@bob"), "hello").await.unwrap();
    let page = bob.sync(mailbox_sdk::Sync::default()).await.unwrap();
    let texts: Vec<_> = page.messages.iter().map(|it| it.text()).collect();
    assert_eq!(texts, [Some("hello")]);
}

#[tokio::test]
async fn a_restarted_app_goes_on_where_it_was() {
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut options = rig.options("bob", Encoding::Proto);
    options.state_path = Some(dir.path().join("state"));
    let bob = Client::connect(options.clone()).await.unwrap();
    for number in 0..10 {
        rig.store.send_text(17, 18, &number.to_string());
    }
    for number in 0..7 {
        assert_eq!(
            next_message(&bob).await.text(),
            Some(number.to_string().as_str())
        );
    }
    // The seventh was handed over, but the app did not come back for more: it may not be done.
    bob.close().await.unwrap();
    drop(bob);
    for number in 10..12 {
        rig.store.send_text(17, 18, &number.to_string());
    }
    let bob = Client::connect(options.clone()).await.unwrap();
    for number in 6..12 {
        assert_eq!(
            next_message(&bob).await.text(),
            Some(number.to_string().as_str())
        );
    }
    options.token = token("alice");
    let error = Client::connect(options).await.unwrap_err();
    assert!(matches!(error, Error::State { .. }), "{error}");
}

#[tokio::test]
async fn an_app_that_takes_nothing_gets_it_all_later() {
    let rig = Rig::start().await;
    let mut options = rig.options("bob", Encoding::Json);
    options.queue_messages_max = 8;
    let bob = Client::connect(options).await.unwrap();
    for number in 1..=300_u64 {
        rig.store.send_text(17, 18, &number.to_string());
        if number % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for number in 1..=300_u64 {
        assert_eq!(next_message(&bob).await.seq, number);
    }
}

#[tokio::test]
async fn a_broken_gateway_is_outlived() {
    let rig = Rig::start().await;
    let address = rig.gateway.local_addr();
    let (alice, bob) = (rig.sdk("alice").await, rig.sdk("bob").await);
    alice.send(&to("@bob"), "one").await.unwrap();
    assert_eq!(next_message(&bob).await.text(), Some("one"));
    let Rig {
        store,
        gateway: old,
    } = rig;
    drop(old);
    store.send_text(17, 18, "two, while nobody is connected");
    let sending = tokio::spawn(async move { alice.send(&to("@bob"), "three").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let again = gateway(&store, |options| options.listen = Listen::Address(address)).await;
    sending.await.unwrap().unwrap();
    assert_eq!(
        next_message(&bob).await.text(),
        Some("two, while nobody is connected")
    );
    assert_eq!(next_message(&bob).await.text(), Some("three"));
    again.shutdown(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn go_away_moves_the_client_to_another_gateway() {
    let rig = Rig::start().await;
    let address = rig.gateway.local_addr();
    let bob = rig.sdk("bob").await;
    let Rig {
        store,
        gateway: old,
    } = rig;
    old.shutdown(Duration::from_secs(2)).await;
    let _again = gateway(&store, |options| options.listen = Listen::Address(address)).await;
    store.send_text(17, 18, "still there?");
    assert_eq!(next_message(&bob).await.text(), Some("still there?"));
}

#[tokio::test]
async fn a_client_connects_elsewhere_before_it_leaves() {
    let Rig {
        store,
        gateway: old,
    } = Rig::start().await;
    let new = gateway(&store, |_| {}).await;
    let mut door = Door::before(old.local_addr()).await;
    let mut options = ConnectOptions::new(door.url(), token("bob"));
    options.connect_timeout = PATIENCE;
    let bob = Client::connect(options).await.unwrap();
    assert_eq!(bob.next().await, Some(Event::Connected));
    store.send_text(17, 18, "one");
    assert_eq!(next_message(&bob).await.text(), Some("one"));

    door.lead_to(new.local_addr());
    let stopping = tokio::spawn(old.shutdown(Duration::from_secs(10)));
    door.knocked().await;
    // The way to the other gateway is not open yet: the old one still serves.
    store.send_text(17, 18, "two");
    let event = tokio::time::timeout(PATIENCE, bob.next()).await.unwrap();
    assert!(
        matches!(&event, Some(Event::Message(message)) if message.text() == Some("two")),
        "{event:?}"
    );
    bob.send(&to("@alice"), "three").await.unwrap();
    door.open();
    until(|| new.connections() == 1).await;
    stopping.await.unwrap();
    store.send_text(17, 18, "four");
    for text in ["three", "four"] {
        // No event tells of a break: there was none.
        let event = tokio::time::timeout(PATIENCE, bob.next()).await.unwrap();
        assert!(
            matches!(&event, Some(Event::Message(message)) if message.text() == Some(text)),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let rig = Rig::start().await;
    let mut options = rig.options("alice", Encoding::Proto);
    options.token = token_for("nobody", Duration::from_secs(60));
    match Client::connect(options.clone()).await.unwrap_err() {
        Error::NotAdmitted { status: 401, fault } => assert_eq!(fault.code, "Unauthenticated"),
        other => panic!("{other}"),
    }
    options.token = token("alice");
    options.device = "\u{1}".into();
    assert!(matches!(
        Client::connect(options.clone()).await.unwrap_err(),
        Error::NotAdmitted { status: 400, .. }
    ));
    options.url = "ws://127.0.0.1:1".into();
    assert!(matches!(
        Client::connect(options).await.unwrap_err(),
        Error::Connect { .. }
    ));
}

#[tokio::test]
async fn a_token_registers_its_own_handle_and_no_other() {
    for encoding in [Encoding::Json, Encoding::Proto] {
        let rig = Rig::start().await;
        let options = rig.options("dave", encoding);
        let error = Client::connect(options.clone()).await.unwrap_err();
        assert!(
            matches!(error, Error::NotAdmitted { status: 401, .. }),
            "{error}"
        );
        let code = |error: Error| match error {
            Error::Refused(fault) => fault.code.into_owned(),
            other => panic!("{other}"),
        };
        let other = register_user(&options, "erin").await.unwrap_err();
        assert_eq!(code(other), "Forbidden");
        assert_eq!(register_user(&options, "dave").await.unwrap(), 20);
        let again = register_user(&options, "dave").await.unwrap_err();
        assert_eq!(code(again), "HandleTaken");
        // By now dave is a user like any other.
        let dave = Client::connect(options.clone()).await.unwrap();
        assert_eq!(dave.user(), 20);
        dave.send(&to("@bob"), "hi, I am new").await.unwrap();
        let by_id = ConnectOptions {
            token: id_token(20),
            ..options
        };
        let error = register_user(&by_id, "dave").await.unwrap_err();
        assert!(
            matches!(error, Error::NotAdmitted { status: 403, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_store_that_is_busy_is_waited_for() {
    let rig = Rig::start().await;
    let alice = rig.sdk("alice").await;
    rig.store
        .refuse(&[ErrorCode::Busy, ErrorCode::Unavailable, ErrorCode::DiskFull]);
    assert_eq!(alice.send(&to("@bob"), "at last").await.unwrap().seq, 1);
}

#[tokio::test]
async fn tls_ends_in_the_gateway() {
    let (config, certificate) = tls();
    let rig = Rig::with(|options| options.tls = Some(config)).await;
    let mut options = rig.options("alice", Encoding::Proto);
    options.url = format!("wss://localhost:{}", rig.gateway.local_addr().port());
    options.ca_pem = Some(certificate);
    let alice = Client::connect(options).await.unwrap();
    alice.send(&to("@bob"), "sealed").await.unwrap();
    assert!(
        Client::connect(rig.options("alice", Encoding::Proto))
            .await
            .is_err(),
        "plain text"
    );
}

#[tokio::test]
async fn a_load_generator_receives_nothing() {
    let rig = Rig::with(limits(|limits| limits.in_flight_max = 8)).await;
    let mut options = rig.options("alice", Encoding::Proto);
    options.receive = false;
    let alice = Client::connect(options).await.unwrap();
    let sends = (0..200).map(|number: u32| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.send(&to("@bob"), number.to_string()).await.unwrap() })
    });
    for send in sends.collect::<Vec<_>>() {
        send.await.unwrap();
    }
    assert_eq!(rig.store.seqs(18), 200);
    assert_eq!(alice.next().await, Some(Event::Connected));
    until(|| rig.gateway.connections() == 1).await;
}

#[tokio::test]
async fn closing_ends_whatever_is_under_way() {
    let rig = Rig::with(limits(|limits| limits.in_flight_max = 2)).await;
    for round in 0..50_usize {
        let alice = rig.sdk("alice").await;
        // Around the close there are calls that wait, that are written, and that are answered.
        let sends: Vec<_> = (0..round)
            .map(|number| {
                let alice = alice.clone();
                tokio::spawn(async move { alice.send(&to("@bob"), number.to_string()).await })
            })
            .collect();
        if round % 3 != 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::timeout(PATIENCE, alice.close())
            .await
            .unwrap()
            .unwrap();
        for send in sends {
            let ended = tokio::time::timeout(PATIENCE, send).await.unwrap().unwrap();
            assert!(matches!(ended, Ok(_) | Err(Error::Closed)), "{ended:?}");
        }
    }
    let Rig { gateway, .. } = rig;
    let stranded = tokio::spawn(gateway.shutdown(Duration::from_secs(5)));
    stranded.await.unwrap();
}

#[tokio::test]
async fn a_client_without_a_gateway_can_be_closed() {
    let rig = Rig::start().await;
    let alice = rig.sdk("alice").await;
    drop(rig.gateway);
    let sending = tokio::spawn({
        let alice = alice.clone();
        async move { alice.send(&to("@bob"), "into the void").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::timeout(PATIENCE, alice.close())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(sending.await.unwrap(), Err(Error::Closed)));
}
