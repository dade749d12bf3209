//! What each stage of a message's way uses: the leader, its followers, the gateways, and the log in between.

use mailbox_cluster::{Cluster, metric_sum};
use serde::Serialize;

use super::report::{per_send, round};

/// Syncs of a node's log so far.
const LOG_FSYNCS: &str = "mailbox_log_fsyncs_total";
const LOG_ENTRIES: &str = "mailbox_log_entries_total";
const LOG_BYTES: &str = "mailbox_log_bytes_total";
/// Frames of sends that a node has received, and the sends in them.
const FRAMES: &str = "mailbox_server_submit_frames_total";
const FRAME_SENDS: &str = "mailbox_server_submit_sends_total";
/// Of a cluster's only shard: whether the node leads it.
const LEADS: &str = "mailbox_raft_is_leader{shard=\"1\"} 1";

/// What all nodes have used so far, by stage.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stages {
    nodes: u64,
    servers: Used,
    /// Of all gateways, if there are any.
    gateways: Option<Used>,
    /// The node that leads the only shard, and the CPU time of its server. With several shards every node leads some.
    leader: Option<(u64, u64)>,
    /// `None` if a node does not tell.
    pub(super) log: Option<Log>,
}

/// What processes have used, of `/proc`.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu_us: u64,
    /// To files.
    written_bytes: u64,
    file_calls: u64,
    waits: u64,
}

/// Counters of all nodes together, of their metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Log {
    pub(super) fsyncs: u64,
    entries: u64,
    bytes: u64,
    frames: u64,
    frame_sends: u64,
}

/// The figures of the stages; README.md says how each is measured. `None`: not measurable in this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct StageFigures {
    pub(super) leader_cpu_us_per_send: Option<f64>,
    pub(super) follower_cpu_us_per_send: Option<f64>,
    pub(super) gateway_cpu_us_per_send: Option<f64>,
    pub(super) server_waits_per_send: Option<f64>,
    pub(super) server_file_calls_per_send: Option<f64>,
    pub(super) gateway_waits_per_send: Option<f64>,
    pub(super) sends_per_frame: Option<f64>,
    pub(super) entries_per_s: Option<f64>,
    pub(super) sends_per_entry: Option<f64>,
    pub(super) entry_bytes: Option<f64>,
    pub(super) entries_per_fsync: Option<f64>,
    pub(super) fsync_bytes: Option<f64>,
}

impl Used {
    fn add(&mut self, usage: &mailbox_cluster::Usage) {
        self.cpu_us += u64::try_from(usage.cpu.as_micros()).unwrap_or(u64::MAX);
        self.written_bytes += usage.io.written;
        self.file_calls += usage.file_calls;
        self.waits += usage.waits;
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            cpu_us: self.cpu_us.saturating_sub(before.cpu_us),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            file_calls: self.file_calls.saturating_sub(before.file_calls),
            waits: self.waits.saturating_sub(before.waits),
        }
    }
}

impl Log {
    fn of(page: &str) -> Option<Self> {
        Some(Self {
            fsyncs: metric_sum(page, LOG_FSYNCS)?,
            entries: metric_sum(page, LOG_ENTRIES)?,
            bytes: metric_sum(page, LOG_BYTES)?,
            frames: metric_sum(page, FRAMES)?,
            frame_sends: metric_sum(page, FRAME_SENDS)?,
        })
    }

    fn and(self, other: Self) -> Self {
        Self {
            fsyncs: self.fsyncs + other.fsyncs,
            entries: self.entries + other.entries,
            bytes: self.bytes + other.bytes,
            frames: self.frames + other.frames,
            frame_sends: self.frame_sends + other.frame_sends,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            fsyncs: self.fsyncs.saturating_sub(before.fsyncs),
            entries: self.entries.saturating_sub(before.entries),
            bytes: self.bytes.saturating_sub(before.bytes),
            frames: self.frames.saturating_sub(before.frames),
            frame_sends: self.frame_sends.saturating_sub(before.frame_sends),
        }
    }
}

impl Stages {
    /// Looks at every process and every metrics page once.
    ///
    /// # Errors
    /// A metrics page is not served.
    pub(super) async fn take(cluster: &Cluster, shards: u16) -> anyhow::Result<Self> {
        let mut stages = Self {
            nodes: cluster.nodes().len() as u64,
            log: Some(Log::default()),
            ..Self::default()
        };
        for node in cluster.nodes() {
            let usage = node.server_usage();
            stages.servers.add(&usage);
            if let Some(gateway) = node.gateway_usage() {
                stages.gateways.get_or_insert_default().add(&gateway);
            }
            let page = node.metrics_page().await?.unwrap_or_default();
            let log = stages.log.zip(Log::of(&page));
            stages.log = log.map(|(sum, of_node)| sum.and(of_node));
            if shards == 1 && page.lines().any(|line| line.starts_with(LEADS)) {
                let mut leader = Used::default();
                leader.add(&usage);
                stages.leader = Some((node.id(), leader.cpu_us));
            }
        }
        Ok(stages)
    }

    /// CPU time of all processes, gateways included.
    pub(super) fn cpu_us(&self) -> u64 {
        self.servers.cpu_us + self.gateways.map_or(0, |used| used.cpu_us)
    }

    /// What all processes have written to files.
    pub(super) fn written_bytes(&self) -> u64 {
        self.servers.written_bytes + self.gateways.map_or(0, |used| used.written_bytes)
    }

    /// What was used between two looks, `seconds` apart, for each of `acked` sends.
    pub(super) fn figures(&self, before: &Self, acked: u64, seconds: f64) -> StageFigures {
        let servers = self.servers.since(&before.servers);
        let gateways = self.gateways.zip(before.gateways);
        let gateways = gateways.map(|(after, before)| after.since(&before));
        // If another node leads by now, each was leader and follower.
        let leader = self.leader.zip(before.leader);
        let leader = leader.filter(|((after, _), (before, _))| after == before);
        let leader_us = leader.map(|((_, after), (_, before))| after.saturating_sub(before));
        let followers = self.nodes.saturating_sub(1);
        let follower_us = leader_us.filter(|_| followers > 0);
        let follower_us = follower_us.map(|us| servers.cpu_us.saturating_sub(us) / followers);
        let each = |total: u64| per_send(total, acked);
        let mut figures = StageFigures {
            leader_cpu_us_per_send: leader_us.map(each),
            follower_cpu_us_per_send: follower_us.map(each),
            gateway_cpu_us_per_send: gateways.map(|used| each(used.cpu_us)),
            server_waits_per_send: Some(each(servers.waits)),
            server_file_calls_per_send: Some(each(servers.file_calls)),
            gateway_waits_per_send: gateways.map(|used| each(used.waits)),
            ..StageFigures::default()
        };
        if let Some((after, before)) = self.log.zip(before.log) {
            after
                .since(before)
                .tell(&mut figures, (acked, self.nodes), seconds);
        }
        figures
    }
}

impl Log {
    /// The figures of what was written between two looks. A quotient of nothing is left out.
    fn tell(self, figures: &mut StageFigures, (acked, nodes): (u64, u64), seconds: f64) {
        let ratio = |part: u64, of: u64| (of > 0).then(|| per_send(part, of));
        // Every node writes every entry.
        let entries = self.entries / nodes.max(1);
        figures.sends_per_frame = ratio(self.frame_sends, self.frames);
        figures.entries_per_s = (seconds > 0.0).then(|| round(entries as f64 / seconds, 1));
        figures.sends_per_entry = ratio(acked, entries);
        figures.entry_bytes = ratio(self.bytes, self.entries);
        figures.entries_per_fsync = ratio(self.entries, self.fsyncs);
        figures.fsync_bytes = ratio(self.bytes, self.fsyncs);
    }
}

impl StageFigures {
    /// The figures in words, a line for each thought; none for what was not measured.
    pub(super) fn human(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let parts = [
            ("leader", self.leader_cpu_us_per_send),
            ("each follower", self.follower_cpu_us_per_send),
            ("all gateways", self.gateway_cpu_us_per_send),
        ];
        let parts = parts.into_iter();
        let parts = parts.filter_map(|(name, us)| Some(format!("{name} {:.1} us/send", us?)));
        let parts: Vec<String> = parts.collect();
        if !parts.is_empty() {
            lines.push(format!("cpu of     {}", parts.join(", ")));
        }
        if let (Some(sends), Some(bytes), Some(entries)) = (
            self.sends_per_entry,
            self.entry_bytes,
            self.entries_per_fsync,
        ) {
            lines.push(format!(
                "entries    {sends:.1} sends and {bytes:.0} bytes each, {entries:.1} per fsync"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu_us: u64) -> Used {
        Used {
            cpu_us,
            written_bytes: 0,
            file_calls: cpu_us / 10,
            waits: cpu_us / 100,
        }
    }

    fn log(number: u64) -> Option<Log> {
        Some(Log {
            fsyncs: 3 * number,
            entries: 6 * number,
            bytes: 6000 * number,
            frames: 5 * number,
            frame_sends: 20 * number,
        })
    }

    fn stages(number: u64) -> Stages {
        Stages {
            nodes: 3,
            servers: used(4000 * number),
            gateways: None,
            leader: Some((2, 2000 * number)),
            log: log(number),
        }
    }

    #[test]
    fn each_stage_has_its_share() {
        let figures = stages(3).figures(&stages(1), 100, 2.0);
        assert_eq!(figures.leader_cpu_us_per_send, Some(40.0));
        assert_eq!(figures.follower_cpu_us_per_send, Some(20.0), "of two");
        assert_eq!(figures.gateway_cpu_us_per_send, None);
        assert_eq!(figures.server_file_calls_per_send, Some(8.0));
        assert_eq!(figures.server_waits_per_send, Some(0.8));
        // 12 entries on all three nodes are 4.
        assert_eq!(figures.sends_per_entry, Some(25.0));
        assert_eq!(figures.entries_per_s, Some(2.0));
        assert_eq!(figures.entry_bytes, Some(1000.0));
        assert_eq!(figures.entries_per_fsync, Some(2.0));
        assert_eq!(figures.fsync_bytes, Some(2000.0));
        assert_eq!(figures.sends_per_frame, Some(4.0));
    }

    #[test]
    fn gateways_are_in_the_total() {
        let stages = Stages {
            gateways: Some(used(500)),
            ..stages(1)
        };
        assert_eq!(stages.cpu_us(), 4500);
    }

    #[test]
    fn a_new_leader_is_not_told_from_a_follower() {
        let after = Stages {
            leader: Some((1, 9000)),
            ..stages(3)
        };
        let figures = after.figures(&stages(1), 100, 2.0);
        assert_eq!(figures.leader_cpu_us_per_send, None);
        assert_eq!(figures.follower_cpu_us_per_send, None);
        assert_eq!(figures.server_waits_per_send, Some(0.8));
    }

    #[test]
    fn a_node_alone_has_no_follower_and_nothing_written_no_quotient() {
        let alone = |number| Stages {
            nodes: 1,
            gateways: Some(used(1000)),
            log: log(1),
            ..stages(number)
        };
        let figures = alone(3).figures(&alone(1), 100, 2.0);
        assert_eq!(figures.leader_cpu_us_per_send, Some(40.0));
        assert_eq!(figures.follower_cpu_us_per_send, None);
        assert_eq!(figures.gateway_cpu_us_per_send, Some(0.0));
        assert_eq!(figures.sends_per_entry, None);
        assert_eq!(figures.entries_per_fsync, None);
    }

    #[test]
    fn a_page_without_a_counter_tells_nothing() {
        let page = "mailbox_log_fsyncs_total 41\nmailbox_log_entries_total 82\n\
            mailbox_log_bytes_total 4100\nmailbox_server_submit_frames_total 7\n\
            mailbox_server_submit_sends_total 9\n";
        assert_eq!(Log::of(page).map(|log| log.frame_sends), Some(9));
        let lines = page.lines();
        let without = lines.filter(|line| !line.starts_with(LOG_BYTES));
        let without: Vec<&str> = without.collect();
        assert!(Log::of(&without.join("\n")).is_none());
    }
}
