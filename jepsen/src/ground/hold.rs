//! Packets that are late, each by a time of its own, so that they overtake each other.
//!
//! The kernel hands what a node sends to other nodes to a queue (NFQUEUE), which a process in the node's network
//! namespace reads: this program, started anew for it. It gives each packet back when its time has come. When it is
//! gone, packets pass as before; those that it held are lost.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::shell;

/// The command of this program that holds packets.
pub const COMMAND: &str = "hold-packets";
/// The queue's number; each network namespace has its own.
const QUEUE: u16 = 7;

/// Until it is dropped.
#[derive(Debug)]
pub struct Holding {
    holder: Child,
    network: String,
}

impl Holding {
    /// Has what is sent from a network namespace to the addresses `to`, but for its `own`, held for up to `longest`.
    pub(super) fn begin(
        network: &Path,
        to: &str,
        own: IpAddr,
        longest: Duration,
    ) -> anyhow::Result<Self> {
        let network = format!("--net={}", network.display());
        let program = std::env::current_exe().context("find this program")?;
        let holder = Command::new("nsenter")
            .args([&network, "--"])
            .arg(program)
            .args([COMMAND, &longest.as_millis().to_string()])
            .env("PATH", shell::path())
            // It ends when this end of the pipe does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run nsenter")?;
        let holding = Self { holder, network };
        // Without a reader they pass: at first, too.
        holding.iptables(&format!("-A OUTPUT -d {own} -j ACCEPT"))?;
        holding.iptables(&format!(
            "-A OUTPUT -d {to} -j NFQUEUE --queue-num {QUEUE} --queue-bypass"
        ))?;
        Ok(holding)
    }

    /// Whether packets are held still.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.holder.try_wait().context("wait for a process")?;
        ended.map_or(Ok(()), |status| {
            Err(anyhow::anyhow!("packets were not held: {status}"))
        })
    }

    fn iptables(&self, words: &str) -> anyhow::Result<()> {
        let mut all = vec![self.network.as_str(), "--", "iptables"];
        all.extend(words.split(' '));
        shell::run("nsenter", &all).map(drop)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Err(error) = self.iptables("-F OUTPUT") {
            tracing::warn!("a rule stays until this program ends: {error:#}");
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Holds each packet of the queue for a time up to `longest`, until stdin ends.
///
/// # Errors
/// When there is no queue to read.
pub fn hold(longest: Duration) -> anyhow::Result<Infallible> {
    #[cfg(target_os = "linux")]
    return super::queue::hold(QUEUE, longest);
    #[cfg(not(target_os = "linux"))]
    anyhow::bail!("packets are not held for {longest:?} here: queue {QUEUE} is one of Linux");
}
