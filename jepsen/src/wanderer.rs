//! One process of the workload that joins groups, says something there, and leaves them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mailbox_client::{user_id, v1};
use rand::RngExt as _;
use rand::seq::IteratorRandom as _;
use tokio::time::sleep;

use crate::history::{Op, Outcome, Timeline};
use crate::page::{Join, Leave};
use crate::sender::{Ends, Sender};

/// Between two things that it does, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 50..500;
/// Into one group, at most: of more times that a user was in it a store forgets the oldest, which a device that lags may
/// not have got.
const JOINS_MAX: usize = 60;
/// Pause after a call that failed.
const PAUSE_FAILED: Duration = Duration::from_millis(100);
/// What it says in a group, at most.
const SENDS_MAX: u32 = 6;

/// It goes on from phase to phase.
pub(crate) struct Wanderer {
    /// Who says what it says.
    pub(crate) sender: Sender,
    /// Its last process number.
    pub(crate) process: u64,
    /// Where it is.
    pub(crate) group: Option<u64>,
    /// How often it has joined which.
    pub(crate) joins: BTreeMap<u64, usize>,
    /// What should not have been refused.
    pub(crate) refused: Vec<String>,
}

impl Wanderer {
    /// Comes and goes until it is over. What it has asked for it waits for: else nobody could tell what it may read.
    pub(crate) async fn run(&mut self, ends: Ends) {
        while !ends.is_over() {
            match self.group {
                None => self.group = self.join().await,
                Some(group) => {
                    self.stay(group, &ends).await;
                    self.leave(group).await;
                    self.group = None;
                }
            }
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(
            self.sender.rng.random_range(PAUSE_MS),
        ))
        .await;
    }

    /// Into any group; `None`: nobody knows.
    async fn join(&mut self) -> Option<u64> {
        let groups = self.sender.population.groups.iter();
        let open = groups.filter(|group| self.joins.get(group).is_none_or(|it| *it < JOINS_MAX));
        let group = *open.choose(&mut self.sender.rng)?;
        *self.joins.entry(group).or_default() += 1;
        let user = self.sender.user;
        let request = v1::JoinGroupRequest {
            request_id: self.request_id(),
            group,
            user: Some(user_id(user)),
        };
        self.note_join(group, 0);
        loop {
            match self.sender.client.join_group(request.clone()).await {
                Ok(joined) => {
                    self.note_join(group, joined.join_seq);
                    return Some(group);
                }
                Err(error) if error.is_retryable() => sleep(PAUSE_FAILED).await,
                Err(error) => {
                    let refused = format!("user {user} does not get into group {group}: {error}");
                    self.refused.push(refused);
                    return None;
                }
            }
        }
    }

    fn note_join(&self, group: u64, first: u64) {
        self.sender.recorder.record(Op::Join(Join {
            user: self.sender.user,
            group,
            first,
            completed_ns: self.sender.recorder.now_ns(),
        }));
    }

    async fn stay(&mut self, group: u64, ends: &Ends) {
        for _ in 0..self.sender.rng.random_range(0..=SENDS_MAX) {
            if ends.is_over() {
                return;
            }
            let append = self.sender.send(self.process, Timeline::Group(group)).await;
            if matches!(append.outcome, Outcome::Unknown(_)) {
                self.process = self.sender.processes.next();
            }
            self.sender.recorder.record(Op::Append(append));
            self.pause().await;
        }
    }

    async fn leave(&mut self, group: u64) {
        let user = self.sender.user;
        let request = v1::LeaveGroupRequest {
            request_id: self.request_id(),
            group,
            user: Some(user_id(user)),
        };
        let recorder = Arc::clone(&self.sender.recorder);
        let note = |last| recorder.record(Op::Leave(Leave { user, group, last }));
        note(0);
        loop {
            match self.sender.client.leave_group(request.clone()).await {
                Ok(left) => return note(left.left_seq),
                Err(error) if error.is_retryable() => sleep(PAUSE_FAILED).await,
                Err(error) => {
                    let refused = format!("user {user} does not get out of group {group}: {error}");
                    self.refused.push(refused);
                    return;
                }
            }
        }
    }

    /// Its own, so that what is asked again is known to be the same.
    fn request_id(&self) -> Bytes {
        Bytes::copy_from_slice(self.sender.client.new_message_id().as_bytes())
    }
}
