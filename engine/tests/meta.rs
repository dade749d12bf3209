//! Random changes of the map of the cluster, with flushes, reopenings and crashes at random points, against a model
//! that keeps the map as it is read.

// Helpers of tests are not seen as tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use mailbox_engine::{
    ApplyEntry, ApplyPayload, ClusterMap, ClusterOptions, Command, EngineOptions, EntryBuilder,
    IngestCrash, LogId, LogReport, MapNode, MapReplica, MapShard, MemoryDisk, MetaCommand,
    MoveStage, PutNode, Refusal, ReplicaRole, Reply, SetClusterOptions, Shard, ShardId, SlotId,
    SlotMove, Standing, StateHash, Store,
};
use proptest::prelude::*;

#[path = "meta/gateways.rs"]
mod gateways;
#[path = "meta/merges.rs"]
mod merges;
#[path = "meta/moves.rs"]
mod moves;
#[path = "meta/splits.rs"]
mod splits;

use gateways::{Gateways, PERIOD_MS};
use merges::Merges;
use moves::{begin_move, end_move, step_move};
use splits::{Splits, begin_split, end_split, whole};

const SLOT_COUNT: u16 = 8;
const TIME_MS: u64 = 1_800_000_000_000;

/// One thing that happens to the meta shard.
#[derive(Clone, Debug)]
enum Step {
    Entry(Vec<MetaCommand>),
    Flush,
    Reopen,
    Crash { after: bool },
}

fn row() -> impl Strategy<Value = MapNode> {
    let standing = prop_oneof![
        Just(Standing::Member),
        Just(Standing::Draining),
        Just(Standing::Removed)
    ];
    (0..3_u8, 0..2_u8, standing, 0..3_u64).prop_map(|(address, zone, standing, incarnation)| {
        // Now and then no address, which no node has.
        let address = if address == 0 {
            String::new()
        } else {
            format!("h:{address}")
        };
        MapNode {
            address,
            region: String::new(),
            zone: format!("zone {zone}"),
            weight: 100,
            standing,
            incarnation,
        }
    })
}

fn replicas() -> impl Strategy<Value = Vec<MapReplica>> {
    let role = prop_oneof![
        3 => Just(ReplicaRole::Voter),
        1 => Just(ReplicaRole::Learner { replaces: None }),
        1 => (1..6_u64).prop_map(|node| ReplicaRole::Learner { replaces: Some(node) }),
    ];
    let replica = (1..7_u64, role).prop_map(|(node, role)| MapReplica { node, role });
    prop::collection::vec(replica, 0..4)
}

fn command() -> impl Strategy<Value = MetaCommand> {
    let report =
        (0..6_u64, 0..3_u64, 0..6_u64).prop_map(|(node, incarnation, log_batch)| LogReport {
            node,
            incarnation,
            log_batch,
        });
    let standing = prop_oneof![
        Just(Standing::Member),
        Just(Standing::Draining),
        Just(Standing::Removed)
    ];
    prop_oneof![
        1 => any::<bool>().prop_map(|good| MetaCommand::Begin(first(good))),
        6 => (0..6_u64, row(), 0..6_u64).prop_map(|(node, row, log_batch)| {
            MetaCommand::PutNode(PutNode { node, row, log_batch })
        }),
        2 => prop::collection::vec(report, 0..4).prop_map(MetaCommand::ReportLogs),
        3 => (0..6_u64, standing)
            .prop_map(|(node, standing)| MetaCommand::SetStanding { node, standing }),
        2 => (0..6_u64).prop_map(|node| MetaCommand::RemoveNode { node }),
        5 => (0..4_u32, 0..5_u64, replicas()).prop_map(|(shard, expect_epoch, replicas)| {
            MetaCommand::SetReplicas { shard: ShardId(shard), expect_epoch, replicas }
        }),
        4 => (0..9_u16, 0..4_u32).prop_map(|(slot, to)| MetaCommand::BeginMove {
            slot: SlotId(slot),
            to: ShardId(to),
        }),
        8 => (0..9_u16, 2..9_u64, 1..=4_u8).prop_map(|(slot, epoch, stage)| {
            let stage = MoveStage::from_u8(stage).unwrap();
            MetaCommand::StepMove { slot: SlotId(slot), epoch, stage }
        }),
        4 => (0..9_u16, 2..9_u64)
            .prop_map(|(slot, epoch)| MetaCommand::EndMove { slot: SlotId(slot), epoch }),
        5 => (0..5_u32, 0..9_u16, 0..3_u16).prop_map(|(shard, first, count)| {
            let slots = (first..first + count).map(SlotId).collect();
            MetaCommand::BeginSplit { shard: ShardId(shard), slots }
        }),
        5 => (1..5_u32, 2..9_u64)
            .prop_map(|(shard, epoch)| MetaCommand::EndSplit { shard: ShardId(shard), epoch }),
        9 => merges::command(),
        9 => gateways::command(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(command(), 1..6).prop_map(Step::Entry),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => any::<bool>().prop_map(|after| Step::Crash { after }),
    ]
}

/// Steps of which an early one makes the map.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    (prop::collection::vec(step(), 1..40), 0..3_usize).prop_map(|(mut steps, at)| {
        let begin = Step::Entry(vec![MetaCommand::Begin(first(true))]);
        steps.insert(at.min(steps.len()), begin);
        steps
    })
}

/// A cluster of three nodes and two shards.
fn first(good: bool) -> ClusterMap {
    let node = |number: u64| MapNode {
        address: format!("first:{number}"),
        region: String::new(),
        zone: String::new(),
        weight: 100,
        standing: Standing::Member,
        incarnation: 0,
    };
    let voter = |node| MapReplica {
        node,
        role: ReplicaRole::Voter,
    };
    let shard = |slots: &[(u16, u16)]| MapShard {
        epoch: 1,
        slots: slots
            .iter()
            .map(|(first, last)| (SlotId(*first), SlotId(*last)))
            .collect(),
        replicas: (1..=3).map(voter).collect(),
    };
    let last = if good { SLOT_COUNT - 1 } else { SLOT_COUNT };
    ClusterMap {
        epoch: 1,
        slot_count: SLOT_COUNT,
        shard_count: 2,
        nodes: (1..=3).map(|number| (number, node(number))).collect(),
        shards: BTreeMap::from([
            (ShardId::META, shard(&[])),
            (ShardId(1), shard(&[(0, 3)])),
            (ShardId(2), shard(&[(4, last)])),
        ]),
    }
}

/// What the map is to be.
#[derive(Clone, Default)]
struct Model {
    map: Option<ClusterMap>,
    logs: BTreeMap<u64, u64>,
    moves: BTreeMap<SlotId, SlotMove>,
    splits: Splits,
    merges: Merges,
    gateways: Gateways,
    /// Of the entry.
    time_ms: u64,
}

impl Model {
    fn apply(&mut self, command: &MetaCommand) -> Reply {
        // Of gateways the map knows nothing.
        let judged = match &self.map {
            Some(_) => gateways::judge(&mut self.gateways, command, self.time_ms),
            None => Ok(()),
        };
        judged
            .and_then(|()| self.judge(command))
            .unwrap_or_else(Reply::Refused)
    }

    fn judge(&mut self, command: &MetaCommand) -> Result<Reply, Refusal> {
        if let (MetaCommand::Begin(first), None) = (command, &self.map) {
            first
                .check()
                .map_err(|fault| Refusal::InvalidMap { fault })?;
            self.map = Some(first.clone());
            return Ok(Reply::Map { epoch: 1 });
        }
        let logs = &mut self.logs;
        let map = self.map.as_mut().ok_or(Refusal::NoMap)?;
        let before = map.clone();
        let mut begins = false;
        match command {
            MetaCommand::Begin(_) => {}
            MetaCommand::PutNode(call) => put_node(map, logs, call)?,
            MetaCommand::ReportLogs(reports) => {
                for report in reports {
                    let row = map.nodes.get(&report.node);
                    if row.is_some_and(|row| row.incarnation == report.incarnation) {
                        let log = logs.entry(report.node).or_default();
                        *log = report.log_batch.max(*log);
                    }
                }
            }
            MetaCommand::SetStanding { node, standing } => set_standing(map, *node, *standing)?,
            MetaCommand::RemoveNode { node } => {
                if standing_of(map, *node)? != Standing::Removed {
                    not_in_use(map, *node)?;
                }
                map.nodes.get_mut(node).unwrap().standing = Standing::Removed;
            }
            MetaCommand::SetReplicas {
                shard,
                expect_epoch,
                replicas,
            } => set_replicas(map, &self.splits, (*shard, *expect_epoch), replicas)?,
            MetaCommand::BeginMove { slot, to } => {
                let rows = (&self.splits, &self.merges);
                begins = begin_move(map, &mut self.moves, rows, (*slot, *to))?;
            }
            MetaCommand::StepMove { slot, epoch, stage } => {
                step_move(map, &mut self.moves, (*slot, *epoch), *stage)?;
            }
            MetaCommand::BeginSplit { shard, slots } => {
                let rows = (&mut self.splits, &self.merges);
                begins = begin_split(map, &self.moves, rows, *shard, slots)?;
            }
            MetaCommand::EndSplit { shard, epoch } => {
                end_split(map, &mut self.splits, *shard, *epoch);
            }
            MetaCommand::BeginMerge { .. }
            | MetaCommand::EndMerge { .. }
            | MetaCommand::CancelMerge { .. } => {
                let rows = (&self.moves, &self.splits);
                begins = merges::judge(map, rows, &mut self.merges, command)?;
            }
            MetaCommand::PutGateway(_)
            | MetaCommand::ForgetGateway { .. }
            | MetaCommand::SweepGateways { .. } => {}
            MetaCommand::EndMove { slot, epoch } => end_move(&mut self.moves, *slot, *epoch)?,
        }
        // The epoch of what begins is its own.
        if begins || *map != before {
            map.epoch += 1;
        }
        Ok(Reply::Map { epoch: map.epoch })
    }
}

fn set_standing(map: &mut ClusterMap, node: u64, standing: Standing) -> Result<(), Refusal> {
    let is_removed = standing_of(map, node)? == Standing::Removed;
    let removes = standing == Standing::Removed;
    if is_removed && !removes {
        return Err(Refusal::NodeRemoved { node });
    }
    if !is_removed && removes {
        not_in_use(map, node)?;
    }
    map.nodes.get_mut(&node).unwrap().standing = standing;
    Ok(())
}

fn standing_of(map: &ClusterMap, node: u64) -> Result<Standing, Refusal> {
    let row = map.nodes.get(&node);
    row.map(|row| row.standing)
        .ok_or(Refusal::UnknownNode { node })
}

fn not_in_use(map: &ClusterMap, node: u64) -> Result<(), Refusal> {
    match map.shards_on(node).next() {
        Some(shard) => Err(Refusal::NodeInUse { node, shard }),
        None => Ok(()),
    }
}

fn put_node(
    map: &mut ClusterMap,
    logs: &mut BTreeMap<u64, u64>,
    call: &PutNode,
) -> Result<(), Refusal> {
    let node = call.node;
    let fault = mailbox_engine::MapFault::Node;
    if call.row.address.is_empty() || node == 0 || call.row.incarnation == 0 {
        return Err(Refusal::InvalidMap { fault });
    }
    let mut row = call.row.clone();
    row.standing = Standing::Member;
    if let Some(known) = map.nodes.get(&node) {
        if known.standing == Standing::Removed {
            return Err(Refusal::NodeRemoved { node });
        }
        if known.incarnation != 0 && known.incarnation != row.incarnation {
            return Err(Refusal::NodeTaken { node });
        }
        row.standing = known.standing;
    }
    let recorded = logs.get(&node).copied().unwrap_or(0);
    let log_batch = call.log_batch;
    if log_batch < recorded {
        return Err(Refusal::StaleDisk {
            node,
            log_batch,
            recorded,
        });
    }
    logs.insert(node, log_batch);
    map.nodes.insert(node, row);
    Ok(())
}

fn set_replicas(
    map: &mut ClusterMap,
    splits: &Splits,
    (shard, expect_epoch): (ShardId, u64),
    replicas: &[MapReplica],
) -> Result<(), Refusal> {
    let row = map.shards.get(&shard).cloned();
    let mut row = row.ok_or(Refusal::UnknownShard { shard })?;
    if row.replicas == replicas {
        return Ok(());
    }
    whole(splits, shard)?;
    if row.epoch != expect_epoch {
        let (expected, found) = (expect_epoch, row.epoch);
        return Err(Refusal::StaleEpoch {
            shard,
            expected,
            found,
        });
    }
    let count = |node| replicas.iter().filter(|one| one.node == node).count();
    let voters = replicas.iter().filter(|one| one.role == ReplicaRole::Voter);
    if voters.count() == 0 || replicas.iter().any(|one| count(one.node) > 1) {
        let fault = mailbox_engine::MapFault::Replicas;
        return Err(Refusal::InvalidMap { fault });
    }
    for replica in replicas {
        let node = replica.node;
        if standing_of(map, node)? == Standing::Removed {
            return Err(Refusal::NodeRemoved { node });
        }
    }
    row.replicas = replicas.to_vec();
    row.epoch += 1;
    map.shards.insert(shard, row);
    Ok(())
}

/// The meta shard's replica and its log.
struct Replica {
    disk: MemoryDisk,
    store: Option<Store>,
    log: Vec<ApplyEntry>,
    replies: Vec<Vec<Reply>>,
}

impl Replica {
    fn new() -> Replica {
        let disk = MemoryDisk::new();
        let store = open(&disk);
        store.create_shard(ShardId::META, 0..=0).unwrap();
        Replica {
            disk,
            store: Some(store),
            log: Vec::new(),
            replies: Vec::new(),
        }
    }

    fn shard(&self) -> Arc<Shard> {
        self.store.as_ref().unwrap().shard(ShardId::META).unwrap()
    }

    fn apply(&mut self, commands: &[Command]) -> Vec<Reply> {
        let index = self.log.len() as u64 + 1;
        let log_id = LogId {
            term: 1,
            node: 1,
            index,
        };
        let mut entry = EntryBuilder::new(self.next_time_ms());
        for command in commands {
            entry.push(command);
        }
        let payload = ApplyPayload::Commands(entry.finish());
        let entry = ApplyEntry { log_id, payload };
        let applied = self.shard().apply(std::slice::from_ref(&entry)).unwrap();
        let [replies] = applied.replies.try_into().unwrap();
        self.log.push(entry);
        self.replies.push(replies.clone());
        replies
    }

    /// Of the next entry.
    fn next_time_ms(&self) -> u64 {
        TIME_MS + (self.log.len() as u64 + 1) * PERIOD_MS
    }

    fn flush(&self) {
        let shard = self.shard();
        while let Some(frozen) = shard.freeze() {
            shard.ingest(shard.build(&frozen).unwrap()).unwrap();
        }
    }

    fn reopen(&mut self) {
        self.store = None;
        self.disk.crash();
        self.store = Some(open(&self.disk));
        let shard = self.shard();
        let applied = shard.applied().log_id.map_or(0, |log_id| log_id.index);
        let from = usize::try_from(applied).unwrap();
        for (entry, replies) in self.log[from..].iter().zip(&self.replies[from..]) {
            let again = shard.apply(std::slice::from_ref(entry)).unwrap();
            assert_eq!(again.replies, std::slice::from_ref(replies));
        }
    }

    fn crash(&mut self, after: bool) {
        let shard = self.shard();
        if let Some(frozen) = shard.freeze() {
            let built = shard.build(&frozen).unwrap();
            self.disk.crash_next_ingest(if after {
                IngestCrash::After
            } else {
                IngestCrash::Before
            });
            assert!(shard.ingest(built).is_err());
        }
        drop(shard);
        self.reopen();
    }

    /// Of all rows, with whatever was flushed before.
    fn hash(&self) -> StateHash {
        self.flush();
        self.shard().state_hash_now().unwrap().unwrap()
    }
}

fn open(disk: &MemoryDisk) -> Store {
    let options = EngineOptions {
        slot_count: SLOT_COUNT,
        ..EngineOptions::default()
    };
    Store::open_in_memory(disk, options).unwrap()
}

/// What a replica knows against a node is what the meta shard would refuse it for.
fn check_what_is_known(shard: &Shard, model: &Model, calls: &[MetaCommand]) {
    for call in calls {
        let MetaCommand::PutNode(put) = call else {
            continue;
        };
        let (node, incarnation) = (put.node, put.row.incarnation);
        let known = shard.refusal_of_node(node, incarnation, put.log_batch);
        let known = known.unwrap();
        match model.clone().apply(call) {
            Reply::Refused(
                refusal @ (Refusal::NodeRemoved { .. }
                | Refusal::NodeTaken { .. }
                | Refusal::StaleDisk { .. }),
            ) => assert_eq!(known, Some(refusal)),
            // Refused for what it says of itself.
            Reply::Refused(_) => {}
            _ => assert_eq!(known, None),
        }
    }
}

fn run(steps: &[Step]) -> (Replica, Model) {
    let (mut replica, mut model) = (Replica::new(), Model::default());
    for step in steps {
        match step {
            Step::Entry(calls) => {
                model.time_ms = replica.next_time_ms();
                let expected: Vec<Reply> = calls.iter().map(|call| model.apply(call)).collect();
                let commands: Vec<Command> = calls.iter().cloned().map(Command::Meta).collect();
                assert_eq!(replica.apply(&commands), expected, "{calls:#?}");
            }
            Step::Flush => replica.flush(),
            Step::Reopen => replica.reopen(),
            Step::Crash { after } => replica.crash(*after),
        }
        let shard = replica.shard();
        if let Step::Entry(calls) = step {
            check_what_is_known(&shard, &model, calls);
        }
        assert_eq!(shard.cluster_map().unwrap(), model.map);
        let epoch = model.map.as_ref().map_or(0, |map| map.epoch);
        assert_eq!(shard.map_epoch().unwrap(), epoch);
        let moves: Vec<_> = model
            .moves
            .iter()
            .map(|(slot, row)| (*slot, *row))
            .collect();
        assert_eq!(shard.slot_moves().unwrap(), moves);
        let gateways: Vec<_> = model.gateways.clone().into_iter().collect();
        assert_eq!(shard.gateways().unwrap(), gateways);
        let splits = model.splits.clone().into_iter().collect::<Vec<_>>();
        assert_eq!(shard.shard_splits().unwrap(), splits);
        let merges = model.merges.clone().into_iter().collect::<Vec<_>>();
        assert_eq!(shard.shard_merges().unwrap(), merges);
    }
    (replica, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_map_is_what_the_model_says(steps in steps()) {
        let (replica, model) = run(&steps);
        // What makes a map is a map.
        if let Some(map) = model.map {
            prop_assert_eq!(map.check(), Ok(()));
        }
        replica.flush();
        prop_assert_eq!(replica.shard().verify(&mut |_| {}).unwrap().fault_count, 0);
    }

    #[test]
    fn rows_do_not_depend_on_flushes_and_crashes(steps in steps()) {
        let (replica, _) = run(&steps);
        let entries: Vec<Step> = steps
            .into_iter()
            .filter(|step| matches!(step, Step::Entry(_)))
            .collect();
        let (other, _) = run(&entries);
        prop_assert_eq!(replica.hash(), other.hash());
    }

    #[test]
    fn every_repeat_changes_nothing(steps in steps()) {
        let (mut replica, mut model) = (Replica::new(), Model::default());
        for step in &steps {
            let Step::Entry(calls) = step else { continue };
            for call in calls {
                model.time_ms = replica.next_time_ms();
                let first = model.apply(call);
                let command = Command::Meta(call.clone());
                prop_assert_eq!(&replica.apply(std::slice::from_ref(&command))[..], std::slice::from_ref(&first));
                let before = replica.shard().cluster_map().unwrap();
                model.time_ms = replica.next_time_ms();
                prop_assert_eq!(&model.apply(call), &first);
                let again = replica.apply(std::slice::from_ref(&command));
                prop_assert_eq!(&again[..], &[first]);
                prop_assert_eq!(replica.shard().cluster_map().unwrap(), before);
            }
        }
    }
}

#[test]
fn a_random_run_meets_every_reply() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..200 {
        let steps = prop::strategy::Strategy::new_tree(&steps(), &mut runner).unwrap();
        let (replica, _) = run(&prop::strategy::ValueTree::current(&steps));
        for reply in replica.replies.iter().flatten() {
            let name = match reply {
                Reply::Refused(refusal) => format!("{refusal:?}"),
                other => format!("{other:?}"),
            };
            let name = name.split([' ', '(']).next().unwrap_or_default();
            *seen.entry(name.to_owned()).or_default() += 1;
        }
    }
    for name in "Map NoMap InvalidMap NodeTaken NodeRemoved StaleDisk UnknownNode NodeInUse \
                 UnknownShard StaleEpoch SlotMoves NoSuchMove WrongShard ShardSplits SplitSize InvalidGateway \
                 GatewayTaken ShardMerges MergeIntoItself ShardHasSlots"
        .split_whitespace()
    {
        assert!(seen.contains_key(name), "{name} never came: {seen:?}");
    }
}

#[test]
fn the_meta_shard_takes_nothing_else_and_no_other_shard_takes_its_commands() {
    let set = Command::SetClusterOptions(SetClusterOptions {
        options: ClusterOptions::default(),
        if_absent: true,
    });
    let register = Command::RegisterUser(mailbox_engine::RegisterUser {
        request_id: uuid::Uuid::from_u128(u128::from(TIME_MS) << 80 | 7 << 76 | 2 << 62 | 1),
        handle: "alice".to_owned(),
    });
    let acks = Command::AckLanes(mailbox_engine::AckLanes { acks: Vec::new() });
    let begin = Command::Meta(MetaCommand::Begin(first(true)));
    let slot = SlotId::META;
    let wrong = Reply::Refused(Refusal::WrongShard { slot });
    let mut replica = Replica::new();
    let replies = replica.apply(&[set.clone(), register, acks, begin.clone(), Command::Cut]);
    assert!(matches!(replies[0], Reply::ClusterOptions { .. }));
    assert_eq!(replies[1..3], [wrong.clone(), wrong.clone()]);
    assert_eq!(replies[3], Reply::Map { epoch: 1 });
    assert_eq!(replies[4], Reply::Cut { index: 1 });

    let store = replica.store.as_ref().unwrap();
    let other = store.create_shard(ShardId(1), 0..=7).unwrap();
    let mut entry = EntryBuilder::new(TIME_MS);
    entry.push(&set);
    entry.push(&begin);
    let log_id = LogId {
        term: 1,
        node: 1,
        index: 1,
    };
    let payload = ApplyPayload::Commands(entry.finish());
    let applied = other.apply(&[ApplyEntry { log_id, payload }]).unwrap();
    assert_eq!(applied.replies[0][1], wrong);
    assert_eq!(other.cluster_map().unwrap(), None);
    assert_eq!(other.map_epoch().unwrap(), 0);
}
