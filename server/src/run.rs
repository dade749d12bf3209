//! The life of a process: set up, say ready, wait for a signal or a fault, stop in order.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::cli::RoleArgs;
use crate::config::{Config, Role};
use crate::error::Error;
use crate::gateway_role::RunningGateway;
use crate::limits::{FileBudget, MemoryBudget, log_budget, raise_open_files};
use crate::node_role::RunningNode;
use crate::shutdown::Signals;
use mailbox_gateway::MetricsRegistry;

/// How long a node that a fault has stopped may take to close its files.
const CLOSE_AFTER_FAULT: Duration = Duration::from_secs(5);

/// Runs `mailboxd server` to its end.
///
/// # Errors
/// What keeps the node from starting, a storage fault, or a stop that took too long.
pub fn run_server(args: &RoleArgs) -> Result<(), Error> {
    let config = Config::load(args.config.as_deref(), &args.overrides, Role::Server)?;
    crate::logging::start(&config.logging).map_err(Error::LogFilter)?;
    let limit = raise_open_files()?;
    let files = FileBudget::of_node(&config);
    log_budget(&files, limit, Some(&MemoryBudget::of(&config)));
    files.check(limit, "node.connections_max")?;
    block_on(serve_node(&config, args.json))
}

/// Runs `mailboxd gateway` to its end.
///
/// # Errors
/// What keeps the gateway from starting, or a stop that took too long.
pub fn run_gateway(args: &RoleArgs) -> Result<(), Error> {
    let config = Config::load(args.config.as_deref(), &args.overrides, Role::Gateway)?;
    crate::logging::start(&config.logging).map_err(Error::LogFilter)?;
    let limit = raise_open_files()?;
    let files = FileBudget::of_gateway(&config);
    log_budget(&files, limit, None);
    files.check(limit, "gateway.connections_max")?;
    block_on(serve_gateway(&config, args.json))
}

async fn serve_node(config: &Config, as_json: bool) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let starting = RunningNode::start(config, MetricsRegistry::default());
    let mut running = tokio::select! {
        started = starting => started?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before ready");
            return Ok(());
        }
    };
    let metrics = running.metrics.map(|address| address.to_string());
    let grpc = running.grpc.to_string();
    say_ready(
        as_json,
        &json!({ "role": "server", "node": config.node.id, "grpc": grpc, "metrics": metrics }),
        &format!(
            "ready node={} grpc={grpc} metrics={}",
            config.node.id,
            metrics.as_deref().unwrap_or("-")
        ),
    );
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "stopping"),
        fault = running.failed() => {
            tracing::error!(error = %fault, "the node cannot go on");
            close_after_fault(running).await;
            return Err(fault);
        }
    }
    signals.stop_in_order(running.stop()).await?;
    tracing::info!("stopped");
    Ok(())
}

async fn serve_gateway(config: &Config, as_json: bool) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let ready: mailbox_gateway::ReadyCheck = Arc::new(|| Ok(()));
    let starting = RunningGateway::start(config, MetricsRegistry::default(), ready);
    let running = tokio::select! {
        started = starting => started?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before ready");
            return Ok(());
        }
    };
    let (url, listen) = (running.url.clone(), running.listen.to_string());
    say_ready(
        as_json,
        &json!({ "role": "gateway", "url": url, "listen": listen }),
        &format!("ready gateway={url}"),
    );
    let name = signals.next().await;
    tracing::info!(signal = name, "stopping");
    let stop = async {
        running.stop().await;
        Ok(())
    };
    signals.stop_in_order(stop).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Closes the files of a node that a fault has stopped, so that no thread of RocksDB outlives the process's static
/// objects: that now and then made an abort of the exit status. No row is written, and the log's mark at most names a
/// batch that was synced before the fault; a disk that hangs is not waited for.
pub(crate) async fn close_after_fault(running: RunningNode) {
    match tokio::time::timeout(CLOSE_AFTER_FAULT, running.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "closed after a fault"),
        Err(_) => tracing::warn!("the store did not close within {CLOSE_AFTER_FAULT:?}"),
    }
}

/// One line on stdout, for whoever started the process. A closed stdout is not a reason to end.
fn say_ready(as_json: bool, facts: &serde_json::Value, words: &str) {
    let mut out = std::io::stdout().lock();
    let _ = if as_json {
        writeln!(out, "{}", json!({ "ready": facts }))
    } else {
        writeln!(out, "{words}")
    };
    let _ = out.flush();
}

pub(crate) fn block_on<F>(role: F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mailboxd")
        .build()
        .map_err(Error::Start)?;
    let done = runtime.block_on(role);
    // A read that hangs on a broken disk must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    done
}
