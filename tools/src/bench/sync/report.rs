//! The figures of one run of syncs. Keys are for ever: later runs add some and keep these.

use serde::Serialize;

use crate::output::grouped;

/// One run. README.md says how each figure is measured.
#[derive(Debug, Clone, Serialize)]
pub(in crate::bench) struct Report {
    pub(in crate::bench) nodes: u64,
    pub(in crate::bench) shards: u64,
    pub(in crate::bench) users: u64,
    pub(in crate::bench) rows: u64,
    pub(in crate::bench) messages: u64,
    pub(in crate::bench) body_bytes: u64,
    pub(in crate::bench) cold: bool,
    /// Of files that were dropped from the page cache; `None` if the run is not cold.
    pub(in crate::bench) dropped_files: Option<u64>,
    pub(in crate::bench) dropped_bytes: Option<u64>,
    pub(in crate::bench) gateway: bool,
    /// WebSockets; `None` without a gateway.
    pub(in crate::bench) connections: Option<u64>,
    /// `closed` or `open`.
    #[serde(rename = "loop")]
    pub(in crate::bench) shape: &'static str,
    /// Syncs on the way at any time; `None` in an open loop.
    pub(in crate::bench) in_flight: Option<u64>,
    /// Syncs per second asked for; `None` in a closed loop.
    pub(in crate::bench) rate: Option<u64>,
    pub(in crate::bench) warmup_s: f64,
    pub(in crate::bench) seconds: f64,
    pub(in crate::bench) fs: String,
    pub(in crate::bench) syncs: u64,
    pub(in crate::bench) syncs_per_s: f64,
    pub(in crate::bench) rows_per_s: f64,
    pub(in crate::bench) pages_per_sync: f64,
    pub(in crate::bench) errors: u64,
    pub(in crate::bench) wrong: u64,
    pub(in crate::bench) p50_ms: f64,
    pub(in crate::bench) p95_ms: f64,
    pub(in crate::bench) p99_ms: f64,
    pub(in crate::bench) p999_ms: f64,
    pub(in crate::bench) store_cpu_us_per_sync: f64,
    pub(in crate::bench) gateway_cpu_us_per_sync: f64,
    pub(in crate::bench) generator_cpu_us_per_sync: f64,
    pub(in crate::bench) disk_read_bytes_per_sync: f64,
}

impl Report {
    /// Whether every sync was answered with the rows that it had to be answered with.
    pub(in crate::bench) fn is_good(&self) -> bool {
        (self.errors, self.wrong) == (0, 0)
    }

    /// The report in words.
    pub(in crate::bench) fn human(&self) -> String {
        let pressure = match (self.in_flight, self.rate) {
            (Some(in_flight), _) => format!("{in_flight} syncs in flight"),
            (None, Some(rate)) => format!("{} syncs/s asked for", grouped(rate)),
            (None, None) => "unknown pressure".to_owned(),
        };
        let way = match self.connections {
            Some(connections) => format!("through a gateway, {connections} connections"),
            None => "from the store, as a gateway asks it".to_owned(),
        };
        let warmth = match (self.dropped_files, self.dropped_bytes) {
            (Some(files), Some(bytes)) => format!(
                "cold: all nodes started anew, {} files ({} bytes) dropped from the page cache, each mailbox read once",
                grouped(files),
                grouped(bytes)
            ),
            _ => "hot: every mailbox was read before".to_owned(),
        };
        let lines = [
            format!(
                "{} node(s), {} shard(s), {} users with {} messages, {} loop, {pressure}, {}-byte bodies",
                self.nodes,
                self.shards,
                grouped(self.users),
                grouped(self.messages),
                self.shape,
                self.body_bytes
            ),
            format!("asked      {way}; {warmth}"),
            format!(
                "syncs      {}/s of {} rows, {:.1} pages each, in {:.1} s; {} errors, {} wrong",
                grouped(self.syncs_per_s as u64),
                grouped(self.rows),
                self.pages_per_sync,
                self.seconds,
                self.errors,
                self.wrong
            ),
            format!("rows       {}/s", grouped(self.rows_per_s as u64)),
            format!(
                "latency    p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                self.p50_ms, self.p95_ms, self.p99_ms, self.p999_ms
            ),
            format!(
                "cpu        store {:.1}, gateway {:.1}, generator {:.1} us/sync",
                self.store_cpu_us_per_sync,
                self.gateway_cpu_us_per_sync,
                self.generator_cpu_us_per_sync
            ),
            format!(
                "disk       {}, {:.0} bytes read/sync",
                self.fs, self.disk_read_bytes_per_sync
            ),
        ];
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            nodes: 1,
            shards: 1,
            users: 10_000,
            rows: 25,
            messages: 26,
            body_bytes: 100,
            cold: true,
            dropped_files: Some(12),
            dropped_bytes: Some(48_000_000),
            gateway: false,
            connections: None,
            shape: "closed",
            in_flight: Some(256),
            rate: None,
            warmup_s: 0.0,
            seconds: 1.5,
            fs: "ext4".to_owned(),
            syncs: 10_000,
            syncs_per_s: 41_000.5,
            rows_per_s: 1_025_012.5,
            pages_per_sync: 1.0,
            errors: 0,
            wrong: 0,
            p50_ms: 5.5,
            p95_ms: 8.0,
            p99_ms: 9.25,
            p999_ms: 20.0,
            store_cpu_us_per_sync: 22.0,
            gateway_cpu_us_per_sync: 0.0,
            generator_cpu_us_per_sync: 20.0,
            disk_read_bytes_per_sync: 4_096.0,
        }
    }

    #[test]
    fn an_error_or_a_wrong_page_is_not_good() {
        assert!(report().is_good());
        assert!(
            !Report {
                errors: 1,
                ..report()
            }
            .is_good()
        );
        assert!(
            !Report {
                wrong: 1,
                ..report()
            }
            .is_good()
        );
    }

    #[test]
    fn the_words_and_the_keys_name_every_figure() {
        let text = report().human();
        for part in [
            "41,000/s of 25 rows",
            "1,025,012/s",
            "12 files (48,000,000 bytes) dropped",
            "p99 9.25 ms",
            "store 22.0, gateway 0.0, generator 20.0",
            "4096 bytes read/sync",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let json = serde_json::to_value(report()).unwrap();
        let promised = "nodes shards users rows messages body_bytes cold dropped_files dropped_bytes gateway \
            connections loop in_flight rate warmup_s seconds fs syncs syncs_per_s rows_per_s pages_per_sync errors \
            wrong p50_ms p95_ms p99_ms p999_ms store_cpu_us_per_sync gateway_cpu_us_per_sync \
            generator_cpu_us_per_sync disk_read_bytes_per_sync";
        for key in promised.split_whitespace() {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
    }
}
