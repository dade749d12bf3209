//! Calls to a shard that nobody serves just now wait for one of them to find out who does.
//!
//! A shard without a leader answers no to every call. If each of them tried again by itself, tens of thousands
//! of them (an open loop never stops coming) would keep nodes busy that have better things to do, such as
//! electing that leader. So the first call that fails shuts the shard's gate and *probes*: it alone is repeated,
//! at short pauses, and whoever else comes, or fails, waits in line. Once a probe is served the line moves: a
//! few at first, then two more for each that is done, as a sender begins after a loss (slow start: Jacobson,
//! "Congestion Avoidance and Control", 1988). A probe that fails, or whose caller gives up, hands its part to the next
//! in line and goes to its end: what one call fails for need not be the shard.
//!
//! The line holds only callers, each until its own deadline; sends are bounded by the in-flight limits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// How many go at once when a probe was served.
const FIRST_ROUND: usize = 32;
/// How many more go for each that is done.
const NEXT_ROUND: usize = 2;
/// First pause before a probe; it doubles.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause before a probe: what a caller waits at most once the shard is served again. One call so often,
/// of each client to each such shard, is next to nothing.
const PROBE_PAUSE_MAX: Duration = Duration::from_millis(50);

/// The gates of all shards.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    shut: Mutex<HashMap<u32, Gate>>,
    /// How many there are: mostly none, which spares each send the lock.
    count: AtomicUsize,
}

/// Of a shard that nobody serves, or whose line still moves.
#[derive(Debug)]
struct Gate {
    line: VecDeque<oneshot::Sender<Turn>>,
    /// Somebody finds out who serves the shard. Else somebody's turn is not over, or the line is empty.
    probing: bool,
    pause: Duration,
}

/// The right to go. Whoever is next in line gets theirs when this one is over.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` once it is void.
    gates: Option<Arc<Gates>>,
    shard: u32,
    probes: bool,
    served: bool,
}

/// What a call that came to a gate gets.
#[derive(Debug)]
pub(crate) enum Passage {
    /// The gate is open.
    Open,
    /// It was shut, and this call's turn has come.
    InTurn(Turn),
    /// The deadline came first.
    TooLate,
}

impl Gates {
    /// Whether a call has to wait for its turn.
    pub(crate) fn is_shut(&self, shard: u32) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.shut.lock().contains_key(&shard)
    }

    /// Waits in line where there is one.
    pub(crate) async fn pass(self: &Arc<Self>, shard: u32, deadline: Instant) -> Passage {
        let waits = match self.shut.lock().get_mut(&shard) {
            Some(gate) => gate.join(),
            None => return Passage::Open,
        };
        Place::InLine(waits).wait(deadline).await
    }

    /// Shuts the gate if it is open, and probes; else waits in line.
    pub(crate) async fn shut(self: &Arc<Self>, shard: u32, deadline: Instant) -> Passage {
        self.place(shard).wait(deadline).await
    }

    fn place(self: &Arc<Self>, shard: u32) -> Place {
        let mut shut = self.shut.lock();
        let gate = shut.entry(shard).or_insert_with(|| {
            self.count.fetch_add(1, Ordering::Relaxed);
            Gate::new()
        });
        if gate.probing {
            return Place::InLine(gate.join());
        }
        gate.probing = true;
        Place::Probe(self.turn(shard, true))
    }

    /// A place at the end of the line; nothing where nobody is in it.
    fn line_behind(&self, shard: u32) -> Option<oneshot::Receiver<Turn>> {
        let mut shut = self.shut.lock();
        let gate = shut.get_mut(&shard)?;
        (!gate.line.is_empty()).then(|| gate.join())
    }

    fn turn(self: &Arc<Self>, shard: u32, probes: bool) -> Turn {
        Turn {
            gates: Some(Arc::clone(self)),
            shard,
            probes,
            served: false,
        }
    }

    /// Gives the next in line who still waits a turn; false if nobody does.
    fn call_next(self: &Arc<Self>, gate: &mut Gate, shard: u32, probes: bool) -> bool {
        while let Some(next) = gate.line.pop_front() {
            match next.send(self.turn(shard, probes)) {
                Ok(()) => return true,
                // Its caller has gone: the turn never began.
                Err(turn) => turn.make_void(),
            }
        }
        false
    }

    fn end_turn(self: &Arc<Self>, turn: &Turn) {
        let mut shut = self.shut.lock();
        let Some(gate) = shut.get_mut(&turn.shard) else {
            return;
        };
        let round = match (turn.probes, turn.served) {
            (true, false) => {
                gate.probing = self.call_next(gate, turn.shard, true);
                0
            }
            (true, true) => {
                gate.probing = false;
                FIRST_ROUND
            }
            (false, _) if gate.probing => 0,
            (false, _) => NEXT_ROUND,
        };
        for _ in 0..round {
            if !self.call_next(gate, turn.shard, false) {
                break;
            }
        }
        if gate.line.is_empty() && !gate.probing {
            shut.remove(&turn.shard);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Where a call stands that was not served.
enum Place {
    Probe(Turn),
    InLine(oneshot::Receiver<Turn>),
}

impl Place {
    async fn wait(self, deadline: Instant) -> Passage {
        let turn = match self {
            Place::Probe(turn) => turn,
            Place::InLine(waits) => match timeout_at(deadline, waits).await {
                Ok(Ok(turn)) => turn,
                // A gate stays while somebody is in its line, so the first of these does not happen.
                Ok(Err(_)) | Err(_) => return Passage::TooLate,
            },
        };
        if turn.probes {
            turn.paused(deadline).await
        } else {
            Passage::InTurn(turn)
        }
    }
}

impl Gate {
    fn new() -> Self {
        Self {
            line: VecDeque::new(),
            probing: false,
            pause: PROBE_PAUSE_MIN,
        }
    }

    fn join(&mut self) -> oneshot::Receiver<Turn> {
        let (turn, waits) = oneshot::channel();
        self.line.push_back(turn);
        waits
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PROBE_PAUSE_MAX);
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl Turn {
    /// Ends the turn of a call that somebody answered who serves the shard, whatever the answer.
    pub(crate) fn served(mut self) {
        self.served = true;
    }

    /// Whose gate it passed.
    pub(crate) fn shard(&self) -> u32 {
        self.shard
    }

    /// After one more attempt that nobody served. Who probed lets the next in line probe: it may have failed for a
    /// reason of its own, such as another shard that it needs, and must not hold up those who have none.
    pub(crate) async fn again(self, deadline: Instant) -> Passage {
        let Some(gates) = self.gates.clone() else {
            return Passage::Open;
        };
        let place = if self.probes {
            match gates.line_behind(self.shard) {
                Some(waits) => Place::InLine(waits),
                None => return self.paused(deadline).await,
            }
        } else {
            gates.place(self.shard)
        };
        // After it, since the end of a turn lets others go unless somebody probes.
        drop(self);
        place.wait(deadline).await
    }

    /// Waits until the next probe is due.
    async fn paused(self, deadline: Instant) -> Passage {
        let Some(gates) = &self.gates else {
            return Passage::Open;
        };
        let pause = match gates.shut.lock().get_mut(&self.shard) {
            Some(gate) => gate.next_pause(),
            None => PROBE_PAUSE_MIN,
        };
        if Instant::now() + pause >= deadline {
            return Passage::TooLate;
        }
        tokio::time::sleep(pause).await;
        Passage::InTurn(self)
    }

    fn make_void(mut self) {
        self.gates = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(gates) = self.gates.take() {
            gates.end_turn(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: u32 = 3;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    async fn probe(gates: &Arc<Gates>) -> Turn {
        match gates.shut(SHARD, soon()).await {
            Passage::InTurn(turn) => turn,
            other => panic!("{other:?}"),
        }
    }

    /// Calls that wait in line, in order.
    fn line(gates: &Arc<Gates>, count: usize) -> Vec<oneshot::Receiver<Turn>> {
        let mut shut = gates.shut.lock();
        let gate = shut.get_mut(&SHARD).unwrap();
        (0..count).map(|_| gate.join()).collect()
    }

    fn called(line: &mut [oneshot::Receiver<Turn>]) -> Vec<Turn> {
        line.iter_mut()
            .filter_map(|waits| waits.try_recv().ok())
            .collect()
    }

    #[tokio::test]
    async fn one_probes_and_the_rest_waits_until_it_is_served() {
        let gates = Arc::new(Gates::default());
        assert!(matches!(gates.pass(SHARD, soon()).await, Passage::Open));
        let turn = probe(&gates).await;
        assert!(gates.is_shut(SHARD));
        assert!(!gates.is_shut(SHARD + 1));
        // With nobody in line a probe that fails is the same call's again.
        let Passage::InTurn(turn) = turn.again(soon()).await else {
            panic!("it is not too late");
        };
        let mut line = line(&gates, 2);
        assert!(called(&mut line).is_empty());
        turn.served();
        let turns = called(&mut line);
        assert_eq!(turns.len(), 2);
        assert!(turns.iter().all(|turn| !turn.probes));
        assert!(!gates.is_shut(SHARD));
        assert_eq!(gates.count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_long_line_moves_slowly_at_first() {
        let gates = Arc::new(Gates::default());
        let turn = probe(&gates).await;
        let mut line = line(&gates, 1000);
        turn.served();
        let first = called(&mut line);
        assert_eq!(first.len(), FIRST_ROUND);
        assert!(gates.is_shut(SHARD), "who comes now comes last");
        drop(first);
        assert_eq!(called(&mut line).len(), NEXT_ROUND * FIRST_ROUND);
    }

    #[tokio::test]
    async fn a_probe_that_gives_up_hands_over_to_the_next_who_still_waits() {
        let gates = Arc::new(Gates::default());
        let turn = probe(&gates).await;
        let mut line = line(&gates, 3);
        drop(line.remove(0));
        drop(turn);
        let mut turns = called(&mut line);
        assert_eq!(turns.len(), 1);
        assert!(turns[0].probes);
        // One that never took up its turn has had it, too.
        turns.clear();
        let turns = called(&mut line[1..]);
        assert!(turns[0].probes);
        drop(turns);
        assert!(!gates.is_shut(SHARD), "nobody is left");
    }

    #[tokio::test]
    async fn a_probe_that_fails_lets_the_next_one_probe_and_goes_to_the_end() {
        let gates = Arc::new(Gates::default());
        let turn = probe(&gates).await;
        let mut line = line(&gates, 1);
        // Its own trouble: no attempt of this call is ever served.
        let failing = tokio::spawn(turn.again(soon()));
        let healthy = line.remove(0).await.unwrap();
        assert!(healthy.probes);
        assert!(!failing.is_finished());
        healthy.served();
        let Passage::InTurn(turn) = failing.await.unwrap() else {
            panic!("it is not too late");
        };
        assert!(!turn.probes);
        assert!(!gates.is_shut(SHARD), "others pass while it tries again");
    }

    #[tokio::test]
    async fn who_fails_in_turn_probes_and_stops_the_line() {
        let gates = Arc::new(Gates::default());
        let turn = probe(&gates).await;
        let mut line = line(&gates, 200);
        turn.served();
        let mut turns = called(&mut line);
        let again = turns.pop().unwrap().again(soon()).await;
        let Passage::InTurn(probe) = again else {
            panic!("it is not too late");
        };
        assert!(probe.probes);
        drop(turns);
        assert!(called(&mut line).is_empty());
        probe.served();
        assert_eq!(called(&mut line).len(), FIRST_ROUND);
    }

    #[tokio::test]
    async fn nobody_waits_beyond_their_deadline() {
        let gates = Arc::new(Gates::default());
        let turn = probe(&gates).await;
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(matches!(
            gates.pass(SHARD, deadline).await,
            Passage::TooLate
        ));
        assert!(matches!(
            gates.shut(SHARD, deadline).await,
            Passage::TooLate
        ));
        let late = Instant::now();
        assert!(matches!(turn.again(late).await, Passage::TooLate));
        assert!(!gates.is_shut(SHARD));
    }
}
