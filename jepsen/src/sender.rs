//! One process of the workload that sends: one message after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mailbox_client::v1::{self, ErrorCode, MessageType, SendRequest, send_request};
use mailbox_client::{Client, content_crc, user_id};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep_until};

use crate::history::{Acked, Append, Op, Outcome, Recorder, SendId, Timeline};
use crate::population::{NOBODY, Population};
use crate::workload::Workload;

const BODY_BYTES_MAX: usize = 300;

/// Whether the processes of a phase are to end.
#[derive(Debug, Clone)]
pub(crate) struct Ends(Arc<AtomicBool>);

impl Ends {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers for processes: one whose operation ended unknown goes on under a new one.
#[derive(Debug, Default)]
pub(crate) struct Processes(AtomicU64);

impl Processes {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

pub(crate) struct Sender {
    pub(crate) client: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) population: Arc<Population>,
    pub(crate) workload: &'static Workload,
    /// Attempts after which a send whose outcome is unknown is left alone, at most.
    pub(crate) attempts_max: u32,
    /// From one send to the next, on average.
    pub(crate) interval: Duration,
    pub(crate) user: u64,
    pub(crate) rng: StdRng,
}

impl Sender {
    pub(crate) async fn run(mut self, ends: Ends) {
        let mut process = self.processes.next();
        let mut due = Instant::now();
        while !ends.is_over() {
            let to = self.destination();
            let append = self.send(process, to).await;
            if matches!(append.outcome, Outcome::Unknown(_)) {
                process = self.processes.next();
            }
            self.recorder.record(Op::Append(append));
            // What was missed while nobody answered is not made up for.
            due = Instant::now().max(due + self.interval.mul_f64(self.rng.random_range(0.0..2.0)));
            sleep_until(due).await;
        }
    }

    /// One send, repeated under the same id while its outcome is unknown, or until it is given up.
    pub(crate) async fn send(&mut self, process: u64, to: Timeline) -> Append {
        let (id, request) = self.request(to);
        let content = request.content_crc;
        let mut attempts = self.rng.random_range(1..=self.attempts_max);
        let mut in_doubt = false;
        let mut repeat_refused = None;
        let invoked_ns = self.recorder.now_ns();
        let outcome = loop {
            let error = match self.client.send(request.clone()).await {
                Ok(sent) => break acked(&sent),
                Err(error) => error,
            };
            let name = error.code().name().to_owned();
            if error.code() == ErrorCode::IdReused {
                // Nobody has asked for anything else under this id.
                repeat_refused = Some(name.clone());
            }
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
        if matches!(outcome, Outcome::Ok(_)) && self.rng.random_bool(self.workload.repeat) {
            match self.client.send(request).await.map(|sent| acked(&sent)) {
                Ok(Outcome::Ok(repeat)) => repeats.push(repeat),
                Err(error) if is_refusal(error.code()) => {
                    repeat_refused = Some(error.code().name().to_owned());
                }
                // What was not answered leaves nothing to compare.
                Ok(_) | Err(_) => {}
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
            repeat_refused,
        }
    }

    fn destination(&mut self) -> Timeline {
        let Population { users, groups } = &*self.population;
        let Workload {
            to_group,
            to_self,
            to_nobody,
            to_hot,
            ..
        } = *self.workload;
        if self.rng.random_bool(to_group)
            && let Some(group) = groups.choose(&mut self.rng)
        {
            return Timeline::Group(*group);
        }
        let to = if self.rng.random_bool(to_self) {
            None
        } else if self.rng.random_bool(to_nobody) {
            Some(&NOBODY)
        } else if self.rng.random_bool(to_hot) {
            users.first()
        } else {
            users.choose(&mut self.rng)
        };
        Timeline::Mailbox(to.copied().unwrap_or(self.user))
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
