//! What could not be delivered: kept on three nodes, listed, requeued and dropped through any of them.

use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::metadata;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::{
    self, DeadLetterStanding, DropDeadLetterRequest, ErrorCode, ListDeadLettersRequest,
    RegisterUserRequest, RequeueDeadLetterRequest, StateHashRequest,
};
use mailbox_client::{Auth, Client, ClientOptions};
use mailbox_engine::{Flags, SlotId, UserId, slot_of_handle, slot_of_owner};
use mailbox_gateway::token::{TokenSigner, issue};
use rustix::process::Signal;
use tonic::transport::Channel;

use crate::chat::text_to;
use crate::cluster::{KEY, Trio};
use crate::operate::{SECRET, write_config};
use crate::process::Process;
use crate::shards::messages;

const SLOTS: u16 = 64;
const SHARDS: u16 = 4;

async fn at(address: &str) -> DeadLettersClient<Channel> {
    DeadLettersClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

async fn register(client: &Client, handle: &str) -> u64 {
    let call = RegisterUserRequest {
        handle: handle.to_owned(),
        ..RegisterUserRequest::default()
    };
    client.register_user(call).await.expect("registered").user
}

/// A handle that nobody has, and the user that it will make: the first one of its directory slot, in another
/// shard than `far_from`.
fn stranger(client: &Client, far_from: u64) -> (String, UserId) {
    let used = SlotId((far_from & 0xFFFF) as u16);
    let handles = (0..).map(|number| format!("late{number}"));
    let mut users = handles.map(|handle| {
        let directory = slot_of_handle(&handle, SLOTS);
        (handle, directory, UserId::allocated(1, directory))
    });
    let elsewhere = |user: UserId| client.shard_of_owner(user.0) != client.shard_of_owner(far_from);
    let (handle, _, user) = users
        .find(|(_, directory, user)| *directory != used && elsewhere(*user))
        .unwrap();
    (handle, user)
}

fn code<T: std::fmt::Debug>(answer: Result<T, CallError>) -> ErrorCode {
    answer.expect_err("refused").code()
}

/// The letters of a slot as one node answers; followers pass the call on, and may not know a new leader yet.
async fn list(trio: &Trio, node: usize, slot: u32) -> v1::ListDeadLettersResponse {
    let call = ListDeadLettersRequest {
        slot,
        resolved: true,
        ..ListDeadLettersRequest::default()
    };
    let mut client = at(&trio.addresses()[node]).await;
    for _ in 0..500 {
        match client.list_dead_letters(trio.with_secret(call)).await {
            Ok(page) => return page.into_inner(),
            Err(status) => assert!(CallError::from_status(&status).is_retryable(), "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("node {node} does not answer");
}

/// Strangers and users see nothing of it.
async fn assert_for_operators_only(trio: &Trio, alice: u64) {
    let mut client = at(&trio.addresses()[0]).await;
    let call = ListDeadLettersRequest::default();
    let status = client.list_dead_letters(call).await.unwrap_err();
    let error = CallError::from_status(&status);
    assert_eq!(error.code(), ErrorCode::Unauthenticated);
    let signer = TokenSigner::hs256(KEY.as_bytes()).unwrap();
    let subject = alice.to_string().parse().unwrap();
    let token = issue(&signer, &subject, Duration::from_secs(60)).unwrap();
    let mut call = tonic::Request::new(DropDeadLetterRequest::default());
    let bearer = format!("Bearer {token}").parse().unwrap();
    call.metadata_mut().insert(metadata::AUTHORIZATION, bearer);
    let status = client.drop_dead_letter(call).await.unwrap_err();
    assert_eq!(CallError::from_status(&status).code(), ErrorCode::Forbidden);
}

/// Three are written, one is requeued, one dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_is_kept_and_an_operator_requeues_or_drops_it() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start_with(dir.path(), SLOTS, SHARDS);
    let client = trio.client().await;
    let alice = register(&client, "alice").await;
    let (handle, late) = stranger(&client, alice);
    let slot = u32::from(slot_of_owner(late.0, SLOTS).0);

    let mut sent = Vec::new();
    for body in ["one", "two", "three"] {
        let send = text_to(&client, alice, late.0, body);
        sent.push(client.send(send).await.expect("acked"));
    }
    // Each is acked, and then refused in its sender's mailbox.
    let told = messages(&client, alice, 6).await;
    let refused: Vec<u64> = told.iter().map(|row| row.refused_seq).collect();
    let refused: Vec<u64> = refused.into_iter().filter(|seq| *seq != 0).collect();
    let homes: Vec<u64> = sent.iter().map(|sent| sent.seq).collect();
    assert_eq!(refused, homes);

    let page = list(&trio, 0, slot).await;
    for node in 1..3 {
        assert_eq!(list(&trio, node, slot).await, page, "node {node}");
    }
    assert_eq!((page.head, page.trim_point, page.next_seq), (3, 0, 0));
    let bodies: Vec<_> = page
        .letters
        .iter()
        .map(|letter| {
            let message = letter.message.as_ref().unwrap();
            assert_eq!((message.sender, message.recipient), (alice, late.0));
            assert_eq!(letter.standing(), DeadLetterStanding::Waiting);
            assert_eq!(letter.code(), ErrorCode::UnknownUser);
            (letter.home_seq, message.message_id, message.body.clone())
        })
        .collect();
    let expected = sent.iter().zip(["one", "two", "three"]);
    let expected: Vec<_> = expected
        .map(|(sent, body)| (sent.seq, sent.message_id, body.into()))
        .collect();
    assert_eq!(bodies, expected);
    assert_for_operators_only(&trio, alice).await;

    requeue_one(&trio, &client, slot, late, &handle).await;
    drop_one(&client, slot).await;
    let counts = client
        .count_dead_letters(client.shard_of_owner(late.0))
        .await;
    let counts = counts.expect("counted").slots;
    assert_eq!(counts.len(), 1);
    let count = &counts[0];
    assert_eq!((count.slot, count.written, count.waiting), (slot, 3, 1));
    assert_eq!((count.requeued, count.dropped, count.unseen), (1, 1, 0));

    // The sender was told of each once, and of nothing else.
    assert_eq!(messages(&client, alice, 6).await, told);
    assert_replicas_agree(&trio, &client).await;
}

/// The second letter.
async fn requeue_one(trio: &Trio, client: &Client, slot: u32, late: UserId, handle: &str) {
    let call = |seq, dry_run| RequeueDeadLetterRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        slot,
        seq,
        dry_run,
    };
    // Nothing has been mended yet.
    for dry_run in [true, false] {
        let refused = client.requeue_dead_letter(call(2, dry_run)).await;
        assert_eq!(code(refused), ErrorCode::UnknownUser);
    }
    assert_eq!(
        code(client.requeue_dead_letter(call(4, false)).await),
        ErrorCode::UnknownDeadLetter
    );
    let none = client.requeue_dead_letter(RequeueDeadLetterRequest {
        slot: 64,
        ..call(1, false)
    });
    assert_eq!(code(none.await), ErrorCode::InvalidArgument);

    assert_eq!(register(client, handle).await, late.0);
    let possible = client.requeue_dead_letter(call(2, true)).await;
    assert_eq!(possible.expect("possible").seq, 0);
    let first = call(2, false);
    let requeued = client
        .requeue_dead_letter(first.clone())
        .await
        .expect("requeued");
    assert_eq!(requeued.seq, 1);
    // The same call again, through whichever node; and as another operator's call.
    for address in trio.addresses() {
        for call in [first.clone(), call(2, false)] {
            let mut node = at(address).await;
            let again = node.requeue_dead_letter(trio.with_secret(call)).await;
            assert_eq!(again.expect("as before").into_inner(), requeued);
        }
    }
    let [arrived] = messages(client, late.0, 1).await.try_into().unwrap();
    assert_eq!(arrived.body, "two");
    assert_eq!(arrived.message_id, requeued.message_id);
    assert_eq!(arrived.flags, u32::from(Flags::REQUEUED.0));
    let timeline = v1::Timeline {
        kind: v1::TimelineKind::Mailbox as i32,
        owner: late.0,
    };
    let heads = client.heads(v1::HeadsRequest {
        timelines: vec![timeline],
        ..v1::HeadsRequest::default()
    });
    assert_eq!(heads.await.expect("a head").heads[0].head, 1);
}

/// The first letter; the second was requeued.
async fn drop_one(client: &Client, slot: u32) {
    let dropping = |seq, dry_run| DropDeadLetterRequest {
        slot,
        seq,
        dry_run,
        ..DropDeadLetterRequest::default()
    };
    for dry_run in [true, false] {
        let resolved = client.drop_dead_letter(dropping(2, dry_run)).await;
        assert_eq!(code(resolved), ErrorCode::DeadLetterResolved);
        client
            .drop_dead_letter(dropping(1, dry_run))
            .await
            .expect("dropped");
    }
    client
        .drop_dead_letter(dropping(1, false))
        .await
        .expect("dropped before");
    for dry_run in [true, false] {
        let seq = 1;
        let call = RequeueDeadLetterRequest {
            slot,
            seq,
            dry_run,
            ..RequeueDeadLetterRequest::default()
        };
        let resolved = client.requeue_dead_letter(call).await;
        assert_eq!(code(resolved), ErrorCode::DeadLetterResolved);
    }
    let waiting = client.list_dead_letters(ListDeadLettersRequest {
        slot,
        ..ListDeadLettersRequest::default()
    });
    let waiting = waiting.await.expect("listed").letters;
    let seqs: Vec<_> = waiting
        .iter()
        .map(|letter| letter.message.as_ref().unwrap().seq)
        .collect();
    assert_eq!(seqs, [3]);
}

async fn assert_replicas_agree(trio: &Trio, client: &Client) {
    for shard in 1..=u32::from(SHARDS) {
        let cut_index = 0;
        let made = client
            .state_hash(None, StateHashRequest { shard, cut_index })
            .await;
        let made = made.expect("a cut");
        for address in trio.addresses() {
            let call = StateHashRequest {
                shard,
                cut_index: made.applied_index,
            };
            let hash = client
                .state_hash(Some(address), call)
                .await
                .expect("hashed");
            assert_eq!(hash, made, "shard {shard} at {address}");
        }
    }
}

/// One node whose slots keep one letter each.
fn small_node(dir: &std::path::Path) -> Process {
    let file = write_config(dir, "");
    let mut args = vec!["server", "--json", "--config", &file];
    for option in [
        "cluster.slot_count=64",
        "cluster.shards=4",
        "cluster.dead_letters_max=1",
    ] {
        args.extend(["--set", option]);
    }
    Process::start(&args)
}

/// The last index of the log of an owner's shard.
async fn last_index(client: &Client, owner: u64) -> u64 {
    let status = client.status(None).await.expect("a status");
    let of = client.shard_of_owner(owner);
    let mut shards = status.shards.iter();
    shards.find(|shard| shard.shard == of).unwrap().last_index
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_was_a_letter_gets_into_no_entry_and_what_was_one_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let process = small_node(dir.path());
    let address = process.says()["ready"]["grpc"].as_str().unwrap().to_owned();
    let auth = Auth::Secret {
        cluster_id: Some("test".into()),
        secret: SECRET.to_vec(),
    };
    let client = Client::connect(ClientOptions::new(vec![address], auth));
    let client = client.await.expect("connect");
    let alice = register(&client, "alice").await;
    let (handle, late) = stranger(&client, alice);
    let slot = slot_of_owner(late.0, SLOTS);
    let requeue = |seq| RequeueDeadLetterRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        slot: u32::from(slot.0),
        seq,
        dry_run: false,
    };
    let dropping = |seq, dry_run| DropDeadLetterRequest {
        slot: u32::from(slot.0),
        seq,
        dry_run,
        ..DropDeadLetterRequest::default()
    };

    let before = last_index(&client, late.0).await;
    for seq in 0..15 {
        let refused = client.requeue_dead_letter(requeue(seq)).await;
        assert_eq!(code(refused), ErrorCode::UnknownDeadLetter);
        let refused = client.drop_dead_letter(dropping(seq, false)).await;
        let error = refused.expect_err("there is none");
        assert_eq!(error.code(), ErrorCode::UnknownDeadLetter);
        let words = format!("slot {slot} has no dead letter {seq}: it has none");
        assert!(error.to_string().contains(&words), "{error}");
    }
    // The shard may have written something of its own, but not thirty entries.
    let written = last_index(&client, late.0).await - before;
    assert!(written < 30, "{written} entries");

    let send = text_to(&client, alice, late.0, "one");
    client.send(send).await.expect("acked");
    messages(&client, alice, 2).await;
    assert_eq!(register(&client, &handle).await, late.0);
    let first = requeue(1);
    let requeued = client.requeue_dead_letter(first.clone()).await;
    let requeued = requeued.expect("requeued");
    // The next letter takes the only place.
    let nobody = (2..).map(|number| UserId::allocated(number, SlotId(0)));
    let mut nobody = nobody.filter(|user| slot_of_owner(user.0, SLOTS) == slot);
    let send = text_to(&client, alice, nobody.next().unwrap().0, "two");
    client.send(send).await.expect("acked");
    messages(&client, alice, 4).await;
    let again = client.requeue_dead_letter(first).await;
    assert_eq!(again.expect("as the first time"), requeued);
    let other = client.requeue_dead_letter(requeue(1)).await;
    let error = other.expect_err("it is gone");
    assert_eq!(error.code(), ErrorCode::UnknownDeadLetter);
    let words = format!("slot {slot} has no dead letter 1: it has 2 to 2");
    assert!(error.to_string().contains(&words), "{error}");

    for (dry_run, dropped_before) in [(true, false), (false, false), (true, true)] {
        let dropped = client.drop_dead_letter(dropping(2, dry_run)).await;
        assert_eq!(dropped.expect("dropped").dropped_before, dropped_before);
    }
    assert!(process.stop(Signal::TERM).success());
}
