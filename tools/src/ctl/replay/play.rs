//! Sends the script: one nick's lines one after another, different nicks in parallel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use mailbox_wire::{Destination, UserRef};
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use super::pause::PauseMeter;
use super::schedule::{Schedule, WorkerId};
use super::script::{NickId, Script, To};
use super::socket::{Socket, Trouble};
use super::stage::Stage;
use super::verify::Ack;

/// Without a rate, released sends per connection: enough to keep all busy, few enough that the
/// channel keeps roughly the order of the input.
const WINDOW_PER_CONNECTION: usize = 4;
/// A send that is not acked for so long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
/// First and longest pause before a send is tried again; it doubles.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));
/// How often a rate looks for sends that are due.
const TICK: Duration = Duration::from_millis(2);

/// A played script.
pub(super) struct Played {
    /// `client_msg_id` of every send.
    pub(super) ids: Vec<Uuid>,
    /// The ack of every send that got one.
    pub(super) acks: Vec<Option<Ack>>,
    pub(super) longest_pause_ms: u64,
    pub(super) seconds: f64,
    /// Filled in by whoever kills.
    pub(super) kills: u64,
}

/// How many sends have been acked; may be watched while the script is played.
pub(super) struct Progress(watch::Receiver<u64>);

impl Progress {
    /// Waits until at least `acked` sends have been acked; false if the play ends before.
    pub(super) async fn reached(&mut self, acked: u64) -> bool {
        self.0.wait_for(|&now| now >= acked).await.is_ok()
    }
}

/// Plays one script once.
pub(super) struct Player(Arc<Board>);

/// What the workers share.
struct Board {
    script: Arc<Script>,
    ids: Vec<Uuid>,
    tokens: Vec<String>,
    users: Vec<u64>,
    group: u64,
    gateways: Vec<String>,
    rate: Option<u32>,
    state: Mutex<State>,
    acked: watch::Sender<u64>,
    bar: ProgressBar,
    begin: Instant,
}

struct State {
    acks: Vec<Option<Ack>>,
    meter: PauseMeter,
    schedule: Schedule,
    /// Sends that were neither acked nor given up.
    open: usize,
}

/// The workers' alarm clocks, and the window of sends released without a rate.
struct Pace {
    wakes: Vec<Notify>,
    window: Semaphore,
}

impl Player {
    /// Prepares ids and tokens.
    pub(super) fn new(script: Arc<Script>, stage: &Stage, rate: Option<u32>) -> Self {
        let sends = script.sends.len();
        let tokens = stage.users.iter().map(|&user| stage.token(user));
        let bar = ProgressBar::new(sends as u64).with_message("sends");
        bar.set_style(crate::output::bar_style());
        Self(Arc::new(Board {
            ids: (0..sends).map(|_| Uuid::now_v7()).collect(),
            // A token that cannot be made shows as a refused connection.
            tokens: tokens.map(Result::unwrap_or_default).collect(),
            users: stage.users.clone(),
            group: stage.group,
            gateways: stage.gateways.clone(),
            rate,
            state: Mutex::new(State {
                acks: vec![None; sends],
                meter: PauseMeter::default(),
                schedule: Schedule::new(script.nicks.len(), 0),
                open: sends,
            }),
            acked: watch::Sender::new(0),
            bar,
            begin: Instant::now(),
            script,
        }))
    }

    /// How far the play has got.
    pub(super) fn progress(&self) -> Progress {
        Progress(self.0.acked.subscribe())
    }

    /// Plays all of it over `connections` sockets.
    pub(super) async fn play(self, connections: usize) -> anyhow::Result<Played> {
        let board = self.0;
        board.lock().schedule = Schedule::new(board.script.nicks.len(), connections);
        let pace = Arc::new(Pace {
            wakes: (0..connections).map(|_| Notify::new()).collect(),
            window: Semaphore::new(connections * WINDOW_PER_CONNECTION),
        });
        let begin = Instant::now();
        let workers: Vec<_> = (0..connections)
            .map(|worker| tokio::spawn(work(Arc::clone(&board), Arc::clone(&pace), worker)))
            .collect();
        release_all(&board, &pace).await;
        for worker in workers {
            worker.await?;
        }
        board.bar.finish_and_clear();
        let mut state = board.lock();
        Ok(Played {
            ids: board.ids.clone(),
            acks: std::mem::take(&mut state.acks),
            longest_pause_ms: state.meter.longest_ms(),
            seconds: (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            kills: 0,
        })
    }
}

/// Lets sends be played in input order, at the rate or as the window allows.
async fn release_all(board: &Board, pace: &Pace) {
    let begin = Instant::now();
    for (number, send) in board.script.sends.iter().enumerate() {
        match board.rate {
            Some(rate) => {
                let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
                if due > Instant::now() + TICK {
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            None => match pace.window.acquire().await {
                // Given back when the send is acked.
                Ok(permit) => permit.forget(),
                Err(_closed) => return,
            },
        }
        let wake = {
            let now_ms = board.now_ms();
            let mut state = board.lock();
            state.meter.sent(now_ms);
            state.schedule.release(send.from, number)
        };
        if let Some(worker) = wake {
            pace.wakes[worker].notify_one();
        }
    }
}

/// One connection's life: plays whichever nick the schedule gives it.
async fn work(board: Arc<Board>, pace: Arc<Pace>, worker: WorkerId) {
    let mut seat: Option<(NickId, Socket)> = None;
    let mut gateway = worker;
    loop {
        let (next, open) = {
            let mut state = board.lock();
            (state.schedule.next(worker), state.open)
        };
        let Some((nick, send)) = next else {
            if open == 0 {
                break;
            }
            pace.wakes[worker].notified().await;
            continue;
        };
        if seat.as_ref().is_some_and(|(held, _)| *held != nick)
            && let Some((_, socket)) = seat.take()
        {
            socket.close().await;
        }
        let ack = board.send(&mut seat, &mut gateway, nick, send).await;
        if board.settle(send, ack) == 0 {
            pace.wakes.iter().for_each(Notify::notify_one);
        }
        pace.window.add_permits(1);
    }
    if let Some((_, socket)) = seat {
        socket.close().await;
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A worker that panicked is seen at its join; the state is still whole for the others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends until acked: the same id again after each trouble, through the next gateway.
    async fn send(
        &self,
        seat: &mut Option<(NickId, Socket)>,
        gateway: &mut usize,
        nick: NickId,
        number: usize,
    ) -> Option<Ack> {
        let send = &self.script.sends[number];
        let to = match send.to {
            To::Group => Destination::Group(self.group),
            To::Nick(to) => Destination::User(UserRef::Id(self.users[to])),
        };
        let begin = Instant::now();
        let mut backoff = BACKOFF.0;
        loop {
            let attempt = async {
                if seat.is_none() {
                    let url = &self.gateways[*gateway % self.gateways.len()];
                    *seat = Some((nick, Socket::connect(url, &self.tokens[nick]).await?));
                }
                let Some((_, socket)) = seat else {
                    return Err(Trouble::Lost(String::new()));
                };
                socket.send(&to, self.ids[number], &send.text).await
            };
            let trouble = match attempt.await {
                Ok(ack) => return Some(ack),
                Err(trouble) => trouble,
            };
            let name = &self.script.nicks[nick];
            match trouble {
                Trouble::Refused(why) => {
                    self.bar
                        .suspend(|| eprintln!("a send of {name} was refused: {why}"));
                    return None;
                }
                Trouble::Lost(why) | Trouble::Retry(why) if begin.elapsed() > GIVE_UP_AFTER => {
                    self.bar
                        .suspend(|| eprintln!("a send of {name} was given up: {why}"));
                    return None;
                }
                Trouble::Lost(_) => {
                    *seat = None;
                    *gateway += 1;
                }
                Trouble::Retry(_) => {}
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Takes the outcome of a send; returns how many are still open.
    fn settle(&self, number: usize, ack: Option<Ack>) -> usize {
        let now_ms = self.now_ms();
        let mut state = self.lock();
        if ack.is_some() {
            state.meter.acked(now_ms);
            self.acked.send_modify(|acked| *acked += 1);
            self.bar.inc(1);
        } else {
            state.meter.gave_up(now_ms);
        }
        state.acks[number] = ack;
        state.open -= 1;
        state.open
    }
}
