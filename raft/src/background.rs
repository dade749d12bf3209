//! Long work that blocks: on threads of its own, which give way to all others of the node where nobody waits.
//!
//! A snapshot is read, checked and written in one go. With every core in use it would take as much of them as all
//! sends together, and they would wait.

use std::io;

use tokio::sync::oneshot;

/// Added to the niceness of such a thread: with every core in use it gets about a tenth of what another gets.
const NICENESS: i32 = 10;

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

    #[tokio::test]
    async fn a_panic_is_told() {
        assert!(run(Haste::Now, || panic!("on purpose")).await.is_err());
    }
}
