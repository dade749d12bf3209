//! Bugs that are put into the product on purpose, to see that the harness finds them.
//!
//! Each breaks one promise, at the place where a mistake would. They are there only if `mailboxd` is built with the feature
//! `planted`, and then one at most, by the name in `MAILBOX_PLANT`. [`ALL`] says what each is; the table of what finds
//! it is in the harness's README.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names the bug of a process.
pub const VARIABLE: &str = "MAILBOX_PLANT";

/// Every bug: its name, and what it does.
pub const ALL: [(&str, &str); 12] = [
    ("ack-before-fsync", "the log does not sync what it writes"),
    ("vote-not-synced", "votes are promised and not written"),
    (
        "read-without-barrier",
        "whoever believes to lead answers reads at once",
    ),
    (
        "dedup-not-in-snapshot",
        "a snapshot has the messages and not their ids",
    ),
    (
        "dedup-by-wall-clock",
        "ids are forgotten two seconds after they were made, by this node's clock",
    ),
    (
        "lane-mark-early",
        "items are acked when they arrive, before they are in the log",
    ),
    (
        "lane-retry-in-parallel",
        "items overtake each other, and take effect as they come",
    ),
    (
        "sync-key-off-by-one",
        "a page that has more behind it lets the next one begin a row too late",
    ),
    (
        "two-slot-owners",
        "a slot that is on its way to another shard is served on",
    ),
    (
        "hash-order-in-apply",
        "commands of one entry are run in the order of a hash map",
    ),
    (
        "purge-before-snapshot",
        "the log is purged far beyond what files hold",
    ),
    (
        "dead-letter-drop",
        "what cannot be delivered is dropped without a word",
    ),
];

static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(VARIABLE).ok());
static TIMES: AtomicU64 = AtomicU64::new(0);

/// Whether this process has that bug.
pub fn is(name: &str) -> bool {
    debug_assert!(ALL.iter().any(|(known, _)| *known == name), "{name}");
    CHOSEN.as_deref() == Some(name)
}

/// The same, once in so many calls.
pub fn is_now_and_then(name: &str, calls: u64) -> bool {
    is(name) && TIMES.fetch_add(1, Relaxed) % calls == calls - 1
}

/// What the wall clock shows, in milliseconds.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Says on stderr which bug this process has.
///
/// # Errors
/// There is no bug of that name.
pub fn announce() -> Result<(), String> {
    let Some(name) = CHOSEN.as_deref() else {
        eprintln!("this build may have a bug on purpose: {VARIABLE} is not set");
        return Ok(());
    };
    let Some((_, does)) = ALL.iter().find(|(known, _)| *known == name) else {
        let names = ALL.map(|(known, _)| known).join(", ");
        return Err(format!("{VARIABLE} is {name:?}; there are {names}"));
    };
    eprintln!("this process has a bug on purpose: {name}: {does}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bug_is_there_unless_it_is_asked_for() {
        assert!(ALL.iter().all(|(name, _)| !is(name)));
        assert!(!is_now_and_then(ALL[0].0, 1));
        assert_eq!(announce(), Ok(()));
    }
}
