//! Raw RocksDB: the same rows under the same keys, written by its own memtable.

use std::time::Instant;

use mailbox_engine::{
    DedupKey, Destination, EngineOptions, Flags, MessageType, NewRow, RangeId, Seq, StateKey,
    StoredKey, TimelineId, UserId, rocks_options,
};
use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use crate::messages::{Message, Messages};
use crate::process::{Stage, cpu, named_cpu, sst_bytes, wait_idle, written_bytes};
use crate::{BATCH, CHUNK, Cost, Load, MERGE_THREADS, RowBytes, as_usize};

/// What RocksDB calls the threads that write its memtables to files.
const FLUSH_THREADS: &str = "rocksdb:high";

/// Writes the load into a new database.
pub(crate) fn run(load: &Load) -> (Cost, RowBytes) {
    let dir = tempfile::tempdir_in(&load.dir).expect("make a directory");
    let mut writer = Writer {
        db: DB::open(&options(), dir.path()).expect("open RocksDB"),
        options: WriteOptions::default(),
        heads: vec![0; as_usize(load.users)],
        key: Vec::new(),
        value: Vec::new(),
        bytes: RowBytes::default(),
    };
    writer.options.disable_wal(true);

    let (cpu_before, start) = (cpu(), Instant::now());
    let background = || (named_cpu(FLUSH_THREADS), named_cpu(MERGE_THREADS));
    let ((flush_before, merge_before), written_before) = (background(), written_bytes());
    let mut messages = Messages::new(load);
    let (mut making, mut apply) = (Stage::default(), Stage::default());
    let mut left = load.messages;
    while left > 0 {
        let count = left.min(CHUNK);
        left -= count;
        let chunk: Vec<Message> = making.time(|| (0..count).map(|_| messages.next()).collect());
        apply.time(|| {
            for messages in chunk.chunks(as_usize(BATCH)) {
                writer.write(messages);
            }
        });
    }
    let wall = start.elapsed();
    writer.db.flush().expect("flush");
    wait_idle();
    let (flush, merge) = background();
    let cost = Cost {
        wall,
        making,
        apply,
        flush_cpu: flush - flush_before,
        compaction_cpu: merge - merge_before,
        cpu: cpu() - cpu_before,
        written_bytes: written_bytes() - written_before,
        stored_bytes: sst_bytes(dir.path()),
    };
    (cost, writer.bytes)
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
    bytes: RowBytes,
}

impl Writer {
    fn write(&mut self, messages: &[Message]) {
        let mut batch = WriteBatch::default();
        for message in messages {
            self.put(message, &mut batch);
        }
        self.db.write_opt(batch, &self.options).expect("write");
    }

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
        let value = [7; 25];
        self.bytes.dedup += (self.key.len() + value.len()) as u64;
        batch.put(&self.key, value);
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
        self.bytes.timeline += (self.key.len() + self.value.len()) as u64;
        batch.put(&self.key, &self.value);
    }
}
