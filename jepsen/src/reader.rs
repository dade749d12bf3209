//! Reads: now and then while a run goes on, and of everything at its end.

use std::sync::Arc;
use std::time::Duration;

use mailbox_client::v1::{self, ErrorCode, SyncRange, SyncRequest};
use mailbox_client::{CallError, Client, content_crc};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::history::{Op, Outcome, Read, Recorder, Row, SendId, Source, Timeline, View};
use crate::population::Population;
use crate::sender::{Ends, Processes};

/// Rows of one page.
const PAGE_ROWS: u32 = 1000;
/// What a read that any replica may answer may lack, in milliseconds: about what a follower that hears of its leader can
/// show, and much more.
const STALENESS_MS: [u32; 3] = [200, 1000, 5000];
/// Pause between two reads of a run, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 5..60;

pub(crate) struct Reader {
    pub(crate) client: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) population: Arc<Population>,
    /// Of all reads, those that any replica may answer.
    pub(crate) stale: f64,
    pub(crate) rng: StdRng,
}

impl Reader {
    /// Reads single pages, most of them through the leader, each from a little below the last head seen anywhere.
    pub(crate) async fn run(mut self, ends: Ends) {
        let timelines = self.population.timelines();
        let mut heads = vec![0_u64; timelines.len()];
        let places: Vec<usize> = (0..timelines.len()).collect();
        let process = self.processes.next();
        while let Some(&place) = places.choose(&mut self.rng)
            && !ends.is_over()
        {
            let back = self.rng.random_range(0..50);
            let after = heads[place].saturating_sub(back);
            let is_stale = self.rng.random_bool(self.stale);
            let staleness = is_stale
                .then(|| STALENESS_MS.choose(&mut self.rng))
                .flatten();
            let source = staleness.map_or(Source::Leader, |ms| Source::Stale(*ms));
            let read = self.read(process, timelines[place], after, source).await;
            if let Outcome::Ok(view) = &read.outcome {
                heads[place] = view.head;
            }
            self.recorder.record(Op::Read(read));
            sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
        }
    }

    async fn read(&self, process: u64, timeline: Timeline, after: u64, source: Source) -> Read {
        let max_staleness_ms = match source {
            Source::Stale(ms) => Some(ms),
            Source::Leader | Source::Node(_) => None,
        };
        let request = SyncRequest {
            max_staleness_ms,
            ..request(timeline, after, false)
        };
        let invoked_ns = self.recorder.now_ns();
        let answer = self.client.sync(request).await;
        let staleness_ms = answer.as_ref().ok().and_then(|it| it.staleness_ms);
        let page = page(answer, after);
        Read {
            process,
            invoked_ns,
            completed_ns: self.recorder.now_ns(),
            timeline,
            source,
            last: false,
            staleness_ms,
            outcome: match page {
                Ok((view, _)) => Outcome::Ok(view),
                Err(error) => Outcome::Fail(error.code().name().into()),
            },
        }
    }
}

/// Where the final reads go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At<'a> {
    Leader,
    /// A node's own state, by id and address.
    Node(u64, &'a str),
}

/// One whole timeline, page by page.
pub(crate) async fn read_whole(
    client: &Client,
    recorder: &Recorder,
    process: u64,
    timeline: Timeline,
    at: At<'_>,
) -> Read {
    let invoked_ns = recorder.now_ns();
    let mut whole = View {
        after: 0,
        head: 0,
        rows: Vec::new(),
    };
    let outcome = loop {
        let after = whole.rows.last().map_or(0, |row| row.seq);
        let answer = match at {
            At::Leader => client.sync(request(timeline, after, false)).await,
            At::Node(_, address) => {
                client
                    .sync_at(address, request(timeline, after, true))
                    .await
            }
        };
        match page(answer, after) {
            Ok((view, more)) => {
                whole.head = view.head;
                whole.rows.extend(view.rows);
                if !more {
                    break Outcome::Ok(whole);
                }
            }
            Err(error) => break Outcome::Unknown(error.to_string()),
        }
    };
    let source = match at {
        At::Leader => Source::Leader,
        At::Node(id, _) => Source::Node(id),
    };
    let completed_ns = recorder.now_ns();
    Read {
        process,
        invoked_ns,
        completed_ns,
        timeline,
        source,
        last: true,
        staleness_ms: None,
        outcome,
    }
}

/// Waits until a node's own state has reached the heads that the leader showed.
pub(crate) async fn catch_up(
    client: &Client,
    address: &str,
    heads: &[(Timeline, u64)],
    until: Instant,
) -> anyhow::Result<()> {
    for (timeline, head) in heads {
        loop {
            // One row is enough: the page names the head.
            let request = SyncRequest {
                limit: 1,
                ..request(*timeline, head - head.min(&1), true)
            };
            let answer = client.sync_at(address, request).await;
            match page(answer, 0) {
                Ok((view, _)) if view.head >= *head => break,
                Ok((view, _)) if Instant::now() >= until => {
                    anyhow::bail!("{address} shows {timeline} up to {}, not {head}", view.head)
                }
                Err(error) if Instant::now() >= until => {
                    anyhow::bail!("{address} does not show {timeline}: {error}")
                }
                Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(())
}

fn request(timeline: Timeline, after_seq: u64, stale: bool) -> SyncRequest {
    let (kind, owner) = match timeline {
        Timeline::Mailbox(user) => (v1::TimelineKind::Mailbox, user),
        Timeline::Group(group) => (v1::TimelineKind::Group, group),
    };
    let timeline = Some(v1::Timeline {
        kind: kind as i32,
        owner,
    });
    let ranges = vec![SyncRange {
        timeline,
        after_seq,
    }];
    SyncRequest {
        ranges,
        limit: PAGE_ROWS,
        stale,
        ..SyncRequest::default()
    }
}

/// The one page of an answer, and whether there is more.
fn page(
    answer: Result<v1::SyncResponse, CallError>,
    after: u64,
) -> Result<(View, bool), CallError> {
    let page = answer?.pages.pop();
    let page = page.ok_or_else(|| CallError::new(ErrorCode::Internal, "no page in the answer"))?;
    // Without rows there can be no more of them: a page that says so would be asked for for ever.
    let more = page.more && !page.messages.is_empty();
    let rows = page.messages.iter().map(row).collect();
    Ok((
        View {
            after,
            head: page.head,
            rows,
        },
        more,
    ))
}

fn row(message: &v1::Message) -> Row {
    let kind = message.r#type();
    Row {
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender,
        recipient: message.recipient,
        id: Uuid::from_slice(&message.client_msg_id)
            .ok()
            .filter(|_| matches!(kind, v1::MessageType::Text | v1::MessageType::Opaque))
            .map(SendId),
        content: content_crc(&message.client_msg_id, kind, &message.body),
        refused: (message.refused_seq > 0).then_some(message.refused_seq),
    }
}
