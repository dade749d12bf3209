//! What to run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checker::Floors;
use crate::ground::Need;
use crate::nemesis::{self, Family};
use crate::workload::{self, Workload};

/// Of the sends asked for, the part that must be acked or the run proves nothing: faults take time, and machines are
/// slow.
const ACKED_PART_MIN: f64 = 0.05;
/// Reads that any replica may answer are a part of all reads, and leaders answer some of these: there must be one in so
/// many seconds that none did.
const STALE_READ_S: usize = 5;
/// A cluster is bootstrapped with so many nodes; more of them join.
pub(crate) const FIRST_NODES: usize = 3;

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunOptions {
    /// What people do: see [`workload::ALL`].
    pub workload: String,
    /// What is done to them, by name: see [`Family`].
    pub nemeses: Vec<String>,
    /// Whether each fault is done beside another one, where that can be.
    #[serde(default)]
    pub pairs: bool,
    /// 1, 3 or more.
    pub nodes: usize,
    /// Shards of the cluster.
    pub shards: u16,
    /// How long faults are installed.
    pub seconds: u64,
    /// Sends a second, of all processes together.
    pub rate: u32,
    /// What the faults and the messages follow from.
    pub seed: u64,
    /// What git says is checked out; `+` at its end: with changes.
    #[serde(default)]
    pub revision: Option<String>,
    /// The `mailboxd` to run; see [`mailbox_cluster::ClusterOptions::binary`].
    #[serde(skip)]
    pub binary: Option<PathBuf>,
    /// The `mailboxd` that nodes are upgraded to, and back from.
    #[serde(default)]
    pub other_binary: Option<PathBuf>,
    /// The directory of the run; made if it is not there.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Whether stderr tells how it goes.
    #[serde(skip)]
    pub tells: bool,
}

impl RunOptions {
    /// The faults by name.
    ///
    /// # Errors
    /// There is no nemesis of that name.
    pub fn families(&self) -> anyhow::Result<Vec<Family>> {
        let names = self.nemeses.iter();
        let families = names.map(|name| name.parse().map_err(anyhow::Error::msg));
        families.collect()
    }

    pub(crate) fn workload(&self) -> anyhow::Result<&'static Workload> {
        workload::named(&self.workload).map_err(anyhow::Error::msg)
    }

    /// `mixed-kill-pause`.
    pub fn name(&self) -> String {
        let mut words = vec![self.workload.clone()];
        words.extend(self.nemeses.iter().cloned());
        words.join("-")
    }

    /// What it takes of the machine.
    ///
    /// # Errors
    /// There is no nemesis of that name.
    pub fn needs(&self) -> anyhow::Result<Vec<Need>> {
        let families = self.families()?;
        let needs = families.iter().flat_map(|it| it.needs().iter().copied());
        let mut needs: Vec<Need> = needs.collect();
        needs.sort_unstable();
        needs.dedup();
        Ok(needs)
    }

    /// The command that does it again.
    pub(crate) fn reproduce(&self) -> String {
        let Self {
            workload,
            nemeses,
            pairs,
            nodes,
            shards,
            seconds,
            rate,
            seed,
            other_binary,
            ..
        } = self;
        let nemeses = nemeses.join(",");
        let pairs = if *pairs { " --pairs" } else { "" };
        let other = other_binary.as_ref().map_or(String::new(), |path| {
            format!(" --other-mailboxd {}", path.display())
        });
        format!(
            "mailbox-jepsen test --workload {workload} --nemesis {nemeses}{pairs} --nodes {nodes} --shards {shards} \
             --time-limit {seconds} --rate {rate} --seed {seed}{other}"
        )
    }

    /// What the run must have to prove anything.
    pub(crate) fn floors(&self) -> anyhow::Result<Floors> {
        let families = self.families()?;
        let rounds = nemesis::rounds_within(&families, self.seconds);
        let rounds = usize::try_from(rounds).unwrap_or(0);
        let kinds = families.iter().flat_map(|family| family.kinds());
        let seconds = usize::try_from(self.seconds).unwrap_or(usize::MAX).max(1);
        let asked = f64::from(self.rate) * self.seconds as f64;
        Ok(Floors {
            acked: (asked * ACKED_PART_MIN) as usize + 1,
            reads: seconds,
            pages: seconds,
            stale_reads: seconds / STALE_READ_S,
            touches: seconds,
            faults: kinds.map(|kind| (kind.name().to_owned(), rounds)).collect(),
            // However short the run, each sort of fault has been there.
            sorts: families
                .iter()
                .map(|family| {
                    let kinds = family.kinds().iter();
                    let kinds = kinds.map(|kind| kind.name().to_owned());
                    (family.name().to_owned(), kinds.collect())
                })
                .collect(),
            replicas: self.nodes.min(FIRST_NODES),
        })
    }
}

/// Some, for tests.
#[cfg(test)]
pub(crate) fn options(nemeses: &[&str], seconds: u64) -> RunOptions {
    RunOptions {
        workload: "mixed".into(),
        nemeses: nemeses.iter().map(ToString::to_string).collect(),
        pairs: false,
        nodes: 5,
        shards: 4,
        seconds,
        rate: 1000,
        seed: 7,
        revision: None,
        binary: None,
        other_binary: None,
        dir: PathBuf::new(),
        tells: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_needs_what_its_faults_need() {
        assert_eq!(options(&["kill", "pause"], 60).needs().unwrap(), []);
        let both = options(&["power", "packet", "partition"], 60);
        let wanted = [Need::Network, Need::Queues, Need::Disks];
        assert_eq!(both.needs().unwrap(), wanted);
        assert_eq!(both.name(), "mixed-power-packet-partition");
        assert!(options(&["quake"], 60).needs().is_err());
    }

    #[test]
    fn floors_grow_with_the_time() {
        let floors = options(&["kill"], 60).floors().unwrap();
        assert_eq!((floors.acked, floors.reads, floors.replicas), (3001, 60, 3));
        assert!(floors.faults["kill-all"] > 0);
        let short = options(&["kill"], 5).floors().unwrap();
        assert_eq!(
            short.faults["kill-all"], 0,
            "there is no time for all of them"
        );
        assert_eq!(short.sorts["kill"].len(), 3, "but for one");
    }

    #[test]
    fn a_run_says_how_to_do_it_again() {
        assert_eq!(
            options(&["kill", "pause"], 60).reproduce(),
            "mailbox-jepsen test --workload mixed --nemesis kill,pause --nodes 5 --shards 4 --time-limit 60 \
             --rate 1000 --seed 7"
        );
    }
}
