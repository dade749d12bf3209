//! The client against nodes that break.

#![allow(clippy::unwrap_used, reason = "its helpers are test code too")]

mod fake;

use std::collections::BTreeSet;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fake::Cluster;
use mailbox_client::v1::{self, ErrorCode, SendRequest, Timeline, TimelineKind, send_request};
use mailbox_client::{Client, SubscribeEvent, user_id};
use tokio::sync::mpsc;

const GROUP: u64 = 9;

fn group() -> Timeline {
    Timeline {
        kind: TimelineKind::Group as i32,
        owner: GROUP,
    }
}

fn message(client: &Client) -> SendRequest {
    SendRequest {
        sender: Some(user_id(1)),
        destination: Some(send_request::Destination::Group(GROUP)),
        client_msg_id: Bytes::copy_from_slice(client.new_message_id().as_bytes()),
        body: "hello".into(),
        ..SendRequest::default()
    }
}

fn messages(client: &Client, count: usize) -> Vec<SendRequest> {
    (0..count).map(|_| message(client)).collect()
}

/// Every id is in the group's timeline, each once.
fn assert_once(cluster: &Cluster, count: usize) {
    let store = cluster.store.lock();
    let rows = &store.rows[&group()];
    let ids: BTreeSet<_> = rows.iter().map(|row| row.client_msg_id.clone()).collect();
    assert_eq!((rows.len(), ids.len()), (count, count));
}

#[tokio::test]
async fn sends_follow_the_hint_and_keep_their_order() {
    let cluster = Cluster::start(3);
    cluster.lead(2);
    let client = cluster.client().await;
    assert!(client.server_time_ms() >= 4_000_000_000_000);
    client.send(message(&client)).await.unwrap();
    let results = client.send_batch(messages(&client, 2000)).await;
    for (result, seq) in results.into_iter().zip(2..) {
        assert_eq!(result.unwrap().seq, seq);
    }
    let frames = cluster.store.lock().frames;
    assert!(frames < 200, "2000 sends left in {frames} frames");
}

/// A caller with a thousand sends in flight moves a thousand of these futures about; what only a
/// repeat needs must not make all of them large.
#[tokio::test]
async fn a_send_in_flight_is_small() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let request = message(&client);
    let request_size = size_of_val(&request);
    let send_size = size_of_val(&client.send(request));
    assert!(
        send_size <= 10 * request_size,
        "a send takes {send_size} bytes, its request {request_size}"
    );
}

#[tokio::test]
async fn a_killed_leader_costs_no_message_and_doubles_none() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client().await;
    let senders: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    client.send(message(&client)).await.unwrap();
                }
            })
        })
        .collect();
    while cluster.store.lock().acked.len() < 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The followers name the dead leader for a while.
    cluster.kill(0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.lead(1);
    for sender in senders {
        sender.await.unwrap();
    }
    assert_once(&cluster, 1000);
}

#[tokio::test]
async fn a_node_that_is_back_is_followed_at_once() {
    let mut cluster = Cluster::start(3);
    let mut options = cluster.options();
    // What is held against a node that was gone ends with its first answer, not with this.
    options.timeouts.attempt = Duration::from_secs(3600);
    let client = Client::connect(options).await.unwrap();
    client.send(message(&client)).await.unwrap();
    cluster.kill(0);
    cluster.lead(1);
    client.send(message(&client)).await.unwrap();
    cluster.restart(0);
    cluster.lead(0);
    client.send(message(&client)).await.unwrap();
    assert_once(&cluster, 3);
}

#[tokio::test]
async fn a_send_accepted_but_never_answered_is_not_doubled() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    cluster.store.lock().swallow = 2;
    let sent = client.send(message(&client)).await.unwrap();
    assert_eq!(sent.seq, 1);
    assert_once(&cluster, 1);
    assert!(cluster.store.lock().attempts >= 3);
}

#[tokio::test]
async fn a_silent_leader_is_left_for_the_next() {
    let cluster = Cluster::start(3);
    let mut options = cluster.options();
    options.timeouts.attempt = Duration::from_millis(300);
    let client = Client::connect(options).await.unwrap();
    client.send(message(&client)).await.unwrap();
    cluster.store.lock().silent.insert(0);
    let sending = tokio::spawn({
        let client = client.clone();
        async move { client.send_batch(messages(&client, 100)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.lead(1);
    for result in sending.await.unwrap() {
        result.unwrap();
    }
    let user = client
        .register_user(v1::RegisterUserRequest::default())
        .await
        .unwrap();
    assert_eq!(user.user, 7);
    assert_once(&cluster, 101);
}

#[tokio::test]
async fn a_wrong_secret_is_told_at_once() {
    let cluster = Cluster::start(1);
    let mut options = cluster.options();
    options.auth = mailbox_client::Auth::Secret {
        cluster_id: None,
        secret: b"wrong".to_vec(),
    };
    options.timeouts.deadline = Duration::from_secs(3600);
    let error = Client::connect(options).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    for code in [ErrorCode::IdReused, ErrorCode::DiskFull] {
        cluster.store.lock().refusal = Some(code);
        let before = cluster.store.lock().attempts;
        let error = client.send(message(&client)).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(cluster.store.lock().attempts, before + 1);
    }
}

#[tokio::test]
async fn a_busy_node_is_asked_again_until_the_deadline() {
    let cluster = Cluster::start(1);
    let mut options = cluster.options();
    options.timeouts.deadline = Duration::from_millis(300);
    let client = Client::connect(options).await.unwrap();
    cluster.store.lock().refusal = Some(ErrorCode::Busy);
    let error = client.send(message(&client)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Busy);
    assert!(cluster.store.lock().attempts > 1);
}

/// Tens of thousands that each ask again would keep nodes from electing the leader whom they ask for.
#[tokio::test]
async fn while_nobody_serves_a_shard_one_send_asks_for_all() {
    const SENDS: usize = 500;
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    cluster.store.lock().refusal = Some(ErrorCode::Unavailable);
    let tried = async |attempts| {
        loop {
            let (came, frames) = {
                let store = cluster.store.lock();
                (store.attempts, store.frames)
            };
            if came >= attempts {
                return (came, frames);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let watched = async {
        let (attempts, frames) = tried(SENDS + 5).await;
        let (later, later_frames) = tried(attempts + 10).await;
        assert_eq!(
            later - attempts,
            later_frames - frames,
            "a probe is alone in its frame"
        );
        cluster.store.lock().refusal = None;
    };
    let sends = messages(&client, SENDS).into_iter();
    let sends = futures_util::future::join_all(sends.map(|message| client.send(message)));
    let (sent, ()) = tokio::join!(sends, watched);
    assert!(sent.iter().all(Result::is_ok));
    assert_once(&cluster, SENDS);
}

#[tokio::test]
async fn sends_over_a_limit_wait_and_then_say_which_limit() {
    let cluster = Cluster::start(1);
    let mut options = cluster.options();
    options.limits.in_flight_max = 1;
    options.limits.in_flight_bytes_max = 100;
    options.timeouts.deadline = Duration::from_millis(600);
    options.timeouts.attempt = Duration::from_secs(60);
    let client = Client::connect(options).await.unwrap();
    let (first, second) =
        tokio::join!(client.send(message(&client)), client.send(message(&client)));
    assert_eq!((first.unwrap().seq, second.unwrap().seq), (1, 2));

    cluster.store.lock().silent.insert(0);
    let (first, second) =
        tokio::join!(client.send(message(&client)), client.send(message(&client)));
    assert_eq!(first.unwrap_err().code(), ErrorCode::Unavailable);
    let error = second.unwrap_err();
    assert!(
        error.code() == ErrorCode::Busy || error.code() == ErrorCode::Unavailable,
        "{error}"
    );

    let large = SendRequest {
        body: vec![0; 101].into(),
        ..message(&client)
    };
    let error = client.send(large).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded);
    assert!(
        error.to_string().contains("101") && error.to_string().contains("100"),
        "{error}"
    );
}

/// The bodies' seqs of the next `count` messages, which must follow each other.
async fn receive(events: &mut mpsc::Receiver<SubscribeEvent>, seqs: std::ops::Range<u64>) {
    let mut next = seqs.start;
    while next < seqs.end {
        let event = tokio::time::timeout(Duration::from_secs(50), events.recv());
        match event
            .await
            .expect("an event in time")
            .expect("the subscription goes on")
        {
            SubscribeEvent::Batch { messages, .. } => {
                for message in messages {
                    assert_eq!(message.seq, next);
                    next += 1;
                }
            }
            SubscribeEvent::Heads(_) => {}
            SubscribeEvent::Ended { error, .. } => panic!("ended: {error}"),
        }
    }
}

#[tokio::test]
async fn a_subscription_goes_on_across_leaders_without_gap_or_repeat() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.send_batch(messages(&client, 10)).await;
    let (subscription, mut events) = client.subscribe();
    subscription.add(group(), 3).unwrap();
    receive(&mut events, 3..11).await;

    // The leader dies.
    cluster.lead(1);
    cluster.kill(0);
    client.send_batch(messages(&client, 10)).await;
    receive(&mut events, 11..21).await;

    // The leader falls silent: only missed heartbeats tell.
    cluster.store.lock().silent.insert(1);
    cluster.lead(2);
    client.send_batch(messages(&client, 10)).await;
    receive(&mut events, 21..31).await;
}

#[tokio::test]
async fn nodes_that_come_later_are_found_and_serve_when_the_first_are_gone() {
    let mut cluster = Cluster::start(5);
    cluster.name(3);
    let mut options = cluster.options();
    options.addresses.truncate(3);
    let client = Client::connect(options).await.unwrap();
    client.send(message(&client)).await.unwrap();

    // Two more, of which one leads: the client is told where, and that there is a newer map.
    cluster.name(5);
    cluster.lead(4);
    assert_eq!(client.send(message(&client)).await.unwrap().seq, 2);
    for first in 0..3 {
        cluster.kill(first);
    }
    cluster.lead(3);
    assert_eq!(client.send(message(&client)).await.unwrap().seq, 3);
    assert_eq!(client.shard_map().await.unwrap().nodes.len(), 5);
}

#[tokio::test]
async fn a_gap_in_a_stream_is_filled() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let (subscription, mut events) = client.subscribe();
    subscription.add(group(), 1).unwrap();
    cluster.store.lock().leave_out = Some(4);
    client.send_batch(messages(&client, 10)).await;
    receive(&mut events, 1..11).await;
    assert_eq!(cluster.store.lock().leave_out, None);
}

#[tokio::test]
async fn a_subscription_from_now_on_brings_only_what_comes() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    client.send_batch(messages(&client, 5)).await;
    let (subscription, mut events) = client.subscribe();
    subscription.add(group(), u64::MAX).unwrap();
    subscription.remove(group());
    subscription.add(group(), 6).unwrap();
    client.send(message(&client)).await.unwrap();
    receive(&mut events, 6..7).await;
    drop(subscription);
    while let Some(event) = events.recv().await {
        assert!(matches!(event, SubscribeEvent::Heads(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_timeline_whose_slot_moves_does_not_disturb_the_others() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let (subscription, mut events) = client.subscribe();
    subscription.add(group(), 1).unwrap();
    subscription.add(timeline_of(77), 1).unwrap();
    client.send_batch(messages(&client, 2)).await;
    receive(&mut events, 1..3).await;
    cluster.store.lock().moving.insert(77);
    for next in 3..6 {
        tokio::time::sleep(fake::HEARTBEAT).await;
        client.send(message(&client)).await.unwrap();
        receive(&mut events, next..next + 1).await;
    }
    assert_eq!(cluster.store.lock().streams, 1);
    cluster.store.lock().moving.clear();
    subscription.remove(group());
    client.send(message_to(&client, 77)).await.unwrap();
    receive(&mut events, 1..2).await;
    assert_eq!(cluster.store.lock().streams, 1);
}

/// Lets each other task of this thread go on that can.
async fn turn() {
    let mut over = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut over, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[tokio::test]
async fn what_is_removed_before_its_stream_has_begun_is_not_held_against_the_node() {
    const SUBSCRIPTIONS: usize = 8;
    let cluster = Cluster::start(1);
    let mut options = cluster.options();
    options.timeouts.attempt = Duration::from_secs(1);
    // A stream that is open stays so.
    options.timeouts.heartbeat = Duration::from_secs(5);
    let client = Client::connect(options).await.unwrap();
    client.send(message(&client)).await.unwrap();
    // Each a little later than the one before: some before their stream says anything, some after.
    let removing = (0..SUBSCRIPTIONS).map(|turns| {
        let client = client.clone();
        tokio::spawn(async move {
            let (subscription, events) = client.subscribe();
            subscription.add(group(), 1).unwrap();
            for _ in 0..turns {
                turn().await;
            }
            subscription.remove(group());
            (subscription, events)
        })
    });
    let removing: Vec<_> = removing.collect();
    let mut subscriptions = Vec::new();
    for removed in removing {
        subscriptions.push(removed.await.unwrap());
    }
    // Longer than a node may take to open a stream.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for (subscription, events) in &mut subscriptions {
        subscription.add(group(), 1).unwrap();
        receive(events, 1..2).await;
    }
    assert_eq!(cluster.store.lock().streams, SUBSCRIPTIONS);
}

#[tokio::test]
async fn a_node_is_asked_by_its_address() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let address = cluster.addresses[1].to_string();
    assert_eq!(client.status(Some(&address)).await.unwrap().node, 2);
    let request = v1::HeadsRequest {
        timelines: vec![group()],
        ..v1::HeadsRequest::default()
    };
    assert_eq!(client.heads(request).await.unwrap().heads[0].head, 0);
}

/// Groups of both shards, once slots are split at `first`.
fn groups_of_both(cluster: &Cluster) -> Vec<u64> {
    let groups: Vec<u64> = (1..=40).collect();
    let store = cluster.store.lock();
    let shards: BTreeSet<u32> = groups.iter().map(|group| store.shard_of(*group)).collect();
    assert_eq!(shards, BTreeSet::from([1, 2]));
    groups
}

fn message_to(client: &Client, group: u64) -> SendRequest {
    SendRequest {
        destination: Some(send_request::Destination::Group(group)),
        ..message(client)
    }
}

fn timeline_of(group: u64) -> Timeline {
    Timeline {
        owner: group,
        ..self::group()
    }
}

#[tokio::test]
async fn slots_that_moved_are_found_by_a_new_map_and_nothing_is_doubled() {
    let cluster = Cluster::start(2);
    let mut options = cluster.options();
    // Only an answer can tell of the new map.
    options.timeouts.map_refresh = Duration::from_secs(3600);
    let client = Client::connect(options).await.unwrap();
    cluster.split_at(20);
    let groups = groups_of_both(&cluster);
    let requests = groups.iter().map(|group| message_to(&client, *group));
    for sent in client.send_batch(requests.collect()).await {
        assert_eq!(sent.unwrap().seq, 1);
    }
    let heads = || {
        let timelines = groups.iter().map(|group| timeline_of(*group)).collect();
        client.heads(v1::HeadsRequest {
            timelines,
            ..v1::HeadsRequest::default()
        })
    };
    let of_each = |heads: v1::HeadsResponse| -> Vec<u64> {
        assert_eq!(heads.heads.len(), groups.len());
        heads.heads.into_iter().map(|head| head.head).collect()
    };
    assert_eq!(of_each(heads().await.unwrap()), vec![1; groups.len()]);
    // And back, while several calls for the moved slots are made.
    cluster.split_at(40);
    let answers = tokio::join!(heads(), heads(), heads());
    for answer in [answers.0, answers.1, answers.2] {
        assert_eq!(of_each(answer.unwrap()), vec![1; groups.len()]);
    }
}

#[tokio::test]
async fn a_node_that_tells_of_a_newer_map_but_gives_none_is_waited_for_once() {
    const SENDS: usize = 100;
    let cluster = Cluster::start(2);
    let mut options = cluster.options();
    options.timeouts.map_refresh = Duration::from_secs(3600);
    options.timeouts.attempt = Duration::from_millis(500);
    let client = Client::connect(options).await.unwrap();
    cluster.store.lock().mapless.insert(0);
    cluster.split_at(0);
    let begun = tokio::time::Instant::now();
    let sends = messages(&client, SENDS).into_iter();
    let sends = futures_util::future::join_all(sends.map(|message| client.send(message)));
    assert!(sends.await.iter().all(Result::is_ok));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_once(&cluster, SENDS);
}

#[tokio::test]
async fn while_nobody_gives_the_newer_map_sends_end_at_their_deadline() {
    let cluster = Cluster::start(2);
    let mut options = cluster.options();
    options.timeouts.map_refresh = Duration::from_secs(3600);
    options.timeouts.deadline = Duration::from_millis(600);
    options.timeouts.attempt = Duration::from_secs(3600);
    let client = Client::connect(options).await.unwrap();
    cluster.store.lock().mapless.extend([0, 1]);
    cluster.split_at(0);
    let begun = tokio::time::Instant::now();
    let sends = messages(&client, 100).into_iter();
    let sends = futures_util::future::join_all(sends.map(|message| client.send(message)));
    for sent in sends.await {
        assert!(sent.unwrap_err().is_retryable());
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_shard_that_answers_no_keeps_back_its_own_heads_only() {
    let cluster = Cluster::start(1);
    cluster.split_at(20);
    let client = cluster.client().await;
    let groups = groups_of_both(&cluster);
    let stuck = groups[0];
    cluster.store.lock().moving.insert(stuck);
    let timelines = groups.iter().map(|group| timeline_of(*group)).collect();
    let request = v1::HeadsRequest {
        timelines,
        ..v1::HeadsRequest::default()
    };
    let wait = Duration::from_millis(500);
    let (heads, missing) = client.heads_where_served(request, wait).await;
    assert!(missing.expect("one shard says no").is_retryable());
    let told = heads.heads.iter().map(|head| head.timeline.unwrap().owner);
    let told: BTreeSet<u64> = told.collect();
    let store = cluster.store.lock();
    let others = groups.iter().copied();
    let others = others.filter(|group| store.shard_of(*group) != store.shard_of(stuck));
    assert_eq!(told, others.collect::<BTreeSet<u64>>());
}

#[tokio::test]
async fn a_subscription_follows_its_timelines_to_other_shards() {
    let cluster = Cluster::start(1);
    let mut options = cluster.options();
    options.timeouts.map_refresh = Duration::from_secs(3600);
    let client = Client::connect(options).await.unwrap();
    let (subscription, mut events) = client.subscribe();
    let mut wanted = std::collections::BTreeMap::new();
    for group in 1..=40 {
        subscription.add(timeline_of(group), 1).unwrap();
        wanted.insert(group, 1);
    }
    for round in 0..3 {
        let requests = wanted.keys().map(|group| message_to(&client, *group));
        for sent in client.send_batch(requests.collect()).await {
            sent.unwrap();
        }
        while wanted.values().any(|next| *next <= round + 1) {
            let event = tokio::time::timeout(Duration::from_secs(50), events.recv());
            match event
                .await
                .expect("in time")
                .expect("the subscription goes on")
            {
                SubscribeEvent::Batch { timeline, messages } => {
                    let next = wanted.get_mut(&timeline.owner).unwrap();
                    for message in messages {
                        assert_eq!(message.seq, *next, "group {}", timeline.owner);
                        *next += 1;
                    }
                }
                SubscribeEvent::Heads(_) => {}
                SubscribeEvent::Ended { error, .. } => panic!("ended: {error}"),
            }
        }
        cluster.split_at(10 + 20 * u32::try_from(round).unwrap());
        groups_of_both(&cluster);
    }
}

#[tokio::test]
async fn what_was_in_a_retired_shard_is_found_by_a_new_map() {
    let cluster = Cluster::start(2);
    let mut options = cluster.options();
    // Only an answer can tell of the new map.
    options.timeouts.map_refresh = Duration::from_secs(3600);
    let client = Client::connect(options).await.unwrap();
    let (subscription, mut events) = client.subscribe();
    subscription.add(group(), 1).unwrap();
    client.send(message(&client)).await.unwrap();
    receive(&mut events, 1..2).await;
    // Nobody ends the subscription: there is nobody left in the shard who could.
    cluster.retire_first();
    client.send(message(&client)).await.unwrap();
    receive(&mut events, 2..3).await;
    let heads = client.heads(v1::HeadsRequest {
        timelines: vec![group()],
        ..v1::HeadsRequest::default()
    });
    assert_eq!(heads.await.unwrap().heads[0].head, 2);
    assert_once(&cluster, 2);
}
