//! Random changes, with stops and crashes in between, against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::log::life::{Life, Stage};

#[derive(Debug, Clone)]
enum Change {
    Append {
        count: u8,
        len: u16,
    },
    /// Keeps this share of the entries, in 256ths, and appends under a new term.
    Truncate {
        keep: u8,
    },
    /// Purges this share of the entries.
    Purge {
        share: u8,
    },
    /// A snapshot takes the place of everything.
    PurgeBeyond {
        by: u8,
    },
    Vote,
    /// The replica leaves, and another one comes.
    Wipe,
    Stop,
    Crash,
}

fn changes() -> impl Strategy<Value = Vec<(bool, Change)>> {
    let change = prop_oneof![
        6 => (1..20u8, 0..3000u16).prop_map(|(count, len)| Change::Append { count, len }),
        2 => any::<u8>().prop_map(|keep| Change::Truncate { keep }),
        2 => any::<u8>().prop_map(|share| Change::Purge { share }),
        1 => any::<u8>().prop_map(|by| Change::PurgeBeyond { by }),
        1 => Just(Change::Vote),
        1 => Just(Change::Wipe),
        1 => Just(Change::Stop),
        1 => Just(Change::Crash),
    ];
    prop::collection::vec((any::<bool>(), change), 1..40)
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, (u64, usize)>,
    purged: Option<LogId>,
    term: u64,
    vote: Option<Vote>,
    life: Option<Life>,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value();
        last.map(|(index, (term, _))| log_id(*term, *index))
            .or(self.purged)
    }

    /// The id at a share of the entries, or what lies before them.
    fn at(&self, share: u8) -> Option<LogId> {
        let nth = self.entries.len() * usize::from(share) / 256;
        let before = nth
            .checked_sub(1)
            .and_then(|nth| self.entries.iter().nth(nth));
        before
            .map(|(index, (term, _))| log_id(*term, *index))
            .or(self.purged)
    }

    async fn change(&mut self, log: &mut ShardLog, change: &Change) {
        match change {
            Change::Append { count, len } => {
                let first = self.last().map_or(1, |last| last.index + 1);
                let indexes = first..first + u64::from(*count);
                let (term, len) = (self.term, usize::from(*len));
                append(log, indexes.clone().map(|i| entry(term, i, len))).await;
                self.entries.extend(indexes.map(|i| (i, (term, len))));
            }
            Change::Truncate { keep } => {
                let last = self.at(*keep);
                log.truncate_after(last).await.unwrap();
                let from = last.map_or(0, |last| last.index + 1);
                self.entries.split_off(&from);
                self.term += 1;
            }
            Change::Purge { share } => {
                if let Some(upto) = self.at(*share) {
                    self.purge(log, upto).await;
                }
            }
            Change::PurgeBeyond { by } => {
                let last = self.last().map_or(0, |last| last.index);
                self.purge(log, log_id(self.term, last + u64::from(*by) + 1))
                    .await;
            }
            Change::Vote => {
                self.term += 1;
                self.vote = Some(vote(self.term, 1));
                log.save_vote(&vote(self.term, 1)).await.unwrap();
            }
            Change::Wipe | Change::Stop | Change::Crash => {}
        }
    }

    fn wipe(&mut self) {
        let former = self.last().max(self.life.and_then(|life| life.former));
        self.life = Some(Life {
            stage: Stage::Gone,
            former,
        });
        self.entries.clear();
        self.purged = None;
    }

    async fn purge(&mut self, log: &mut ShardLog, upto: LogId) {
        log.purge(upto).await.unwrap();
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = self.purged.max(Some(upto));
    }

    async fn check(&self, log: &mut ShardLog) {
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, self.purged);
        assert_eq!(state.last_log_id, self.last());
        assert_eq!(log.read_vote().await.unwrap(), self.vote);
        assert_eq!(log.life(), self.life);
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries.len(), self.entries.len());
        for (found, (index, (term, len))) in entries.into_iter().zip(&self.entries) {
            assert_eq!(found.log_id, log_id(*term, *index));
            assert_eq!(found.payload, entry(*term, *index, *len).payload);
        }
    }
}

async fn run(changes: Vec<(bool, Change)>) {
    let options = LogOptions {
        cache_bytes: 8 << 10,
        ..small()
    };
    let reopen = |dir: &Path| SharedLog::open(dir, options.clone()).unwrap();
    let mut dir: TempDir = tempfile::tempdir().unwrap();
    let mut log = reopen(dir.path());
    let mut models = [Model::default(), Model::default()];
    for (second, change) in changes {
        let ids = [ShardId(3), ShardId(300)];
        match change {
            Change::Stop => {
                log.close().unwrap();
                log = reopen(dir.path());
            }
            Change::Crash => {
                log.shard_log(ids[0]).unwrap().drained().await.unwrap();
                let crashed = tempfile::tempdir().unwrap();
                copy(dir.path(), crashed.path());
                log = reopen(crashed.path());
                dir = crashed;
            }
            Change::Wipe => {
                let at = usize::from(second);
                let mut former = log.shard_log(ids[at]).unwrap();
                log.wipe(ids[at]).await.unwrap();
                models[at].wipe();
                assert!(former.save_vote(&vote(u64::MAX, 1)).await.is_err());
            }
            Change::Append { .. }
            | Change::Truncate { .. }
            | Change::Purge { .. }
            | Change::PurgeBeyond { .. }
            | Change::Vote => {
                let at = usize::from(second);
                let mut shard = log.shard_log(ids[at]).unwrap();
                models[at].change(&mut shard, &change).await;
            }
        }
        for (model, id) in models.iter().zip(ids) {
            model.check(&mut log.shard_log(id).unwrap()).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_a_plain_map_across_stops_and_crashes(changes in changes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(changes));
    }
}
