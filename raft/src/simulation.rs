//! A node on one thread, so that what happens follows from a seed and can be seen again.
//!
//! A node has threads: the log's writer, the one that changes the base store, and those that do what blocks. A simulated
//! node has tasks instead, which take their turns with all its others in the runtime that it was started in: whoever
//! drives that runtime decides when each goes on, and stops the node, as a power cut would, by dropping it. Then what the
//! log's writer had not written is lost, and what it had written may not have been acked. Everything else is as in a
//! node that serves.
//!
//! A run repeats itself if its runtime has one thread and a paused clock, if its network delivers by the seed, and if the
//! clock and the chance of the process do, too: `jepsen/sim` sees to that.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinError;

type Pauses = Rc<dyn Fn() -> Duration>;

thread_local! {
    static PAUSES: RefCell<Option<Pauses>> = const { RefCell::new(None) };
}

/// From now on nodes that this thread starts are simulated. `pauses` says how long a thing that a thread would do takes
/// each time.
pub fn begin(pauses: impl Fn() -> Duration + 'static) {
    PAUSES.with(|it| *it.borrow_mut() = Some(Rc::new(pauses)));
}

/// Whether nodes of this thread are simulated.
#[must_use]
pub fn is_on() -> bool {
    PAUSES.with(|it| it.borrow().is_some())
}

/// Takes the time that a thread would.
pub(crate) async fn pause() {
    let pauses = PAUSES.with(|it| it.borrow().clone());
    // Not held while it sleeps: tasks may go from thread to thread.
    let pause = pauses.map(|pauses| pauses());
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
}

/// Does what blocks for a while, beside the runtime's own threads. Simulated, it is done between two turns of them.
///
/// # Errors
/// The work panicked, or the runtime ends.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if is_on() {
        pause().await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
