//! A network for each node, joined by a bridge, and what can be wrong on the way.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::shell;

/// Where `ip netns` keeps namespaces; in the mount namespace of the harness it is ours alone.
const NAMESPACES: &str = "/run/netns";
/// The table of the bridge's rules.
const TABLE: &str = "mailbox_jepsen";

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
    nodes: usize,
}

impl Network {
    /// Makes a bridge, and a namespace for each node on it.
    pub(super) fn make(nodes: usize) -> anyhow::Result<Self> {
        anyhow::ensure!((1..=200).contains(&nodes), "1 to 200 nodes, not {nodes}");
        let network = Self { nodes };
        let ip = |words: &str| shell::run("ip", &words.split(' ').collect::<Vec<_>>()).map(drop);
        std::fs::create_dir_all(NAMESPACES).with_context(|| format!("create {NAMESPACES}"))?;
        shell::run("mount", &["-t", "tmpfs", "none", NAMESPACES])?;
        ip("link add br0 type bridge")?;
        ip("addr add 198.18.0.254/24 dev br0")?;
        ip("link set br0 up")?;
        for n in 1..=nodes {
            let address = network.ip(n);
            ip(&format!("netns add n{n}"))?;
            ip(&format!(
                "link add h{n} type veth peer name v{n} netns n{n}"
            ))?;
            ip(&format!("link set h{n} master br0 up"))?;
            ip(&format!("-n n{n} addr add {address}/24 dev v{n}"))?;
            ip(&format!("-n n{n} link set v{n} up"))?;
            ip(&format!("-n n{n} link set lo up"))?;
        }
        network.heal()?;
        Ok(network)
    }

    pub(super) fn ip(&self, node: usize) -> IpAddr {
        let last = u8::try_from(node).unwrap_or(u8::MAX);
        Ipv4Addr::new(198, 18, 0, last).into()
    }

    pub(super) fn file(&self, node: usize) -> PathBuf {
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
        for other in (1..=self.nodes).filter(|other| *other as u64 != node) {
            let other = self.ip(other).to_string();
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

    /// All is well again.
    ///
    /// # Errors
    /// When the rules are not taken.
    pub fn heal(&self) -> anyhow::Result<()> {
        for node in 1..=self.nodes {
            self.slow(node as u64, None)?;
        }
        self.trouble(&Trouble::Cut(Cut::new()))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
