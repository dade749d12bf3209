//! Signals: the first asks the process to stop in order, a second one ends it at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// From the first signal to the exit; who is still there then is cut off.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(15);

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals no longer end the process by themselves.
    pub(crate) fn install() -> Result<Self, Error> {
        let terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    /// Waits for either and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Stops in order, unless a second signal or the time limit comes first.
    pub(crate) async fn stop_in_order<F>(mut self, stop: F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        tokio::select! {
            stopped = tokio::time::timeout(STOP_WITHIN, stop) => {
                stopped.unwrap_or(Err(Error::Slow { seconds: STOP_WITHIN.as_secs() }))
            }
            name = self.next() => {
                tracing::warn!(signal = name, "second signal: exit at once");
                // Without what C++ does at an exit: it would take RocksDB's statics from under its running threads.
                signal_hook::low_level::exit(i32::from(crate::exit::AT_ONCE))
            }
        }
    }
}
