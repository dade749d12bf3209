//! One process of the workload that sends: one message after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mailbox_client::v1::{self, ErrorCode, MessageType, SendRequest, send_request};
use mailbox_client::{Client, content_crc, user_id};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};

use crate::history::{Acked, Append, Op, Outcome, Recorder, SendId, Timeline};

const BODY_BYTES_MAX: usize = 300;
/// Pause between two sends, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 0..20;
/// Attempts after which a send whose outcome is unknown is left alone.
const ATTEMPTS: std::ops::RangeInclusive<u32> = 1..=4;
/// How often an acked send is sent again.
const REPEAT_PROBABILITY: f64 = 0.05;
const GROUP_PROBABILITY: f64 = 0.3;

/// Numbers for processes: one whose operation ended unknown goes on under a new one.
#[derive(Debug, Default)]
pub(crate) struct Processes(AtomicU64);

impl Processes {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Who and what there is to send to.
#[derive(Debug, Default)]
pub(crate) struct Population {
    pub(crate) users: Vec<u64>,
    pub(crate) groups: Vec<u64>,
}

impl Population {
    pub(crate) fn timelines(&self) -> Vec<Timeline> {
        let mailboxes = self.users.iter().map(|user| Timeline::Mailbox(*user));
        mailboxes
            .chain(self.groups.iter().map(|group| Timeline::Group(*group)))
            .collect()
    }
}

pub(crate) struct Sender {
    pub(crate) client: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) population: Arc<Population>,
    pub(crate) user: u64,
    pub(crate) rng: StdRng,
}

impl Sender {
    pub(crate) async fn run(mut self, until: Instant) {
        let mut process = self.processes.next();
        while Instant::now() < until {
            let append = self.send(process).await;
            if matches!(append.outcome, Outcome::Unknown(_)) {
                process = self.processes.next();
            }
            self.recorder.record(Op::Append(append));
            sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
        }
    }

    /// One send, repeated under the same id while its outcome is unknown, or until it is given up.
    async fn send(&mut self, process: u64) -> Append {
        let to = self.destination();
        let (id, request) = self.request(to);
        let content = request.content_crc;
        let mut attempts = self.rng.random_range(ATTEMPTS);
        let mut in_doubt = false;
        let invoked_ns = self.recorder.now_ns();
        let outcome = loop {
            let error = match self.client.send(request.clone()).await {
                Ok(sent) => break acked(&sent),
                Err(error) => error,
            };
            let name = error.code().name().to_owned();
            if is_refusal(error.code()) {
                // After a doubtful attempt a refusal says nothing about that attempt.
                break if in_doubt {
                    Outcome::Unknown(name)
                } else {
                    Outcome::Fail(name)
                };
            }
            in_doubt = true;
            attempts -= 1;
            if attempts == 0 {
                break Outcome::Unknown(name);
            }
        };
        let completed_ns = self.recorder.now_ns();
        let mut repeats = Vec::new();
        if matches!(outcome, Outcome::Ok(_)) && self.rng.random_bool(REPEAT_PROBABILITY) {
            // An error leaves nothing to compare.
            if let Ok(sent) = self.client.send(request).await
                && let Outcome::Ok(repeat) = acked(&sent)
            {
                repeats.push(repeat);
            }
        }
        let sender = self.user;
        Append {
            process,
            invoked_ns,
            completed_ns,
            sender,
            to,
            id,
            content,
            outcome,
            repeats,
        }
    }

    fn destination(&mut self) -> Timeline {
        let Population { users, groups } = &*self.population;
        if self.rng.random_bool(GROUP_PROBABILITY)
            && let Some(group) = groups.choose(&mut self.rng)
        {
            return Timeline::Group(*group);
        }
        // Now and then it is the sender's own mailbox.
        Timeline::Mailbox(users.choose(&mut self.rng).copied().unwrap_or(self.user))
    }

    fn request(&mut self, to: Timeline) -> (SendId, SendRequest) {
        let id = self.client.new_message_id();
        let filler = "x".repeat(self.rng.random_range(0..BODY_BYTES_MAX));
        let body = Bytes::from(format!("{id} {filler}"));
        let destination = match to {
            Timeline::Mailbox(user) => send_request::Destination::User(user_id(user)),
            Timeline::Group(group) => send_request::Destination::Group(group),
        };
        let request = SendRequest {
            sender: Some(user_id(self.user)),
            destination: Some(destination),
            client_msg_id: Bytes::copy_from_slice(id.as_bytes()),
            r#type: MessageType::Text as i32,
            content_crc: content_crc(id.as_bytes(), MessageType::Text, &body),
            body,
            shown_message_id: 0,
        };
        (SendId(id), request)
    }
}

fn acked(sent: &v1::SendResponse) -> Outcome<Acked> {
    match sent.timeline.as_ref().and_then(timeline) {
        Some(timeline) => Outcome::Ok(Acked {
            timeline,
            seq: sent.seq,
            message_id: sent.message_id,
        }),
        None => Outcome::Unknown("AckWithoutTimeline".into()),
    }
}

/// A timeline as histories name it.
pub(crate) fn timeline(timeline: &v1::Timeline) -> Option<Timeline> {
    match v1::TimelineKind::try_from(timeline.kind) {
        Ok(v1::TimelineKind::Mailbox) => Some(Timeline::Mailbox(timeline.owner)),
        Ok(v1::TimelineKind::Group) => Some(Timeline::Group(timeline.owner)),
        Ok(v1::TimelineKind::Unspecified) | Err(_) => None,
    }
}

/// Whether the store says that the send was judged and not accepted. All else may have happened.
fn is_refusal(code: ErrorCode) -> bool {
    match code {
        ErrorCode::IdReused
        | ErrorCode::IdExpired
        | ErrorCode::IdFromFuture
        | ErrorCode::Corrupt
        | ErrorCode::BodyTooLarge
        | ErrorCode::UnknownUser
        | ErrorCode::UnknownGroup
        | ErrorCode::NotAMember
        | ErrorCode::Unauthenticated
        | ErrorCode::Forbidden
        | ErrorCode::InvalidArgument
        | ErrorCode::WrongCluster => true,
        ErrorCode::Unspecified
        | ErrorCode::Unavailable
        | ErrorCode::NotLeader
        | ErrorCode::Retry
        | ErrorCode::Busy
        | ErrorCode::DiskFull
        | ErrorCode::ClockSkew
        | ErrorCode::WrongShard
        | ErrorCode::HandleTaken
        | ErrorCode::InvalidHandle
        | ErrorCode::GroupFull
        | ErrorCode::AlreadyAMember
        | ErrorCode::Resync
        | ErrorCode::SeqBeyondHead
        | ErrorCode::TooManyGroups
        | ErrorCode::TooManyDevices
        | ErrorCode::LimitExceeded
        | ErrorCode::Internal
        | ErrorCode::NodeTaken
        | ErrorCode::NodeRemoved
        | ErrorCode::StaleDisk
        | ErrorCode::UnknownNode
        | ErrorCode::UnknownShard
        | ErrorCode::NodeInUse
        | ErrorCode::StaleEpoch
        | ErrorCode::UnknownDeadLetter
        | ErrorCode::DeadLetterResolved
        | ErrorCode::TooStale => false,
    }
}
