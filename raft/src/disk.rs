//! Room on the disk, looked up about once a second.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, ProposeError};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Free bytes of the file system that holds a node's directory.
pub(crate) struct DiskRoom {
    dir: PathBuf,
    free: AtomicU64,
    needed: u64,
}

impl DiskRoom {
    pub(crate) fn new(dir: PathBuf, needed: u64) -> Result<Arc<DiskRoom>, Error> {
        let room = DiskRoom {
            dir,
            free: AtomicU64::new(0),
            needed,
        };
        room.look()?;
        Ok(Arc::new(room))
    }

    fn look(&self) -> Result<(), Error> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| Error::io("read the free space", &self.dir, error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        self.free.store(free, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Refuses what would need room.
    pub(crate) fn check(&self) -> Result<(), ProposeError> {
        let free = self.free_bytes();
        if free >= self.needed {
            return Ok(());
        }
        Err(ProposeError::DiskFull {
            path: self.dir.clone(),
            free,
            needed: self.needed,
        })
    }

    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if let Err(error) = self.look() {
                tracing::warn!(%error, "free space unknown");
            }
        }
    }
}
