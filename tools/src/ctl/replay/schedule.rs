//! Which connection plays which nick: 5,983 nicks over 64 sockets.
//!
//! A worker holds one socket, as one nick. A nick's sends go to the worker that holds it, one after
//! another; a nick that nobody holds gets the worker that has been idle longest, which drops the
//! nick it held. So a talk between a few nicks needs no reconnects, and no nick waits for ever.

use std::collections::VecDeque;

use super::script::NickId;

/// Position of a worker, from 0.
pub(super) type WorkerId = usize;

/// Who plays whom, and what waits. Pure bookkeeping: its owner locks it and wakes the workers.
pub(super) struct Schedule {
    /// Released sends per nick that no worker has taken yet, in order.
    queues: Vec<VecDeque<usize>>,
    /// The worker that holds each nick.
    holders: Vec<Option<WorkerId>>,
    /// The nick that each worker holds.
    held: Vec<Option<NickId>>,
    /// Nicks with released sends that no worker holds, in order of their first.
    waiting: VecDeque<NickId>,
    /// Idle workers, the longest idle one first.
    idle: VecDeque<WorkerId>,
}

impl Schedule {
    /// All workers begin busy: each asks with [`Schedule::next`] first.
    pub(super) fn new(nicks: usize, workers: usize) -> Self {
        Self {
            queues: vec![VecDeque::new(); nicks],
            holders: vec![None; nicks],
            held: vec![None; workers],
            waiting: VecDeque::new(),
            idle: VecDeque::new(),
        }
    }

    /// Lets `send` of `nick` be played. Returns the idle worker to wake, if one is to.
    pub(super) fn release(&mut self, nick: NickId, send: usize) -> Option<WorkerId> {
        self.queues[nick].push_back(send);
        if let Some(holder) = self.holders[nick] {
            let at = self.idle.iter().position(|&worker| worker == holder)?;
            return self.idle.remove(at);
        }
        if self.queues[nick].len() == 1 {
            self.waiting.push_back(nick);
        }
        self.idle.pop_front()
    }

    /// The next send of `worker`, after it finished the one before; `None`: idle until woken.
    pub(super) fn next(&mut self, worker: WorkerId) -> Option<(NickId, usize)> {
        if let Some(nick) = self.held[worker]
            && let Some(send) = self.queues[nick].pop_front()
        {
            return Some((nick, send));
        }
        let Some(nick) = self.waiting.pop_front() else {
            self.idle.push_back(worker);
            return None;
        };
        if let Some(dropped) = self.held[worker].replace(nick) {
            self.holders[dropped] = None;
        }
        self.holders[nick] = Some(worker);
        let send = self.queues[nick]
            .pop_front()
            .expect("a waiting nick has a released send");
        Some((nick, send))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_nick_stays_with_its_worker() {
        let mut schedule = Schedule::new(3, 2);
        assert_eq!(schedule.next(0), None);
        assert_eq!(schedule.next(1), None);
        assert_eq!(schedule.release(2, 10), Some(0));
        assert_eq!(schedule.next(0), Some((2, 10)));
        assert_eq!(
            schedule.release(2, 11),
            None,
            "worker 0 is busy and asks by itself"
        );
        assert_eq!(schedule.next(0), Some((2, 11)));
        assert_eq!(schedule.next(0), None);
        assert_eq!(
            schedule.release(2, 12),
            Some(0),
            "not worker 1, idle for longer"
        );
    }

    #[test]
    fn a_new_nick_takes_the_longest_idle_worker() {
        let mut schedule = Schedule::new(3, 2);
        for worker in [0, 1] {
            assert_eq!(schedule.next(worker), None);
            assert_eq!(schedule.release(worker, worker), Some(worker));
            assert_eq!(schedule.next(worker), Some((worker, worker)));
        }
        assert_eq!(schedule.next(1), None);
        assert_eq!(schedule.next(0), None);
        assert_eq!(schedule.release(2, 7), Some(1));
        assert_eq!(schedule.next(1), Some((2, 7)));
        assert_eq!(schedule.release(1, 8), Some(0), "nick 1 lost its worker");
    }

    #[test]
    fn every_send_is_played_once_and_in_order_per_nick() {
        let (nicks, workers, sends) = (17, 4, 2_000);
        let mut schedule = Schedule::new(nicks, workers);
        let mut played: Vec<Vec<usize>> = vec![Vec::new(); nicks];
        let mut busy: VecDeque<WorkerId> = (0..workers).collect();
        let mut draw = 1_u64;
        for send in 0..sends {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            busy.extend(schedule.release((draw >> 33) as usize % nicks, send));
            if send % 3 == 0
                && let Some(worker) = busy.pop_front()
                && let Some((nick, send)) = schedule.next(worker)
            {
                played[nick].push(send);
                busy.push_back(worker);
            }
        }
        while let Some(worker) = busy.pop_front() {
            if let Some((nick, send)) = schedule.next(worker) {
                played[nick].push(send);
                busy.push_back(worker);
            }
        }
        assert!(played.iter().all(|sends| sends.is_sorted()));
        assert_eq!(played.iter().map(Vec::len).sum::<usize>(), sends);
    }
}
