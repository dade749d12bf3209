//! Two looks at a cluster into one picture: what stands, and what went on between them.

use std::collections::BTreeMap;
use std::time::Duration;

use mailbox_client::v1::{MapNode, MapShard, ShardStatus, StatusResponse, StepsResponse};
use serde::Serialize;

use crate::ctl::steps::step_text;
use crate::node::timeline_text;
use crate::survey::{Survey, standing_text};

/// One moment of a cluster, as it is drawn or printed.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    pub(super) cluster_id: String,
    pub(super) map_epoch: u64,
    /// Every shard has a leader.
    pub(super) serves: bool,
    /// Nodes that may fail beyond those that do not answer; negative: some shard has no majority.
    pub(super) can_lose: i64,
    /// Between the two looks that rates are of.
    pub(super) interval_ms: u64,
    /// Of all shards together.
    pub(super) rates: Rates,
    pub(super) nodes: Vec<NodeLine>,
    pub(super) shards: Vec<ShardLine>,
    pub(super) hot: Vec<HotLine>,
    /// Absent: the leader of the meta shard could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) running: Option<Vec<String>>,
}

/// Per second, between the two looks; absent where a counter is not known at both.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Rates {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sends_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deliveries_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reads_per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeLine {
    pub(super) node: u64,
    pub(super) address: String,
    pub(super) zone: String,
    pub(super) standing: &'static str,
    pub(super) up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    pub(super) version: String,
    pub(super) build: String,
    pub(super) uptime_ms: u64,
    /// Of one core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rss_bytes: Option<u64>,
    pub(super) disk_free_bytes: u64,
    pub(super) replicas: usize,
    pub(super) leads: usize,
    /// Why it proposes nothing, if so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) clock_fault: String,
    pub(super) oldest_lane_item_ms: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct ShardLine {
    pub(super) shard: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leader: Option<u64>,
    pub(super) term: u64,
    pub(super) voters: Vec<u64>,
    pub(super) learners: Vec<u64>,
    pub(super) changing: bool,
    /// Entries that the replica is behind which is furthest behind, of those that the leader knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lag: Option<u64>,
    pub(super) memtable_bytes: u64,
    #[serde(flatten)]
    pub(super) rates: Rates,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct HotLine {
    pub(super) timeline: String,
    pub(super) shard: u32,
    pub(super) writes_per_s: f64,
    pub(super) reads_per_s: f64,
}

impl Picture {
    pub(super) fn of(
        now: &Survey,
        before: Option<(&Survey, Duration)>,
        steps: Option<&StepsResponse>,
    ) -> Self {
        let shards = now.map.shards.iter();
        let shards: Vec<ShardLine> = shards.map(|shard| shard_line(now, before, shard)).collect();
        let nodes = now.nodes().map(|node| node_line(now, before, node));
        let sum = |of: fn(&Rates) -> Option<f64>| {
            let known: Vec<f64> = shards.iter().filter_map(|line| of(&line.rates)).collect();
            (!known.is_empty()).then(|| known.iter().sum())
        };
        Self {
            cluster_id: now.map.cluster_id.clone(),
            map_epoch: now.map.epoch,
            serves: shards.iter().all(|shard| shard.leader.is_some()),
            can_lose: now.can_lose(),
            interval_ms: before.map_or(0, |(_, passed)| {
                u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
            }),
            rates: Rates {
                sends_per_s: sum(|rates| rates.sends_per_s),
                deliveries_per_s: sum(|rates| rates.deliveries_per_s),
                reads_per_s: sum(|rates| rates.reads_per_s),
            },
            nodes: nodes.collect(),
            hot: hot_lines(now),
            running: steps.map(|steps| steps.running.iter().map(step_text).collect()),
            shards,
        }
    }
}

/// A counter's growth per second; none if it began anew meanwhile.
fn rate(now: u64, before: u64, passed: Duration) -> Option<f64> {
    let grown = now.checked_sub(before)?;
    let seconds = passed.as_secs_f64();
    (seconds > 0.0).then(|| grown as f64 / seconds)
}

fn node_line(now: &Survey, before: Option<(&Survey, Duration)>, node: &MapNode) -> NodeLine {
    let nothing = StatusResponse::default();
    let answer = now.status_of(node.node);
    let status = answer.unwrap_or(&nothing);
    let cpu_percent = before.and_then(|(before, passed)| {
        let before = before.status_of(node.node)?;
        let knows = before.cpu_ms > 0 && before.uptime_ms <= status.uptime_ms;
        let per_s = rate(status.cpu_ms, before.cpu_ms, passed)?;
        knows.then_some(per_s / 10.0)
    });
    let (replicas, leads) = now.load_of(node.node);
    NodeLine {
        node: node.node,
        address: node.address.clone(),
        zone: node.zone.clone(),
        standing: standing_text(node.standing()),
        up: answer.is_some(),
        error: now.error_of(node.node).map(ToString::to_string),
        version: status.version.clone(),
        build: status.build.clone(),
        uptime_ms: status.uptime_ms,
        cpu_percent,
        rss_bytes: (status.rss_bytes > 0).then_some(status.rss_bytes),
        disk_free_bytes: status.disk_free_bytes,
        replicas,
        leads,
        clock_fault: status.clock_fault.clone(),
        oldest_lane_item_ms: status.oldest_lane_item_ms,
    }
}

fn shard_line(now: &Survey, before: Option<(&Survey, Duration)>, shard: &MapShard) -> ShardLine {
    let leader = now.leader_of(shard.shard);
    let nodes = |voter: bool| {
        let held = shard.replicas.iter().filter(|held| held.voter == voter);
        held.map(|held| held.node).collect()
    };
    let lags = shard.replicas.iter();
    let lags = lags.filter_map(|held| now.lag(shard.shard, held.node));
    ShardLine {
        shard: shard.shard,
        leader: leader.map(|(node, _)| node),
        term: leader.map_or(0, |(_, status)| status.term),
        voters: nodes(true),
        learners: nodes(false),
        changing: leader.is_some_and(|(_, status)| status.changing),
        lag: lags.max(),
        memtable_bytes: leader.map_or(0, |(_, status)| status.memtable_bytes),
        rates: before.map_or_else(Rates::default, |before| rates(now, before, shard.shard)),
    }
}

/// Writes as the leader applies them, reads by whoever answers them.
fn rates(now: &Survey, (before, passed): (&Survey, Duration), shard: u32) -> Rates {
    let grown = |node: u64, of: fn(&ShardStatus) -> u64| {
        let was = replica_of(before, node, shard)?;
        let is = replica_of(now, node, shard)?;
        rate(of(is), of(was), passed)
    };
    let leader = now.leader_of(shard).map(|(node, _)| node);
    let of_leader = |of| leader.and_then(|node| grown(node, of));
    let reads = now.statuses.keys();
    let reads: Vec<f64> = reads
        .filter_map(|node| grown(*node, |status| status.reads))
        .collect();
    Rates {
        sends_per_s: of_leader(|status| status.sends),
        deliveries_per_s: of_leader(|status| status.deliveries),
        reads_per_s: (!reads.is_empty()).then(|| reads.iter().sum()),
    }
}

fn replica_of(seen: &Survey, node: u64, shard: u32) -> Option<&ShardStatus> {
    let mut shards = seen.status_of(node)?.shards.iter();
    shards.find(|status| status.shard == shard)
}

/// Every replica knows what is written, and each what it has read itself.
fn hot_lines(now: &Survey) -> Vec<HotLine> {
    let mut lines: BTreeMap<(u32, i32, u64), HotLine> = BTreeMap::new();
    let answers = now.statuses.values().flatten();
    for status in answers.flat_map(|answer| &answer.shards) {
        for hot in &status.hot {
            let Some(timeline) = hot.timeline else {
                continue;
            };
            let key = (status.shard, timeline.kind, timeline.owner);
            let line = lines.entry(key).or_insert_with(|| HotLine {
                timeline: timeline_text(timeline),
                shard: status.shard,
                writes_per_s: 0.0,
                reads_per_s: 0.0,
            });
            line.writes_per_s = line.writes_per_s.max(hot.writes_per_s);
            line.reads_per_s += hot.reads_per_s;
        }
    }
    lines.into_values().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use mailbox_client::v1::{
        ClusterMap, HotTimeline, MapReplica, NodeStanding, ReplicaStatus, Timeline, TimelineKind,
    };
    use mailbox_client::{CallError, v1::ErrorCode};

    use super::*;

    /// Three nodes and two shards, both led by node 1, after so many sends.
    pub(in crate::ctl::top) fn survey(sends: u64) -> Survey {
        let node = |id| MapNode {
            node: id,
            address: format!("n{id}:7700"),
            zone: format!("z{id}"),
            weight: 100,
            standing: NodeStanding::Member as i32,
            ..MapNode::default()
        };
        let voter = |node| MapReplica {
            node,
            voter: true,
            replaces: 0,
        };
        let shard = |shard| MapShard {
            shard,
            epoch: 1,
            replicas: (1..=3).map(voter).collect(),
            ..MapShard::default()
        };
        let statuses = (1..=3).map(|id| (id, Ok(status(id, sends))));
        Survey {
            map: ClusterMap {
                cluster_id: "test".to_owned(),
                epoch: 7,
                nodes: (1..=3).map(node).collect(),
                shards: vec![shard(0), shard(1)],
                ..ClusterMap::default()
            },
            statuses: statuses.collect(),
        }
    }

    fn status(id: u64, sends: u64) -> StatusResponse {
        let of_shard = |shard: u32| {
            let replicas = [(1, 100), (2, 100), (3, 40)];
            let replicas = replicas.map(|(node, matched_index)| ReplicaStatus {
                node,
                matched_index,
                voter: true,
            });
            let scale = u64::from(shard);
            let hot = (shard == 1).then_some(HotTimeline {
                timeline: Some(Timeline {
                    kind: TimelineKind::Group as i32,
                    owner: 65,
                }),
                writes_per_s: 12.0,
                reads_per_s: 4.0,
            });
            ShardStatus {
                shard,
                role: if id == 1 { "leader" } else { "follower" }.to_owned(),
                term: 3,
                last_index: 100,
                replicas: replicas.to_vec(),
                sends: sends * scale,
                deliveries: sends * scale * 2,
                reads: sends * scale,
                hot: hot.into_iter().collect(),
                ..ShardStatus::default()
            }
        };
        StatusResponse {
            node: id,
            version: "0.1.0".to_owned(),
            build: "abcdef0123456789".to_owned(),
            uptime_ms: 3_600_000 + sends,
            cpu_ms: 1_000 + sends * 2,
            rss_bytes: 200 << 20,
            disk_free_bytes: 5 << 30,
            shards: vec![of_shard(0), of_shard(1)],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn rates_are_the_leaders_and_reads_are_everybodys() {
        let (before, now) = (survey(100), survey(300));
        let picture = Picture::of(&now, Some((&before, Duration::from_secs(2))), None);
        let rates = picture.shards[1].rates;
        assert_eq!(rates.sends_per_s, Some(100.0));
        assert_eq!(rates.deliveries_per_s, Some(200.0));
        assert_eq!(rates.reads_per_s, Some(300.0));
        assert_eq!(picture.rates.sends_per_s, Some(100.0));
        assert_eq!(picture.shards[1].lag, Some(60));
        assert_eq!(picture.nodes[0].cpu_percent, Some(20.0));
        let hot = &picture.hot[0];
        assert_eq!((hot.timeline.as_str(), hot.shard), ("group:65", 1));
        assert_eq!((hot.writes_per_s, hot.reads_per_s), (12.0, 12.0));
    }

    #[test]
    fn what_began_anew_or_is_seen_first_has_no_rate() {
        let first = Picture::of(&survey(5), None, None);
        assert_eq!(first.rates, Rates::default());
        // The leader was restarted: its counts are lower.
        let picture = Picture::of(
            &survey(5),
            Some((&survey(100), Duration::from_secs(2))),
            None,
        );
        assert_eq!(picture.shards[1].rates, Rates::default());
        assert_eq!(picture.nodes[0].cpu_percent, None);
        let json = serde_json::to_value(&picture).unwrap();
        assert!(json["shards"][1].get("sends_per_s").is_none(), "{json}");
    }

    #[test]
    fn a_silent_node_is_in_the_picture() {
        let mut now = survey(5);
        let error = CallError::new(ErrorCode::Unavailable, "refused");
        now.statuses.insert(1, Err(error));
        let picture = Picture::of(&now, None, None);
        assert!(!picture.nodes[0].up && !picture.serves);
        assert_eq!(picture.can_lose, 0);
        assert!(picture.nodes[0].error.is_some());
    }
}
