//! Tells the cluster that this gateway is there: who and where it is, again and again.
//!
//! ```text
//!   serving ── every `refresh` ──▶ … ── drain ──▶ draining ── all connections gone ──▶ forgotten
//! ```
//!
//! Nothing here keeps the gateway from serving: a cluster that cannot be told, or does not know gateways yet, is told
//! later. A gateway that is killed tells nothing more, and the cluster finds out by that.

use std::time::Duration;

use mailbox_client::{CallError, Client, v1};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How long each of the last calls may take: the gateway is about to end, and is missed without them, too.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// What a gateway tells of itself.
#[derive(Debug, Clone)]
pub struct Registration {
    /// 1 to 64 of a-z, 0-9, '-' and '.'; no other gateway of the cluster has it.
    pub id: String,
    /// Where clients open WebSockets, as `ws://…` or `wss://…`, at most 255 bytes.
    pub websocket_url: String,
    /// Where clients speak the frame protocol over TCP, as `host:port`; empty if nowhere.
    pub tcp_address: String,
    /// Where it serves HTTP, as `http://…` or `https://…`; empty if nowhere.
    pub http_url: String,
    /// Its region, at most 64 bytes; may be empty.
    pub region: String,
    /// Its zone in the region, at most 64 bytes; may be empty.
    pub zone: String,
    /// Of this build, at most 64 bytes.
    pub version: String,
    /// About how often it tells, 100 ms to 60 s. It is called silent after three of these.
    pub refresh: Duration,
}

/// The task that tells.
pub(crate) struct Registrar {
    drain: CancellationToken,
    gone: CancellationToken,
    task: JoinHandle<()>,
}

impl Registrar {
    /// Begins to tell. Must be called in a tokio runtime.
    pub(crate) fn start(registration: &Registration, client: Client, metrics: Metrics) -> Self {
        let (drain, gone) = (CancellationToken::new(), CancellationToken::new());
        let teller = Teller {
            facts: facts(registration, run_number(&client)),
            id: registration.id.clone(),
            refresh: registration.refresh,
            client,
            metrics,
            drain: drain.clone(),
            gone: gone.clone(),
        };
        let task = tokio::spawn(teller.run());
        Self { drain, gone, task }
    }

    /// From now on it tells that its clients are sent away.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// All connections are gone: the cluster is to forget it. Takes some seconds at most.
    pub(crate) async fn leave(mut self) {
        self.drain.cancel();
        self.gone.cancel();
        let _ = timeout(LAST_WAIT * 2, &mut self.task).await;
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Greater for every later process, as far as the cluster's clock is good; different for any two.
fn run_number(client: &Client) -> u64 {
    client.server_time_ms() << 20 | rand::random_range(1..1 << 20)
}

fn facts(registration: &Registration, run: u64) -> v1::GatewayFacts {
    let registration = registration.clone();
    let refresh_ms = u32::try_from(registration.refresh.as_millis()).unwrap_or(u32::MAX);
    v1::GatewayFacts {
        run,
        refresh_ms,
        websocket_url: registration.websocket_url,
        tcp_address: registration.tcp_address,
        http_url: registration.http_url,
        region: registration.region,
        zone: registration.zone,
        version: registration.version,
    }
}

struct Teller {
    id: String,
    facts: v1::GatewayFacts,
    refresh: Duration,
    client: Client,
    metrics: Metrics,
    drain: CancellationToken,
    gone: CancellationToken,
}

impl Teller {
    async fn run(self) {
        let mut known = None;
        loop {
            let told = tokio::select! {
                told = self.tell(false) => told,
                // One that is on its way is waited for, so that it does not come after the last ones.
                () = self.late() => break,
            };
            self.note(&told, &mut known);
            tokio::select! {
                () = sleep(pause(self.refresh, told.is_ok())) => {}
                () = self.drain.cancelled() => break,
            }
        }
        if !self.gone.is_cancelled()
            && let Ok(Err(error)) = timeout(LAST_WAIT, self.tell(true)).await
        {
            tracing::debug!(%error, "the cluster was not told that this gateway drains");
        }
        self.gone.cancelled().await;
        let forget = self.client.forget_gateway(&self.id, self.facts.run);
        if let Ok(Err(error)) = timeout(LAST_WAIT, forget).await {
            tracing::debug!(%error, "the cluster was not told that this gateway is gone");
        }
        self.metrics.registered.set(0);
    }

    async fn tell(&self, draining: bool) -> Result<(), CallError> {
        let open = self.metrics.connections.get();
        let call = v1::RegisterGatewayRequest {
            gateway: self.id.clone(),
            facts: Some(self.facts.clone()),
            draining,
            connections: u32::try_from(open.max(0)).unwrap_or(u32::MAX),
        };
        self.client.register_gateway(call).await
    }

    async fn late(&self) {
        self.drain.cancelled().await;
        sleep(LAST_WAIT).await;
    }

    /// Counts, and says so when it changes.
    fn note(&self, told: &Result<(), CallError>, known: &mut Option<bool>) {
        let (good, outcome) = match told {
            Ok(()) => (true, "ok"),
            Err(_) => (false, "failed"),
        };
        self.metrics.registered.set(i64::from(good));
        let counts = &self.metrics.registrations;
        counts.get_or_create(&[("outcome", outcome)]).inc();
        if known.replace(good) == Some(good) {
            return;
        }
        let gateway = &self.id;
        match told {
            Ok(()) => tracing::info!(%gateway, "the cluster knows this gateway"),
            // While the meta shard elects a leader, nobody can be told; that is soon over.
            Err(error) if error.is_retryable() => {
                tracing::info!(%gateway, %error, "the cluster is told later that this gateway is there");
            }
            Err(error) => tracing::warn!(
                %gateway,
                %error,
                "the cluster does not know this gateway, which serves all the same and goes on trying"
            ),
        }
    }
}

/// Jittered, so that gateways that began together do not tell together; never longer than the period, so that three
/// of them are three times. After a failure sooner: it may have been one late answer.
fn pause(refresh: Duration, told: bool) -> Duration {
    let refresh = refresh.mul_f64(rand::random_range(0.8..=1.0));
    if told { refresh } else { refresh / 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_never_longer_than_the_period() {
        let refresh = Duration::from_secs(10);
        for _ in 0..1000 {
            let told = pause(refresh, true);
            assert!(told >= refresh / 2 && told <= refresh, "{told:?}");
            let failed = pause(refresh, false);
            assert!(failed >= refresh / 8 && failed <= refresh / 4, "{failed:?}");
        }
    }
}
