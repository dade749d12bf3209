//! `mailboxctl doctor`: what is wrong, why, and the command that mends it.

mod certificate;
mod gateways;
mod slots;
mod unsplit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use mailbox_client::CallError;
use mailbox_client::v1::{MapNode, NodeStanding, StatusResponse, StepsResponse};
use serde::Serialize;

use crate::duration;
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped};
use crate::survey::{self, Survey, voters};
use certificate::{NotAfter, Standing};

/// Find what is wrong with a cluster, and say the cause and the command that mends it.
///
/// Asks every node for itself, so it works best when the cluster does not. The exit status is 0 when
/// nothing is wrong and 1 when something is. Codes are stable: node-down, no-majority, no-leader,
/// lagging-replica, apply-waits, disk-full, disk-low, clock-skew, stuck-lane, stuck-move, stuck-split,
/// unsplit-shard, drain-blocked, placement-fault,
/// placement-unknown, old-version, build-mix, gateway-silent, no-gateway, gateways-unknown,
/// certificate-expired, certificate-expiring, certificate-unknown.
///
/// With --ca-file the certificates that the nodes serve are looked at as well, and the authority's own;
/// an expired one is told even when, for that reason, no node can be asked.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A replica that is more entries behind is lagging
    #[arg(long, value_name = "ENTRIES", default_value_t = 10_000)]
    lag_max: u64,
    /// A message that waits longer for another shard is stuck
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    lane_age_max: Duration,
    /// A move of a slot that gets nowhere for longer is stuck; one that nobody serves meanwhile after 10 s
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration::parse)]
    move_age_max: Duration,
    /// A certificate that ends sooner is to be renewed
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = duration::parse)]
    certificate_left_min: Duration,
    /// Fewer serving gateways are too few; 0 for a cluster that has none
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    gateways_min: usize,
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
    let diagnosis = match diagnose(&args).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => without_answers(&args, error).await?,
    };
    output.print(&diagnosis, human)?;
    Ok(diagnosis.healthy)
}

async fn diagnose(args: &Args) -> anyhow::Result<Diagnosis> {
    let client = args.node.connect().await?;
    let seen = Survey::take(&client).await?;
    let steps = survey::steps(&client).await;
    let lane_ms = u64::try_from(args.lane_age_max.as_millis()).unwrap_or(u64::MAX);
    let mut findings = examine(&seen, &steps, args.lag_max, lane_ms);
    // Else the leader of the meta shard does not answer, which is told.
    if steps.is_ok() {
        let moves = client.slot_moves().await.unwrap_or_default();
        let splits = client.shard_splits().await.unwrap_or_default();
        let merges = client.shard_merges().await.unwrap_or_default();
        let stuck = slots::Stuck::new(&moves, (&splits, &merges), args.move_age_max);
        stuck.ail(&seen, &mut findings);
        let unsplit = client.unsplit_shards().await.unwrap_or_default();
        unsplit::ail(&unsplit, &mut findings);
        gateways::ail(&client.gateways().await, args.gateways_min, &mut findings);
    }
    let places = seen.nodes();
    let places = places.map(|node| (format!("node {}", node.node), node.address.clone()));
    certificates_that_end(args, places.collect(), &mut findings).await?;
    Ok(Diagnosis {
        cluster_id: seen.map.cluster_id.clone(),
        healthy: findings.is_empty(),
        findings,
    })
}

/// No node answers: that is no diagnosis, unless their certificates are why.
async fn without_answers(args: &Args, error: anyhow::Error) -> anyhow::Result<Diagnosis> {
    let mut findings = Vec::new();
    let places = args.node.addresses.iter();
    let places = places.map(|address| (format!("node at {address}"), address.clone()));
    certificates_that_end(args, places.collect(), &mut findings).await?;
    findings.retain(|finding| finding.code == "certificate-expired");
    if findings.is_empty() {
        return Err(error);
    }
    Ok(Diagnosis {
        cluster_id: args.node.cluster_id.clone().unwrap_or_default(),
        healthy: false,
        findings,
    })
}

/// Looks at what the nodes serve, and at the authority that they are judged by.
async fn certificates_that_end(
    args: &Args,
    places: Vec<(String, String)>,
    found: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let Some(authority) = &args.node.ca_file else {
        return Ok(());
    };
    let served = places.into_iter().map(async |(place, address)| {
        let end = certificate::served_at(&address).await;
        (place, address, end)
    });
    let now = certificate::now();
    for (place, address, end) in join_all(served).await {
        match end {
            Ok(end) => found.extend(certificate_ails(place, end, now, args.certificate_left_min)),
            // One that does not answer is told as such.
            Err(_) if found.iter().any(|it| it.code == "node-down" && it.place == place) => {}
            Err(error) => found.push(finding(
                "certificate-unknown",
                place,
                format!("it shows no certificate at {address}: {error:#}"),
                "set tls.cert_file and tls.key_file in its config, as on the others, and restart mailboxd on it"
                    .to_owned(),
            )),
        }
    }
    let pem = args.node.ca_pem()?.unwrap_or_default();
    let place = format!("authority {}", authority.display());
    let end = certificate::in_pem(&pem).with_context(|| format!("read the {place}"))?;
    found.extend(certificate_ails(place, end, now, args.certificate_left_min));
    Ok(())
}

/// What is wrong with a certificate that ends then, if anything.
fn certificate_ails(place: String, end: NotAfter, now: i64, left_min: Duration) -> Option<Finding> {
    let ends = end.words(now);
    let (code, cause) = match end.standing(now, left_min) {
        Standing::Good => return None,
        Standing::Expiring => (
            "certificate-expiring",
            format!("its certificate ends {ends}: then nobody connects any more"),
        ),
        Standing::Expired => (
            "certificate-expired",
            format!("its certificate ended {ends}: clients and other nodes refuse it"),
        ),
    };
    let fix = match place.starts_with("authority") {
        true => "add the new authority to the file (tls.ca_file, --ca-file) everywhere and restart the nodes one \
                 after the other; only then sign the nodes' certificates with it"
            .to_owned(),
        false => "sign a new one for the same name, put it and its key where tls.cert_file and tls.key_file \
                  say, and restart mailboxd there: it reads them at its start"
            .to_owned(),
    };
    Some(finding(code, place, cause, fix))
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
    let leaderless = Leaderless::of(seen);
    for node in seen.nodes() {
        match seen.statuses.get(&node.node) {
            Some(Ok(status)) => node_ails(node, status, lane_ms_max, &leaderless, &mut found),
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

fn node_ails(
    node: &MapNode,
    status: &StatusResponse,
    lane_ms_max: u64,
    leaderless: &Leaderless,
    found: &mut Vec<Finding>,
) {
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
        let seconds = status.oldest_lane_item_ms / 1000;
        found.push(finding(
            "stuck-lane",
            place(),
            format!(
                "a message has waited for {seconds} s for another shard{}",
                leaderless.suspects()
            ),
            leaderless.fix(node.node),
        ));
    }
}

/// Shards that take nothing, since nobody leads them: where a lane that is stuck may lead to.
struct Leaderless(Vec<String>);

impl Leaderless {
    fn of(seen: &Survey) -> Self {
        let shards = seen.map.shards.iter().map(|shard| shard.shard);
        let shards = shards.filter(|shard| *shard != 0 && seen.leader_of(*shard).is_none());
        Self(shards.map(|shard| shard.to_string()).collect())
    }

    fn suspects(&self) -> String {
        match self.0.as_slice() {
            [] => "; every shard has a leader".to_owned(),
            shards => format!("; nobody leads shard {}", shards.join(", shard ")),
        }
    }

    fn fix(&self, node: u64) -> String {
        match self.0.first() {
            Some(shard) => format!(
                "mend what is said of these shards, the lane then goes on by itself: `mailboxctl shard show {shard}`"
            ),
            None => format!(
                "see which shard lags or is overloaded: `mailboxctl top --sort lag`; if none is, let another node relay: \
                 `mailboxctl shard transfer SHARD --to NODE` for the shards that node {node} leads, and read its log"
            ),
        }
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

/// Nodes behind the newest version, else those of another build than most.
fn versions_that_differ(seen: &Survey, found: &mut Vec<Finding>) {
    let answers = seen.statuses.iter();
    let answers = answers.filter_map(|(node, status)| Some((*node, status.as_ref().ok()?)));
    let answers: Vec<(u64, &StatusResponse)> = answers.collect();
    let versions = answers.iter().map(|(_, status)| status.version.as_str());
    let Some(newest) = versions.max_by_key(|version| version_key(version)) else {
        return;
    };
    let mut old = false;
    for (node, status) in &answers {
        if status.version != newest {
            old = true;
            found.push(finding(
                "old-version",
                format!("node {node}"),
                format!("it runs {}, others run {newest}", status.version),
                "install the newer mailboxd on it and restart it (SIGTERM, then start): one node after the other, \
                 the next when `mailboxctl cluster status` says that one can be lost"
                    .to_owned(),
            ));
        }
    }
    let mut builds: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (node, status) in answers
        .iter()
        .filter(|(_, status)| !status.build.is_empty())
    {
        builds.entry(&status.build).or_default().insert(*node);
    }
    if old || builds.len() < 2 {
        return;
    }
    let each = builds.iter().map(|(build, nodes)| {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        let build: String = build.chars().take(8).collect();
        format!("node {} {build}", nodes.join(", node "))
    });
    let each: Vec<String> = each.collect();
    found.push(finding(
        "build-mix",
        "cluster".to_owned(),
        format!("nodes run different builds of {newest}: {}", each.join("; ")),
        "install the same mailboxd on all of them, and restart those that had another one after the other".to_owned(),
    ));
}

/// Versions in their order: numbers as numbers.
fn version_key(version: &str) -> Vec<(u64, &str)> {
    let parts = version.split(['.', '-', '+']);
    parts
        .map(|part| (part.parse().unwrap_or(0), part))
        .collect()
}

#[cfg(test)]
mod tests;
