//! Raw RocksDB: the same rows under the same keys, written by its own memtable.

use std::time::Instant;

use mailbox_engine::{
    DedupKey, Destination, EngineOptions, Flags, MessageType, NewRow, RangeId, Seq, StateKey,
    StoredKey, TimelineId, UserId, rocks_options,
};
use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use crate::messages::{Message, Messages};
use crate::process::{cpu, file_bytes, thread_cpu, wait_idle};
use crate::{BATCH, Cost, Load, as_usize};

/// Writes the load into a new database.
pub(crate) fn run(load: &Load) -> Cost {
    let dir = tempfile::tempdir_in(&load.dir).expect("make a directory");
    let mut writer = Writer {
        db: DB::open(&options(), dir.path()).expect("open RocksDB"),
        options: WriteOptions::default(),
        heads: vec![0; as_usize(load.users)],
        key: Vec::new(),
        value: Vec::new(),
    };
    writer.options.disable_wal(true);

    let (cpu_before, thread_before, start) = (cpu(), thread_cpu(), Instant::now());
    let mut messages = Messages::new(load.users);
    let mut left = load.messages;
    while left > 0 {
        let count = left.min(BATCH);
        left -= count;
        let mut batch = WriteBatch::default();
        for _ in 0..count {
            writer.put(&messages.next(), &mut batch);
        }
        writer.db.write_opt(batch, &writer.options).expect("write");
    }
    let (wall, apply_cpu) = (start.elapsed(), thread_cpu() - thread_before);
    writer.db.flush().expect("flush");
    wait_idle();
    let stored_bytes = file_bytes(dir.path());
    Cost {
        wall,
        apply_cpu,
        cpu: cpu() - cpu_before,
        stored_bytes,
    }
}

/// The engine's own, and a memtable of the same size as its own.
fn options() -> Options {
    let engine = EngineOptions::default();
    let mut options = rocks_options(&engine);
    let memtable_bytes = as_usize(engine.memtable_bytes_max);
    options.set_write_buffer_size(memtable_bytes);
    options
}

struct Writer {
    db: DB,
    options: WriteOptions,
    /// Of all mailboxes; in a real store a look-up of its own.
    heads: Vec<u64>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Writer {
    fn put(&mut self, message: &Message, batch: &mut WriteBatch) {
        let (sender, recipient) = (UserId(message.sender), UserId(message.recipient));
        let destination = Destination::timeline(recipient.mailbox());
        let dedup = DedupKey {
            id: message.id,
            sender,
            destination,
        };
        self.key.clear();
        StoredKey::Dedup {
            hour: dedup.hour(),
            range: RangeId(1),
            suffix: &dedup.encode(),
        }
        .encode(&mut self.key);
        let known = self.db.get_pinned(&self.key).expect("read").is_some();
        assert!(!known);
        // The engine's dedup value: a hash, a kind, seq and message id.
        batch.put(&self.key, [7; 25]);
        let row = |correspondent, flags| NewRow {
            message_id: message.message_id,
            correspondent,
            client_msg_id: message.id,
            sent_at_ms: message.time_ms,
            kind: MessageType::TEXT,
            flags,
            body: message.body.clone(),
            content_crc: message.content_crc,
        };
        self.append(sender.mailbox(), row(recipient, Flags::OUTGOING), batch);
        if recipient != sender {
            self.append(recipient.mailbox(), row(sender, Flags::default()), batch);
        }
    }

    fn append(&mut self, timeline: TimelineId, row: NewRow, batch: &mut WriteBatch) {
        let head = &mut self.heads[as_usize(timeline.owner)];
        *head += 1;
        let seq = Seq(*head);
        self.key.clear();
        let suffix = StateKey::Message { timeline, seq }.encode();
        StoredKey::State {
            range: RangeId(1),
            suffix: suffix.as_slice(),
        }
        .encode(&mut self.key);
        self.value.clear();
        row.at(timeline, seq).encode(&mut self.value);
        batch.put(&self.key, &self.value);
    }
}
