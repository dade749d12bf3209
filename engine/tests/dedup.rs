//! Exactly once: the interleavings that would lose, double or let in again.

// Helpers of tests are not seen as tests.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    ApplyEntry, ApplyPayload, ClusterOptions, Command, EngineOptions, EntryBuilder, Flags, LogId,
    MemoryDisk, MessageId, MessageType, Refusal, RegisterUser, Reply, Send, Seq, SetClusterOptions,
    Shard, ShardId, Store, UserId, content_crc,
};
use uuid::Uuid;

const SHARD: ShardId = ShardId(1);
const HOUR_MS: u64 = 3_600_000;
/// A whole hour.
const NOON_MS: u64 = 500_000 * HOUR_MS;

struct Replica {
    disk: MemoryDisk,
    options: EngineOptions,
    store: Option<Store>,
    index: u64,
}

impl Replica {
    fn new() -> Replica {
        let options = EngineOptions {
            slot_count: 4,
            ..EngineOptions::default()
        };
        let disk = MemoryDisk::new();
        let store = Store::open_in_memory(&disk, options.clone()).unwrap();
        store.create_shard(SHARD, 0..=3).unwrap();
        let mut replica = Replica {
            disk,
            options,
            store: Some(store),
            index: 0,
        };
        replica.set_window(0, 5 * HOUR_MS);
        replica
    }

    fn set_window(&mut self, time_ms: u64, dedup_window_ms: u64) {
        let options = ClusterOptions {
            dedup_window_ms,
            ..ClusterOptions::default()
        };
        let call = SetClusterOptions {
            options,
            if_absent: false,
        };
        let reply = self.apply(time_ms, Command::SetClusterOptions(call));
        assert_eq!(reply, Reply::ClusterOptions { options });
    }

    fn shard(&self) -> Arc<Shard> {
        self.store.as_ref().unwrap().shard(SHARD).unwrap()
    }

    fn apply_bytes(&mut self, entry: Bytes) -> Result<Vec<Reply>, mailbox_engine::Error> {
        self.index += 1;
        let log_id = LogId {
            term: 1,
            node: 1,
            index: self.index,
        };
        let entry = ApplyEntry {
            log_id,
            payload: ApplyPayload::Commands(entry),
        };
        Ok(self.shard().apply(&[entry])?.replies.remove(0))
    }

    fn apply(&mut self, time_ms: u64, command: Command) -> Reply {
        let mut entry = EntryBuilder::new(time_ms);
        entry.push(&command);
        self.apply_bytes(entry.finish()).unwrap().remove(0)
    }

    fn user(&mut self, handle: &str) -> UserId {
        let call = RegisterUser {
            request_id: id(NOON_MS, 0),
            handle: handle.to_owned(),
        };
        match self.apply(NOON_MS, Command::RegisterUser(call)) {
            Reply::UserRegistered { user } => user,
            other => panic!("{other:?}"),
        }
    }

    fn flush_and_reopen(&mut self) {
        let shard = self.shard();
        while let Some(frozen) = shard.freeze() {
            shard.ingest(shard.build(&frozen).unwrap()).unwrap();
        }
        drop(shard);
        self.store = None;
        self.store = Some(Store::open_in_memory(&self.disk, self.options.clone()).unwrap());
    }
}

fn id(time_ms: u64, number: u128) -> Uuid {
    Uuid::from_u128(u128::from(time_ms) << 80 | 7 << 76 | 2 << 62 | number)
}

fn send(from: UserId, to: UserId, client_msg_id: Uuid, message_id: u64) -> Send {
    let (kind, body) = (MessageType::TEXT, Bytes::from_static(b"hello"));
    Send {
        sender: from,
        recipient: to,
        client_msg_id,
        message_id: MessageId(message_id),
        kind,
        flags: Flags::default(),
        content_crc: content_crc(client_msg_id, kind, &body),
        body,
        shown: MessageId::ZERO,
    }
}

#[test]
fn a_repeat_gets_the_first_reply_whatever_a_retry_changes() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let first = send(alice, bob, id(NOON_MS, 1), 100);
    let reply = replica.apply(NOON_MS, Command::Send(first.clone()));
    let timeline = alice.mailbox();
    assert_eq!(
        reply,
        Reply::Sent {
            timeline,
            seq: Seq(1),
            message_id: MessageId(100)
        }
    );
    let again = Send {
        message_id: MessageId(999),
        shown: MessageId(7),
        ..first
    };
    for hours in [0, 1, 5] {
        let time_ms = NOON_MS + hours * HOUR_MS;
        assert_eq!(replica.apply(time_ms, Command::Send(again.clone())), reply);
        replica.flush_and_reopen();
    }
    assert_eq!(replica.shard().head(timeline).unwrap(), Seq(1));
    assert_eq!(replica.shard().head(bob.mailbox()).unwrap(), Seq(1));
}

#[test]
fn a_refusal_leaves_no_trace_and_is_judged_anew() {
    let mut replica = Replica::new();
    let bob = replica.user("bob");
    let alice = UserId(1 << 16 | u64::from(mailbox_engine::slot_of_handle("alice", 4).0));
    let early = send(alice, bob, id(NOON_MS, 1), 100);
    let before = replica.shard().applied();
    let refusal = Reply::Refused(Refusal::UnknownUser { user: alice });
    assert_eq!(
        replica.apply(NOON_MS, Command::Send(early.clone())),
        refusal
    );
    assert_eq!(
        replica.shard().applied().last_message_id,
        before.last_message_id
    );
    // Not the id guessed above if the two handles share a slot: the counter is one further then.
    let registered = replica.user("alice");
    let later = send(registered, bob, early.client_msg_id, 100);
    assert!(matches!(
        replica.apply(NOON_MS, Command::Send(later)),
        Reply::Sent { .. }
    ));
}

#[test]
fn a_stale_message_id_is_retried_under_the_same_client_id() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let sent = replica.apply(
        NOON_MS,
        Command::Send(send(alice, bob, id(NOON_MS, 1), 100)),
    );
    assert!(matches!(sent, Reply::Sent { .. }));
    let stale = send(alice, bob, id(NOON_MS, 2), 100);
    let reply = replica.apply(NOON_MS, Command::Send(stale.clone()));
    assert_eq!(reply, Reply::Refused(Refusal::Retry));
    let fresh = Send {
        message_id: MessageId(101),
        ..stale
    };
    let reply = replica.apply(NOON_MS, Command::Send(fresh));
    assert!(matches!(reply, Reply::Sent { seq: Seq(2), .. }));
}

#[test]
fn the_window_has_sharp_ends() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let floor_ms = NOON_MS - 5 * HOUR_MS;
    let late_ms = NOON_MS + 10 * 60 * 1000;
    let mut judge = |number: u64, id_ms| {
        let call = send(alice, bob, id(id_ms, u128::from(number)), number);
        matches!(
            replica.apply(NOON_MS, Command::Send(call)),
            Reply::Sent { .. }
        )
    };
    assert!(!judge(1, floor_ms - 1));
    assert!(judge(2, floor_ms));
    assert!(judge(3, late_ms));
    assert!(!judge(4, late_ms + 1));
}

#[test]
fn an_expired_id_is_refused_though_its_row_is_still_here() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let call = send(alice, bob, id(NOON_MS, 1), 100);
    assert!(matches!(
        replica.apply(NOON_MS, Command::Send(call.clone())),
        Reply::Sent { .. }
    ));
    let reply = replica.apply(NOON_MS + 6 * HOUR_MS, Command::Send(call));
    let floor_ms = NOON_MS + HOUR_MS;
    assert_eq!(
        reply,
        Reply::Refused(Refusal::IdExpired {
            id_ms: NOON_MS,
            floor_ms
        })
    );
}

#[test]
fn a_wider_window_does_not_let_a_dropped_id_in_again() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let call = Command::Send(send(alice, bob, id(NOON_MS, 1), 100));
    replica.apply(NOON_MS, call.clone());
    let later_ms = NOON_MS + 6 * HOUR_MS;
    replica.apply(later_ms, Command::Cut);
    replica.set_window(later_ms, 100 * HOUR_MS);
    replica.flush_and_reopen();
    let reply = replica.apply(later_ms, call);
    let floor_ms = NOON_MS + HOUR_MS;
    assert_eq!(
        reply,
        Reply::Refused(Refusal::IdExpired {
            id_ms: NOON_MS,
            floor_ms
        })
    );
}

#[test]
fn replicated_time_never_goes_back() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    replica.apply(NOON_MS + 9 * HOUR_MS, Command::Cut);
    replica.flush_and_reopen();
    let call = Command::Send(send(alice, bob, id(NOON_MS, 1), 100));
    let reply = replica.apply(NOON_MS, call);
    assert!(
        matches!(reply, Reply::Refused(Refusal::IdExpired { .. })),
        "{reply:?}"
    );
}

#[test]
fn damage_to_an_entry_stops_the_replica_and_damage_before_it_is_a_refusal() {
    let mut replica = Replica::new();
    let (alice, bob) = (replica.user("alice"), replica.user("bob"));
    let mut call = send(alice, bob, id(NOON_MS, 1), 100);
    call.content_crc ^= 1;
    let reply = replica.apply(NOON_MS, Command::Send(call));
    assert!(
        matches!(reply, Reply::Refused(Refusal::Corrupt { .. })),
        "{reply:?}"
    );

    let mut entry = EntryBuilder::new(NOON_MS);
    entry.push(&Command::Send(send(alice, bob, id(NOON_MS, 2), 101)));
    let mut bytes = entry.finish().to_vec();
    bytes[40] ^= 1;
    let head = replica.shard().head(alice.mailbox()).unwrap();
    assert_eq!(head, Seq::ZERO);
    assert!(replica.apply_bytes(bytes.into()).is_err());
    assert!(replica.shard().head(alice.mailbox()).is_err());
}
