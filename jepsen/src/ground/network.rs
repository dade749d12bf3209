//! A network for each node, joined by a bridge, and what can be wrong on the way.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::hold::Holding;
use super::shell;

/// Where `ip netns` keeps namespaces; in the mount namespace of the harness it is ours alone.
const NAMESPACES: &str = "/run/netns";
/// The table of the bridge's rules.
const TABLE: &str = "mailbox_jepsen";

/// More than any run makes, and all of them in [`NODES`].
const NODES_MAX: u64 = 60_000;
/// Addresses of nodes; that of the harness is not among them.
const NODES: &str = "198.18.0.0/16";

/// Nodes between which nothing passes, in one direction: from, to.
pub type Cut = BTreeSet<(u64, u64)>;

/// What may be wrong between nodes. Between them and the harness all is well, but that a node which crawls answers slowly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Frames on these ways are dropped.
    Cut(Cut),
    /// Of all frames between nodes, so many of a hundred are dropped.
    Loss(u8),
}

/// The networks of all nodes.
#[derive(Debug)]
pub struct Network {
    /// Those that have a network.
    nodes: BTreeSet<u64>,
}

impl Network {
    /// Makes a bridge that no node is on yet.
    pub(super) fn make() -> anyhow::Result<Self> {
        let network = Self {
            nodes: BTreeSet::new(),
        };
        std::fs::create_dir_all(NAMESPACES).with_context(|| format!("create {NAMESPACES}"))?;
        shell::run("mount", &["-t", "tmpfs", "none", NAMESPACES])?;
        ip("link add br0 type bridge")?;
        ip("addr add 198.19.0.1/15 dev br0")?;
        ip("link set br0 up")?;
        network.heal()?;
        Ok(network)
    }

    /// Makes a namespace on the bridge for a node, if it has none.
    pub(super) fn reach(&mut self, n: u64) -> anyhow::Result<()> {
        anyhow::ensure!(n <= NODES_MAX, "at most {NODES_MAX} nodes, not {n}");
        if self.nodes.contains(&n) {
            return Ok(());
        }
        let address = self.ip(n);
        // What an attempt that failed has left.
        let _ = ip(&format!("netns del n{n}"));
        ip(&format!("netns add n{n}"))?;
        ip(&format!(
            "link add h{n} type veth peer name v{n} netns n{n}"
        ))?;
        ip(&format!("link set h{n} master br0 up"))?;
        ip(&format!("-n n{n} addr add {address}/15 dev v{n}"))?;
        ip(&format!("-n n{n} link set v{n} up"))?;
        ip(&format!("-n n{n} link set lo up"))?;
        self.nodes.insert(n);
        Ok(())
    }

    /// Takes the network of a node away that is gone for good.
    pub(super) fn abandon(&mut self, node: u64) -> anyhow::Result<()> {
        if self.nodes.remove(&node) {
            ip(&format!("netns del n{node}"))?;
        }
        Ok(())
    }

    pub(super) fn ip(&self, node: u64) -> IpAddr {
        let [.., high, low] = node.to_be_bytes();
        Ipv4Addr::new(198, 18, high, low).into()
    }

    pub(super) fn file(&self, node: u64) -> PathBuf {
        Path::new(NAMESPACES).join(format!("n{node}"))
    }

    /// From now on this is wrong, and nothing else.
    ///
    /// # Errors
    /// When the rules are not taken.
    pub fn trouble(&self, trouble: &Trouble) -> anyhow::Result<()> {
        shell::feed("nft", &["-f", "-"], &rules(trouble)).map(drop)
    }

    /// Ends all connections between a node and others at once: each end is told, as by a reset. How many it were.
    ///
    /// # Errors
    /// When the sockets cannot be closed.
    pub fn reset(&self, node: u64) -> anyhow::Result<usize> {
        let mut closed = 0;
        let name = format!("--net={NAMESPACES}/n{node}");
        for other in self.nodes.iter().filter(|other| **other != node) {
            let other = self.ip(*other).to_string();
            // It lists what it has closed.
            let listed = shell::run("nsenter", &[&name, "--", "ss", "-HK", "dst", &other])?;
            closed += listed.lines().count();
        }
        Ok(closed)
    }

    /// What a node sends to others goes this slowly; `None`: as fast as can be.
    ///
    /// # Errors
    /// When the rate is not taken.
    pub fn slow(&self, node: u64, kbit_per_s: Option<u32>) -> anyhow::Result<()> {
        let device = format!("v{node}");
        let name = format!("n{node}");
        match kbit_per_s {
            Some(rate) => {
                let words = format!(
                    "-n {name} qdisc replace dev {device} root tbf rate {rate}kbit burst 16kb latency 200ms"
                );
                shell::run("tc", &words.split(' ').collect::<Vec<_>>()).map(drop)
            }
            // It is no fault if there was none.
            None => {
                let _ = shell::run("tc", &["-n", &name, "qdisc", "del", "dev", &device, "root"]);
                Ok(())
            }
        }
    }

    /// What a node sends to others is held for up to `longest`, each packet for a time of its own, until what is given is
    /// dropped.
    ///
    /// # Errors
    /// When packets cannot be held.
    pub fn hold(&self, node: u64, longest: Duration) -> anyhow::Result<Holding> {
        Holding::begin(&self.file(node), NODES, self.ip(node), longest)
    }

    /// So many of a hundred packets that a node sends to others arrive twice; `None`: none do.
    ///
    /// # Errors
    /// When the rules are not taken.
    pub fn duplicate(&self, node: u64, percent: Option<u8>) -> anyhow::Result<()> {
        let others = self.nodes.iter().filter(|other| **other != node);
        let others: Vec<IpAddr> = others.map(|other| self.ip(*other)).collect();
        let rules = twice(node, &others, percent);
        let name = format!("--net={NAMESPACES}/n{node}");
        shell::feed("nsenter", &[&name, "--", "nft", "-f", "-"], &rules).map(drop)
    }

    /// All is well again.
    ///
    /// # Errors
    /// When the rules are not taken.
    pub fn heal(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            self.slow(*node, None)?;
            self.duplicate(*node, None)?;
        }
        self.trouble(&Trouble::Cut(Cut::new()))
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    shell::run("ip", &words.split(' ').collect::<Vec<_>>()).map(drop)
}

/// The table as `nft` reads it: in place of the one before, in one step.
fn rules(trouble: &Trouble) -> String {
    let mut text = format!(
        "table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{\n\
         chain between {{\ntype filter hook forward priority 0; policy accept;\n"
    );
    match trouble {
        Trouble::Cut(cut) => {
            for (from, to) in cut {
                let _ = writeln!(text, "iifname \"h{from}\" oifname \"h{to}\" drop");
            }
        }
        Trouble::Loss(percent) => {
            let _ = writeln!(text, "numgen random mod 100 < {percent} drop");
        }
    }
    text + "}\n}\n"
}

/// The table of a node's own network, in place of the one before.
fn twice(node: u64, others: &[IpAddr], percent: Option<u8>) -> String {
    let mut text = format!("table ip {TABLE}\ndelete table ip {TABLE}\n");
    if let Some(percent) = percent {
        let _ = writeln!(
            text,
            "table ip {TABLE} {{\nchain sent {{\ntype filter hook output priority 0;"
        );
        for other in others {
            let _ = writeln!(
                text,
                "ip daddr {other} numgen random mod 100 < {percent} dup to {other} device \"v{node}\""
            );
        }
        text += "}\n}\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_one_node_name_all_others() {
        let head = "table ip mailbox_jepsen\ndelete table ip mailbox_jepsen\n";
        assert_eq!(twice(1, &[], None), head);
        let other = "198.18.0.2".parse().unwrap();
        let rules = twice(1, &[other], Some(30));
        let rule = "ip daddr 198.18.0.2 numgen random mod 100 < 30 dup to 198.18.0.2 device \"v1\"\n}\n}\n";
        assert!(rules.starts_with(head) && rules.ends_with(rule), "{rules}");
    }

    #[test]
    fn rules_replace_those_before() {
        let head = "table bridge mailbox_jepsen\ndelete table bridge mailbox_jepsen\n\
                    table bridge mailbox_jepsen {\nchain between {\n\
                    type filter hook forward priority 0; policy accept;\n";
        let cut = Trouble::Cut(Cut::from([(1, 2), (3, 1)]));
        let wanted = format!(
            "{head}iifname \"h1\" oifname \"h2\" drop\niifname \"h3\" oifname \"h1\" drop\n}}\n}}\n"
        );
        assert_eq!(rules(&cut), wanted);
        let loss = format!("{head}numgen random mod 100 < 30 drop\n}}\n}}\n");
        assert_eq!(rules(&Trouble::Loss(30)), loss);
    }
}
