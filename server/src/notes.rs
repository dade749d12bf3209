//! What was seen of work that is carried on step by step, for those who look: moves of slots, splits and merges of shards. It
//! decides nothing, and goes with the leadership of whoever carries the work on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What was seen of one piece of work.
#[derive(Clone, Debug)]
pub(crate) struct Note<S> {
    /// How far it is: a note of another stage says nothing.
    stage: S,
    /// Nodes that are done with what the stage asks of them.
    pub(crate) done: BTreeSet<u64>,
    /// What the last try waited for; empty: for nothing that was seen.
    pub(crate) waits_for: String,
    /// When it last got anywhere: its stage began, or one more node was done.
    since: Instant,
    /// Tries that failed since then.
    pub(crate) failed_tries: u32,
}

impl<S> Note<S> {
    /// How long it has got nowhere.
    pub(crate) fn still(&self) -> Duration {
        self.since.elapsed()
    }
}

/// Notes by what they are about.
#[derive(Debug)]
pub(crate) struct Notes<K, S>(Mutex<BTreeMap<K, Note<S>>>);

impl<K, S> Default for Notes<K, S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Copy, S: PartialEq + Clone> Notes<K, S> {
    /// The note of this stage, if there is one.
    pub(crate) fn of(&self, about: K, stage: &S) -> Option<Note<S>> {
        let notes = self.0.lock();
        notes
            .get(&about)
            .filter(|note| note.stage == *stage)
            .cloned()
    }

    /// A stage begins, or is begun anew: what was seen of it stays.
    pub(crate) fn begin(&self, about: K, stage: S) {
        self.change(about, stage, |_| {});
    }

    /// So far it is. True: it waits for something else than before.
    pub(crate) fn note(&self, about: K, stage: S, done: BTreeSet<u64>, waits_for: &str) -> bool {
        self.change(about, stage, |note| {
            if done.len() > note.done.len() {
                (note.since, note.failed_tries) = (Instant::now(), 0);
            }
            note.done = done;
            let other = note.waits_for != waits_for;
            waits_for.clone_into(&mut note.waits_for);
            other && !waits_for.is_empty()
        })
    }

    /// A try has failed. True: for another reason than what it waited for before.
    pub(crate) fn fail(&self, about: K, stage: S, reason: &str) -> bool {
        self.change(about, stage, |note| {
            note.failed_tries = note.failed_tries.saturating_add(1);
            let other = note.waits_for != reason;
            reason.clone_into(&mut note.waits_for);
            other
        })
    }

    /// It is over.
    pub(crate) fn forget(&self, about: K) {
        self.0.lock().remove(&about);
    }

    /// Another node carries all of it on.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    fn change<T>(&self, about: K, stage: S, change: impl FnOnce(&mut Note<S>) -> T) -> T {
        let mut notes = self.0.lock();
        let fresh = || Note {
            stage: stage.clone(),
            done: BTreeSet::new(),
            waits_for: String::new(),
            since: Instant::now(),
            failed_tries: 0,
        };
        let note = notes.entry(about).or_insert_with(fresh);
        if note.stage != stage {
            *note = fresh();
        }
        change(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_anywhere_begins_to_count_anew() {
        let notes: Notes<u32, (u64, u8)> = Notes::default();
        let (stage, nodes) = ((7, 1), |nodes: &[u64]| nodes.iter().copied().collect());
        assert!(notes.of(5, &stage).is_none());
        notes.begin(5, stage);
        let since = || notes.of(5, &stage).unwrap().since;
        let begun = since();
        assert!(notes.fail(5, stage, "node 3 is away"));
        assert!(!notes.fail(5, stage, "node 3 is away"));
        assert!(!notes.note(5, stage, nodes(&[]), "node 3 is away"));
        notes.begin(5, stage);
        let note = notes.of(5, &stage).unwrap();
        assert_eq!((note.failed_tries, note.since), (2, begun));
        assert!(notes.note(5, stage, nodes(&[1]), "node 2 has not got all yet"));
        let note = notes.of(5, &stage).unwrap();
        assert_eq!((note.failed_tries, note.done.len()), (0, 1));
        assert!(note.since > begun);
        // As many as before: nothing has moved.
        let moved = since();
        assert!(!notes.note(5, stage, nodes(&[2]), ""));
        assert_eq!(since(), moved);
        // The next stage.
        assert!(notes.of(5, &(7, 2)).is_none());
        notes.begin(5, (7, 2));
        assert!(notes.of(5, &stage).is_none());
        assert!(notes.of(5, &(7, 2)).unwrap().done.is_empty());
        notes.forget(5);
        assert!(notes.of(5, &(7, 2)).is_none());
    }
}
