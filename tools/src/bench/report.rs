//! The figures of one benchmark run. Keys are for ever: later benches add some and keep these.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::stages::StageFigures;
use crate::output::grouped;

/// One run. README.md says how each figure is measured. `None`: not measurable in this run (a
/// cluster that the bench did not spawn).
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) nodes: u64,
    /// Of the cluster, spawned or not.
    pub(super) shards: u64,
    pub(super) users: u64,
    /// Sends on the way at any time; `None` in an open loop.
    pub(super) in_flight: Option<u64>,
    /// Sends per second asked for; `None` in a closed loop.
    pub(super) rate: Option<u64>,
    pub(super) body_bytes: u64,
    /// `closed` or `open`.
    #[serde(rename = "loop")]
    pub(super) shape: &'static str,
    pub(super) warmup_s: f64,
    pub(super) fs: Option<String>,
    pub(super) fsync: bool,
    pub(super) sends_per_s: f64,
    pub(super) errors: u64,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) server_cpu_us_per_send: Option<f64>,
    pub(super) client_cpu_us_per_send: f64,
    pub(super) fsyncs_per_s: Option<f64>,
    pub(super) disk_fdatasync_per_s: Option<f64>,
    pub(super) bytes_per_send: Option<f64>,
    pub(super) stored_bytes_per_send: Option<f64>,
    /// Of the sends to the sampled recipients; `None` when nobody was asked for.
    pub(super) undelivered: Option<u64>,
    pub(super) delivery_p50_ms: Option<f64>,
    pub(super) delivery_p99_ms: Option<f64>,
    /// `None` unless a part of the load is syncs.
    pub(super) syncs_per_s: Option<f64>,
    pub(super) sync_p50_ms: Option<f64>,
    pub(super) sync_p99_ms: Option<f64>,
    /// By stage.
    #[serde(flatten)]
    pub(super) stages: StageFigures,
}

impl Report {
    /// The report in words.
    pub(super) fn human(&self) -> String {
        let or_unknown = |figure: Option<f64>, unit: &str| match figure {
            Some(figure) => format!("{figure:.1} {unit}"),
            None => "not measured (the nodes were not spawned here)".to_owned(),
        };
        let pressure = match (self.in_flight, self.rate) {
            (Some(in_flight), _) => format!("{in_flight} sends in flight"),
            (None, Some(rate)) => format!("{} sends/s asked for", grouped(rate)),
            (None, None) => "unknown pressure".to_owned(),
        };
        let mut lines = vec![
            format!(
                "{} node(s), {} shard(s), {} users, {} loop, {pressure}, {}-byte bodies",
                self.nodes,
                self.shards,
                grouped(self.users),
                self.shape,
                self.body_bytes
            ),
            format!(
                "sends      {:.0}/s, {} errors",
                self.sends_per_s, self.errors
            ),
            format!(
                "latency    p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                self.p50_ms, self.p95_ms, self.p99_ms, self.p999_ms
            ),
            format!(
                "server cpu {}",
                or_unknown(self.server_cpu_us_per_send, "us/send")
            ),
            format!("client cpu {:.1} us/send", self.client_cpu_us_per_send),
            format!(
                "fsyncs     {}",
                or_unknown(self.fsyncs_per_s, "/s, all nodes")
            ),
            format!(
                "disk       {}, {}",
                self.fs.as_deref().unwrap_or("unknown file system"),
                or_unknown(self.disk_fdatasync_per_s, "fdatasync/s")
            ),
            format!(
                "written    {}",
                or_unknown(self.bytes_per_send, "bytes/send, all nodes")
            ),
            format!(
                "stored     {}",
                or_unknown(self.stored_bytes_per_send, "bytes/send, all nodes")
            ),
        ];
        lines.extend(self.stages.human());
        lines.extend(self.beside());
        lines.join("\n")
    }

    /// What only some loads have: deliveries that are waited for, and syncs.
    fn beside(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let (Some(p50), Some(p99), Some(undelivered)) =
            (self.delivery_p50_ms, self.delivery_p99_ms, self.undelivered)
        {
            lines.push(format!(
                "delivery   p50 {p50:.2} ms, p99 {p99:.2} ms, {undelivered} undelivered"
            ));
        }
        if let (Some(syncs), Some(p50), Some(p99)) =
            (self.syncs_per_s, self.sync_p50_ms, self.sync_p99_ms)
        {
            lines.push(format!(
                "syncs      {syncs:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms"
            ));
        }
        lines
    }
}

/// A percentile of latencies kept in microseconds, in milliseconds.
pub(super) fn percentile_ms(latencies_us: &Histogram<u64>, percentile: f64) -> f64 {
    round(
        latencies_us.value_at_percentile(percentile) as f64 / 1000.0,
        3,
    )
}

/// `total / sends`; 0 without sends, since JSON has no NaN.
pub(super) fn per_send(total: u64, sends: u64) -> f64 {
    if sends == 0 {
        0.0
    } else {
        round(total as f64 / sends as f64, 2)
    }
}

/// Rounded for print: no figure here is exact to more digits.
pub(super) fn round(figure: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (figure * scale).round() / scale
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn report() -> Report {
        Report {
            nodes: 3,
            shards: 16,
            users: 100_000,
            in_flight: Some(256),
            rate: None,
            body_bytes: 100,
            shape: "closed",
            warmup_s: 3.0,
            fs: Some("ext4".to_owned()),
            fsync: true,
            sends_per_s: 9_000.4,
            errors: 0,
            p50_ms: 20.0,
            p95_ms: 40.0,
            p99_ms: 60.5,
            p999_ms: 90.0,
            server_cpu_us_per_send: Some(150.0),
            client_cpu_us_per_send: 40.0,
            fsyncs_per_s: Some(900.0),
            disk_fdatasync_per_s: None,
            bytes_per_send: Some(1500.0),
            stored_bytes_per_send: Some(700.0),
            undelivered: Some(0),
            delivery_p50_ms: Some(7.5),
            delivery_p99_ms: Some(31.25),
            syncs_per_s: Some(1000.4),
            sync_p50_ms: Some(1.5),
            sync_p99_ms: Some(9.75),
            stages: StageFigures {
                leader_cpu_us_per_send: Some(70.0),
                follower_cpu_us_per_send: Some(40.0),
                sends_per_entry: Some(12.0),
                entry_bytes: Some(2048.0),
                entries_per_fsync: Some(1.5),
                ..StageFigures::default()
            },
        }
    }

    #[test]
    fn the_json_keys_are_the_promised_ones() {
        let json = serde_json::to_value(report()).unwrap();
        let promised = "nodes users in_flight body_bytes loop warmup_s fs fsync sends_per_s errors \
            p50_ms p95_ms p99_ms p999_ms server_cpu_us_per_send client_cpu_us_per_send \
            fsyncs_per_s disk_fdatasync_per_s bytes_per_send stored_bytes_per_send \
            shards undelivered delivery_p50_ms delivery_p99_ms syncs_per_s sync_p50_ms sync_p99_ms \
            leader_cpu_us_per_send follower_cpu_us_per_send gateway_cpu_us_per_send \
            server_waits_per_send server_file_calls_per_send gateway_waits_per_send sends_per_frame \
            entries_per_s sends_per_entry entry_bytes entries_per_fsync fsync_bytes";
        for key in promised.split_whitespace() {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
    }

    #[test]
    fn the_words_name_every_figure() {
        let text = report().human();
        for part in [
            "3 node(s), 16 shard(s)",
            "p99 31.25 ms, 0 undelivered",
            "100,000 users",
            "9000/s",
            "p99 60.50 ms",
            "150.0 us/send",
            "leader 70.0 us/send, each follower 40.0 us/send",
            "12.0 sends and 2048 bytes each, 1.5 per fsync",
            "syncs      1000/s, p50 1.50 ms",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.contains("not measured"), "{text}");
    }

    #[test]
    fn nothing_sent_is_no_division_by_zero() {
        assert_eq!(per_send(100, 0), 0.0);
        assert_eq!(per_send(100, 8), 12.5);
    }
}
