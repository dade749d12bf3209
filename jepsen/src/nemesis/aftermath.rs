//! What a fault of a disk may still do when the disk is well again.

use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;

use super::Kind;

/// A node may still end of a disk fault so much later: that a compaction had no room it sees at its next flush.
const LASTS: Duration = Duration::from_secs(10);

/// Disk faults that are over, and of which a node may yet end.
#[derive(Debug, Default)]
pub struct Aftermath(Vec<Past>);

#[derive(Debug)]
struct Past {
    kind: Kind,
    targets: Vec<u64>,
    until: Instant,
}

impl Aftermath {
    /// A fault was mended just now.
    pub(super) fn add(&mut self, kind: Kind, targets: Vec<u64>) {
        let until = Instant::now() + LASTS;
        self.0.push(Past {
            kind,
            targets,
            until,
        });
    }

    /// Whether a node may have ended so because of one of them.
    pub(super) fn explains(&self, node: u64, status: ExitStatus) -> bool {
        let mut of_node = self.0.iter().filter(|past| past.targets.contains(&node));
        of_node.any(|past| past.kind.explains(status))
    }

    /// Forgets those whose time is over. After a look at who has ended: nobody says when a node did.
    pub(super) fn forget(&mut self) {
        let now = Instant::now();
        self.0.retain(|past| now < past.until);
    }

    /// When the last of them is over, if there is one.
    pub(super) fn end(&self) -> Option<Instant> {
        self.0.iter().map(|past| past.until).max()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_explains_for_a_while_why_its_node_stopped_and_nothing_else() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let mut aftermath = Aftermath::default();
        assert_eq!(aftermath.end(), None);
        aftermath.add(Kind::DiskFull, vec![11]);
        tokio::time::advance(Duration::from_secs(5)).await;
        aftermath.forget();
        assert!(aftermath.explains(11, exit(3)));
        assert!(!aftermath.explains(11, exit(101)), "a panic");
        assert!(!aftermath.explains(12, exit(3)), "another node");
        tokio::time::sleep_until(aftermath.end().unwrap()).await;
        aftermath.forget();
        assert!(!aftermath.explains(11, exit(3)), "long ago");
    }
}
