//! The writer of a simulated node's log: a task, which a power cut may stop between any two of its steps.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::core::{Core, Drained};
use super::mark::MarkFile;
use super::writer::{MARK_EVERY, Writer, advance};
use crate::simulation;

/// The task, and what it works with.
pub(super) struct SimulatedWriter {
    /// None once it has finished: the files are closed then, whoever still holds this.
    steps: Arc<Mutex<Option<Steps>>>,
    task: JoinHandle<()>,
}

struct Steps {
    core: Arc<Core>,
    writer: Writer,
    file: MarkFile,
    marked_at: Instant,
    /// Written, and nobody was told yet.
    written: Option<Drained>,
}

impl SimulatedWriter {
    pub(super) fn spawn(core: &Arc<Core>, writer: Writer, file: MarkFile) -> Self {
        let steps = Arc::new(Mutex::new(Some(Steps {
            core: Arc::clone(core),
            writer,
            file,
            marked_at: Instant::now(),
            written: None,
        })));
        let task = tokio::spawn(run(Arc::clone(core), Arc::clone(&steps)));
        Self { steps, task }
    }

    /// Writes what is queued and marks it, as an orderly end does.
    pub(super) fn finish(self) {
        self.task.abort();
        let Some(mut steps) = self.steps.lock().take() else {
            return;
        };
        steps.complete();
        while steps.write() {
            steps.complete();
        }
        steps.mark();
    }

    /// As a power cut would.
    pub(super) fn cut_off(&self) {
        self.task.abort();
    }
}

async fn run(core: Arc<Core>, steps: Arc<Mutex<Option<Steps>>>) {
    while core.is_due().await {
        simulation::pause().await;
        if !steps.lock().as_mut().is_some_and(Steps::write) {
            return;
        }
        simulation::pause().await;
        if let Some(steps) = steps.lock().as_mut() {
            steps.complete();
        }
    }
}

impl Steps {
    /// False: there is nothing, or it cannot be written.
    fn write(&mut self) -> bool {
        let Some(drained) = self.core.drain_now() else {
            return false;
        };
        match self.writer.write_or_fail(drained) {
            Some(drained) => {
                self.written = Some(drained);
                true
            }
            None => false,
        }
    }

    fn complete(&mut self) {
        if let Some(written) = self.written.take() {
            self.writer.complete(written);
        }
        if self.marked_at.elapsed() >= MARK_EVERY {
            self.mark();
        }
    }

    fn mark(&mut self) {
        self.marked_at = Instant::now();
        if let Err(error) = advance(&mut self.file, &self.core) {
            self.core.fail(&error);
        }
    }
}
