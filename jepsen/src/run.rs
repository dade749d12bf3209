//! One run: a cluster is started, worked over, mended, read to its end and judged.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mailbox_client::Client;
use mailbox_cluster::{AuthKey, Cluster, ClusterOptions, find_mailboxd};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::checker::{self, Counts, Floors, Report, Verdict};
use crate::device::{Device, Gateways};
use crate::ground::Ground;
use crate::history::{History, Timeline};
use crate::nemesis::{self, Aftermath, Nemesis, Stage, operator};
use crate::options::{FIRST_NODES, RunOptions};
use crate::people::{People, Work};
use crate::store;
use crate::watch::Watch;

/// Names of a user's devices.
const DEVICES: [&str; 3] = ["phone", "tablet", "desktop"];
/// How long a device's token is valid: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
/// After the last fault the cluster must serve again within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// What takes hours in service is to happen within a minute: flushes, purges of the log, snapshots for whoever lags.
const CONFIG: &str = "[storage]\nflush_age_ms = 2000\nlog_entries_kept = 256\n";
/// For so long at least all goes on without a fault before it is read.
const CALM: Duration = Duration::from_secs(1);
/// How often people are told how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The judgement.
    pub verdict: Verdict,
    /// What was asked for.
    pub options: RunOptions,
    /// How much there was to judge.
    pub counts: Counts,
    /// Operations in the history, whatever became of them.
    pub operations: usize,
    /// How long it took to read them back, in milliseconds; 0 right after a run.
    pub read_ms: u64,
    /// How long it took to judge them, in milliseconds.
    pub check_ms: u64,
    /// The promises broken, in words.
    pub violations: Vec<String>,
    /// Why the run proves nothing, if so.
    pub doubts: Vec<String>,
    /// Where all of it is kept.
    pub dir: PathBuf,
    /// How to do it again.
    pub reproduce: String,
}

/// What was seen in a run beside its history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Promises that no history tells of: nodes that ended by themselves, a cluster that does not heal.
    pub broken: Vec<String>,
    /// Why the run proves nothing, if so.
    pub doubts: Vec<String>,
}

impl Findings {
    fn take_doubt(&mut self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.doubts.push(format!("{error:#}"));
        }
    }
}

/// Starts a cluster, works it over, and judges what was recorded.
///
/// # Errors
/// When the harness itself fails: no cluster, no file.
pub async fn run(options: &RunOptions) -> anyhow::Result<Summary> {
    let dir = std::path::absolute(&options.dir).context("find the directory of the run")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let below = dir.join("ground");
    let mut ground = Ground::make(&options.needs()?, options.nodes as u64, &below)?;
    let mut cluster = start(options, &mut ground, &dir).await?;
    let run = Run::new(options, &cluster).await?;
    let (history, mut findings) = run.record(&mut cluster, &mut ground).await?;
    let refused = history.appends().filter(|it| it.outcome.is_fail()).count();
    if refused > 0 {
        findings.doubts.push(format!(
            "{refused} sends were refused, though all were good"
        ));
    }
    // First of all: whatever becomes of the rest, it can be judged again.
    store::write_history(&dir, &history)?;
    store::write_options(&dir, options, &findings)?;

    let mut summary = judged(options, &history, findings, dir.clone())?;
    if let Err(error) = store::write_judged(&dir, &history, &summary) {
        // Whatever was found is told all the same.
        summary.doubt(format!("not all of the run is kept: {error:#}"));
    }
    let logs = cluster.nodes().iter().flat_map(|node| {
        let logs = [Some(node.log_path()), node.gateway_log_path()];
        logs.map(|log| log.map(|log| (node.id(), log.to_owned())))
    });
    let logs: Vec<_> = logs.flatten().collect();
    drop(cluster);
    ground.end();
    if let Err(error) = keep_logs(&dir, &logs) {
        summary.doubt(format!("not all logs are kept: {error:#}"));
    }
    if summary.verdict == Verdict::Valid {
        // What proves nothing wrong need not be kept.
        for part in [dir.join("cluster"), below] {
            remove(&part);
        }
    }
    Ok(summary)
}

/// `node1/server.log` and so on, whatever becomes of the nodes' other files.
fn keep_logs(dir: &Path, logs: &[(u64, PathBuf)]) -> anyhow::Result<()> {
    for (node, log) in logs {
        let kept = dir.join(format!("node{node}"));
        std::fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
        let name = log.file_name().context("a log has a name")?;
        std::fs::copy(log, kept.join(name)).with_context(|| format!("copy {}", log.display()))?;
    }
    Ok(())
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{} is left: {error}", dir.display());
    }
}

impl Summary {
    /// The run does not prove what it should.
    fn doubt(&mut self, why: String) {
        self.doubts.push(why);
        if self.verdict == Verdict::Valid {
            self.verdict = Verdict::Unknown;
        }
    }
}

/// Judges what is kept of a run again, and keeps the judgement.
///
/// # Errors
/// When a file is missing or is none of ours.
pub fn recheck(dir: &Path) -> anyhow::Result<Summary> {
    let (mut options, findings) = store::read_options(dir)?;
    dir.clone_into(&mut options.dir);
    let begun = Instant::now();
    let history = store::read_history(dir)?;
    let read_ms = ms_since(begun);
    let mut summary = judged(&options, &history, findings, dir.to_owned())?;
    summary.read_ms = read_ms;
    store::write_judged(dir, &history, &summary)?;
    Ok(summary)
}

fn ms_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn judged(
    options: &RunOptions,
    history: &History,
    findings: Findings,
    dir: PathBuf,
) -> anyhow::Result<Summary> {
    let floors = options.floors()?;
    let begun = Instant::now();
    let report = judge(history, &floors);
    let mut summary = summary(options, report, findings, dir);
    summary.check_ms = ms_since(begun);
    summary.operations = history.ops.len();
    Ok(summary)
}

/// A checker that panics has shown nothing.
fn judge(history: &History, floors: &Floors) -> Report {
    let report = std::panic::catch_unwind(|| checker::check(history, floors));
    report.unwrap_or_else(|_| Report {
        violations: Vec::new(),
        doubts: vec!["a checker panicked".to_owned()],
        counts: Counts::default(),
    })
}

fn summary(options: &RunOptions, report: Report, findings: Findings, dir: PathBuf) -> Summary {
    let mut verdict = report.verdict();
    if !findings.broken.is_empty() {
        verdict = Verdict::Invalid;
    } else if !findings.doubts.is_empty() {
        verdict = verdict.max(Verdict::Unknown);
    }
    let violations = report.violations.iter().map(ToString::to_string);
    Summary {
        verdict,
        options: options.clone(),
        counts: report.counts,
        operations: 0,
        read_ms: 0,
        check_ms: 0,
        violations: findings.broken.into_iter().chain(violations).collect(),
        doubts: [findings.doubts, report.doubts].concat(),
        dir,
        reproduce: options.reproduce(),
    }
}

/// The cluster, all its nodes taken in.
async fn start(options: &RunOptions, ground: &mut Ground, dir: &Path) -> anyhow::Result<Cluster> {
    let dir = dir.join("cluster");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let hosts = (1..=options.nodes as u64).map(|node| ground.host(node));
    let hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?;
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: options.nodes.min(FIRST_NODES),
        shards: options.shards,
        gateway: true,
        hosts,
        dir: Some(dir),
        binary: options.binary.clone(),
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    })
    .await?;
    while cluster.nodes().len() < options.nodes {
        cluster.join(HEALED_WITHIN).await.context("join a node")?;
    }
    Ok(cluster)
}

/// A run under way.
struct Run<'a> {
    options: &'a RunOptions,
    people: People,
    gateways: Gateways,
    /// They go on from phase to phase.
    devices: Vec<Arc<Mutex<Device>>>,
}

impl<'a> Run<'a> {
    async fn new(options: &'a RunOptions, cluster: &Cluster) -> anyhow::Result<Self> {
        let workload = options.workload()?;
        // Several clients, so that not all processes share one view of who leads.
        let mut clients = Vec::new();
        for _ in 0..workload.readers {
            let mut client = cluster.client_options()?;
            // Short, so that calls do end in doubt now and then.
            client.timeouts.deadline = Duration::from_secs(3);
            client.timeouts.attempt = Duration::from_secs(1);
            clients.push(
                Client::connect(client)
                    .await
                    .context("connect to the cluster")?,
            );
        }
        let mut patient = cluster.client_options()?;
        patient.timeouts.deadline = HEALED_WITHIN;
        patient.timeouts.attempt = HEALED_WITHIN / 4;
        let patient = Client::connect(patient)
            .await
            .context("connect to the cluster")?;
        let (seed, rate) = (options.seed, options.rate);
        let people = People::settle(workload, clients, patient, seed, rate).await?;
        let mut run = Self {
            options,
            people,
            gateways: Gateways::default(),
            devices: Vec::new(),
        };
        run.devices = run.make_devices(cluster)?;
        Ok(run)
    }

    fn make_devices(&self, cluster: &Cluster) -> anyhow::Result<Vec<Arc<Mutex<Device>>>> {
        let key = AuthKey::read(cluster.auth_key_file())?;
        let mut seeds = StdRng::seed_from_u64(self.options.seed.rotate_right(16));
        self.gateways.set(cluster);
        let mut devices = Vec::new();
        let population = &self.people.population;
        for user in population.users.iter().chain(&population.wanderers) {
            let (token, _) = key.issue(&user.to_string(), TOKEN_TTL)?;
            for name in DEVICES.into_iter().take(self.people.workload.devices) {
                devices.push(Arc::new(Mutex::new(Device {
                    recorder: Arc::clone(&self.people.recorder),
                    process: self.people.processes.next(),
                    gateways: self.gateways.clone(),
                    user: *user,
                    name,
                    token: token.clone(),
                    page_rows_max: self.people.workload.page_rows_max,
                    rng: StdRng::from_rng(&mut seeds),
                    key: String::new(),
                    open: HashMap::new(),
                })));
            }
        }
        Ok(devices)
    }

    /// Faults, then calm, then the reads of the end; and what is wrong with them.
    async fn record(
        self,
        cluster: &mut Cluster,
        ground: &mut Ground,
    ) -> anyhow::Result<(History, Findings)> {
        let until = Instant::now() + Duration::from_secs(self.options.seconds);
        let work = self.begin(0);
        let owners = self.people.population.timelines().into_iter();
        let stage = Stage {
            cluster,
            ground,
            client: self.people.patient.clone(),
            owners: owners.map(Timeline::owner).collect(),
            other_build: self.other_build()?,
            gateways: self.gateways.clone(),
            deaths: Vec::new(),
            aftermath: Aftermath::default(),
        };
        let families = self.options.families()?;
        let mut nemesis = Nemesis::new(stage, &self.people.recorder, &families, self.options.seed);
        if self.options.pairs {
            nemesis = nemesis.in_pairs();
        }
        let deaths = tokio::select! {
            deaths = nemesis.run(until) => deaths,
            never = self.tell() => match never {},
        };
        let mut findings = Findings::default();
        let (deaths, mended) = deaths;
        findings.broken = deaths;
        findings.take_doubt(work.end(HEALED_WITHIN).await);
        if let Err(error) = mended {
            // What does not serve now is no wonder.
            let why = format!("the nemesis failed: {error:#}");
            findings.doubts.push(why);
            return Ok((self.people.history(), findings));
        }

        if let Err(error) = cluster.wait_ready(HEALED_WITHIN).await {
            let why = format!("the healed cluster does not serve: {}", ends_of(&error));
            findings.broken.push(why);
            return Ok((self.people.history(), findings));
        }
        self.gateways.set(cluster);
        let work = self.begin(1);
        let (broken, ()) = tokio::join!(self.people.serve_all(), sleep(CALM));
        match broken {
            Ok(broken) => findings.broken.extend(broken),
            // Of the harness, and no promise of the cluster.
            Err(error) => findings.doubts.push(format!("{error:#}")),
        }
        findings.take_doubt(work.end(HEALED_WITHIN).await);
        match operator::wait_still(&self.people.patient, HEALED_WITHIN).await {
            Ok(doubt) => findings.doubts.extend(doubt),
            Err(error) => findings.broken.push(format!("{error:#}")),
        }
        // Only what has arrived can be judged: acks do not wait for lanes.
        if let Err(error) = cluster.wait_lanes_drained(HEALED_WITHIN).await {
            findings.broken.push(format!("{error:#}"));
        }
        self.end(cluster, &mut findings).await;
        Ok((self.people.history(), findings))
    }

    /// Reads all, and looks who has ended meanwhile.
    async fn end(&self, cluster: &Cluster, findings: &mut Findings) {
        let nodes = cluster.nodes().iter();
        let nodes: Vec<_> = nodes
            .map(|node| (node.id(), node.address().to_owned()))
            .collect();
        let mut ending = self.people.ending(&nodes, HEALED_WITHIN);
        ending.devices = &self.devices;
        findings.doubts.extend(ending.run().await);
        findings.broken.extend(self.people.refused().await);
        findings
            .broken
            .extend(nemesis::deaths(cluster, |_, _| false));
    }

    /// What nodes are upgraded to, if that was asked for.
    fn other_build(&self) -> anyhow::Result<Option<PathBuf>> {
        let asked = self.options.other_binary.as_deref();
        let found = asked.map(|path| find_mailboxd(Some(path)));
        found.transpose().context("find the other build")
    }

    /// One line now and then, for ever.
    async fn tell(&self) -> std::convert::Infallible {
        let begun = Instant::now();
        loop {
            sleep(TELL_EVERY).await;
            if self.options.tells {
                let (acked, unknown, faults) = self.people.recorder.progress();
                let (now, all) = (begun.elapsed().as_secs(), self.options.seconds);
                eprintln!("{now} of {all} s: {acked} acked, {unknown} unknown, {faults} faults");
            }
        }
    }

    /// People and their devices begin, and who leads is watched.
    fn begin(&self, phase: u64) -> Work {
        let mut work = self.people.begin(phase);
        let watch = Watch {
            client: self.people.patient.clone(),
            recorder: Arc::clone(&self.people.recorder),
            gateways: self.gateways.clone(),
        };
        work.processes.spawn(watch.run(work.ends.clone()));
        for device in &self.devices {
            let (device, ends) = (Arc::clone(device), work.ends.clone());
            work.processes
                .spawn(async move { device.lock().await.run(ends).await });
        }
        work
    }
}

/// The first and the last line of an error that has logs in it.
fn ends_of(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.next_back() {
        Some(last) => format!("{first} … {}", last.trim()),
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::options;

    #[test]
    fn what_was_seen_beside_the_history_counts() {
        let report = || Report {
            violations: Vec::new(),
            doubts: Vec::new(),
            counts: Counts::default(),
        };
        let verdict = |broken: &[&str], doubts: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
            let findings = Findings {
                broken: texts(broken),
                doubts: texts(doubts),
            };
            summary(&options(&["kill"], 5), report(), findings, PathBuf::new()).verdict
        };
        assert_eq!(verdict(&[], &[]), Verdict::Valid);
        assert_eq!(verdict(&[], &["no hash"]), Verdict::Unknown);
        assert_eq!(verdict(&["node 2 ended"], &["no hash"]), Verdict::Invalid);
    }

    #[test]
    fn of_an_error_with_logs_the_ends_are_told() {
        let error = anyhow::anyhow!("node 2 ended:\n\nINFO up\n ERROR no log\n");
        assert_eq!(ends_of(&error), "node 2 ended: … ERROR no log");
        assert_eq!(ends_of(&anyhow::anyhow!("gone")), "gone");
    }
}
