//! The messages that both sides get: the same ones, made the same way.

use bytes::Bytes;
use mailbox_engine::{MessageId, MessageType, content_crc};
use uuid::Uuid;

use crate::{Load, as_usize};

/// Messages per millisecond of the pretended clock.
const PER_MS: u64 = 50;
const START_MS: u64 = 1_800_000_000_000;

/// One message between two of the users, who are given by number.
pub(crate) struct Message {
    pub(crate) sender: u64,
    pub(crate) recipient: u64,
    pub(crate) id: Uuid,
    pub(crate) message_id: MessageId,
    pub(crate) time_ms: u64,
    pub(crate) body: Bytes,
    pub(crate) content_crc: u32,
}

/// Makes messages; equal ones on each run.
pub(crate) struct Messages {
    state: u64,
    users: u64,
    body_bytes: usize,
    count: u64,
}

impl Messages {
    pub(crate) fn new(load: &Load) -> Messages {
        Messages {
            state: 0x9E37_79B9_7F4A_7C15,
            users: load.users,
            body_bytes: as_usize(load.body_bytes),
            count: 0,
        }
    }

    /// Before the first message.
    pub(crate) fn start_ms() -> u64 {
        START_MS
    }

    fn random(&mut self) -> u64 {
        // SplitMix64: fast, and its output does not compress.
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn next(&mut self) -> Message {
        self.count += 1;
        let time_ms = START_MS + 1 + self.count / PER_MS;
        let random = u128::from(self.random());
        let id = Uuid::from_u128(u128::from(time_ms) << 80 | 7 << 76 | 2 << 62 | random >> 2);
        let mut body = Vec::with_capacity(self.body_bytes);
        while body.len() < self.body_bytes {
            let word = self.random().to_be_bytes();
            body.extend_from_slice(&word[..word.len().min(self.body_bytes - body.len())]);
        }
        Message {
            sender: self.random() % self.users,
            recipient: self.random() % self.users,
            id,
            message_id: MessageId((time_ms << 16) + self.count % PER_MS + 1),
            time_ms,
            content_crc: content_crc(id, MessageType::TEXT, &body),
            body: body.into(),
        }
    }
}
