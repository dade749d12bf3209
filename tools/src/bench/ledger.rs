//! What was sent and acked in a run, and whether all of it is there: once, in order, in both mailboxes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use mailbox_client::v1::{
    Message, MessageType, SendRequest, SyncRange, SyncRequest, Timeline, TimelineKind, send_request,
};
use mailbox_client::{Client, content_crc, user_id};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use serde::Serialize;

use crate::output::grouped;

/// Mailboxes that are read at once.
const READS: usize = 32;

/// Parts of the ledger. A map that grows is filled anew while whoever adds to it waits: with one of millions of sends
/// that took half a second, and passed for a stall of the servers.
const PARTS: usize = 1024;

/// A `client_msg_id`.
type Id = [u8; 16];

/// The sends of a run.
pub(super) struct Ledger {
    /// By the last bits of the id, which are random.
    parts: Vec<Mutex<HashMap<Id, Sent>>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
        }
    }
}

#[derive(Default)]
struct Sends {
    all: HashMap<Id, Sent>,
}

/// One send.
#[derive(Clone, Copy)]
struct Sent {
    from: u64,
    to: u64,
    /// Of its ack. Without one it may be there or not, but wholly.
    seq: Option<u64>,
}

/// What the mailboxes hold of what was acked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Audit {
    pub(super) acked: u64,
    /// Copies that a mailbox lacks; each send has two.
    pub(super) missing: u64,
    /// Messages that a mailbox holds twice, or that nobody sent.
    pub(super) duplicated: u64,
    /// Gaps in seqs, messages elsewhere than their ack says or where nobody sent them, pairs of users whose
    /// messages changed places.
    pub(super) misordered: u64,
}

impl Audit {
    pub(super) fn is_clean(&self) -> bool {
        (self.missing, self.duplicated, self.misordered) == (0, 0, 0)
    }

    /// The audit as a line.
    pub(super) fn human(&self) -> String {
        format!(
            "messages     {} acked; {} missing, {} duplicated, {} misordered",
            grouped(self.acked),
            self.missing,
            self.duplicated,
            self.misordered
        )
    }
}

/// Makes the sends of one runner and enters them into the ledger.
pub(super) struct Courier {
    pub(super) client: Client,
    pub(super) users: Arc<[u64]>,
    pub(super) body_bytes: usize,
    pub(super) ledger: Arc<Ledger>,
    pub(super) rng: SmallRng,
}

impl Courier {
    /// Hands one send over; resolves to whether it was acked.
    pub(super) fn send(&mut self) -> impl Future<Output = bool> + use<> {
        let (client, ledger) = (self.client.clone(), Arc::clone(&self.ledger));
        let id = client.new_message_id().into_bytes();
        let (from, to) = self.pair();
        let request = self.request(&id, from, to);
        let sent = Sent {
            from,
            to,
            seq: None,
        };
        self.ledger.enter(id, sent);
        async move {
            match client.send(request).await {
                Ok(answer) => {
                    let seq = Some(answer.seq);
                    ledger.enter(id, Sent { seq, ..sent });
                    true
                }
                Err(error) => {
                    tracing::error!(%error, "send");
                    false
                }
            }
        }
    }

    /// Sender and recipient: two, unless there is only one user.
    fn pair(&mut self) -> (u64, u64) {
        let count = self.users.len();
        let from = self.rng.random_range(0..count);
        let to = (from + self.rng.random_range(1..count.max(2))) % count;
        (self.users[from], self.users[to])
    }

    fn request(&mut self, id: &Id, from: u64, to: u64) -> SendRequest {
        let mut body = vec![0; self.body_bytes];
        self.rng.fill(body.as_mut_slice());
        SendRequest {
            sender: Some(user_id(from)),
            destination: Some(send_request::Destination::User(user_id(to))),
            content_crc: content_crc(id, MessageType::Opaque, &body),
            client_msg_id: Bytes::copy_from_slice(id),
            r#type: MessageType::Opaque as i32,
            body: Bytes::from(body),
            shown_message_id: 0,
        }
    }
}

impl Ledger {
    fn enter(&self, id: Id, sent: Sent) {
        let [.., high, low] = id;
        let part = usize::from(u16::from_be_bytes([high, low])) % PARTS;
        self.parts[part].lock().insert(id, sent);
    }

    /// All that was entered; the ledger is empty afterwards.
    fn take(&self) -> Sends {
        let parts = self.parts.iter();
        let parts: Vec<HashMap<Id, Sent>> = parts
            .map(|part| std::mem::take(&mut *part.lock()))
            .collect();
        let mut all = HashMap::with_capacity(parts.iter().map(HashMap::len).sum());
        all.extend(parts.into_iter().flatten());
        Sends { all }
    }

    /// Reads every mailbox whole and compares. What is on its way between shards must have arrived.
    ///
    /// # Errors
    /// A mailbox could not be read.
    pub(super) async fn audit(&self, client: &Client, users: &[u64]) -> anyhow::Result<Audit> {
        let sends = self.take();
        let auditor = Auditor::new(&sends);
        let auditor = Mutex::new(auditor);
        futures_util::stream::iter(users)
            .map(|user| read(client, *user, &auditor))
            .buffer_unordered(READS)
            .try_collect::<()>()
            .await?;
        Ok(auditor.into_inner().finish())
    }
}

async fn read(client: &Client, user: u64, auditor: &Mutex<Auditor<'_>>) -> anyhow::Result<()> {
    let timeline = Timeline {
        kind: TimelineKind::Mailbox as i32,
        owner: user,
    };
    let mut after_seq = 0;
    loop {
        let range = SyncRange {
            timeline: Some(timeline),
            after_seq,
        };
        let request = SyncRequest {
            ranges: vec![range],
            limit: u32::MAX,
            ..SyncRequest::default()
        };
        let answer = client.sync(request).await;
        let answer = answer.with_context(|| format!("read the mailbox of {user}"))?;
        let (mut more, before) = (false, after_seq);
        for page in answer.pages {
            auditor.lock().take(user, &mut after_seq, &page.messages);
            more |= page.more;
        }
        if !more || after_seq == before {
            return Ok(());
        }
    }
}

const SENT: u8 = 1;
const CAME: u8 = 2;

struct Auditor<'a> {
    sends: &'a Sends,
    /// In which of its two mailboxes a message was found.
    found: HashMap<Id, u8>,
    /// The order of a pair's messages, as the sender's and as the recipient's mailbox has it.
    orders: HashMap<(u64, u64), [Order; 2]>,
    audit: Audit,
}

/// A sequence of ids, folded.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Order {
    count: u64,
    hash: u64,
}

impl Order {
    fn then(&mut self, id: &Id) {
        let [low, high] = [&id[..8], &id[8..]].map(|half| {
            let half = half.iter();
            half.fold(0_u64, |number, byte| (number << 8) | u64::from(*byte))
        });
        self.count += 1;
        // Any fold will do in which two ids that change places change the result.
        let mixed = self.hash.rotate_left(5) ^ low.wrapping_add(high);
        self.hash = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl<'a> Auditor<'a> {
    fn new(sends: &'a Sends) -> Self {
        Self {
            sends,
            found: HashMap::with_capacity(sends.all.len()),
            orders: HashMap::new(),
            audit: Audit {
                acked: sends.all.values().filter(|sent| sent.seq.is_some()).count() as u64,
                ..Audit::default()
            },
        }
    }

    /// One page of a mailbox, in its order.
    fn take(&mut self, owner: u64, after: &mut u64, messages: &[Message]) {
        for message in messages {
            if message.seq != *after + 1 {
                self.audit.misordered += 1;
            }
            *after = message.seq;
            self.look_at(owner, message);
        }
    }

    fn look_at(&mut self, owner: u64, message: &Message) {
        // Without an id it was written by the store: a refusal, though every recipient exists.
        let id = Id::try_from(&message.client_msg_id[..]).ok();
        let sent = id.and_then(|id| Some((id, *self.sends.all.get(&id)?)));
        let Some((id, sent)) = sent else {
            self.audit.duplicated += 1;
            return;
        };
        let pair = (message.sender, message.recipient);
        let own = owner == sent.from;
        let elsewhere = pair != (sent.from, sent.to) || !(own || owner == sent.to);
        let moved = own && sent.seq.is_some_and(|seq| seq != message.seq);
        if elsewhere || moved {
            self.audit.misordered += 1;
        }
        if elsewhere {
            return;
        }
        // The only copy of a send to oneself is both.
        let place = match (own, owner == sent.to) {
            (true, true) => SENT | CAME,
            (true, false) => SENT,
            (false, _) => CAME,
        };
        let seen = match self.found.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(0),
        };
        if *seen & place != 0 {
            self.audit.duplicated += 1;
            return;
        }
        *seen |= place;
        let orders = self.orders.entry(pair).or_default();
        if place & SENT != 0 {
            orders[0].then(&id);
        }
        if place & CAME != 0 {
            orders[1].then(&id);
        }
    }

    fn finish(mut self) -> Audit {
        for (id, sent) in &self.sends.all {
            let seen = self.found.get(id).copied().unwrap_or(0);
            // Accepted without an ack: then both copies are owed, too.
            if sent.seq.is_some() || seen != 0 {
                self.audit.missing += u64::from(2 - seen.count_ones());
            }
        }
        let changed = self.orders.values().filter(|[sent, came]| {
            // One that lacks messages is told above.
            sent.count == came.count && sent.hash != came.hash
        });
        self.audit.misordered += changed.count() as u64;
        self.audit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u64 = 1;
    const BOB: u64 = 2;

    fn message(seq: u64, id: u8) -> Message {
        Message {
            seq,
            sender: ALICE,
            recipient: BOB,
            client_msg_id: Bytes::copy_from_slice(&[id; 16]),
            ..Message::default()
        }
    }

    /// Alice's sends to Bob were acked with the seqs 1, 2 and 3, and one more was not.
    fn sends() -> Sends {
        let acked = (1..=3).map(|id: u8| (id, Some(u64::from(id))));
        let all = acked.chain([(9, None)]).map(|(id, seq)| {
            let sent = Sent {
                from: ALICE,
                to: BOB,
                seq,
            };
            ([id; 16], sent)
        });
        Sends { all: all.collect() }
    }

    /// These are the ids in both mailboxes.
    fn audit(alice: &[u8], bob: &[u8]) -> Audit {
        audit_of(&[(ALICE, alice), (BOB, bob)])
    }

    fn audit_of(mailboxes: &[(u64, &[u8])]) -> Audit {
        let sends = sends();
        let mut auditor = Auditor::new(&sends);
        for (owner, ids) in mailboxes {
            let messages = (1..).zip(*ids).map(|(seq, id)| message(seq, *id));
            auditor.take(*owner, &mut 0, &messages.collect::<Vec<_>>());
        }
        auditor.finish()
    }

    #[test]
    fn an_ack_takes_the_place_of_its_send_and_none_is_left_behind() {
        let ledger = Ledger::default();
        let id = |number: u16| {
            let mut id = [0; 16];
            id[14..].copy_from_slice(&number.to_be_bytes());
            id
        };
        for number in 0..3000 {
            for seq in [None, Some(u64::from(number))] {
                let (from, to) = (ALICE, BOB);
                ledger.enter(id(number), Sent { from, to, seq });
            }
        }
        let sends = ledger.take();
        assert_eq!(sends.all.len(), 3000);
        let acked = |number: u16| sends.all[&id(number)].seq == Some(u64::from(number));
        assert!((0..3000).all(acked));
        assert!(ledger.take().all.is_empty());
    }

    #[test]
    fn what_is_all_there_is_clean() {
        assert!(audit(&[1, 2, 3], &[1, 2, 3]).is_clean());
        assert_eq!(audit(&[1, 2, 3], &[1, 2, 3]).acked, 3);
        // One without an ack, that was accepted nevertheless.
        assert!(audit(&[1, 2, 3, 9], &[1, 2, 3, 9]).is_clean());
    }

    #[test]
    fn every_loss_is_seen() {
        assert_eq!(audit(&[1, 2, 3], &[1, 2]).missing, 1);
        assert_eq!(audit(&[1, 2], &[1, 2]).missing, 2);
        // Without an ack, but half of it is there.
        assert_eq!(audit(&[1, 2, 3, 9], &[1, 2, 3]).missing, 1);
        assert_eq!(audit(&[1, 2, 3], &[1, 2, 3, 9]).missing, 1);
    }

    #[test]
    fn what_is_there_too_often_is_seen() {
        assert_eq!(audit(&[1, 2, 3], &[1, 2, 3, 3]).duplicated, 1);
        assert_eq!(audit(&[1, 2, 3, 3], &[1, 2, 3]).duplicated, 1);
        assert_eq!(audit(&[1, 2, 3, 7], &[1, 2, 3]).duplicated, 1);
    }

    #[test]
    fn what_has_changed_places_is_seen() {
        assert_eq!(audit(&[1, 2, 3], &[1, 3, 2]).misordered, 1);
        // Both are elsewhere than their acks say.
        let swapped = audit(&[2, 1, 3], &[2, 1, 3]);
        assert_eq!((swapped.misordered, swapped.missing), (2, 0));
        let sends = sends();
        let mut auditor = Auditor::new(&sends);
        auditor.take(BOB, &mut 0, &[message(2, 1)]);
        assert_eq!(auditor.finish().misordered, 1, "a gap");
        // Bob's message came to somebody else.
        let strayed = audit_of(&[(ALICE, &[1, 2, 3]), (BOB, &[1, 3]), (3, &[2])]);
        assert_eq!((strayed.misordered, strayed.missing), (1, 1));
    }
}
