//! Raw RocksDB: the same rows under the same keys, written by its own memtable.

use std::time::Instant;

use mailbox_engine::{
    DedupKey, Destination, EngineOptions, Flags, MessageType, NewRow, RangeId, Seq, StateKey,
    StoredKey, TimelineId, UserId,
};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch,
    WriteOptions,
};

use crate::messages::{Message, Messages};
use crate::process::{cpu, file_bytes, thread_cpu, wait_idle};
use crate::{BATCH, Cost, Load};

/// Writes the load into a new database.
pub(crate) fn run(load: &Load) -> Cost {
    let dir = tempfile::tempdir_in(&load.dir).unwrap();
    let mut writer = Writer {
        db: DB::open(&options(), dir.path()).unwrap(),
        options: WriteOptions::default(),
        heads: vec![0; usize::try_from(load.users).unwrap()],
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
        writer.db.write_opt(batch, &writer.options).unwrap();
    }
    let (wall, apply_cpu) = (start.elapsed(), thread_cpu() - thread_before);
    writer.db.flush().unwrap();
    wait_idle();
    let stored_bytes = file_bytes(dir.path());
    Cost {
        wall,
        apply_cpu,
        cpu: cpu() - cpu_before,
        stored_bytes,
    }
}

/// As the engine's, and a memtable of the same size as its own.
fn options() -> Options {
    let engine = EngineOptions::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(engine.block_cache_bytes));
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_max_open_files(engine.max_open_files);
    options.set_max_background_jobs(engine.compaction_threads);
    options.set_bytes_per_sync(1 << 20);
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(256 << 20);
    options.set_level_zero_file_num_compaction_trigger(8);
    let memtable_bytes = usize::try_from(engine.memtable_bytes_max).unwrap();
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
        assert!(self.db.get_pinned(&self.key).unwrap().is_none());
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
        let head = &mut self.heads[usize::try_from(timeline.owner).unwrap()];
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
