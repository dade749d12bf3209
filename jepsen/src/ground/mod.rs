//! Where the nodes of a run live.
//!
//! On loopback a run can do to processes what their owner may. What cuts networks and powers disks off needs root: there the
//! harness starts itself anew in a network namespace and a mount namespace of its own ([`enter`]), and every node gets a
//! network namespace and a file system on a loop device, which may have a cache of its own ([`blocks`]). The kernel takes all of it back when the last process in them
//! ends, however that came about: nothing is left to be cleaned up after a crash but files below the store.
//!
//! ```text
//!  harness ── br0 198.19.0.1 ─┬─ h1 ══ v1 198.18.0.1  node 1 ── /…/ground/1  (ext4 on a loop device)
//!  (no way out)               ├─ h2 ══ v2 198.18.0.2  node 2 ── /…/ground/2
//!                             └─ …
//! ```
//!
//! Addresses are those that RFC 2544 sets aside for benchmarks.

#[cfg(target_os = "linux")]
mod block_file;
mod blocks;
mod disk;
mod hold;
mod network;
#[cfg(target_os = "linux")]
mod queue;
mod shell;
mod syscalls;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use mailbox_cluster::Host;

use crate::nemesis::clock::{self, WallClock};

pub use blocks::{COMMAND as BLOCKS_COMMAND, Sectors, serve as serve_blocks};
pub use disk::Disk;
pub use hold::{COMMAND as HOLD_COMMAND, Holding, hold};
pub use network::{Cut, Network, Trouble};
pub use syscalls::{Tamper, Tampering};

/// Says to a process that it runs where [`enter`] has brought it.
const ENTERED: &str = "MAILBOX_JEPSEN_ENTERED";

/// What a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A network of each node's own.
    Network,
    /// Packets that this program is given before they go on.
    Queues,
    /// A file system of each node's own.
    Disks,
    /// Devices under these that lose what was written and not flushed.
    Blocks,
    /// System calls of nodes that this program answers.
    Calls,
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
        Need::Queues => &[("iptables", "iptables"), ("unshare", "util-linux")],
        Need::Calls => &[("strace", "strace")],
        Need::Disks => &[
            ("unshare", "util-linux"),
            ("mount", "mount"),
            ("ip", "iproute2"),
            ("mkfs.ext4", "e2fsprogs"),
            ("xfs_io", "xfsprogs"),
        ],
        Need::Blocks => &[("mount", "mount"), ("unshare", "util-linux")],
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
        Need::Queues => {
            "iptables -A OUTPUT -d 198.18.0.0/16 -j NFQUEUE --queue-num 7 --queue-bypass \
             && nft add table ip t && nft add chain ip t c '{ type filter hook output priority 0; }' \
             && nft add rule ip t c ip daddr 198.18.0.1 numgen random mod 100 '<' 30 dup to 198.18.0.1"
        }
        Need::Calls => {
            "sleep 5 & p=$!; strace -qq -o /dev/null -p $p & t=$!; sleep 0.3; kill $p && wait $t"
        }
        Need::Blocks => {
            "[ -r /dev/fuse ] && [ -w /dev/fuse ] || { echo 'there is no /dev/fuse' >&2; exit 1; }; \
             d=$(mktemp -d) && timeout 5 mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none $d \
             3<>/dev/fuse; s=$?; timeout 5 umount -l $d 2>/dev/null; rmdir $d; exit $s"
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

/// What the nodes of one run have of their own. Places are those of ids: the first node's is 1, and none is used twice.
#[derive(Debug, Default)]
pub struct Ground {
    /// Where images of disks and the times of clocks go.
    dir: PathBuf,
    /// A network for each.
    pub network: Option<Network>,
    /// A disk for each.
    pub disks: Option<Vec<Disk>>,
    /// Whether these have a cache of their own each.
    are_cached: bool,
    /// A wall clock for each.
    pub clocks: Option<Vec<WallClock>>,
}

impl Ground {
    /// Makes what is needed for so many nodes, below `dir`. To be called behind [`enter`] if anything is.
    ///
    /// # Errors
    /// When a command fails, with what it said.
    pub fn make(needs: &[Need], nodes: u64, dir: &Path) -> anyhow::Result<Self> {
        let entered = std::env::var_os(ENTERED).is_some();
        if !entered && needs.iter().any(|need| *need != Need::Clocks) {
            bail!("networks and disks are made in namespaces of their own only");
        }
        if entered {
            shell::run("mount", &["-t", "tmpfs", "none", "/dev/shm"])?;
            shell::run("ip", &["link", "set", "lo", "up"])?;
        }
        let mut ground = Self {
            dir: dir.to_owned(),
            ..Self::default()
        };
        if needs.contains(&Need::Network) {
            ground.network = Some(Network::make().context("make a bridge")?);
        }
        ground.disks = needs.contains(&Need::Disks).then(Vec::new);
        ground.are_cached = needs.contains(&Need::Blocks);
        ground.clocks = needs.contains(&Need::Clocks).then(Vec::new);
        for node in 1..=nodes {
            ground.host(node)?;
        }
        Ok(ground)
    }

    /// Where a node lives; what it has of its own is made, if it is not there.
    ///
    /// # Errors
    /// When a command fails, with what it said.
    pub fn host(&mut self, node: u64) -> anyhow::Result<Host> {
        let mut host = Host::default();
        if let Some(network) = &mut self.network {
            network.reach(node).context("make a network")?;
            host.ip = network.ip(node);
            host.network = Some(network.file(node));
        }
        let (dir, are_cached) = (&self.dir, self.are_cached);
        if let Some(disks) = &mut self.disks {
            let disk = grown(disks, node, |number| Disk::make(dir, number, are_cached));
            host.data = Some(disk.context("make a disk")?.data_dir());
        }
        if let Some(clocks) = &mut self.clocks {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
            let clock = grown(clocks, node, |number| WallClock::new(dir, number));
            host.environment.extend(clock?.environment());
        }
        Ok(host)
    }

    /// A node's disk, if it has one of its own.
    pub fn disk(&self, node: u64) -> Option<&Disk> {
        of_node(self.disks.as_ref()?, node)
    }

    /// A node's wall clock, if it has one of its own.
    pub fn clock(&self, node: u64) -> Option<&WallClock> {
        of_node(self.clocks.as_ref()?, node)
    }

    /// Gives back what a node had that is gone for good.
    pub fn abandon(&mut self, node: u64) {
        let disk = self.disk(node).map_or(Ok(()), Disk::abandon);
        let network = self.network.as_mut();
        let network = network.map_or(Ok(()), |network| network.abandon(node));
        for error in [disk, network].into_iter().filter_map(Result::err) {
            tracing::warn!("node {node} leaves something until this program ends: {error:#}");
        }
    }

    /// Gives disks back; nothing may run on them any more. What cannot be given back goes with this process.
    pub fn end(self) {
        for disk in self.disks.into_iter().flatten() {
            if let Err(error) = disk.abandon() {
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
        for clock in self.clocks.iter().flatten() {
            clock.set("+0")?;
        }
        Ok(())
    }
}

/// The one of a node, and those before it made if they are not there.
fn grown<T>(
    all: &mut Vec<T>,
    node: u64,
    make: impl Fn(u64) -> anyhow::Result<T>,
) -> anyhow::Result<&T> {
    while (all.len() as u64) < node {
        all.push(make(all.len() as u64 + 1)?);
    }
    of_node(all, node).context("places begin at 1")
}

fn of_node<T>(all: &[T], node: u64) -> Option<&T> {
    all.get(usize::try_from(node).ok()?.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_outside_of_namespaces_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Ground::make(&[Need::Network], 3, dir.path()).is_err());
        let mut ground = Ground::make(&[], 3, dir.path()).unwrap();
        assert_eq!(ground.host(4).unwrap(), Host::default());
        ground.heal().unwrap();
    }

    #[test]
    fn places_grow_with_the_nodes() {
        let mut all = Vec::new();
        assert_eq!(*grown(&mut all, 3, Ok).unwrap(), 3);
        assert_eq!(*grown(&mut all, 2, Ok).unwrap(), 2, "it is there");
        assert_eq!(all, [1, 2, 3]);
        assert!(grown(&mut all, 0, Ok).is_err());
        assert_eq!((of_node(&all, 0), of_node(&all, 4)), (None, None));
    }
}
