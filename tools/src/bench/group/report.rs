//! The figures of one run of a group. Keys are for ever: later runs add some and keep these.

use serde::Serialize;

use crate::output::grouped;

/// One run. README.md says how each figure is measured.
#[derive(Debug, Clone, Serialize)]
pub(in crate::bench) struct Report {
    pub(in crate::bench) nodes: u64,
    pub(in crate::bench) shards: u64,
    pub(in crate::bench) gateways: u64,
    pub(in crate::bench) members: u64,
    pub(in crate::bench) senders: u64,
    pub(in crate::bench) connections: u64,
    pub(in crate::bench) tls: bool,
    pub(in crate::bench) body_bytes: u64,
    /// `closed` or `open`.
    #[serde(rename = "loop")]
    pub(in crate::bench) shape: &'static str,
    /// Posts on the way at any time; `None` in an open loop.
    pub(in crate::bench) in_flight: Option<u64>,
    /// Posts per second asked for; `None` in a closed loop.
    pub(in crate::bench) rate: Option<u64>,
    pub(in crate::bench) warmup_s: f64,
    pub(in crate::bench) seconds: f64,
    pub(in crate::bench) fs: String,
    pub(in crate::bench) fsync: bool,
    pub(in crate::bench) sends_per_s: f64,
    pub(in crate::bench) deliveries_per_s: f64,
    pub(in crate::bench) delivery_p50_ms: f64,
    pub(in crate::bench) delivery_p95_ms: f64,
    pub(in crate::bench) delivery_p99_ms: f64,
    pub(in crate::bench) delivery_p999_ms: f64,
    pub(in crate::bench) missing: u64,
    pub(in crate::bench) out_of_order: u64,
    pub(in crate::bench) errors: u64,
    pub(in crate::bench) pushes_dropped: Option<u64>,
    pub(in crate::bench) sync_notices: u64,
    pub(in crate::bench) synced_deliveries: u64,
    pub(in crate::bench) messages_per_push: f64,
    pub(in crate::bench) wire_bytes_per_delivery: f64,
    pub(in crate::bench) store_cpu_us_per_delivery: f64,
    pub(in crate::bench) gateway_cpu_us_per_delivery: f64,
    pub(in crate::bench) generator_cpu_us_per_delivery: f64,
}

impl Report {
    /// Whether every member has got every message, once and in order, and nothing was refused.
    pub(in crate::bench) fn is_good(&self) -> bool {
        (self.missing, self.out_of_order, self.errors) == (0, 0, 0)
    }

    /// The report in words.
    pub(in crate::bench) fn human(&self) -> String {
        let pressure = match (self.in_flight, self.rate) {
            (Some(in_flight), _) => format!("{in_flight} posts on the way"),
            (None, Some(rate)) => format!("{} posts/s asked for", grouped(rate)),
            (None, None) => "unknown pressure".to_owned(),
        };
        let dropped = match self.pushes_dropped {
            Some(dropped) => grouped(dropped),
            None => "an unknown number of".to_owned(),
        };
        let lines = [
            format!(
                "{} node(s), {} shard(s), {} gateway(s), {}; {} members, {} of them post, {} loop, {pressure}, {}-byte bodies",
                self.nodes,
                self.shards,
                self.gateways,
                if self.tls { "TLS" } else { "plain" },
                self.members,
                self.senders,
                self.shape,
                self.body_bytes
            ),
            format!(
                "deliveries {}/s, {:.1} messages in a push",
                grouped(self.deliveries_per_s as u64),
                self.messages_per_push
            ),
            format!(
                "sends      {:.1}/s, {} errors",
                self.sends_per_s, self.errors
            ),
            format!(
                "delivery   p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                self.delivery_p50_ms,
                self.delivery_p95_ms,
                self.delivery_p99_ms,
                self.delivery_p999_ms
            ),
            format!(
                "order      {} missing, {} out of order",
                self.missing, self.out_of_order
            ),
            format!(
                "slow       {dropped} pushes dropped, {} notices to sync, {} deliveries by sync",
                grouped(self.sync_notices),
                grouped(self.synced_deliveries)
            ),
            format!(
                "cpu        store {:.2}, gateway {:.2}, generator {:.2} us/delivery",
                self.store_cpu_us_per_delivery,
                self.gateway_cpu_us_per_delivery,
                self.generator_cpu_us_per_delivery
            ),
            format!(
                "wire       {:.1} bytes/delivery, {} connections",
                self.wire_bytes_per_delivery, self.connections
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
            nodes: 3,
            shards: 1,
            gateways: 1,
            members: 500,
            senders: 8,
            connections: 500,
            tls: true,
            body_bytes: 100,
            shape: "closed",
            in_flight: Some(64),
            rate: None,
            warmup_s: 3.0,
            seconds: 20.0,
            fs: "ext4".to_owned(),
            fsync: true,
            sends_per_s: 612.5,
            deliveries_per_s: 306_250.0,
            delivery_p50_ms: 80.0,
            delivery_p95_ms: 100.0,
            delivery_p99_ms: 120.25,
            delivery_p999_ms: 140.0,
            missing: 0,
            out_of_order: 0,
            errors: 0,
            pushes_dropped: Some(2),
            sync_notices: 1,
            synced_deliveries: 64,
            messages_per_push: 16.5,
            wire_bytes_per_delivery: 160.25,
            store_cpu_us_per_delivery: 0.25,
            gateway_cpu_us_per_delivery: 4.5,
            generator_cpu_us_per_delivery: 1.0,
        }
    }

    #[test]
    fn any_message_that_is_missing_or_misplaced_is_not_good() {
        assert!(report().is_good());
        for spoil in [
            |report: &mut Report| report.missing = 1,
            |report: &mut Report| report.out_of_order = 1,
            |report: &mut Report| report.errors = 1,
        ] {
            let mut report = report();
            spoil(&mut report);
            assert!(!report.is_good());
        }
    }

    #[test]
    fn the_words_and_the_keys_name_every_figure() {
        let text = report().human();
        for part in [
            "500 members, 8 of them post",
            "TLS",
            "306,250/s",
            "p99 120.25 ms",
            "2 pushes dropped, 1 notices",
            "store 0.25, gateway 4.50, generator 1.00",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let json = serde_json::to_value(report()).unwrap();
        let promised = "nodes shards gateways members senders connections tls body_bytes loop in_flight rate \
            warmup_s seconds fs fsync sends_per_s deliveries_per_s delivery_p50_ms delivery_p95_ms delivery_p99_ms \
            delivery_p999_ms missing out_of_order errors pushes_dropped sync_notices synced_deliveries \
            messages_per_push wire_bytes_per_delivery store_cpu_us_per_delivery gateway_cpu_us_per_delivery \
            generator_cpu_us_per_delivery";
        for key in promised.split_whitespace() {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
    }
}
