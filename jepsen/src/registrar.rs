//! One process of the workload that changes registers and looks at them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mailbox_client::v1::{self, ErrorCode, mark_read_request};
use mailbox_client::{CallError, Client, user_handle, user_id};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::history::{Op, Outcome, Recorder};
use crate::population::Population;
use crate::register::{Call, Register, Touch};
use crate::sender::{Ends, Processes};

/// Pause between two calls, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 5..60;
/// After so many calls of all processes together these go on to the next registers: few, so that the calls to one can be
/// put in order soon, and all at the same time, so that they overlap.
const CALLS_EACH: u64 = 40;
/// Of all calls, those to handles.
const TO_HANDLE: f64 = 0.5;
/// Of the calls to handles, those that claim one.
const CLAIMS: f64 = 0.3;
/// Of the calls to marks and cursors, those that change nothing.
const LOOKS: f64 = 0.2;
/// Devices of a user that hold nothing but cursors.
const CURSORS: u64 = 3;

/// How many calls there were: it decides which registers are next.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicU64);

impl Turns {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) / CALLS_EACH
    }

    /// All handles that may have been claimed.
    pub(crate) fn handles(&self) -> impl Iterator<Item = Register> {
        (0..=self.0.load(Ordering::Relaxed) / CALLS_EACH).map(handle)
    }
}

fn handle(turn: u64) -> Register {
    Register::Handle(format!("register{turn}"))
}

pub(crate) struct Registrar {
    pub(crate) client: Client,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) population: Arc<Population>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) rng: StdRng,
}

impl Registrar {
    pub(crate) async fn run(mut self, ends: Ends) {
        let mut process = self.processes.next();
        while !ends.is_over() {
            let (register, call) = self.choose().await;
            let touch = touch(&self.client, &self.recorder, process, register, call).await;
            if matches!(touch.outcome, Outcome::Unknown(_)) {
                process = self.processes.next();
            }
            self.recorder.record(Op::Touch(touch));
            sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
        }
    }

    async fn choose(&mut self) -> (Register, Call) {
        let turn = self.turns.next();
        if self.rng.random_bool(TO_HANDLE) {
            let is_claim = self.rng.random_bool(CLAIMS);
            let call = if is_claim { Call::Claim } else { Call::Look };
            return (handle(turn), call);
        }
        let (user, register) = self.mark(turn);
        if self.rng.random_bool(LOOKS) {
            return (register, Call::Look);
        }
        // What is beyond the head is refused, and says nothing.
        let head = self.head(user).await.unwrap_or(0);
        (register, Call::Raise(self.rng.random_range(0..=head)))
    }

    /// The mark or cursor of this turn, and whose it is.
    fn mark(&self, turn: u64) -> (u64, Register) {
        let users = &self.population.users;
        let count = users.len() as u64;
        let of = |number: u64| users[usize::try_from(number % count).unwrap_or_default()];
        let user = of(turn);
        let round = turn / count;
        let register = match turn % 2 {
            0 => Register::ReadMark {
                user,
                peer: of(turn + 1 + round % (count - 1)),
            },
            _ => Register::Cursor {
                user,
                device: format!("register{}", round % CURSORS),
            },
        };
        (user, register)
    }

    async fn head(&self, user: u64) -> Result<u64, CallError> {
        let heads = self.client.heads(v1::HeadsRequest {
            timelines: vec![mailbox(user)],
            ..v1::HeadsRequest::default()
        });
        Ok(heads.await?.heads.first().map_or(0, |it| it.head))
    }
}

fn mailbox(user: u64) -> v1::Timeline {
    v1::Timeline {
        kind: v1::TimelineKind::Mailbox as i32,
        owner: user,
    }
}

/// One call to a register.
pub(crate) async fn touch(
    client: &Client,
    recorder: &Recorder,
    process: u64,
    register: Register,
    call: Call,
) -> Touch {
    let is_handle = matches!(register, Register::Handle(_));
    let invoked_ns = recorder.now_ns();
    let outcome = match ask(client, &register, call).await {
        Ok(holds) => Outcome::Ok(holds),
        Err(error) => {
            let name = error.code().name().to_owned();
            match (call, error.code()) {
                (Call::Claim, ErrorCode::HandleTaken) => Outcome::Ok(0),
                (Call::Look, ErrorCode::UnknownUser) if is_handle => Outcome::Ok(0),
                // It changes nothing, whenever it arrives.
                (Call::Look, _) => Outcome::Fail(name),
                // Of its attempts, which the client does by itself, an earlier one may still arrive.
                (Call::Claim | Call::Raise(_), _) => Outcome::Unknown(name),
            }
        }
    };
    Touch {
        process,
        invoked_ns,
        completed_ns: recorder.now_ns(),
        register,
        call,
        outcome,
    }
}

async fn ask(client: &Client, register: &Register, call: Call) -> Result<u64, CallError> {
    // The client fills ids of requests in, and keeps them when it repeats one.
    let request_id = Bytes::new();
    match register {
        Register::Handle(handle) if call == Call::Claim => {
            let handle = handle.clone();
            let request = v1::RegisterUserRequest { request_id, handle };
            Ok(client.register_user(request).await?.user)
        }
        Register::Handle(handle) => {
            let user = Some(user_handle(handle));
            let request = v1::ResolveUserRequest { user };
            Ok(client.resolve_user(request).await?.user)
        }
        Register::ReadMark { user, peer } => {
            let request = v1::MarkReadRequest {
                request_id,
                user: Some(user_id(*user)),
                conversation: Some(mark_read_request::Conversation::Peer(user_id(*peer))),
                seq: call.seq(),
            };
            Ok(client.mark_read(request).await?.read_mark)
        }
        Register::Cursor { user, device } => {
            let request = v1::AckCursorRequest {
                request_id,
                user: Some(user_id(*user)),
                device: device.clone(),
                timeline: Some(mailbox(*user)),
                seq: call.seq(),
            };
            Ok(client.ack_cursor(request).await?.cursor)
        }
    }
}
