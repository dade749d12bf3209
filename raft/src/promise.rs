//! A voter's half of reads by lease: what it promises, and how it keeps that.
//!
//! Whoever answers a leader's heartbeat may add a **promise**: for so long it helps nobody else to lead the shard.
//! `lease.rs` says what a leader makes of it. Kept it is here:
//!
//! - Answers to heartbeats, votes and elections of one replica take turns ([`Ballot::turn`]): no vote is given
//!   while a promise is on its way, and none is promised away while one is being given.
//! - While a promise runs, votes and pre-votes for others are refused, and the replica stands for nothing. Only
//!   the leader itself can let it off, by handing its leadership over.
//! - A process that starts does not know what the one before it has promised. The directory does
//!   (`PROMISES`, written before the first promise is made): for the longest time that may have been promised,
//!   and a tenth of it more, the node takes no part in any election, though it follows leaders as ever. The note
//!   is read whether or not the option is on by now.
//!
//! A promise travels with the answer that makes it, so nothing depends on how other nodes are configured: one
//! that has the option off promises nothing, and no leader counts on it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::options::NodeOptions;
use crate::simulation;

/// What this node promises, for all its replicas.
pub(crate) struct Pledge {
    dir: PathBuf,
    /// How long a promise runs; none are made if absent.
    length: Option<Duration>,
    /// Until when a process before this one may have promised something.
    embargo_until: Option<Instant>,
}

/// A promise that was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) until: Instant,
}

impl Promise {
    /// Whether it forbids a vote for `candidate` in `term`. `transfer`: a leader has asked the candidate to stand.
    pub(crate) fn bars(&self, candidate: u64, term: u64, transfer: bool, now: Instant) -> bool {
        // The leader that asks is the one of the term before: it has given its lease up first.
        let let_off = transfer && term == self.term + 1;
        now < self.until && candidate != self.leader && !let_off
    }
}

/// The time promised and a tenth: two clocks need not run alike.
fn with_margin(length: Duration) -> Duration {
    length + length / 10
}

impl Pledge {
    /// Reads what may have been promised, and notes what will be. Blocks.
    pub(crate) fn open(options: &NodeOptions) -> Result<Pledge, Error> {
        let dir = options.dir.clone();
        let length = options
            .lease_reads
            .then(|| Duration::from_millis(options.timing.election_max_ms));
        let noted = read_note(&dir)?;
        if length > noted {
            write_note(&dir, length)?;
        }
        let embargo = noted.map(with_margin);
        if let Some(embargo) = embargo {
            tracing::info!(?embargo, "takes no part in elections at first");
        }
        Ok(Pledge {
            dir,
            length,
            embargo_until: embargo.map(|embargo| Instant::now() + embargo),
        })
    }

    pub(crate) fn length(&self) -> Option<Duration> {
        self.length
    }

    /// Until when a replica that starts now takes no part in elections. `returns`: this process may have had it
    /// before, and have forgotten what it promised then.
    pub(crate) fn embargo(&self, returns: bool) -> Option<Instant> {
        let again = self.length.filter(|_| returns);
        let again = again.map(|length| Instant::now() + with_margin(length));
        self.embargo_until.max(again)
    }

    /// When all promises of processes before this one are over, only this one's need a note.
    pub(crate) async fn settle(&self) {
        let Some(until) = self.embargo_until else {
            return;
        };
        tokio::time::sleep_until(until.into()).await;
        let (dir, length) = (self.dir.clone(), self.length);
        let noted = simulation::blocking(move || write_note(&dir, length)).await;
        if let Ok(Err(error)) = noted {
            // The next start is careful for longer than it need be.
            tracing::warn!(%error, "old promises stay noted");
        }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("PROMISES")
}

fn read_note(dir: &Path) -> Result<Option<Duration>, Error> {
    let path = path(dir);
    let failed = |error| Error::io("read", &path, error);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let number = text.strip_prefix("promise_ms = ").map(str::trim_end);
    let number = number.and_then(|number| number.parse().ok());
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "it is no note of promises");
    let number = number.ok_or_else(|| failed(malformed()))?;
    Ok(Some(Duration::from_millis(number)))
}

/// Durable when this returns.
fn write_note(dir: &Path, length: Option<Duration>) -> Result<(), Error> {
    let path = path(dir);
    let failed = |error| Error::io("write", &path, error);
    match length {
        Some(length) => {
            let draft = path.with_extension("new");
            let mut file = File::create(&draft).map_err(failed)?;
            let text = format!("promise_ms = {}\n", length.as_millis());
            file.write_all(text.as_bytes()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            fs::rename(&draft, &path).map_err(failed)?;
        }
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        },
    }
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    fn options(dir: &Path, lease_reads: bool, election_max_ms: u64) -> NodeOptions {
        let mut options = NodeOptions::new(1, "test", dir, BTreeMap::new(), b"secret".to_vec());
        options.lease_reads = lease_reads;
        options.timing.election_max_ms = election_max_ms;
        options
    }

    #[test]
    fn a_promise_holds_against_all_but_its_leader_and_whom_that_sends() {
        let now = Instant::now();
        let promise = Promise {
            term: 5,
            leader: 1,
            until: now + LONG,
        };
        assert!(promise.bars(3, 6, false, now));
        assert!(promise.bars(3, 60, false, now));
        assert!(!promise.bars(1, 6, false, now), "the leader itself");
        assert!(!promise.bars(3, 6, true, now), "sent by the leader");
        assert!(promise.bars(3, 7, true, now), "sent by another leader");
        assert!(!promise.bars(3, 6, false, now + LONG), "it is over");
    }

    #[test]
    fn what_was_promised_is_kept_by_the_next_process_even_with_the_option_off() {
        let dir = tempfile::tempdir().unwrap();
        let open = |on, ms| Pledge::open(&options(dir.path(), on, ms)).unwrap();
        let off = open(false, 1000);
        assert_eq!((off.length(), off.embargo(false)), (None, None));
        assert!(off.embargo(true).is_none());
        // Nothing was promised before the first start with the option.
        let on = open(true, 60_000);
        assert_eq!(on.length(), Some(Duration::from_secs(60)));
        assert!(on.embargo(false).is_none() && on.embargo(true).is_some());
        // A shorter promise does not make a longer one of before shorter.
        for (on, ms) in [(true, 1000), (false, 1000), (true, 1000)] {
            let began = Instant::now();
            let until = open(on, ms).embargo(false).unwrap();
            assert!(until >= began + Duration::from_secs(66));
        }
    }

    #[tokio::test]
    async fn old_promises_are_forgotten_when_they_are_over() {
        let dir = tempfile::tempdir().unwrap();
        let open = |on, ms| Pledge::open(&options(dir.path(), on, ms)).unwrap();
        open(true, 10);
        open(true, 5).settle().await;
        assert_eq!(
            read_note(dir.path()).unwrap(),
            Some(Duration::from_millis(5))
        );
        open(false, 5).settle().await;
        assert_eq!(read_note(dir.path()).unwrap(), None);
        assert!(open(false, 5).embargo(false).is_none());
    }

    #[test]
    fn a_note_that_cannot_be_read_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "promise_ms = ", "promise_ms = -1\n", "1200\n"] {
            fs::write(path(dir.path()), text).unwrap();
            let refused = Pledge::open(&options(dir.path(), false, 1000)).err();
            assert!(refused.is_some_and(|error| error.to_string().contains("PROMISES")));
        }
    }
}
