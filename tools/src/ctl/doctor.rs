//! `mailboxctl doctor`: what is wrong, why, and the command that mends it.

use mailbox_client::CallError;
use mailbox_client::v1::{MapNode, NodeStanding, StatusResponse, StepsResponse};
use serde::Serialize;

use crate::duration;
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped};
use crate::survey::{self, Survey, voters};

/// Find what is wrong with a cluster, and say the cause and the command that mends it.
///
/// Asks every node for itself, so it works best when the cluster does not. The exit status is 0 when
/// nothing is wrong and 1 when something is. Codes are stable: node-down, no-majority, no-leader,
/// lagging-replica, disk-full, disk-low, clock-skew, stuck-lane, drain-blocked, placement-fault,
/// placement-unknown, version-mix.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A replica that is more entries behind is lagging
    #[arg(long, value_name = "ENTRIES", default_value_t = 10_000)]
    lag_max: u64,
    /// A message that waits longer for another shard is stuck
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    lane_age_max: std::time::Duration,
    #[command(flatten)]
    node: NodeArgs,
}

/// How long the first comparison of a node's clock with the others may take.
const FIRST_COMPARISON_MS: u64 = 10_000;

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    code: &'static str,
    /// `shard 3`, `node 2`, `cluster`.
    place: String,
    cause: String,
    fix: String,
}

#[derive(Serialize)]
struct Diagnosis {
    cluster_id: String,
    healthy: bool,
    findings: Vec<Finding>,
}

fn finding(code: &'static str, place: String, cause: String, fix: String) -> Finding {
    Finding {
        code,
        place,
        cause,
        fix,
    }
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.node.connect().await?;
    let seen = Survey::take(&client).await?;
    let steps = survey::steps(&client).await;
    let lane_ms = u64::try_from(args.lane_age_max.as_millis()).unwrap_or(u64::MAX);
    let findings = examine(&seen, &steps, args.lag_max, lane_ms);
    let diagnosis = Diagnosis {
        cluster_id: seen.map.cluster_id.clone(),
        healthy: findings.is_empty(),
        findings,
    };
    output.print(&diagnosis, human)?;
    Ok(diagnosis.healthy)
}

fn human(diagnosis: &Diagnosis) -> String {
    if diagnosis.healthy {
        return format!("cluster {}: nothing is wrong", diagnosis.cluster_id);
    }
    let texts = diagnosis.findings.iter().map(|finding| {
        let Finding {
            code,
            place,
            cause,
            fix,
        } = finding;
        format!("{place}: {code}\n  cause  {cause}\n  mend   {fix}")
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The worst first: shards that do not serve, then nodes, then what may become worse.
fn examine(
    seen: &Survey,
    steps: &Result<StepsResponse, CallError>,
    lag_max: u64,
    lane_ms_max: u64,
) -> Vec<Finding> {
    let mut found = Vec::new();
    shards_that_do_not_serve(seen, &mut found);
    for node in seen.nodes() {
        match seen.statuses.get(&node.node) {
            Some(Ok(status)) => node_ails(node, status, lane_ms_max, &mut found),
            Some(Err(error)) => found.push(finding(
                "node-down",
                format!("node {}", node.node),
                format!("it does not answer at {}: {error}", node.address),
                format!(
                    "start mailboxd on it. If its disk is gone for ever: start another node with a new id, then \
                     `mailboxctl node remove {} --wait`",
                    node.node
                ),
            )),
            None => {}
        }
    }
    replicas_that_lag(seen, lag_max, &mut found);
    drains_that_cannot_end(seen, &mut found);
    versions_that_differ(seen, &mut found);
    placement_ails(steps, &mut found);
    found
}

fn shards_that_do_not_serve(seen: &Survey, found: &mut Vec<Finding>) {
    for shard in &seen.map.shards {
        let (up, all) = seen.voters_up(shard);
        let place = format!("shard {}", shard.shard);
        if up * 2 <= all {
            let down = voters(shard).into_iter().filter(|node| !seen.is_up(*node));
            let down: Vec<String> = down.map(|node| node.to_string()).collect();
            found.push(finding(
                "no-majority",
                place,
                format!(
                    "{up} of its {all} voters answer; it refuses sends rather than lose them (down: node {})",
                    down.join(", node ")
                ),
                format!("start mailboxd on node {}", down.join(" or node ")),
            ));
        } else if seen.leader_of(shard.shard).is_none() {
            found.push(finding(
                "no-leader",
                place,
                "a majority of its voters answers, but none of them leads at this moment"
                    .to_owned(),
                "an election takes seconds: look again; if it stays so, look into the nodes' logs \
                 and at their clocks"
                    .to_owned(),
            ));
        }
    }
}

fn node_ails(node: &MapNode, status: &StatusResponse, lane_ms_max: u64, found: &mut Vec<Finding>) {
    let place = || format!("node {}", node.node);
    let (free, least) = (status.disk_free_bytes, status.disk_free_min_bytes);
    let mib = |bytes: u64| format!("{} MiB", grouped(bytes >> 20));
    if free < least {
        found.push(finding(
            "disk-full",
            place(),
            format!(
                "{} are free, below {} sends are refused",
                mib(free),
                mib(least)
            ),
            format!(
                "make room on its disk, or move replicas away: `mailboxctl node drain {}`",
                node.node
            ),
        ));
    } else if free < least.saturating_mul(2) {
        found.push(finding(
            "disk-low",
            place(),
            format!(
                "{} are free, below {} sends will be refused",
                mib(free),
                mib(least)
            ),
            format!(
                "make room, or add a node and `mailboxctl node drain {}`",
                node.node
            ),
        ));
    }
    // A node that has just started has not compared its clock yet.
    let compares = status.clock_skew_ms == 0 && status.uptime_ms < FIRST_COMPARISON_MS;
    if !status.clock_fault.is_empty() && !compares {
        found.push(finding(
            "clock-skew",
            place(),
            format!(
                "{} (it is {:+} ms off the others): it proposes nothing and leads nothing",
                status.clock_fault, status.clock_skew_ms
            ),
            "set its clock (chronyc makestep), and keep it set: it goes on by itself".to_owned(),
        ));
    }
    if status.oldest_lane_item_ms > lane_ms_max {
        found.push(finding(
            "stuck-lane",
            place(),
            format!(
                "a message has waited for {} s for another shard",
                status.oldest_lane_item_ms / 1000
            ),
            "its destination does not take it: see the shards without leader in `mailboxctl shard list`, and \
             this node's log"
                .to_owned(),
        ));
    }
}

fn replicas_that_lag(seen: &Survey, lag_max: u64, found: &mut Vec<Finding>) {
    for shard in &seen.map.shards {
        for held in shard.replicas.iter().filter(|held| held.voter) {
            let Some(lag) = seen.lag(shard.shard, held.node) else {
                continue;
            };
            // One that is down is told once, as a node.
            if lag > lag_max && seen.is_up(held.node) {
                found.push(finding(
                    "lagging-replica",
                    format!("shard {}, node {}", shard.shard, held.node),
                    format!("it is {} entries behind its leader", grouped(lag)),
                    format!(
                        "it catches up by itself if its disk and network keep up; else move it: \
                         `mailboxctl shard move {} --from {} --to NODE`",
                        shard.shard, held.node
                    ),
                ));
            }
        }
    }
}

fn drains_that_cannot_end(seen: &Survey, found: &mut Vec<Finding>) {
    let open: Vec<u64> = seen
        .nodes()
        .filter(|node| node.standing() == NodeStanding::Member && node.weight > 0)
        .filter(|node| seen.is_up(node.node))
        .map(|node| node.node)
        .collect();
    let draining = seen.nodes();
    for node in draining.filter(|node| node.standing() == NodeStanding::Draining) {
        let stuck = seen.map.shards.iter().filter(|shard| {
            let voters = voters(shard);
            // An even number: the one too many is about to go.
            let is_whole = voters.len() % 2 == 1;
            is_whole
                && voters.contains(&node.node)
                && open.iter().all(|other| voters.contains(other))
        });
        let stuck: Vec<String> = stuck.map(|shard| shard.shard.to_string()).collect();
        if !stuck.is_empty() {
            found.push(finding(
                "drain-blocked",
                format!("node {}", node.node),
                format!("no other node can take shards {}", stuck.join(", ")),
                format!(
                    "start one more node (cluster.join), or `mailboxctl node undrain {}`",
                    node.node
                ),
            ));
        }
    }
}

fn placement_ails(steps: &Result<StepsResponse, CallError>, found: &mut Vec<Finding>) {
    let (code, cause) = match steps {
        Ok(steps) if steps.fault.is_empty() => return,
        Ok(steps) => (
            "placement-fault",
            format!("nothing can be placed: {}", steps.fault),
        ),
        Err(error) => (
            "placement-unknown",
            format!("the leader of the meta shard does not say what is on the move: {error}"),
        ),
    };
    found.push(finding(
        code,
        "cluster".to_owned(),
        cause,
        "see shard 0 with `mailboxctl shard show 0`: it holds the map, and needs a majority"
            .to_owned(),
    ));
}

fn versions_that_differ(seen: &Survey, found: &mut Vec<Finding>) {
    let answers = seen.statuses.iter();
    let answers = answers.filter_map(|(node, status)| Some((*node, status.as_ref().ok()?)));
    let versions: Vec<(u64, &str)> = answers
        .map(|(node, status)| (node, status.version.as_str()))
        .collect();
    let Some((_, first)) = versions.first() else {
        return;
    };
    if versions.iter().any(|(_, version)| version != first) {
        let each: Vec<String> = versions
            .iter()
            .map(|(node, version)| format!("node {node} {version}"))
            .collect();
        found.push(finding(
            "version-mix",
            "cluster".to_owned(),
            format!("nodes run different versions: {}", each.join(", ")),
            "restart those that are behind with the newer mailboxd, one after the other".to_owned(),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mailbox_client::v1::{
        ClusterMap, ErrorCode, MapReplica, MapShard, ReplicaStatus, ShardStatus,
    };

    use super::*;

    fn survey(nodes: u64) -> Survey {
        let node = |id| MapNode {
            node: id,
            address: format!("n{id}:1"),
            weight: 100,
            standing: NodeStanding::Member as i32,
            ..MapNode::default()
        };
        let voter = |node| MapReplica {
            node,
            voter: true,
            replaces: 0,
        };
        let shard = MapShard {
            shard: 1,
            epoch: 1,
            replicas: (1..=3).map(voter).collect(),
            ..MapShard::default()
        };
        let status = |id: u64| {
            let role = if id == 1 { "leader" } else { "follower" };
            let replicas = (1..=3).map(|node| ReplicaStatus {
                node,
                matched_index: 100,
                voter: true,
            });
            let shard = ShardStatus {
                shard: 1,
                role: role.to_owned(),
                term: 1,
                last_index: 100,
                replicas: replicas.collect(),
                ..ShardStatus::default()
            };
            let status = StatusResponse {
                node: id,
                version: "1".to_owned(),
                shards: vec![shard],
                disk_free_bytes: 100 << 30,
                disk_free_min_bytes: 1 << 30,
                ..StatusResponse::default()
            };
            (id, Ok(status))
        };
        Survey {
            map: ClusterMap {
                cluster_id: "test".to_owned(),
                epoch: 1,
                nodes: (1..=nodes).map(node).collect(),
                shards: vec![shard],
                ..ClusterMap::default()
            },
            statuses: (1..=nodes).map(status).collect::<BTreeMap<_, _>>(),
        }
    }

    fn codes(seen: &Survey) -> Vec<&'static str> {
        let found = examine(seen, &Ok(StepsResponse::default()), 10_000, 10_000);
        found.iter().map(|finding| finding.code).collect()
    }

    fn status(seen: &mut Survey, node: u64) -> &mut StatusResponse {
        seen.statuses.get_mut(&node).unwrap().as_mut().unwrap()
    }

    fn down(seen: &mut Survey, node: u64) {
        let error = CallError::new(ErrorCode::Unavailable, "refused");
        seen.statuses.insert(node, Err(error));
    }

    #[test]
    fn a_whole_cluster_has_nothing() {
        assert_eq!(codes(&survey(3)), [""; 0]);
    }

    #[test]
    fn nodes_that_are_down_are_told_after_the_shards_that_need_them() {
        let mut seen = survey(3);
        down(&mut seen, 2);
        assert_eq!(codes(&seen), ["node-down"]);
        down(&mut seen, 3);
        assert_eq!(codes(&seen), ["no-majority", "node-down", "node-down"]);
        let found = examine(&seen, &Ok(StepsResponse::default()), 1, 1);
        assert_eq!(found[0].fix, "start mailboxd on node 2 or node 3");
    }

    #[test]
    fn what_ails_a_node_is_told() {
        let mut seen = survey(3);
        status(&mut seen, 1).disk_free_bytes = 1 << 20;
        // A node that has just started has a fault, too, until it has compared its clock.
        status(&mut seen, 2).clock_fault = "the clock is 2 days ahead".to_owned();
        assert_eq!(codes(&seen), ["disk-full"]);
        status(&mut seen, 2).clock_skew_ms = 172_800_000;
        status(&mut seen, 3).oldest_lane_item_ms = 11_000;
        assert_eq!(codes(&seen), ["disk-full", "clock-skew", "stuck-lane"]);
        status(&mut seen, 1).disk_free_bytes = 3 << 29;
        assert_eq!(codes(&seen)[0], "disk-low");
    }

    #[test]
    fn a_shard_without_leader_and_a_replica_behind_are_told() {
        let mut seen = survey(3);
        status(&mut seen, 1).shards[0].last_index = 20_000;
        assert_eq!(
            codes(&seen),
            ["lagging-replica", "lagging-replica"],
            "followers, not the leader"
        );
        // Of one that has matched nothing, the leader knows nothing yet.
        status(&mut seen, 1).shards[0].replicas[1].matched_index = 0;
        assert_eq!(codes(&seen), ["lagging-replica"]);
        status(&mut seen, 1).shards[0].role = "follower".to_owned();
        assert_eq!(codes(&seen), ["no-leader"]);
        let silent = CallError::new(ErrorCode::Unavailable, "no leader");
        let found = examine(&seen, &Err(silent), 10_000, 10_000);
        assert_eq!(found.last().unwrap().code, "placement-unknown");
    }

    #[test]
    fn a_drain_that_cannot_end_and_mixed_versions_are_told() {
        let mut seen = survey(3);
        seen.map.nodes[0].standing = NodeStanding::Draining as i32;
        assert_eq!(codes(&seen), ["drain-blocked"]);
        let mut more = survey(4);
        more.map.nodes[0].standing = NodeStanding::Draining as i32;
        assert_eq!(codes(&more), [""; 0], "the fourth can take it");
        status(&mut more, 4).version = "2".to_owned();
        assert_eq!(codes(&more), ["version-mix"]);
    }
}
