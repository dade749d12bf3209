//! Breaks a cluster, and mends it.
//!
//! `kind.rs` says what there is by name, `install.rs` how each is done; here is when.

mod aftermath;
pub mod clock;
mod corrupt;
mod cuts;
mod install;
mod kind;
pub(crate) mod operator;
mod points;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use mailbox_client::Client;
use mailbox_cluster::Cluster;
use rand::rngs::StdRng;
use rand::seq::{IteratorRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

use crate::device::Gateways;
use crate::ground::Ground;
use crate::history::{Fault, Installation, Op, Recorder};
pub use aftermath::Aftermath;
pub use kind::{Family, Kind};
use standing::Standing;

/// Quiet time between two faults, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 500..1500;
/// What a fault may take beside the time for which it is held.
const SLACK_MS: u64 = 5000;
/// A family of which nothing could be installed is tried again, so often at most when the time is over.
const TRIES_MAX: u32 = 3;
/// So long after a disk fault most nodes that it ends have ended; these are started again.
const DISK_PAUSE: Duration = Duration::from_secs(2);

/// What faults are done to, and with.
pub struct Stage<'a> {
    /// Its processes.
    pub cluster: &'a mut Cluster,
    /// What its nodes have of their own.
    pub ground: &'a mut Ground,
    /// For what an operator asks for.
    pub client: Client,
    /// Users and groups that have timelines: what moves is to be somebody's.
    pub owners: Vec<u64>,
    /// The build that nodes are brought to, and from which they are brought back. `None`: their own.
    pub other_build: Option<PathBuf>,
    /// What devices may use.
    pub gateways: Gateways,
    /// Processes that ended and were not ended from here.
    pub deaths: Vec<String>,
    /// What faults that are over may still do.
    pub aftermath: Aftermath,
}

/// Breaks and mends; what it does follows from its seed, when from the cluster.
#[derive(Debug)]
pub struct Nemesis<'a> {
    stage: Stage<'a>,
    recorder: &'a Recorder,
    families: Vec<Family>,
    /// Whether each fault is done beside another one, where that can be.
    pairs: bool,
    rng: StdRng,
}

/// How often each kind comes at least in a run of so many seconds; 0 if the time is too short for one of each.
pub fn rounds_within(families: &[Family], seconds: u64) -> u64 {
    let kinds = families.iter().flat_map(|family| family.kinds());
    let round_ms: u64 = kinds
        .map(|kind| kind.hold_ms().end + QUIET_MS.end + SLACK_MS)
        .sum();
    (seconds * 1000).checked_div(round_ms).unwrap_or(0)
}

/// All kinds of these families in some order; one of each family comes before a second of any.
fn round(families: &[Family], rng: &mut StdRng) -> Vec<Kind> {
    let mut kinds: Vec<Vec<Kind>> = families
        .iter()
        .map(|family| {
            let mut kinds = family.kinds().to_vec();
            kinds.shuffle(rng);
            kinds
        })
        .collect();
    let mut all = Vec::new();
    while kinds.iter().any(|kinds| !kinds.is_empty()) {
        kinds.shuffle(rng);
        all.extend(kinds.iter_mut().filter_map(Vec::pop));
    }
    all
}

impl<'a> Nemesis<'a> {
    /// One that has done nothing yet.
    pub fn new(stage: Stage<'a>, recorder: &'a Recorder, families: &[Family], seed: u64) -> Self {
        Self {
            stage,
            recorder,
            families: families
                .iter()
                .copied()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            pairs: false,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The same, with each fault beside another one of another sort, where that can be.
    pub fn in_pairs(mut self) -> Self {
        self.pairs = true;
        self
    }

    /// Installs faults until the time has come and there was one of each family; each kind once before any comes again.
    /// Which processes ended by themselves meanwhile; and whether all is mended.
    pub async fn run(mut self, until: Instant) -> (Vec<String>, anyhow::Result<()>) {
        let mended = self.install_all(until).await;
        (self.stage.deaths, mended)
    }

    async fn install_all(&mut self, until: Instant) -> anyhow::Result<()> {
        let mut kinds = Vec::new().into_iter();
        // How often each family still may be tried, before there has been one of it.
        let mut owed: BTreeMap<Family, u32> =
            self.families.iter().map(|it| (*it, TRIES_MAX)).collect();
        loop {
            sleep(Duration::from_millis(self.rng.random_range(QUIET_MS))).await;
            self.stage.note_deaths(&[]);
            if Instant::now() >= until && owed.is_empty() {
                return self.stage.end().await;
            }
            let mut next = kinds.next();
            if next.is_none() {
                kinds = round(&self.families, &mut self.rng).into_iter();
                next = kinds.next();
            }
            let Some(kind) = next else {
                // Nothing is to be done.
                sleep_until(until).await;
                continue;
            };
            let left = owed.remove(&kind.family()).unwrap_or(0);
            let beside = self.begin_beside(kind).await;
            let has_another = beside.is_some();
            let mut is_installed = self.install(kind, beside).await?;
            if !is_installed && has_another {
                // The other one may have left it nothing, or no time: by itself it has both.
                sleep(Duration::from_millis(self.rng.random_range(QUIET_MS))).await;
                is_installed = self.install(kind, None).await?;
            }
            if !is_installed && left > 1 {
                owed.insert(kind.family(), left - 1);
            }
        }
    }

    /// Whether it was surely there.
    async fn install(&mut self, kind: Kind, beside: Option<Beside>) -> anyhow::Result<bool> {
        let hold = Duration::from_millis(self.rng.random_range(kind.hold_ms()));
        let targets = self.stage.targets(kind, &mut self.rng).await;
        let begun_ns = self.recorder.now_ns();
        tracing::info!(kind = kind.name(), nodes = ?targets, "fault");
        let (installation, beside) = match beside {
            Some(beside) if kind.is_operators() => {
                let (installation, beside) = self.operate(kind, hold, beside).await?;
                (installation, Some(beside))
            }
            beside => {
                let installation = if targets.is_empty() {
                    Installation::Skipped("there is no leader".into())
                } else {
                    self.stage
                        .install(kind, &targets, hold, &mut self.rng)
                        .await
                };
                let beside = match beside {
                    Some(beside) => Some(beside.end().await),
                    None => None,
                };
                (installation, beside)
            }
        };
        let is_installed = installation == Installation::Installed;
        let mut faults = vec![Begun {
            kind,
            targets,
            begun_ns,
            healed_ns: None,
            installation,
        }];
        faults.extend(beside);
        self.stage.note_deaths(&faults);
        // Whatever became of it.
        self.stage.heal()?;
        for fault in &faults {
            self.record(fault);
        }
        faults.retain(|fault| fault.kind.family() == Family::Disk);
        if !faults.is_empty() {
            // To stop is what a node may do that cannot write.
            sleep(DISK_PAUSE).await;
            self.stage.note_deaths(&faults);
            for fault in faults {
                self.stage.aftermath.add(fault.kind, fault.targets);
            }
            self.stage.heal()?;
        }
        Ok(is_installed)
    }

    /// A fault that stands while this one is done, and until when it is to stand.
    async fn begin_beside(&mut self, kind: Kind) -> Option<Beside> {
        if !self.pairs || !kind.bears_another() {
            return None;
        }
        let others = self.families.iter().filter(|it| **it != kind.family());
        let others = others.flat_map(|family| family.kinds());
        let mut others = others.filter(|it| it.stands() && it.goes_with(kind));
        let beside = *others.by_ref().choose(&mut self.rng)?;
        let hold = Duration::from_millis(self.rng.random_range(beside.hold_ms()));
        let targets = self.stage.targets(beside, &mut self.rng).await;
        let begun_ns = self.recorder.now_ns();
        tracing::info!(kind = beside.name(), nodes = ?targets, "fault beside the next");
        let standing = if targets.is_empty() {
            Standing::skipped("there is no leader".to_owned())
        } else {
            let standing = self.stage.begin(beside, &targets, &mut self.rng);
            standing.unwrap_or_else(|error| Standing::doubtful(format!("{error:#}")))
        };
        let begun = Begun {
            kind: beside,
            targets,
            begun_ns,
            healed_ns: None,
            installation: standing.installation.clone(),
        };
        Some(Beside {
            begun,
            standing,
            until: Instant::now() + hold,
        })
    }

    /// What an operator does, begun beside a fault that is mended while it goes on: as long as that stands, it may not
    /// be able to end.
    async fn operate(
        &mut self,
        kind: Kind,
        hold: Duration,
        beside: Beside,
    ) -> anyhow::Result<(Installation, Begun)> {
        let Self {
            stage,
            recorder,
            rng,
            ..
        } = self;
        let stage = &*stage;
        let hold = hold + beside.until.saturating_duration_since(Instant::now());
        let mend = async {
            let mut begun = beside.end().await;
            let mended = stage.heal();
            begun.healed_ns = Some(recorder.now_ns());
            mended.map(|()| begun)
        };
        let operate = operator::operate(kind, &stage.client, &stage.owners, hold, rng);
        let (done, begun) = tokio::join!(operate, mend);
        let installation =
            done.unwrap_or_else(|error| Installation::Indeterminate(format!("{error:#}")));
        Ok((installation, begun?))
    }

    fn record(&self, fault: &Begun) {
        let Begun {
            kind,
            targets,
            begun_ns,
            healed_ns,
            installation,
        } = fault;
        tracing::info!(kind = kind.name(), ?installation, "healed");
        self.recorder.record(Op::Fault(Fault {
            kind: kind.name().into(),
            // Of a fault of all nodes, none is named.
            node: match targets[..] {
                [only] => Some(only),
                _ => None,
            },
            begun_ns: *begun_ns,
            healed_ns: healed_ns.unwrap_or_else(|| self.recorder.now_ns()),
            installation: installation.clone(),
        }));
    }
}

/// A fault, and what became of it.
struct Begun {
    kind: Kind,
    targets: Vec<u64>,
    begun_ns: u64,
    /// When it was mended, if that was before all was.
    healed_ns: Option<u64>,
    installation: Installation,
}

/// A fault that stands while another one is done.
struct Beside {
    begun: Begun,
    standing: Standing,
    /// It is to stand until then.
    until: Instant,
}

impl Beside {
    /// Waits until its time is over and lets go of what holds it. The rest is left to [`Stage::heal`].
    async fn end(mut self) -> Begun {
        if self.standing.installation == Installation::Installed {
            sleep_until(self.until).await;
        }
        if let Err(error) = self.standing.end() {
            self.begun.installation = Installation::Indeterminate(format!("{error:#}"));
        }
        self.begun
    }
}

impl std::fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("cluster", &self.cluster)
            .field("ground", &self.ground)
            .finish_non_exhaustive()
    }
}

/// The processes that have ended since the last call, and were not ended from here; `explains` says of which node and
/// status that is no wonder.
pub(crate) fn deaths(cluster: &Cluster, explains: impl Fn(u64, ExitStatus) -> bool) -> Vec<String> {
    let mut deaths = Vec::new();
    for node in cluster.nodes() {
        let id = node.id();
        let ends = node.take_deaths().into_iter();
        let ends = ends.filter(|status| !explains(id, *status));
        deaths.extend(ends.map(|status| format!("node {id} ended by itself with {status}")));
        let ends = node.take_gateway_deaths().into_iter();
        deaths.extend(ends.map(|it| format!("the gateway of node {id} ended by itself with {it}")));
    }
    for death in &deaths {
        tracing::error!("{death}");
    }
    deaths
}

impl Stage<'_> {
    /// Notes which processes have ended, unless one of these faults is why, or one of disks a while ago.
    fn note_deaths(&mut self, faults: &[Begun]) {
        let found = deaths(self.cluster, |node, status| {
            let mut of_node = faults.iter().filter(|it| it.targets.contains(&node));
            of_node.any(|it| it.kind.explains(status)) || self.aftermath.explains(node, status)
        });
        self.aftermath.forget();
        self.deaths.extend(found);
    }

    /// Lets all be well, and waits until no node may end of a fault any more.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.heal()?;
        if let Some(end) = self.aftermath.end() {
            sleep_until(end).await;
            self.note_deaths(&[]);
            self.heal()?;
        }
        Ok(())
    }

    /// Starts one more node, with all of its own that the others have.
    async fn join(&mut self, within: Duration) -> anyhow::Result<()> {
        let host = self.ground.host(self.cluster.next_id())?;
        self.cluster.set_host(host);
        let joined = self.cluster.join(within).await;
        self.gateways.set(self.cluster);
        joined.context("join a node")
    }

    /// Lets all be well: clocks, disks, networks, nodes and gateways.
    ///
    /// # Errors
    /// When something cannot be mended.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.ground.heal()?;
        for node in self.cluster.nodes() {
            node.resume()?;
            node.start()?;
            node.start_gateway()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_each_kind_once_and_each_family_early() {
        let families = [Family::Kill, Family::Pause, Family::Partition];
        let mut rng = StdRng::seed_from_u64(7);
        let kinds = round(&families, &mut rng);
        assert_eq!(kinds.len(), 12);
        assert_eq!(kinds.iter().collect::<BTreeSet<_>>().len(), 12);
        let first: BTreeSet<_> = kinds[..3].iter().map(|kind| kind.family()).collect();
        assert_eq!(first, BTreeSet::from(families));
        assert_eq!(round(&[], &mut rng), []);
    }

    #[test]
    fn a_run_has_time_for_so_many_rounds() {
        let kill = [Family::Kill];
        let round_ms = 3 * (1500 + QUIET_MS.end + SLACK_MS);
        assert_eq!(rounds_within(&kill, round_ms / 1000), 1);
        assert_eq!(rounds_within(&kill, round_ms / 1000 - 1), 0);
        assert_eq!(rounds_within(&kill, 10 * round_ms / 1000), 10);
        assert_eq!(rounds_within(&[], 60), 0);
    }
}
