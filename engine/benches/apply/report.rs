//! The figures of both sides, in words and as one line of JSON. Keys are for ever.

use std::time::Duration;

use crate::{BATCH, Cost, Load, RowBytes};

/// A run of both sides.
pub(crate) struct Report {
    /// `"key":number`, of the run.
    head: Vec<Figure>,
    engine: Vec<Figure>,
    rocksdb: Vec<Figure>,
    /// The engine beside RocksDB.
    ratios: Vec<Figure>,
}

/// A key, its number, and places behind the point.
type Figure = (&'static str, f64, usize);

impl Report {
    pub(crate) fn new(load: &Load, rows: RowBytes, [ours, theirs]: [&Cost; 2]) -> Report {
        let messages = load.messages as f64;
        let head = vec![
            ("messages", messages, 0),
            ("users", load.users as f64, 0),
            ("body_bytes", load.body_bytes as f64, 0),
            ("entry_messages", BATCH as f64, 0),
            (
                "timeline_row_bytes_per_message",
                rows.timeline as f64 / messages,
                1,
            ),
            (
                "dedup_row_bytes_per_message",
                rows.dedup as f64 / messages,
                1,
            ),
        ];
        let over =
            |ours: Duration, theirs: Duration| ratio(ours.as_secs_f64(), theirs.as_secs_f64());
        let ratios = vec![
            // The greater the better: rates.
            (
                "apply_rate_ratio",
                over(theirs.apply.wall, ours.apply.wall),
                2,
            ),
            // The smaller the better: costs.
            ("apply_cpu_ratio", over(ours.apply.cpu, theirs.apply.cpu), 3),
            (
                "stages_cpu_ratio",
                over(ours.stages_cpu(), theirs.stages_cpu()),
                3,
            ),
            ("cpu_percent", 100.0 * over(ours.cpu, theirs.cpu), 1),
        ];
        Report {
            head,
            engine: figures(ours, messages, rows),
            rocksdb: figures(theirs, messages, rows),
            ratios,
        }
    }

    pub(crate) fn json(&self) -> String {
        let fields = |figures: &[Figure]| {
            let fields = figures
                .iter()
                .map(|(key, number, places)| format!("\"{key}\":{number:.places$}"));
            fields.collect::<Vec<_>>().join(",")
        };
        format!(
            "{{\"bench\":\"apply\",{},\"engine\":{{{}}},\"rocksdb\":{{{}}},{}}}",
            fields(&self.head),
            fields(&self.engine),
            fields(&self.rocksdb),
            fields(&self.ratios)
        )
    }

    pub(crate) fn words(&self) -> String {
        let mut lines = Vec::new();
        for (key, number, places) in &self.head {
            lines.push(format!("{key:<32} {number:>14.places$}"));
        }
        lines.push(format!("{:<32} {:>14} {:>14}", "", "engine", "rocksdb"));
        for ((key, ours, places), (_, theirs, _)) in self.engine.iter().zip(&self.rocksdb) {
            lines.push(format!("{key:<32} {ours:>14.places$} {theirs:>14.places$}"));
        }
        for (key, number, places) in &self.ratios {
            lines.push(format!("{key:<32} {number:>14.places$}"));
        }
        lines.join("\n")
    }
}

fn figures(cost: &Cost, messages: f64, rows: RowBytes) -> Vec<Figure> {
    let us = |time: Duration| time.as_secs_f64() * 1e6 / messages;
    let row_bytes = (rows.timeline + rows.dedup) as f64;
    let (written, stored) = (cost.written_bytes as f64, cost.stored_bytes as f64);
    vec![
        (
            "messages_per_s",
            ratio(messages, cost.wall.as_secs_f64()),
            0,
        ),
        (
            "applied_per_s",
            ratio(messages, cost.apply.wall.as_secs_f64()),
            0,
        ),
        ("cpu_us_per_message", us(cost.cpu), 3),
        ("making_cpu_us_per_message", us(cost.making.cpu), 3),
        ("apply_cpu_us_per_message", us(cost.apply.cpu), 3),
        ("flush_cpu_us_per_message", us(cost.flush_cpu), 3),
        ("compaction_cpu_us_per_message", us(cost.compaction_cpu), 3),
        ("stages_cpu_us_per_message", us(cost.stages_cpu()), 3),
        ("written_bytes_per_message", written / messages, 1),
        ("write_amplification", ratio(written, row_bytes), 3),
        ("stored_bytes_per_message", stored / messages, 1),
        ("stored_over_rows", ratio(stored, row_bytes), 3),
        (
            "stored_over_timeline_rows",
            ratio(stored, rows.timeline as f64),
            3,
        ),
    ]
}

impl Cost {
    /// Apply, flush and compaction: all that a message costs, but not the making of it.
    pub(crate) fn stages_cpu(&self) -> Duration {
        self.apply.cpu + self.flush_cpu + self.compaction_cpu
    }
}

/// 0 over nothing, since JSON has neither infinity nor NaN.
fn ratio(number: f64, over: f64) -> f64 {
    if over > 0.0 { number / over } else { 0.0 }
}
