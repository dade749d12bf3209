//! Where the nodes of a run live.
//!
//! On loopback a run can do to processes what their owner may. What cuts networks and powers disks off needs root: there the
//! harness starts itself anew in a network namespace and a mount namespace of its own ([`enter`]), and every node gets a
//! network namespace and a file system on a loop device. The kernel takes all of it back when the last process in them
//! ends, however that came about: nothing is left to be cleaned up after a crash but files below the store.
//!
//! ```text
//!  harness ── br0 198.18.0.254 ─┬─ h1 ══ v1 198.18.0.1  node 1 ── /…/disks/1  (ext4 on a loop device)
//!  (no way out)                 ├─ h2 ══ v2 198.18.0.2  node 2 ── /…/disks/2
//!                               └─ …
//! ```
//!
//! Addresses are those that RFC 2544 sets aside for benchmarks.

mod disk;
mod network;
mod shell;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use mailbox_cluster::Host;

use crate::nemesis::clock;

pub use disk::Disk;
pub use network::{Cut, Network, Trouble};

/// Says to a process that it runs where [`enter`] has brought it.
const ENTERED: &str = "MAILBOX_JEPSEN_ENTERED";

/// What a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A network of each node's own.
    Network,
    /// A file system of each node's own.
    Disks,
    /// A wall clock of each node's own. As root in namespaces too, since libfaketime leaves files in `/dev/shm` of
    /// processes that are killed.
    Clocks,
}

/// Why a machine does not have something; `None`: it does.
pub fn lacks(need: Need) -> Option<String> {
    if need == Need::Clocks {
        let missing = clock::library().is_none();
        return missing.then(|| "libfaketime is not installed (Debian: faketime)".to_owned());
    }
    if !is_root() {
        return Some("it takes root".to_owned());
    }
    let programs: &[(&str, &str)] = match need {
        Need::Network => &[
            ("unshare", "util-linux"),
            ("nsenter", "util-linux"),
            ("ip", "iproute2"),
            ("ss", "iproute2"),
            ("tc", "iproute2"),
            ("nft", "nftables"),
        ],
        Need::Disks => &[
            ("unshare", "util-linux"),
            ("mount", "mount"),
            ("ip", "iproute2"),
            ("mkfs.ext4", "e2fsprogs"),
            ("xfs_io", "xfsprogs"),
        ],
        Need::Clocks => &[],
    };
    for (program, package) in programs {
        if !shell::is_there(program) {
            return Some(format!("there is no {program} (Debian: {package})"));
        }
    }
    // What was tried is long; what was said about it comes last.
    let said = probe(need).err()?.to_string();
    Some(said.rsplit(": ").next().unwrap_or(&said).to_owned())
}

/// Whether the kernel lets us: tried in namespaces that end with the trial.
fn probe(need: Need) -> anyhow::Result<()> {
    let script = match need {
        Need::Network => {
            "ip link add br0 type bridge && ip link add ve0 type veth peer name ve1 \
             && tc qdisc add dev ve0 root tbf rate 1mbit burst 16kb latency 200ms \
             && nft add table bridge t && nft add chain bridge t c '{ type filter hook forward priority 0; }' \
             && nft add rule bridge t c numgen random mod 100 '<' 30 drop"
        }
        Need::Clocks => return Ok(()),
        Need::Disks => {
            "d=$(mktemp -d) && mount -t tmpfs none $d && truncate -s 16M $d/image \
             && mkfs.ext4 -qF $d/image && mkdir $d/disk && mount -o loop $d/image $d/disk; \
             s=$?; umount $d/disk 2>/dev/null; umount $d 2>/dev/null; rmdir $d; exit $s"
        }
    };
    apart(script)
}

/// Runs a script in namespaces that end with it.
fn apart(script: &str) -> anyhow::Result<()> {
    let namespaces = ["--net", "--mount", "--propagation", "private"];
    shell::run(
        "unshare",
        &[&namespaces[..], &["sh", "-c", script]].concat(),
    )
    .map(drop)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a run with these needs is done behind [`enter`].
pub fn is_apart(needs: &[Need]) -> bool {
    let are_only_clocks = needs.iter().all(|need| *need == Need::Clocks);
    // Clocks can do without; then libfaketime leaves its files.
    let script = "ip link set lo up && mount -t tmpfs none /dev/shm";
    !needs.is_empty() && (!are_only_clocks || (is_root() && apart(script).is_ok()))
}

/// Starts this program anew, with its arguments, where it may do as it likes with networks and mounts; returns only
/// where it has done so before.
///
/// # Errors
/// When that fails; [`lacks`] would have said so.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(ENTERED).is_some() {
        return Ok(());
    }
    let own = std::env::current_exe().context("find this program")?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(ENTERED, "1")
        .exec();
    bail!("start in namespaces of its own: {error}");
}

/// What the nodes of one run have of their own.
#[derive(Debug, Default)]
pub struct Ground {
    /// A network for each.
    pub network: Option<Network>,
    /// A disk for each.
    pub disks: Option<Vec<Disk>>,
}

impl Ground {
    /// Makes what is needed for so many nodes; images of disks go below `dir`. To be called behind [`enter`] if anything
    /// is.
    ///
    /// # Errors
    /// When a command fails, with what it said.
    pub fn make(needs: &[Need], nodes: usize, dir: &Path) -> anyhow::Result<Self> {
        let entered = std::env::var_os(ENTERED).is_some();
        if !entered && needs.iter().any(|need| *need != Need::Clocks) {
            bail!("networks and disks are made in namespaces of their own only");
        }
        if entered {
            shell::run("mount", &["-t", "tmpfs", "none", "/dev/shm"])?;
            shell::run("ip", &["link", "set", "lo", "up"])?;
        }
        let mut ground = Self::default();
        if needs.contains(&Need::Network) {
            ground.network = Some(Network::make(nodes).context("make networks")?);
        }
        if needs.contains(&Need::Disks) {
            let disks = (1..=nodes).map(|number| Disk::make(dir, number));
            let disks = disks.collect::<anyhow::Result<_>>();
            ground.disks = Some(disks.context("make disks")?);
        }
        Ok(ground)
    }

    /// For the cluster: where each node lives.
    pub fn hosts(&self, nodes: usize) -> Vec<Host> {
        let host = |place: usize| {
            let mut host = Host::default();
            if let Some(network) = &self.network {
                host.ip = network.ip(place + 1);
                host.network = Some(network.file(place + 1));
            }
            let disk = self.disks.as_ref().and_then(|disks| disks.get(place));
            host.data = disk.map(Disk::data_dir);
            host
        };
        (0..nodes).map(host).collect()
    }

    /// Gives disks back; nothing may run on them any more. What cannot be given back goes with this process.
    pub fn end(self) {
        for disk in self.disks.into_iter().flatten() {
            if let Err(error) = disk.detach() {
                tracing::warn!("a disk stays until this program ends: {error:#}");
            }
        }
    }

    /// Ends every trouble that may still be there.
    ///
    /// # Errors
    /// When a command fails.
    pub fn heal(&self) -> anyhow::Result<()> {
        if let Some(network) = &self.network {
            network.heal()?;
        }
        for disk in self.disks.iter().flatten() {
            disk.heal()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_outside_of_namespaces_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Ground::make(&[Need::Network], 3, dir.path()).is_err());
        let ground = Ground::make(&[], 3, dir.path()).unwrap();
        assert_eq!(ground.hosts(3), vec![Host::default(); 3]);
        ground.heal().unwrap();
    }
}
