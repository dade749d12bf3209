//! Long work that blocks: on threads of its own, which give way to all others of the node where nobody waits.
//!
//! A snapshot is read, checked and written in one go. With every core in use it would take as much of them as all
//! sends together, and they would wait.

use std::io;

use tokio::sync::oneshot;

use crate::simulation;

/// Added to the niceness of such a thread: with every core in use it gets about a tenth of what another gets.
const NICENESS: i32 = 10;

#[cfg(target_os = "linux")]
const NICENESS_MAX: i32 = 19;
/// What RocksDB calls the threads that merge files, of all its instances in a process.
#[cfg(target_os = "linux")]
const MERGES: &str = "rocksdb:low";

/// Whether somebody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Haste {
    /// Nobody who would notice.
    None,
    /// Clients are refused until it is done.
    Now,
}

/// Does what blocks. Whoever waits no more leaves it to its end.
pub(crate) async fn run<T: Send + 'static>(
    haste: Haste,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if simulation::is_on() {
        simulation::pause().await;
        return Ok(work());
    }
    let (done, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || {
            if haste == Haste::None {
                give_way();
            }
            let _ = done.send(work());
        })?;
    answer
        .await
        .map_err(|_| io::Error::other("a background thread panicked"))
}

/// On Linux the niceness is that of a thread; elsewhere it may be that of the process, and is left alone.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "background work does not give way");
    }
}

/// Has merges of files give way, too, from when a database is open on. Measured with a cluster that grows and shrinks at
/// half of what it can do, all cores in use (`mailbox-bench grow`, a run each, 11,014 and 10,237 sends a second): a p99 of
/// 233 and 6,029 ms without, of 122 and 100 ms with it. RocksDB's own way of lowering them leaves a merge next to nothing,
/// and files would pile up.
pub(crate) fn merges_give_way() {
    #[cfg(target_os = "linux")]
    for thread in threads_named(MERGES) {
        // Above what this process was started with.
        let own = rustix::process::getpriority_process(None).unwrap_or(0);
        let niceness = (own + NICENESS).min(NICENESS_MAX);
        if let Err(error) = rustix::process::setpriority_process(Some(thread), niceness) {
            tracing::debug!(%error, "a merge of files does not give way");
        }
    }
}

/// Threads of this process, as far as the system tells.
#[cfg(target_os = "linux")]
fn threads_named(name: &str) -> Vec<rustix::process::Pid> {
    let threads = std::fs::read_dir("/proc/self/task");
    let threads = threads.into_iter().flatten().flatten();
    let named = threads.filter(|thread| {
        let found = std::fs::read_to_string(thread.path().join("comm"));
        found.is_ok_and(|found| found.trim_end() == name)
    });
    let ids = named.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    ids.filter_map(rustix::process::Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_done_beside_and_the_others_stay_as_they_are() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        assert_eq!(run(Haste::Now, niceness).await.unwrap(), before);
        let meanwhile = run(Haste::None, niceness).await.unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(meanwhile, (before + NICENESS).min(19));
        }
        assert_eq!(niceness(), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn merges_of_an_open_database_give_way() {
        use mailbox_engine::{EngineOptions, Store};

        let dir = tempfile::tempdir().unwrap();
        let _store = Store::open(dir.path(), EngineOptions::default()).unwrap();
        let merges = threads_named(MERGES);
        assert!(!merges.is_empty(), "RocksDB calls them otherwise");
        merges_give_way();
        for thread in merges {
            let niceness = rustix::process::getpriority_process(Some(thread)).unwrap();
            assert!(niceness >= NICENESS, "{niceness}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        assert!(run(Haste::Now, || panic!("on purpose")).await.is_err());
    }
}
