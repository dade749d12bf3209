//! One process of the workload that sends: one message after another.

use std::collections::BTreeMap;
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

use crate::history::{Acked, Append, Op, Outcome, REUSED, Recorder, SendId, Timeline};
use crate::population::{NOBODY, Population};
use crate::workload::Workload;

const BODY_BYTES_MAX: usize = 300;
/// Of the sends that are sent again, those that wait for it,
const LATE: f64 = 0.5;
/// for so many milliseconds: others have been sent by then, leaders have changed, logs are purged and slots moved.
const LATE_MS: std::ops::Range<u64> = 1000..20_000;
/// So many of a process wait at a time.
const LATE_MAX: usize = 64;
/// Of the sends that are sent again, those whose id is sent again with something else.
const REUSE: f64 = 0.2;
/// Those that wait when it is over are sent again within this time, or not at all.
const LATE_WITHIN: Duration = Duration::from_secs(10);

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

/// A send that was answered or given up, and what asks for it again.
struct Sent {
    append: Append,
    request: SendRequest,
}

impl Sender {
    pub(crate) async fn run(mut self, ends: Ends) {
        let mut process = self.processes.next();
        let mut due = Instant::now();
        let mut late = BTreeMap::new();
        while !ends.is_over() {
            let to = self.destination();
            let sent = self.ask(process, to).await;
            if matches!(sent.append.outcome, Outcome::Unknown(_)) {
                process = self.processes.next();
            }
            self.repeat_or_record(sent, &mut late).await;
            if let Some(waiting) = late.first_entry()
                && waiting.key().0 <= Instant::now()
            {
                let sent = waiting.remove();
                self.repeat(sent).await;
            }
            // What was missed while nobody answered is not made up for.
            due = Instant::now().max(due + self.interval.mul_f64(self.rng.random_range(0.0..2.0)));
            sleep_until(due).await;
        }
        let until = Instant::now() + LATE_WITHIN;
        for sent in late.into_values() {
            if Instant::now() < until {
                self.repeat(sent).await;
            } else {
                self.recorder.record(Op::Append(sent.append));
            }
        }
    }

    /// Some are sent again at once, some wait: by when, and which.
    async fn repeat_or_record(&mut self, sent: Sent, late: &mut BTreeMap<(Instant, SendId), Sent>) {
        if !self.is_sent_again(&sent) {
            self.recorder.record(Op::Append(sent.append));
        } else if late.len() < LATE_MAX && self.rng.random_bool(LATE) {
            let wait = Duration::from_millis(self.rng.random_range(LATE_MS));
            late.insert((Instant::now() + wait, sent.append.id), sent);
        } else {
            self.repeat(sent).await;
        }
    }

    async fn repeat(&mut self, mut sent: Sent) {
        self.send_again(&mut sent).await;
        self.recorder.record(Op::Append(sent.append));
    }

    fn is_sent_again(&mut self, sent: &Sent) -> bool {
        let is_acked = matches!(sent.append.outcome, Outcome::Ok(_));
        is_acked && self.rng.random_bool(self.workload.repeat)
    }

    /// One send, and one more now and then.
    pub(crate) async fn send(&mut self, process: u64, to: Timeline) -> Append {
        let mut sent = self.ask(process, to).await;
        if self.is_sent_again(&sent) {
            self.send_again(&mut sent).await;
        }
        sent.append
    }

    /// The same once more, or now and then something else under the same identity.
    async fn send_again(&mut self, sent: &mut Sent) {
        let append = &mut sent.append;
        if self.rng.random_bool(REUSE) {
            append.reuse = self.reuse(sent.request.clone()).await;
            return;
        }
        let answer = self.client.send(sent.request.clone()).await;
        match answer.map(|sent| acked(&sent)) {
            Ok(Outcome::Ok(repeat)) => append.repeats.push(repeat),
            Err(error) if is_refusal(error.code()) => {
                append.repeat_refused = Some(error.code().name().to_owned());
            }
            // What was not answered leaves nothing to compare.
            Ok(_) | Err(_) => {}
        }
    }

    /// One send, repeated under the same id while its outcome is unknown, or until it is given up.
    async fn ask(&mut self, process: u64, to: Timeline) -> Sent {
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
        let append = Append {
            process,
            invoked_ns,
            completed_ns,
            sender: self.user,
            to,
            id,
            content,
            outcome,
            repeats: Vec::new(),
            repeat_refused,
            reuse: None,
        };
        Sent { append, request }
    }

    /// Sends something else under an id that was acked; what is said to it, if anything is.
    async fn reuse(&self, request: SendRequest) -> Option<String> {
        let body = Bytes::from([&request.body[..], b" and more"].concat());
        let content_crc = content_crc(&request.client_msg_id, MessageType::Text, &body);
        let other = SendRequest {
            body,
            content_crc,
            ..request
        };
        match self.client.send(other).await {
            Ok(_) => Some(REUSED.to_owned()),
            Err(error) if is_refusal(error.code()) => Some(error.code().name().to_owned()),
            Err(_) => None,
        }
    }

    fn destination(&mut self) -> Timeline {
        let Population { users, groups, .. } = &*self.population;
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
