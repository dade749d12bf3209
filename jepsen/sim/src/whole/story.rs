//! Who chats in a run, and what has to hold when it is over.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mailbox_client::{Client, ClientOptions};
use mailbox_jepsen::history::Installation;
use mailbox_jepsen::people::People;
use mailbox_jepsen::workload::Workload;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{NODES, Phase, Shared, host};

/// Sends a second.
const RATE: u32 = 40;
/// How long things go wrong.
const FAULTS: Duration = Duration::from_secs(20);
/// How long all goes on without a fault before it is read, at least.
const CALM: Duration = Duration::from_secs(1);
/// Once nothing is wrong any more, everything must be right within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// From one thing that an operator does to the next.
const OPERATE_MS: std::ops::Range<u64> = 100..1500;
/// How long an operator waits for what was asked for.
const HOLD_MS: std::ops::Range<u64> = 500..6000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// A metric of nodes.
const OUTBOX_ITEMS: &str = "mailbox_lane_outbox_items";
/// Clients, each with its own view of who leads.
const CLIENTS: usize = 2;

/// The whole of it.
pub(super) async fn run(
    workload: &'static Workload,
    seed: u64,
    shared: Rc<Shared>,
) -> turmoil::Result {
    if let Err(error) = tell(workload, seed, &shared).await {
        shared.is_broken(format!("{error:#}"));
    }
    shared.phase.set(Phase::Over);
    Ok(())
}

async fn tell(workload: &'static Workload, seed: u64, shared: &Shared) -> anyhow::Result<()> {
    let nodes: Vec<(u64, String)> = (1..=NODES)
        .map(|node| (node, host::address(node)))
        .collect();
    let addresses: Vec<String> = nodes.iter().map(|(_, address)| address.clone()).collect();
    let options = ClientOptions::new(addresses, host::secret());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut options = options.clone();
        // Short, so that calls do end in doubt now and then.
        options.timeouts.deadline = Duration::from_secs(3);
        options.timeouts.attempt = Duration::from_secs(1);
        clients.push(connect(options).await?);
    }
    let mut patient = options;
    patient.timeouts.deadline = HEALED_WITHIN;
    patient.timeouts.attempt = HEALED_WITHIN / 4;
    let patient = connect(patient).await?;
    let people = People::settle(workload, clients, patient, seed, RATE).await?;

    *shared.people.borrow_mut() = Some(people.clone());
    let work = people.begin(0);
    shared.phase.set(Phase::Faults);
    let until = Instant::now() + FAULTS;
    operate(&people, seed, until, shared).await;
    sleep_until(until).await;
    shared.phase.set(Phase::Healed);
    shared.note_broken(work.end(HEALED_WITHIN).await);
    judge(&people, &nodes, shared).await;
    Ok(())
}

/// Does what operators do, one thing after the other.
async fn operate(people: &People, seed: u64, until: Instant, shared: &Shared) {
    let mut rng = StdRng::seed_from_u64(seed.rotate_left(16));
    let nodes: Vec<u64> = (1..=NODES).collect();
    loop {
        let pause = Duration::from_millis(rng.random_range(OPERATE_MS));
        let hold = Duration::from_millis(rng.random_range(HOLD_MS));
        let done = async {
            sleep(pause).await;
            people.operate(&nodes, hold, &mut rng).await
        };
        let Ok(done) = timeout_at(until, done).await else {
            return;
        };
        if let (what, Installation::Installed) = done {
            shared.meet(what);
        }
    }
}

/// Nothing is wrong any more. Whatever is found broken, the rest is looked at, too.
async fn judge(people: &People, nodes: &[(u64, String)], shared: &Shared) {
    let work = people.begin(1);
    let (unserved, ()) = tokio::join!(people.serve_all(), sleep(CALM));
    let unserved = shared.note_broken(unserved).unwrap_or_default();
    unserved.into_iter().for_each(|it| shared.is_broken(it));
    shared.note_broken(work.end(HEALED_WITHIN).await);
    let ids: Vec<u64> = nodes.iter().map(|(node, _)| *node).collect();
    let doubt = shared.note_broken(people.be_still(&ids, HEALED_WITHIN).await);
    doubt
        .flatten()
        .into_iter()
        .for_each(|it| shared.is_doubtful(it));
    shared.note_broken(drained(shared).await);
    let doubts = people.read_all(nodes, HEALED_WITHIN).await;
    doubts.into_iter().for_each(|it| shared.is_doubtful(it));
    let refused = people.refused().await;
    refused.into_iter().for_each(|it| shared.is_broken(it));
}

async fn connect(options: ClientOptions) -> anyhow::Result<Client> {
    let connected = Client::connect(options).await;
    connected.context("connect to the cluster")
}

/// Until all lanes are dry: acks do not wait for them.
async fn drained(shared: &Shared) -> anyhow::Result<()> {
    let until = Instant::now() + HEALED_WITHIN;
    loop {
        match on_their_way(shared) {
            Ok(0) => return Ok(()),
            Ok(left) if Instant::now() >= until => {
                bail!("{left} items are still on their way after {HEALED_WITHIN:?}")
            }
            Err(error) if Instant::now() >= until => return Err(error),
            // One that has just started does not tell yet.
            Ok(_) | Err(_) => sleep(LOOK).await,
        }
    }
}

/// Items that their destinations are not known to have: at the node that knows of most.
fn on_their_way(shared: &Shared) -> anyhow::Result<u64> {
    let mut most = 0;
    for (node, registry) in &*shared.metrics.borrow() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry.lock())
            .context("write metrics")?;
        let items = mailbox_cluster::metric_sum(&text, OUTBOX_ITEMS);
        most = most.max(items.with_context(|| format!("node {node} does not tell its items"))?);
    }
    Ok(most)
}
