//! Who chats in a run: they send, read, join and leave through clients, in phases, and are asked for everything at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mailbox_client::Client;
use mailbox_client::v1::NodeStanding;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ending::Ending;
use crate::history::{History, Installation, Op, Outcome, Recorder, Timeline};
use crate::nemesis::operator;
use crate::population::{Population, populate};
use crate::reader::Reader;
use crate::registrar::{Registrar, Turns};
use crate::sender::{Ends, Processes, Sender};
use crate::wanderer::Wanderer;
use crate::workload::Workload;

/// All of them. Clones are the same people.
#[derive(Clone)]
pub struct People {
    pub(crate) workload: &'static Workload,
    clients: Vec<Client>,
    /// For the reads of the end, which may take their time.
    pub(crate) patient: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) population: Arc<Population>,
    pub(crate) turns: Arc<Turns>,
    /// They go on from phase to phase.
    wanderers: Vec<Arc<Mutex<Wanderer>>>,
    seed: u64,
    rate: u32,
}

/// What people do in one phase.
pub struct Work {
    pub(crate) processes: JoinSet<()>,
    pub(crate) ends: Ends,
}

impl People {
    /// Registers them, and makes their groups. `clients` are used in turn, so that not all share one view of who leads;
    /// `patient` may take its time. `rate` is how many sends a second they make, all together.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn settle(
        workload: &'static Workload,
        clients: Vec<Client>,
        patient: Client,
        seed: u64,
        rate: u32,
    ) -> anyhow::Result<Self> {
        let recorder = Arc::new(Recorder::default());
        let population = populate(&patient, &recorder, workload).await?;
        let mut people = Self {
            workload,
            clients,
            patient,
            recorder,
            processes: Arc::default(),
            population: Arc::new(population),
            turns: Arc::default(),
            wanderers: Vec::new(),
            seed,
            rate,
        };
        people.wanderers = people.make_wanderers();
        Ok(people)
    }

    fn make_wanderers(&self) -> Vec<Arc<Mutex<Wanderer>>> {
        let mut seeds = StdRng::seed_from_u64(self.seed.rotate_right(32));
        let clients = self.clients.iter().cycle();
        let wanderers = self.population.wanderers.iter().zip(clients);
        let wanderers = wanderers.map(|(user, client)| Wanderer {
            sender: self.sender(client.clone(), *user, StdRng::from_rng(&mut seeds)),
            process: self.processes.next(),
            group: None,
            joins: BTreeMap::new(),
            refused: Vec::new(),
        });
        wanderers.map(|it| Arc::new(Mutex::new(it))).collect()
    }

    fn sender(&self, client: Client, user: u64, rng: StdRng) -> Sender {
        let senders = self.population.users.len() * self.workload.senders_per_user;
        let rate = f64::from(self.rate.max(1));
        Sender {
            client,
            recorder: Arc::clone(&self.recorder),
            processes: Arc::clone(&self.processes),
            population: Arc::clone(&self.population),
            workload: self.workload,
            attempts_max: self.workload.attempts_max,
            interval: Duration::from_secs_f64(senders as f64 / rate),
            user,
            rng,
        }
    }

    /// They begin; each phase has its number.
    #[must_use]
    pub fn begin(&self, phase: u64) -> Work {
        let (mut processes, ends) = (JoinSet::new(), Ends::new());
        let mut seeds = StdRng::seed_from_u64(self.seed ^ (phase + 1).rotate_right(8));
        let clients = self.clients.iter().cycle().cloned();
        let users = self.population.users.iter();
        let senders = users.len() * self.workload.senders_per_user;
        let mut clients = clients.take(senders + self.workload.readers + self.workload.registrars);
        for (user, client) in users.cycle().take(senders).zip(clients.by_ref()) {
            let sender = self.sender(client, *user, StdRng::from_rng(&mut seeds));
            processes.spawn(sender.run(ends.clone()));
        }
        for client in clients.by_ref().take(self.workload.readers) {
            let reader = Reader {
                client,
                recorder: Arc::clone(&self.recorder),
                processes: Arc::clone(&self.processes),
                population: Arc::clone(&self.population),
                stale: self.workload.stale_reads,
                rng: StdRng::from_rng(&mut seeds),
            };
            processes.spawn(reader.run(ends.clone()));
        }
        for client in clients {
            let registrar = Registrar {
                client,
                recorder: Arc::clone(&self.recorder),
                processes: Arc::clone(&self.processes),
                population: Arc::clone(&self.population),
                turns: Arc::clone(&self.turns),
                rng: StdRng::from_rng(&mut seeds),
            };
            processes.spawn(registrar.run(ends.clone()));
        }
        for wanderer in &self.wanderers {
            let (wanderer, ends) = (Arc::clone(wanderer), ends.clone());
            processes.spawn(async move { wanderer.lock().await.run(ends).await });
        }
        Work { processes, ends }
    }

    /// Every timeline must take a send now; gives those that do not.
    ///
    /// # Errors
    /// One of the processes panicked.
    pub async fn serve_all(&self) -> anyhow::Result<Vec<String>> {
        let mut rng = StdRng::seed_from_u64(self.seed.rotate_right(24));
        let mut all = JoinSet::new();
        for timeline in self.population.timelines() {
            // To each mailbox its own user writes; to nobody's, and to a group, the first does.
            let Population {
                users, wanderers, ..
            } = &*self.population;
            let user = match timeline {
                Timeline::Mailbox(user) if users.contains(&user) || wanderers.contains(&user) => {
                    user
                }
                Timeline::Mailbox(_) | Timeline::Group(_) => users[0],
            };
            let mut sender = self.sender(self.patient.clone(), user, StdRng::from_rng(&mut rng));
            // The client goes on trying for as long as it may take.
            sender.attempts_max = 1;
            let process = self.processes.next();
            all.spawn(async move { sender.send(process, timeline).await });
        }
        let mut broken = Vec::new();
        while let Some(append) = all.join_next().await {
            let append = append.context("run a process of the workload")?;
            if !matches!(append.outcome, Outcome::Ok(_)) {
                let (to, outcome) = (append.to, &append.outcome);
                broken.push(format!("healed, {to} takes no send: {outcome:?}"));
            }
            self.recorder.record(Op::Append(append));
        }
        Ok(broken)
    }

    /// Who was not let into a group, or out of one, though all such calls are good.
    pub async fn refused(&self) -> Vec<String> {
        let mut all = Vec::new();
        for wanderer in &self.wanderers {
            all.append(&mut wanderer.lock().await.refused);
        }
        all
    }

    /// Does one thing that an operator does, beside the people: hands a shard to another node, moves a slot, splits a
    /// shard and merges it again, or empties one of `nodes` for a while. Which, and what came of it.
    pub async fn operate(
        &self,
        nodes: &[u64],
        hold: Duration,
        rng: &mut StdRng,
    ) -> (&'static str, Installation) {
        let client = &self.clients[0];
        let owners = self.population.timelines().into_iter();
        let owners: Vec<u64> = owners.map(Timeline::owner).collect();
        let (what, done) = match rng.random_range(0..6) {
            0 => (
                "transfers",
                operator::transfer_leader(client, hold, rng).await,
            ),
            1..3 => (
                "moves",
                operator::move_slot(client, &owners, hold, rng).await,
            ),
            3..5 => (
                "splits",
                operator::split_and_merge(client, &owners, hold, rng).await,
            ),
            _ => (
                "drains",
                operator::empty_for_a_while(client, nodes, hold, rng).await,
            ),
        };
        let failed = |error| Installation::Indeterminate(format!("{error:#}"));
        (what, done.unwrap_or_else(failed))
    }

    /// Takes all of `nodes` back, and waits until nothing is on the move any more. What casts doubt on the run.
    ///
    /// # Errors
    /// Something moves for ever.
    pub async fn be_still(
        &self,
        nodes: &[u64],
        within: Duration,
    ) -> anyhow::Result<Option<String>> {
        for node in nodes {
            let taken = self.patient.set_standing(*node, NodeStanding::Member).await;
            taken.with_context(|| format!("take node {node} back"))?;
        }
        operator::wait_still(&self.patient, within).await
    }

    /// Reads everything through leaders and at the replicas of `nodes`, by id and address, for as long as `within` each
    /// time. What casts doubt on the run.
    pub async fn read_all(&self, nodes: &[(u64, String)], within: Duration) -> Vec<String> {
        self.ending(nodes, within).run().await
    }

    pub(crate) fn ending<'a>(&'a self, nodes: &'a [(u64, String)], within: Duration) -> Ending<'a> {
        Ending {
            nodes,
            client: &self.patient,
            recorder: &self.recorder,
            processes: &self.processes,
            population: &self.population,
            turns: &self.turns,
            devices: &[],
            within,
        }
    }

    /// All that was recorded.
    #[must_use]
    pub fn history(&self) -> History {
        self.recorder.take()
    }
}

impl Work {
    /// Ends the phase, and waits until all have noticed; one that panicked or hangs spoils the run.
    ///
    /// # Errors
    /// See above.
    pub async fn end(mut self, within: Duration) -> anyhow::Result<()> {
        self.ends.end();
        let all = async {
            let mut first = Ok(());
            while let Some(ended) = self.processes.join_next().await {
                // The others' operations are to be recorded all the same.
                first = first.and(ended.context("run a process of the workload"));
            }
            first
        };
        timeout(within, all)
            .await
            .context("wait for the processes of the workload")?
    }
}
