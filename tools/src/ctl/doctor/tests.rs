//! Every finding, from states that are made up.

use std::collections::BTreeMap;

use mailbox_client::v1::{ClusterMap, ErrorCode, MapReplica, MapShard, ReplicaStatus, ShardStatus};

use super::*;

pub(super) fn survey(nodes: u64) -> Survey {
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
fn a_drain_that_cannot_end_is_told() {
    let mut seen = survey(3);
    seen.map.nodes[0].standing = NodeStanding::Draining as i32;
    assert_eq!(codes(&seen), ["drain-blocked"]);
    let mut more = survey(4);
    more.map.nodes[0].standing = NodeStanding::Draining as i32;
    assert_eq!(codes(&more), [""; 0], "the fourth can take it");
}

#[test]
fn a_node_behind_the_newest_version_and_another_build_are_told() {
    let mut seen = survey(3);
    for node in [1, 2, 3] {
        status(&mut seen, node).version = "0.10.0".to_owned();
        status(&mut seen, node).build = "aaaaaaaabb".to_owned();
    }
    assert_eq!(codes(&seen), [""; 0]);
    status(&mut seen, 3).build = "cccccccccc".to_owned();
    let found = examine(&seen, &Ok(StepsResponse::default()), 10_000, 10_000);
    assert_eq!(found[0].code, "build-mix");
    assert!(
        found[0]
            .cause
            .contains("node 1, node 2 aaaaaaaa; node 3 cccccccc"),
        "{found:?}"
    );
    // A node that does not tell its build is not another one.
    status(&mut seen, 3).build = String::new();
    assert_eq!(codes(&seen), [""; 0]);
    status(&mut seen, 2).version = "0.9.1".to_owned();
    let found = examine(&seen, &Ok(StepsResponse::default()), 10_000, 10_000);
    assert_eq!(
        (found.len(), found[0].code, found[0].place.as_str()),
        (1, "old-version", "node 2")
    );
    assert!(found[0].cause.contains("others run 0.10.0"), "{found:?}");
}

#[test]
fn a_stuck_lane_names_the_shards_that_may_be_why() {
    let mut seen = survey(3);
    status(&mut seen, 3).oldest_lane_item_ms = 11_000;
    let found = examine(&seen, &Ok(StepsResponse::default()), 10_000, 10_000);
    assert_eq!(found[0].code, "stuck-lane");
    assert!(
        found[0].cause.contains("every shard has a leader"),
        "{found:?}"
    );
    status(&mut seen, 1).shards[0].role = "follower".to_owned();
    let found = examine(&seen, &Ok(StepsResponse::default()), 10_000, 10_000);
    assert_eq!(found[1].code, "stuck-lane");
    assert!(
        found[1].cause.ends_with("nobody leads shard 1"),
        "{found:?}"
    );
    assert!(found[1].fix.contains("shard show 1"), "{found:?}");
}

#[test]
fn certificates_are_told_before_they_end_and_after() {
    const DAY: i64 = 86_400;
    let left_min = Duration::from_secs(14 * 86_400);
    let ails =
        |place: &str, now| certificate_ails(place.to_owned(), NotAfter(100 * DAY), now, left_min);
    assert_eq!(ails("node 1", 10 * DAY), None);
    let expiring = ails("node 1", 97 * DAY).unwrap();
    assert_eq!(expiring.code, "certificate-expiring");
    assert!(expiring.cause.contains("in 3 days"), "{expiring:?}");
    let expired = ails("authority a.pem", 101 * DAY).unwrap();
    assert_eq!(expired.code, "certificate-expired");
    assert!(expired.fix.contains("tls.ca_file"), "{expired:?}");
}
