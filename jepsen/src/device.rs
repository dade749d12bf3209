//! One process of the workload that syncs: a device that pages through gateways chosen at random.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mailbox_client::{content_crc, v1};
use mailbox_cluster::Cluster;
use mailbox_sdk::{Client, ConnectOptions, Error, Message, Sync};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};

use crate::history::{Op, Outcome, Recorder, Row, SendId, Timeline};
use crate::page::{Page, Synced};
use crate::sender::Ends;

/// Rows of a page at the end, when all is to be had soon.
const LAST_PAGE_ROWS: u32 = 1000;
/// Pause between two pages of a run, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 5..60;
/// Pause after a page that failed, at the end of a run.
const PAUSE_FAILED: Duration = Duration::from_millis(50);
/// How long one gateway may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A gateway that devices may use.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) node: u64,
    pub(crate) url: String,
    /// Of the node's own service.
    pub(crate) address: String,
}

/// Those of the nodes that are there.
#[derive(Debug, Clone, Default)]
pub struct Gateways(Arc<Mutex<Vec<Gateway>>>);

impl Gateways {
    /// Nodes have come or gone.
    pub(crate) fn set(&self, cluster: &Cluster) {
        let gateways = cluster.nodes().iter().filter_map(|node| {
            Some(Gateway {
                node: node.id(),
                url: node.gateway_url()?,
                address: node.address().to_owned(),
            })
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = gateways.collect();
    }

    /// Where the nodes themselves are.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|it| it.address.clone()).collect()
    }

    fn choose(&self, rng: &mut StdRng) -> Option<Gateway> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.choose(rng).cloned()
    }
}

pub(crate) struct Device {
    pub(crate) recorder: Arc<Recorder>,
    /// No page of it ends in doubt: it is one process for good.
    pub(crate) process: u64,
    pub(crate) gateways: Gateways,
    pub(crate) user: u64,
    pub(crate) name: &'static str,
    pub(crate) token: String,
    /// Rows of one page, at most: few, so that most pages end in the middle of something.
    pub(crate) page_rows_max: u32,
    pub(crate) rng: StdRng,
    /// Of the last answered page.
    pub(crate) key: String,
    /// By node.
    pub(crate) open: HashMap<u64, Client>,
}

impl Device {
    /// Asks for page after page, at the head too.
    pub(crate) async fn run(&mut self, ends: Ends) {
        while !ends.is_over() {
            self.page(false).await;
            sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
        }
    }

    /// Asks until there is no more, or no time.
    pub(crate) async fn run_to_head(&mut self, until: Instant) {
        while Instant::now() < until {
            match self.page(true).await {
                Some(false) => return,
                Some(true) => {}
                None => sleep(PAUSE_FAILED).await,
            }
        }
    }

    /// One page through one gateway; whether there is more, if it was answered.
    async fn page(&mut self, last: bool) -> Option<bool> {
        let gateway = self.gateways.choose(&mut self.rng)?;
        let limit = if last {
            LAST_PAGE_ROWS
        } else {
            self.rng.random_range(1..=self.page_rows_max)
        };
        let invoked_ns = self.recorder.now_ns();
        let answer = self.ask(&gateway, limit).await;
        let completed_ns = self.recorder.now_ns();
        let outcome = match answer {
            Ok(synced) => Outcome::Ok(synced),
            Err(error) => {
                let code = code(&error);
                if code == "Resync" {
                    // As an app would: from the start again.
                    self.key.clear();
                }
                if !matches!(error, Error::Refused(_)) {
                    self.open.remove(&gateway.node);
                }
                Outcome::Fail(code)
            }
        };
        let more = match &outcome {
            Outcome::Ok(synced) => Some(synced.more),
            Outcome::Fail(_) | Outcome::Unknown(_) => None,
        };
        self.recorder.record(Op::Page(Page {
            process: self.process,
            invoked_ns,
            completed_ns,
            user: self.user,
            device: self.name.to_owned(),
            gateway: gateway.node,
            last,
            outcome,
        }));
        more
    }

    async fn ask(&mut self, gateway: &Gateway, limit: u32) -> Result<Synced, Error> {
        let client = self.connection(gateway).await?;
        let page = client
            .sync(Sync {
                key: self.key.clone(),
                limit,
                have: Vec::new(),
            })
            .await?;
        self.key = page.key;
        let rows = page.messages.iter().map(row).collect();
        let more = page.more;
        Ok(Synced { rows, more })
    }

    async fn connection(&mut self, gateway: &Gateway) -> Result<Client, Error> {
        if let Some(client) = self.open.get(&gateway.node) {
            return Ok(client.clone());
        }
        let client = Client::connect(ConnectOptions {
            device: self.name.to_owned(),
            receive: false,
            connect_timeout: ANSWER_WITHIN,
            request_timeout: ANSWER_WITHIN,
            ..ConnectOptions::new(&gateway.url, &self.token)
        })
        .await?;
        self.open.insert(gateway.node, client.clone());
        Ok(client)
    }
}

fn code(error: &Error) -> String {
    match error {
        Error::Refused(fault) | Error::NotAdmitted { fault, .. } => fault.code.clone().into_owned(),
        Error::Connect { .. } => "Connect".to_owned(),
        Error::Timeout { .. } => "Timeout".to_owned(),
        other => other.to_string(),
    }
}

fn row(message: &Message) -> (Timeline, Row) {
    let timeline = match message.timeline {
        mailbox_sdk::Timeline::Mailbox(user) => Timeline::Mailbox(user),
        mailbox_sdk::Timeline::Group(group) => Timeline::Group(group),
    };
    let kind = v1::MessageType::try_from(i32::from(message.kind.0));
    let kind = kind.unwrap_or(v1::MessageType::Unspecified);
    // Empty for what the store wrote itself, as the store's own pages have it.
    let id = message.client_msg_id.map(uuid::Uuid::into_bytes);
    let id_bytes = id.as_ref().map_or(&[][..], |id| &id[..]);
    let row = Row {
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender,
        recipient: message.recipient,
        id: message.client_msg_id.map(SendId),
        content: content_crc(id_bytes, kind, &message.body),
        refused: message.refused.as_ref().map(|(seq, _)| *seq),
    };
    (timeline, row)
}
