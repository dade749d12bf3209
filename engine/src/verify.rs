//! The scrub: every block of every file, and every row of a shard, against its checksum.

use bytes::Bytes;

use crate::base::rocks::KEYS_END;
use crate::cluster_map;
use crate::dead_letter;
use crate::decode::Malformed;
use crate::error::Error;
use crate::gateways;
use crate::id::{RangeId, SlotId};
use crate::key::{DedupKey, NodeKey, StateKey, StoredKey};
use crate::lanes;
use crate::range::Ranges;
use crate::row::StoredRow;
use crate::shard::Shard;

/// Faults that a report lists; the rest are counted.
const FAULTS_LISTED_MAX: usize = 1000;
/// Rows between two calls of the progress hook.
const PROGRESS_ROWS: u64 = 4096;

/// What a scrub found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Rows of this shard that were read.
    pub rows: u64,
    /// Message rows among them, each compared with its crc.
    pub messages: u64,
    /// What is wrong, by file and key: the first thousand.
    pub faults: Vec<Error>,
    /// How many faults there are.
    pub fault_count: u64,
}

impl VerifyReport {
    fn fault(&mut self, error: Error) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_LISTED_MAX {
            self.faults.push(error);
        }
    }
}

impl Shard {
    /// Reads every block of rows of the node's files and every row of this shard in them, and lists
    /// what fails its checksum or does not decode. Not read are the files' filters: they hold no rows,
    /// and one that fails its own checksum saves no look-up any more, but hides no row either.
    /// `progress` is told the rows read so far.
    ///
    /// # Errors
    /// The walk itself could not go on.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<VerifyReport, Error> {
        let mut report = VerifyReport::default();
        self.core.base.verify(&mut |fault| report.fault(fault))?;
        let (files, ranges) = {
            let state = self.state.read();
            (state.files.clone(), state.ranges.clone())
        };
        let mut cursor = files.cursor(&[], &KEYS_END);
        if let Err(fault) = cursor.seek(&[]) {
            report.fault(fault);
        }
        while let Some((key, value)) = cursor.row() {
            self.verify_row(&ranges, key, value, &mut report);
            if report.rows.is_multiple_of(PROGRESS_ROWS) {
                progress(report.rows);
            }
            if let Err(fault) = cursor.next() {
                // The block scrub has listed it; the rows behind it cannot be reached this way.
                report.fault(fault);
                break;
            }
        }
        progress(report.rows);
        Ok(report)
    }

    fn verify_row(&self, ranges: &Ranges, key: &[u8], value: &[u8], report: &mut VerifyReport) {
        let checked = match StoredKey::split(key) {
            Err(malformed) => Err(malformed),
            Ok(StoredKey::State {
                range: RangeId::NODE,
                suffix,
            }) => NodeKey::decode(suffix).map(|_| ()),
            Ok(StoredKey::State { range, suffix }) => match ranges.slot_of(range) {
                None => return,
                Some(slot) => {
                    report.rows += 1;
                    self.verify_state(slot, suffix, value, report)
                }
            },
            Ok(StoredKey::Dedup {
                hour,
                range,
                suffix,
            }) => {
                if ranges.slot_of(range).is_none() {
                    return;
                }
                report.rows += 1;
                verify_dedup(hour, suffix)
            }
        };
        if let Err(malformed) = checked {
            report.fault(Error::corrupt_row(key, malformed));
        }
    }

    fn verify_state(
        &self,
        slot: SlotId,
        suffix: &[u8],
        value: &[u8],
        report: &mut VerifyReport,
    ) -> Result<(), Malformed> {
        let key = StateKey::decode(suffix)?;
        if key.slot(self.core.options.slot_count) != slot {
            return Err(Malformed::Unknown {
                what: "slot of a row",
                number: u64::from(slot.0),
            });
        }
        let value = Bytes::copy_from_slice(value);
        if let StateKey::Message { timeline, seq } = key {
            report.messages += 1;
            StoredRow::decode(timeline, seq, &value)?;
        }
        cluster_map::check_row(&key, &value)?;
        dead_letter::check_row(&key, &value)?;
        gateways::check_row(&key, &value)?;
        lanes::check_row(&key, &value)
    }
}

fn verify_dedup(hour: u32, suffix: &[u8]) -> Result<(), Malformed> {
    if DedupKey::decode(suffix)?.hour() == hour {
        return Ok(());
    }
    Err(Malformed::Unknown {
        what: "hour of a dedup row",
        number: u64::from(hour),
    })
}
