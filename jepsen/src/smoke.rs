//! The smoke workload: users send to each other and to groups while nodes are killed and paused.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use mailbox_client::{Client, user_id, v1};
use mailbox_cluster::{AuthKey, Cluster, ClusterOptions};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::checker::{self, Counts, Floors, Report, Verdict};
use crate::device::{Device, Gateway};
use crate::history::{History, Op, Outcome, Recorder, StateHash, Timeline};
use crate::nemesis::{self, Kind, Nemesis};
use crate::page::Join;
use crate::reader::{At, Reader, catch_up, read_whole};
use crate::sender::{Population, Processes, Sender};
use crate::store;

const USERS: usize = 8;
const GROUPS: usize = 2;
const SENDERS_PER_USER: usize = 2;
const READERS: usize = 3;
/// How long a device's token is valid: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
/// Acked sends for each second of a run without which it proves nothing: a tenth of what a slow
/// machine does.
const ACKED_PER_SECOND_MIN: usize = 10;
/// In this time each kind comes at least once, however slow the machine.
const SECONDS_PER_FAULT_OF_A_KIND: u64 = 18;
/// After the last fault the cluster must serve again within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Without faults, sends must go through for this long.
const CALM: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug, Clone)]
pub struct SmokeOptions {
    /// 1 or 3.
    pub nodes: usize,
    /// How long faults are installed.
    pub seconds: u64,
    /// What the faults and the messages follow from.
    pub seed: u64,
    /// Shards of the cluster.
    pub shards: u16,
    /// The `mailboxd` to run; see [`ClusterOptions::binary`].
    pub binary: Option<PathBuf>,
    /// Where history and nodes' files go; made anew below it.
    pub store: PathBuf,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Always `smoke`.
    pub workload: &'static str,
    /// The judgement.
    pub verdict: Verdict,
    /// As asked for.
    pub nodes: usize,
    /// As asked for.
    pub seconds: u64,
    /// As asked for.
    pub seed: u64,
    /// As asked for.
    pub shards: u16,
    /// How much there was to judge.
    pub counts: Counts,
    /// The promises broken, in words.
    pub violations: Vec<String>,
    /// Why the run proves nothing, if so.
    pub doubts: Vec<String>,
    /// Everything that was recorded.
    pub history: PathBuf,
    /// How to do it again.
    pub reproduce: String,
}

/// Starts a cluster, works it over, and judges what was recorded.
///
/// # Errors
/// When the harness itself fails: no cluster, no file.
pub async fn run(options: &SmokeOptions) -> anyhow::Result<Summary> {
    let dir = fresh_dir(options)?;
    let cluster = Cluster::start(ClusterOptions {
        nodes: options.nodes,
        shards: options.shards,
        gateway: true,
        dir: Some(dir.join("cluster")),
        binary: options.binary.clone(),
        ..ClusterOptions::default()
    });
    let cluster = cluster.await?;
    let (history, doubts) = Run::new(options, &cluster).await?.record().await?;
    // First of all: whatever becomes of the rest, it can be judged again.
    store::write_history(&dir, &history)?;

    let mut report = checker::check(&history, &floors(options));
    report.doubts.extend(doubts);
    if report.counts.failed > 0 {
        let failed = report.counts.failed;
        report
            .doubts
            .push(format!("{failed} sends were refused, though all were good"));
    }
    let mut summary = summary(options, report, dir.join(store::HISTORY));
    if let Err(error) = store::write_judged(&dir, &history, &summary) {
        // Whatever was found is told all the same.
        summary.doubt(format!("not all of the run is kept: {error:#}"));
    }
    if summary.verdict == Verdict::Valid {
        drop(cluster);
        // What proves nothing wrong need not be kept.
        let data = dir.join("cluster");
        std::fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
    }
    Ok(summary)
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

/// Judges a recorded history again, by the floors of the same options.
pub fn recheck(options: &SmokeOptions, history: &History, path: PathBuf) -> Summary {
    summary(options, checker::check(history, &floors(options)), path)
}

fn summary(options: &SmokeOptions, report: Report, history: PathBuf) -> Summary {
    let SmokeOptions {
        nodes,
        seconds,
        seed,
        shards,
        ..
    } = *options;
    Summary {
        workload: "smoke",
        verdict: report.verdict(),
        nodes,
        seconds,
        seed,
        shards,
        counts: report.counts,
        violations: report.violations.iter().map(ToString::to_string).collect(),
        doubts: report.doubts,
        history,
        reproduce: format!(
            "mailbox-jepsen smoke --nodes {nodes} --seconds {seconds} --seed {seed} --shards {shards}"
        ),
    }
}

fn fresh_dir(options: &SmokeOptions) -> anyhow::Result<PathBuf> {
    let name = format!("smoke-{}-{:08x}", options.seed, rand::random::<u32>());
    let dir = options.store.join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

fn floors(options: &SmokeOptions) -> Floors {
    let seconds = usize::try_from(options.seconds).unwrap_or(usize::MAX);
    let least = usize::try_from(options.seconds / SECONDS_PER_FAULT_OF_A_KIND).unwrap_or(0);
    let faults = Kind::ALL.map(|kind| (kind.name().to_owned(), least));
    Floors {
        acked: seconds.saturating_mul(ACKED_PER_SECOND_MIN).max(1),
        reads: seconds.max(1),
        pages: seconds.max(1),
        faults: BTreeMap::from(faults),
        nodes: options.nodes,
    }
}

/// A run under way.
struct Run<'a> {
    options: &'a SmokeOptions,
    cluster: &'a Cluster,
    clients: Vec<Client>,
    /// For the reads of the end, which may take their time.
    patient: Client,
    recorder: Arc<Recorder>,
    processes: Arc<Processes>,
    population: Arc<Population>,
    /// One of each user; it goes on from phase to phase.
    devices: Vec<Arc<Mutex<Device>>>,
}

impl<'a> Run<'a> {
    async fn new(options: &'a SmokeOptions, cluster: &'a Cluster) -> anyhow::Result<Self> {
        // Several clients, so that not all processes share one view of who leads.
        let mut clients = Vec::new();
        for _ in 0..READERS {
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
        let recorder = Arc::new(Recorder::default());
        let population = Arc::new(populate(&patient, &recorder).await?);
        let mut run = Self {
            options,
            cluster,
            clients,
            patient,
            recorder,
            processes: Arc::default(),
            population,
            devices: Vec::new(),
        };
        run.devices = run.make_devices()?;
        Ok(run)
    }

    fn make_devices(&self) -> anyhow::Result<Vec<Arc<Mutex<Device>>>> {
        let key = AuthKey::read(self.cluster.auth_key_file())?;
        let mut seeds = StdRng::seed_from_u64(self.options.seed.rotate_right(16));
        let gateways = self.cluster.nodes().iter().filter_map(|node| {
            let (node, url) = (node.id(), node.gateway_url()?);
            Some(Gateway { node, url })
        });
        let gateways: Vec<_> = gateways.collect();
        let mut devices = Vec::new();
        for user in &self.population.users {
            let (token, _) = key.issue(&user.to_string(), TOKEN_TTL)?;
            devices.push(Arc::new(Mutex::new(Device {
                recorder: Arc::clone(&self.recorder),
                process: self.processes.next(),
                gateways: gateways.clone(),
                user: *user,
                name: "phone",
                token,
                rng: StdRng::from_rng(&mut seeds),
                key: String::new(),
                open: HashMap::new(),
            })));
        }
        Ok(devices)
    }

    /// Faults, then calm, then the reads of the end; and what casts doubt on them.
    async fn record(self) -> anyhow::Result<(History, Vec<String>)> {
        let until = Instant::now() + Duration::from_secs(self.options.seconds);
        let mut work = JoinSet::new();
        self.spawn_work(&mut work, until, 0);
        let nemesis = Nemesis::new(self.cluster, &self.recorder, self.options.seed);
        let mut doubts = nemesis.run(until).await?;
        finish(work).await?;

        nemesis::heal(self.cluster)?;
        self.cluster
            .wait_ready(HEALED_WITHIN)
            .await
            .context("wait for the healed cluster")?;
        let before = self.recorder.len();
        let mut work = JoinSet::new();
        self.spawn_work(&mut work, Instant::now() + CALM, 1);
        finish(work).await?;
        if self.recorder.len() == before {
            doubts.push("nothing was done after the faults had been healed".to_owned());
        }
        // Only what has arrived can be judged: acks do not wait for lanes.
        self.cluster
            .wait_lanes_drained(HEALED_WITHIN)
            .await
            .context("wait for what is on its way between shards")?;
        self.sync_all().await;
        doubts.extend(self.read_all().await);
        doubts.extend(self.hash_all().await);
        Ok((self.recorder.take(), doubts))
    }

    fn spawn_work(&self, work: &mut JoinSet<()>, until: Instant, phase: u64) {
        let mut seeds = StdRng::seed_from_u64(self.options.seed ^ (phase + 1).rotate_right(8));
        let mut clients = self.clients.iter().cycle().cloned();
        for user in self
            .population
            .users
            .iter()
            .cycle()
            .take(USERS * SENDERS_PER_USER)
        {
            let Some(client) = clients.next() else { return };
            let sender = Sender {
                client,
                recorder: Arc::clone(&self.recorder),
                processes: Arc::clone(&self.processes),
                population: Arc::clone(&self.population),
                user: *user,
                rng: StdRng::from_rng(&mut seeds),
            };
            work.spawn(sender.run(until));
        }
        for client in clients.take(READERS) {
            let reader = Reader {
                client,
                recorder: Arc::clone(&self.recorder),
                processes: Arc::clone(&self.processes),
                population: Arc::clone(&self.population),
                rng: StdRng::from_rng(&mut seeds),
            };
            work.spawn(reader.run(until));
        }
        for device in &self.devices {
            let device = Arc::clone(device);
            work.spawn(async move { device.lock().await.run(until).await });
        }
    }

    /// Every device up to its head; the checker doubts a run in which one does not get there.
    async fn sync_all(&self) {
        let until = Instant::now() + HEALED_WITHIN;
        for device in &self.devices {
            device.lock().await.run_to_head(until).await;
        }
    }

    /// Every timeline through the leader and at each node.
    async fn read_all(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let timelines = self.population.timelines();
        let mut heads = Vec::new();
        let mut process = self.processes.next();
        for timeline in &timelines {
            let read = self.read_whole(&mut process, *timeline, At::Leader).await;
            if let Outcome::Ok(view) = &read.outcome {
                heads.push((*timeline, view.head));
            }
            self.recorder.record(Op::Read(read));
        }
        let until = Instant::now() + HEALED_WITHIN;
        for node in self.cluster.nodes() {
            if let Err(error) = catch_up(&self.patient, node.address(), &heads, until).await {
                doubts.push(format!("node {} did not catch up: {error:#}", node.id()));
            }
            for timeline in &timelines {
                let at = At::Node(node.id(), node.address());
                let read = self.read_whole(&mut process, *timeline, at).await;
                self.recorder.record(Op::Read(read));
            }
        }
        doubts
    }

    async fn read_whole(
        &self,
        process: &mut u64,
        timeline: Timeline,
        at: At<'_>,
    ) -> crate::history::Read {
        let read = read_whole(&self.patient, &self.recorder, *process, timeline, at).await;
        if matches!(read.outcome, Outcome::Unknown(_)) {
            *process = self.processes.next();
        }
        read
    }

    /// Every replica's state hash, of each shard at one cut.
    async fn hash_all(&self) -> Vec<String> {
        let map = match self.patient.shard_map().await {
            Ok(map) => map,
            Err(error) => return vec![format!("there is no shard map: {error}")],
        };
        let mut doubts = Vec::new();
        for shard in map.shards {
            doubts.extend(self.hash_shard(shard.shard).await);
        }
        doubts
    }

    async fn hash_shard(&self, shard: u32) -> Vec<String> {
        let client = &self.patient;
        let mut request = v1::StateHashRequest {
            shard,
            cut_index: 0,
        };
        match client.state_hash(None, request).await {
            Ok(cut) => request.cut_index = cut.applied_index,
            Err(error) => {
                return vec![format!("the leader of shard {shard} made no cut: {error}")];
            }
        }
        let mut doubts = Vec::new();
        for node in self.cluster.nodes() {
            match client.state_hash(Some(node.address()), request).await {
                Ok(answer) => self.recorder.record(Op::StateHash(StateHash {
                    node: node.id(),
                    shard,
                    index: answer.applied_index,
                    hash: answer
                        .hash
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect(),
                })),
                Err(error) => doubts.push(format!(
                    "node {} has no hash of shard {shard}: {error}",
                    node.id()
                )),
            }
        }
        doubts
    }
}

/// Waits for all processes; one that panicked or hangs spoils the run.
async fn finish(mut work: JoinSet<()>) -> anyhow::Result<()> {
    let all = async {
        while let Some(ended) = work.join_next().await {
            ended.context("run a process of the workload")?;
        }
        anyhow::Ok(())
    };
    timeout(HEALED_WITHIN, all)
        .await
        .context("wait for the processes of the workload")?
}

/// Registers users and makes groups of them all.
async fn populate(client: &Client, recorder: &Recorder) -> anyhow::Result<Population> {
    let mut population = Population::default();
    for number in 0..USERS {
        let handle = format!("user{number}");
        let request = v1::RegisterUserRequest {
            request_id: Bytes::new(),
            handle,
        };
        let user = client
            .register_user(request)
            .await
            .context("register a user")?
            .user;
        population.users.push(user);
    }
    for number in 0..GROUPS {
        let creator = Some(user_id(population.users[0]));
        let name = format!("group{number}");
        let request = v1::CreateGroupRequest {
            request_id: Bytes::new(),
            creator,
            name,
        };
        let created = client
            .create_group(request)
            .await
            .context("create a group")?;
        let group = created.group;
        let may_read = |user, first| recorder.record(Op::Join(Join { user, group, first }));
        may_read(population.users[0], created.seq);
        for &user in &population.users[1..] {
            let request = v1::JoinGroupRequest {
                request_id: Bytes::new(),
                group,
                user: Some(user_id(user)),
            };
            let joined = client.join_group(request).await.context("join a group")?;
            may_read(user, joined.join_seq);
        }
        population.groups.push(group);
    }
    Ok(population)
}
