//! Shards on one or more stores, each with its log, and everything that they ever sent each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    AckLanes, ApplyEntry, ApplyPayload, BuiltFlush, ClusterOptions, Command, CreateGroup, Deliver,
    DropDeadLetter, EngineOptions, EntryBuilder, Error, Flags, GroupId, IngestCrash, Item, Items,
    JoinGroup, LaneId, LeaveGroup, LogId, MemoryDisk, MessageId, MessageType, MoveSlot, OutboxItem,
    RegisterUser, Reply, RequeueDeadLetter, Row, Send, Seq, SetClusterOptions, Shard, ShardId,
    SlotId, SplitShard, Store, UserId, content_crc, slot_of_handle, slot_of_owner,
};
use uuid::Uuid;

use crate::moves::{Archive, Move};

pub(crate) const SLOT_COUNT: u16 = 8;
const START_MS: u64 = 1_800_000_000_000;

/// One replica of a shard, and its log, which outlives every crash.
pub(crate) struct Replica {
    pub(crate) store: usize,
    pub(crate) id: ShardId,
    /// Of one that was split off: from which other, and by which of its entries.
    seed: Option<(usize, u64)>,
    log: Vec<ApplyEntry>,
    replies: Vec<Vec<Reply>>,
    built: Option<BuiltFlush>,
}

impl Replica {
    fn new(store: usize, id: ShardId) -> Replica {
        Replica {
            store,
            id,
            seed: None,
            log: Vec::new(),
            replies: Vec::new(),
            built: None,
        }
    }

    pub(crate) fn seeded(store: usize, id: ShardId, parent: usize, seed: u64) -> Replica {
        let mut replica = Replica::new(store, id);
        replica.seed = Some((parent, seed));
        replica
    }

    /// The entry before the first of its log.
    fn before(&self) -> u64 {
        self.seed.map_or(0, |(_, index)| index)
    }

    pub(crate) fn forget_built(&mut self) {
        self.built = None;
    }
}

/// All shards.
pub(crate) struct Cluster {
    pub(crate) disks: Vec<Disk>,
    stores: Vec<Option<Store>>,
    /// Shards that there were first.
    founders: usize,
    pub(crate) replicas: Vec<Replica>,
    /// Whatever was put into an outbox, by lane: what a relay may have in its hands.
    pub(crate) sent: BTreeMap<LaneId, Vec<Item>>,
    /// Which shard serves a slot, or did last if it is on its way.
    pub(crate) owners: Vec<usize>,
    pub(crate) moves: Vec<Move>,
    /// Steps of moves that were accepted, and where.
    pub(crate) taken: Vec<(usize, MoveSlot)>,
    pub(crate) archive: Archive,
    /// Splits that were accepted, and where.
    pub(crate) splits: Vec<(usize, SplitShard)>,
    epochs: u64,
    made: u64,
}

fn options() -> EngineOptions {
    EngineOptions {
        slot_count: SLOT_COUNT,
        tail_cache_bytes: 2000,
        head_cache_entries: 4,
        ..EngineOptions::default()
    }
}

/// Where a store lives.
pub(crate) enum Disk {
    Memory(MemoryDisk),
    Rocks(tempfile::TempDir),
}

fn open(disk: &Disk) -> Store {
    match disk {
        Disk::Memory(disk) => Store::open_in_memory(disk, options()).unwrap(),
        Disk::Rocks(dir) => Store::open(dir.path(), options()).unwrap(),
    }
}

impl Cluster {
    /// Slots are dealt to the shards one by one, so that no shard's are a contiguous range.
    pub(crate) fn new(shards: usize, stores: usize) -> Cluster {
        let disk = |_| Disk::Memory(MemoryDisk::new());
        Cluster::on(shards, (0..stores).map(disk).collect()).with_options()
    }

    /// The same on RocksDB.
    pub(crate) fn on_rocksdb(shards: usize, stores: usize) -> Cluster {
        let disk = |_| Disk::Rocks(tempfile::tempdir().unwrap());
        Cluster::on(shards, (0..stores).map(disk).collect()).with_options()
    }

    fn on(shards: usize, disks: Vec<Disk>) -> Cluster {
        let stores = disks.len();
        let mut cluster = Cluster {
            stores: disks.iter().map(|disk| Some(open(disk))).collect(),
            disks,
            replicas: Vec::new(),
            sent: BTreeMap::new(),
            owners: (0..SLOT_COUNT.into())
                .map(|slot: usize| slot % shards)
                .collect(),
            moves: Vec::new(),
            taken: Vec::new(),
            archive: Archive::default(),
            splits: Vec::new(),
            epochs: 0,
            founders: shards,
            made: 0,
        };
        for number in 0..shards {
            let id = ShardId(u32::try_from(number).unwrap() + 1);
            let store = number % stores;
            let slots = slots_of(number, shards);
            let made = cluster.stores[store].as_ref().unwrap();
            made.create_shard(id, slots).unwrap();
            cluster.replicas.push(Replica::new(store, id));
        }
        cluster
    }

    /// What the leaders of new shards begin with.
    fn with_options(mut self) -> Cluster {
        let set = Command::SetClusterOptions(SetClusterOptions {
            options: ClusterOptions::default(),
            if_absent: true,
        });
        for number in 0..self.replicas.len() {
            self.apply(number, std::slice::from_ref(&set));
        }
        self
    }

    pub(crate) fn stores(&self) -> usize {
        self.stores.len()
    }

    pub(crate) fn shard_of(&self, slot: SlotId) -> usize {
        self.owners[usize::from(slot.0)]
    }

    pub(crate) fn shard_of_user(&self, user: UserId) -> usize {
        self.shard_of(slot_of_owner(user.0, SLOT_COUNT))
    }

    pub(crate) fn shard(&self, number: usize) -> Arc<Shard> {
        let replica = &self.replicas[number];
        let store = self.stores[replica.store].as_ref().unwrap();
        store.shard(replica.id).unwrap()
    }

    /// Applies one entry; its outbox joins what relays have.
    pub(crate) fn apply(&mut self, number: usize, commands: &[Command]) -> Vec<Reply> {
        self.made += 1;
        let mut entry = EntryBuilder::new(START_MS + self.made);
        for command in commands {
            entry.push(command);
        }
        let replica = &mut self.replicas[number];
        let index = replica.before() + replica.log.len() as u64 + 1;
        let entry = ApplyEntry {
            log_id: log_id(index),
            payload: ApplyPayload::Commands(entry.finish()),
        };
        replica.log.push(entry.clone());
        let applied = self.apply_whole(number, &entry);
        let [replies] = applied.replies.try_into().unwrap();
        self.replicas[number].replies.push(replies);
        for OutboxItem { lane, seq, item } in applied.outbox {
            let items = self.sent.entry(lane).or_default();
            if seq <= items.len() as u64 {
                // It came with a slot.
                assert_eq!(self.item(lane, seq), &item, "the same bytes for ever");
                continue;
            }
            assert_eq!(seq, items.len() as u64 + 1, "{lane}: dense");
            items.push(item);
        }
        self.replicas[number].replies.last().unwrap().clone()
    }

    /// Applies one command where its slot is.
    pub(crate) fn call(&mut self, command: Command) -> Reply {
        let shard = self.shard_of(slot_of(&command));
        let [reply] = self.apply(shard, &[command]).try_into().unwrap();
        reply
    }

    fn again(&mut self, number: usize) {
        let shard = self.shard(number);
        let applied = shard.applied().log_id.map_or(0, |log_id| log_id.index);
        let replica = &self.replicas[number];
        let from = usize::try_from(applied - replica.before()).unwrap();
        let entries = replica.log[from..].iter().cloned();
        let again: Vec<_> = entries.zip(replica.replies[from..].to_vec()).collect();
        for (entry, replies) in &again {
            let applied = self.apply_whole(number, entry);
            assert_eq!(applied.replies, std::slice::from_ref(replies));
            for item in applied.outbox {
                assert_eq!(self.item(item.lane, item.seq), &item.item, "the same again");
            }
        }
    }

    pub(crate) fn item(&self, lane: LaneId, seq: u64) -> &Item {
        &self.sent[&lane][usize::try_from(seq - 1).unwrap()]
    }

    pub(crate) fn build(&mut self, number: usize) {
        let shard = self.shard(number);
        let replica = &mut self.replicas[number];
        if replica.built.is_none() {
            replica.built = shard.freeze().map(|frozen| shard.build(&frozen).unwrap());
        }
    }

    pub(crate) fn flush(&mut self, number: usize) {
        loop {
            self.build(number);
            let Some(built) = self.replicas[number].built.take() else {
                return;
            };
            self.shard(number).ingest(built).unwrap();
            self.store(number).open_children();
        }
    }

    pub(crate) fn store(&self, number: usize) -> &Store {
        let store = self.replicas[number].store;
        self.stores[store].as_ref().unwrap()
    }

    /// The last entry of a shard's log.
    pub(crate) fn last_index(&self, number: usize) -> u64 {
        let replica = &self.replicas[number];
        replica.before() + replica.log.len() as u64
    }

    /// Above all epochs given before; the one after it is for a way back.
    pub(crate) fn next_epoch(&mut self) -> u64 {
        self.epochs += 2;
        self.epochs
    }

    /// The process of a store ends and starts again.
    pub(crate) fn reopen(&mut self, store: usize) {
        self.lose_exports(store);
        self.stores[store] = None;
        if let Disk::Memory(disk) = &self.disks[store] {
            disk.crash();
        }
        // What is kept of the old process keeps its files open.
        for replica in self
            .replicas
            .iter_mut()
            .filter(|replica| replica.store == store)
        {
            replica.built = None;
        }
        self.stores[store] = Some(open(&self.disks[store]));
        for number in 0..self.replicas.len() {
            if self.replicas[number].store == store {
                self.again(number);
            }
        }
    }

    /// It dies in a flush of a shard and starts again.
    pub(crate) fn crash(&mut self, number: usize, at: IngestCrash) {
        let store = self.replicas[number].store;
        if let Disk::Memory(disk) = &self.disks[store] {
            let disk = disk.clone();
            self.build(number);
            if let Some(built) = self.replicas[number].built.take() {
                disk.crash_next_ingest(at);
                assert!(self.shard(number).ingest(built).is_err());
            }
        }
        self.reopen(store);
    }

    fn empty_copy(&self) -> Cluster {
        let disk = Disk::Memory(MemoryDisk::new());
        let mut copy = Cluster::on(self.founders, vec![disk]);
        copy.sent = self.sent.clone();
        copy.archive = self.archive.clone();
        let later = self.replicas.iter().skip(self.founders);
        copy.replicas.extend(later.map(|replica| Replica {
            seed: replica.seed,
            ..Replica::new(0, replica.id)
        }));
        copy
    }

    /// A copy of a shard that has applied a part of its log, flushed now and then.
    pub(crate) fn replay(&self, number: usize, upto: usize, flush_every: usize) -> Cluster {
        let replica = &self.replicas[number];
        let mut copy = match replica.seed {
            None => self.empty_copy(),
            Some((parent, seed)) => {
                let before = self.replicas[parent].before();
                let upto = usize::try_from(seed - before).unwrap();
                let mut copy = self.replay(parent, upto, flush_every);
                copy.flush(parent);
                copy
            }
        };
        for (entry, replies) in replica.log.iter().zip(&replica.replies).take(upto) {
            let applied = copy.apply_whole(number, entry);
            assert_eq!(applied.replies, std::slice::from_ref(replies));
            copy.replicas[number].log.push(entry.clone());
            if copy.replicas[number].log.len().is_multiple_of(flush_every) {
                copy.flush(number);
            }
        }
        copy
    }

    /// A snapshot of another replica, which is `behind` entries behind, takes the place of all
    /// that this one has.
    pub(crate) fn install(&mut self, number: usize, behind: usize) {
        let upto = self.replicas[number].log.len().saturating_sub(behind);
        if upto == 0 {
            return;
        }
        let mut other = self.replay(number, upto, 7);
        other.flush(number);
        let dir = tempfile::tempdir().unwrap();
        let snapshot = other.shard(number).snapshot().unwrap();
        let files = snapshot.write_files(dir.path(), &mut |_| {}).unwrap();
        let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
        self.replicas[number].built = None;
        match self.shard(number).install_files(snapshot.meta(), &files) {
            Ok(()) => self.again(number),
            // From before a slot's move here: as it is, it stays.
            Err(Error::Stopped { .. }) if !self.moves.is_empty() || !self.splits.is_empty() => {
                self.flush(number);
            }
            Err(fault) => panic!("{fault}"),
        }
    }

    /// Some items of a lane, from any point on.
    pub(crate) fn frame(&self, lane: LaneId, first_seq: u64, count: usize) -> Deliver {
        let from = usize::try_from(first_seq - 1).unwrap();
        let items = self.sent[&lane].iter().skip(from).take(count);
        Deliver {
            lane,
            first_seq,
            items: Items::new(items),
        }
    }

    pub(crate) fn deliver(&mut self, frame: Deliver) -> Reply {
        self.call(Command::Deliver(frame))
    }

    pub(crate) fn ack(&mut self, lane: LaneId, acked: u64) -> Reply {
        let acks = vec![(lane, acked)];
        self.call(Command::AckLanes(AckLanes { acks }))
    }

    /// What an honest relay does until nothing is left to do. It knows only what `unacked` says.
    pub(crate) fn drain(&mut self) {
        loop {
            let mut idle = true;
            for number in 0..self.replicas.len() {
                for OutboxItem { lane, seq, item } in self.shard(number).unacked() {
                    idle = false;
                    assert_eq!(&item, self.item(lane, seq), "the same bytes for ever");
                    let items = Items::new([&item]);
                    let reply = self.deliver(Deliver {
                        lane,
                        first_seq: seq,
                        items,
                    });
                    let Reply::Delivered { mark, corrupt, .. } = reply else {
                        panic!("{reply:?}");
                    };
                    assert_eq!(corrupt, None);
                    assert!(mark >= seq, "{lane}: {mark} after {seq}");
                    assert_eq!(self.ack(lane, mark), Reply::LanesAcked);
                }
            }
            if idle {
                return;
            }
        }
    }

    /// All rows of a user's mailbox, which are dense.
    pub(crate) fn mailbox(&self, user: UserId) -> Vec<Row> {
        let shard = self.shard(self.shard_of_user(user));
        let rows = shard.scan(user.mailbox(), Seq(1), usize::MAX, usize::MAX);
        let rows = rows.unwrap();
        for (seq, row) in (1..).zip(&rows) {
            assert_eq!(row.seq, Seq(seq));
        }
        assert_eq!(shard.head(user.mailbox()).unwrap(), Seq(rows.len() as u64));
        rows
    }

    pub(crate) fn bodies(&self, user: UserId) -> Vec<String> {
        let text = |row: Row| String::from_utf8(row.body.to_vec()).unwrap();
        self.mailbox(user).into_iter().map(text).collect()
    }

    pub(crate) fn hash(&self, number: usize) -> u128 {
        self.shard(number).state_hash_now().unwrap().unwrap().hash
    }

    fn id(&mut self) -> (Uuid, MessageId) {
        self.made += 1;
        let ms = START_MS + self.made;
        let id = u128::from(ms) << 80 | 7 << 76 | 2 << 62 | u128::from(self.made);
        (Uuid::from_u128(id), MessageId(ms << 16))
    }

    pub(crate) fn register_command(&mut self, handle: &str) -> Command {
        Command::RegisterUser(RegisterUser {
            request_id: self.id().0,
            handle: handle.to_owned(),
        })
    }

    /// A user whose own slot is in this shard; everything drained.
    pub(crate) fn user_in(&mut self, shard: usize) -> UserId {
        for number in 0.. {
            let command = self.register_command(&format!("user {} {number}", self.made));
            let Reply::UserRegistered { user } = self.call(command) else {
                panic!("the handle is new");
            };
            self.drain();
            if self.shard_of_user(user) == shard {
                return user;
            }
        }
        unreachable!("users are in all shards")
    }

    pub(crate) fn send_command(&mut self, sender: UserId, recipient: UserId, body: &str) -> Send {
        let (client_msg_id, message_id) = self.id();
        let (kind, body) = (MessageType::TEXT, Bytes::copy_from_slice(body.as_bytes()));
        Send {
            sender,
            recipient,
            client_msg_id,
            message_id,
            kind,
            flags: Flags::default(),
            content_crc: content_crc(client_msg_id, kind, &body),
            body,
            shown: MessageId::ZERO,
        }
    }

    /// Sends; gives the seq in the sender's mailbox.
    pub(crate) fn send(&mut self, sender: UserId, recipient: UserId, body: &str) -> Seq {
        let command = Command::Send(self.send_command(sender, recipient, body));
        match self.call(command) {
            Reply::Sent { seq, .. } => seq,
            other => panic!("{other:?}"),
        }
    }

    /// A message id above all before.
    pub(crate) fn message_id(&mut self) -> MessageId {
        self.id().1
    }

    pub(crate) fn create_command(&mut self, creator: UserId) -> Command {
        let (request_id, message_id) = self.id();
        Command::CreateGroup(CreateGroup {
            request_id,
            creator,
            name: "a group".to_owned(),
            message_id,
        })
    }

    pub(crate) fn join_command(&mut self, group: GroupId, user: UserId) -> Command {
        let (request_id, message_id) = self.id();
        Command::JoinGroup(JoinGroup {
            request_id,
            group,
            user,
            message_id,
        })
    }

    pub(crate) fn requeue_command(&mut self, slot: SlotId, seq: Seq) -> Command {
        let (request_id, message_id) = self.id();
        Command::RequeueDeadLetter(RequeueDeadLetter {
            request_id,
            slot,
            seq,
            message_id,
        })
    }

    pub(crate) fn drop_command(&mut self, slot: SlotId, seq: Seq) -> Command {
        let request_id = self.id().0;
        Command::DropDeadLetter(DropDeadLetter {
            request_id,
            slot,
            seq,
        })
    }

    /// All of them have these options from here on.
    pub(crate) fn set_options(&mut self, options: ClusterOptions) {
        let if_absent = false;
        let set = Command::SetClusterOptions(SetClusterOptions { options, if_absent });
        for number in 0..self.replicas.len() {
            self.apply(number, std::slice::from_ref(&set));
        }
    }

    pub(crate) fn leave_command(&mut self, group: GroupId, user: UserId) -> Command {
        let (request_id, message_id) = self.id();
        Command::LeaveGroup(LeaveGroup {
            request_id,
            group,
            user,
            message_id,
        })
    }
}

pub(crate) fn slots_of(shard: usize, shards: usize) -> Vec<u16> {
    let mine = |slot: &u16| usize::from(*slot) % shards == shard;
    (0..SLOT_COUNT).filter(mine).collect()
}

fn log_id(index: u64) -> LogId {
    LogId {
        term: 1,
        node: 1,
        index,
    }
}

pub(crate) fn lane(from: UserId, to: UserId) -> LaneId {
    LaneId::between(
        slot_of_owner(from.0, SLOT_COUNT),
        slot_of_owner(to.0, SLOT_COUNT),
    )
}

/// The slot that answers a command.
pub(crate) fn slot_of(command: &Command) -> SlotId {
    let owner = match command {
        Command::Send(call) => call.sender.0,
        Command::SendGroup(call) => call.group.0,
        Command::RegisterUser(call) => return slot_of_handle(&call.handle, SLOT_COUNT),
        Command::CreateGroup(call) => call.creator.0,
        Command::JoinGroup(call) => call.group.0,
        Command::LeaveGroup(call) => call.group.0,
        Command::AckCursor(call) => call.timeline.owner,
        Command::RequeueDeadLetter(call) => return call.slot,
        Command::DropDeadLetter(call) => return call.slot,
        Command::Deliver(call) => return call.lane.destination,
        Command::AckLanes(call) => return call.acks[0].0.source,
        other => panic!("not used here: {other:?}"),
    };
    slot_of_owner(owner, SLOT_COUNT)
}
