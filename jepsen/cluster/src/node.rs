//! One node of a cluster: a `mailboxd server` and, if asked for, a `mailboxd gateway` beside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::bail;

use crate::host::Host;
use crate::layout::Ports;
use crate::process::{Process, Spawner};
use crate::usage::{IoBytes, Usage, rss_bytes};

/// A node; its addresses and files stay the same over restarts. `start`, `kill`, `pause`, `resume`
/// and `stop` are about the server, the store node proper; its gateway is a process of its own.
#[derive(Debug)]
pub struct Node {
    id: u64,
    address: String,
    metrics_address: String,
    gateway_address: Option<String>,
    /// What its gateway shows, if it speaks TLS.
    gateway_certificate: Option<PathBuf>,
    dir: PathBuf,
    config: PathBuf,
    gateway_config: PathBuf,
    server: Process,
    gateway: Option<Process>,
}

/// Where a node's files are.
pub(crate) struct Places<'a> {
    pub(crate) binary: &'a Path,
    /// Holds config and logs.
    pub(crate) dir: &'a Path,
    pub(crate) data: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) gateway_config: PathBuf,
    /// What its gateway shows, if it speaks TLS.
    pub(crate) gateway_certificate: Option<PathBuf>,
}

impl Node {
    pub(crate) fn new(
        (id, host): (u64, &Host),
        ports: Ports,
        places: Places<'_>,
        gateway: bool,
        spawner: &Spawner,
    ) -> Self {
        let process = |role: &str, config: &Path| {
            let arguments = vec![OsString::from(role), "--config".into(), config.into()];
            let log = places.dir.join(format!("{role}.log"));
            Process::new(places.binary, arguments, log, spawner.clone())
                .within(host.network.clone())
        };
        let server = process("server", &places.config);
        server.set_environment(host.environment.clone());
        Self {
            id,
            address: host.address(ports.node),
            metrics_address: host.address(ports.metrics),
            gateway_address: gateway.then(|| host.address(ports.gateway)),
            gateway_certificate: places.gateway_certificate,
            dir: places.data,
            server,
            gateway: gateway.then(|| process("gateway", &places.gateway_config)),
            config: places.config,
            gateway_config: places.gateway_config,
        }
    }

    /// What its gateway reads when it starts.
    pub(crate) fn gateway_config(&self) -> &Path {
        &self.gateway_config
    }

    /// Its node id, from 1.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it serves gRPC: `127.0.0.1:port`, or at the address of its host.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its server serves `/metrics`.
    pub fn metrics_address(&self) -> Option<&str> {
        Some(&self.metrics_address)
    }

    /// Where its gateway listens, if it has one.
    pub fn gateway_address(&self) -> Option<&str> {
        self.gateway_address.as_deref()
    }

    /// Where its gateway listens, as `ws://address:port` or `wss://…`, if it has one.
    pub fn gateway_url(&self) -> Option<String> {
        let scheme = match self.gateway_certificate {
            Some(_) => "wss",
            None => "ws",
        };
        let address = self.gateway_address.as_ref();
        address.map(|address| format!("{scheme}://{address}"))
    }

    /// PEM of the certificate that its gateway shows and that is to be trusted, if it speaks TLS.
    pub fn gateway_certificate(&self) -> Option<&Path> {
        self.gateway_certificate.as_deref()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// Its config file.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// What its server wrote to stdout and stderr, over all its lives.
    pub fn log_path(&self) -> &Path {
        self.server.log()
    }

    /// What its gateway wrote, if it has one.
    pub fn gateway_log_path(&self) -> Option<&Path> {
        self.gateway.as_ref().map(Process::log)
    }

    /// The running server process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The running gateway process, if there is one.
    pub fn gateway_pid(&self) -> Option<u32> {
        self.gateway.as_ref().and_then(Process::pid)
    }

    /// Whether [`Node::pause`] holds the server.
    pub fn is_paused(&self) -> bool {
        self.server.is_paused()
    }

    /// How the server's last life ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.server.status()
    }

    /// How lives of the server ended since the last call that nothing here ended.
    pub fn take_deaths(&self) -> Vec<ExitStatus> {
        self.server.take_deaths()
    }

    /// The same of its gateway.
    pub fn take_gateway_deaths(&self) -> Vec<ExitStatus> {
        let gateway = self.gateway.as_ref();
        gateway.map(Process::take_deaths).unwrap_or_default()
    }

    /// Starts the server; does nothing if it runs. It may take a while to serve.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub fn start(&self) -> anyhow::Result<()> {
        self.server.start()
    }

    /// Environment variables for the server's next starts, in place of those set before.
    pub fn set_environment(&self, variables: Vec<(OsString, OsString)>) {
        self.server.set_environment(variables);
    }

    /// The `mailboxd` that the next starts of its server and its gateway run.
    pub fn set_binary(&self, binary: &Path) {
        for process in [Some(&self.server), self.gateway.as_ref()]
            .into_iter()
            .flatten()
        {
            process.set_binary(binary);
        }
    }

    /// Starts the gateway, if the node has one; does nothing if it runs.
    pub fn start_gateway(&self) -> anyhow::Result<()> {
        self.gateway.as_ref().map_or(Ok(()), Process::start)
    }

    /// SIGKILL for the server; returns when the process is gone. False if it did not run.
    pub fn kill(&self) -> anyhow::Result<bool> {
        self.server.kill()
    }

    /// SIGKILL for the gateway. False if it did not run.
    pub fn kill_gateway(&self) -> anyhow::Result<bool> {
        self.gateway.as_ref().map_or(Ok(false), Process::kill)
    }

    /// SIGSTOP for the server. False if it did not run.
    pub fn pause(&self) -> anyhow::Result<bool> {
        self.server.pause()
    }

    /// SIGCONT for the server. False if it did not run.
    pub fn resume(&self) -> anyhow::Result<bool> {
        self.server.resume()
    }

    /// SIGTERM for the server, and waits for its exit; returns its status, `None` if it did not run.
    ///
    /// # Errors
    /// When it still runs after `patience`; it is then killed.
    pub async fn stop(&self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.server.stop(patience).await
    }

    /// The same for the gateway.
    ///
    /// # Errors
    /// As [`Node::stop`].
    pub async fn stop_gateway(&self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        match &self.gateway {
            Some(gateway) => gateway.stop(patience).await,
            None => Ok(None),
        }
    }

    /// User and system time of this node's processes, dead ones included.
    pub fn cpu_time(&self) -> Duration {
        self.usage().cpu
    }

    /// Bytes moved by this node's processes, dead ones included.
    pub fn io_bytes(&self) -> IoBytes {
        self.usage().io
    }

    /// Memory that this node's running processes hold now, shared pages included.
    pub fn rss_bytes(&self) -> u64 {
        let processes = [self.pid(), self.gateway_pid()];
        processes.into_iter().flatten().map(rss_bytes).sum()
    }

    fn usage(&self) -> Usage {
        self.server_usage() + self.gateway_usage().unwrap_or_default()
    }

    /// What its server has used, over all its lives.
    pub fn server_usage(&self) -> Usage {
        self.server.usage()
    }

    /// What its gateway has used, if it has one.
    pub fn gateway_usage(&self) -> Option<Usage> {
        self.gateway.as_ref().map(Process::usage)
    }

    /// An error if a process of this node ended by itself.
    pub(crate) fn check_alive(&self) -> anyhow::Result<()> {
        let gateway = self.gateway.as_ref();
        for process in [Some(&self.server), gateway].into_iter().flatten() {
            if let Some(status) = process.status() {
                let log = process.log().display();
                bail!(
                    "node {} ended with {status}; the end of {log}:\n{}",
                    self.id,
                    tail(process)
                );
            }
        }
        Ok(())
    }

    /// The end of the server's log, for messages to people.
    pub fn log_tail(&self) -> String {
        tail(&self.server)
    }
}

/// Where a node keeps its data, below its own directory.
pub(crate) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

const TAIL_LINES: usize = 20;

fn tail(process: &Process) -> String {
    let text = std::fs::read(process.log()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
