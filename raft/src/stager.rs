//! Rows that a peer gives, into what an import has staged.

use std::path::PathBuf;
use std::time::Duration;

use mailbox_engine::{EXPORT_FORMAT, ExportMeta};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::background::{self, Haste};
use crate::base_thread::{error_chain, report};
use crate::peer_link::Link;
use crate::slot_copy::{Ask, Holder, Rows};
use crate::snapshot::{STALL_TIMEOUT, SnapshotPace, StagingDir, receive_begin, receive_files};

/// How long a peer may take to answer a call for rows, and then to write them.
const OPENING: Duration = Duration::from_secs(10);
const WRITING: Duration = Duration::from_secs(600);
/// The same at first where nobody is served meanwhile.
const URGENT_OPENING: Duration = Duration::from_secs(2);
const URGENT_WRITING: Duration = Duration::from_secs(5);
/// The same if it answers pulses meanwhile: whoever writes a large slot is silent for long, and who is asked in its place
/// begins anew.
const AT_WORK: Duration = Duration::from_secs(60);

/// How long a peer is waited for before another one is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    opening: Duration,
    /// Until it begins to send, if it answers no pulses; and at most from one piece to the next.
    writing: Duration,
    /// Until it begins to send, if it answers them.
    at_work: Duration,
}

impl Patience {
    /// Of a replica whose apply waits: it looks meanwhile whether the rows have come otherwise.
    pub(crate) const BESIDE: Patience = Patience {
        opening: URGENT_OPENING,
        writing: AT_WORK,
        at_work: AT_WORK,
    };

    /// After so many tries for the same rows that a silent peer ended. A peer that is paused or cut off is given up soon
    /// if nobody is served meanwhile. But a frozen slot goes nowhere without its rows, however long they take to be
    /// written: so what was not enough is doubled.
    pub(crate) fn for_rows(rows: Rows, silences: u32) -> Patience {
        let factor = match rows {
            Rows::Copy => u32::MAX,
            Rows::Frozen | Rows::Staged => 1_u32.checked_shl(silences).unwrap_or(u32::MAX),
        };
        Patience {
            opening: URGENT_OPENING.saturating_mul(factor).min(OPENING),
            writing: URGENT_WRITING.saturating_mul(factor).min(WRITING),
            at_work: AT_WORK.saturating_mul(factor).min(WRITING),
        }
    }

    /// From one piece to the next.
    fn stall(self) -> Duration {
        self.writing.min(STALL_TIMEOUT)
    }

    /// What `begins` gives, unless the peer stays silent for too long.
    async fn wait_for<T>(
        self,
        begins: impl Future<Output = T>,
        is_reached: &impl Fn() -> bool,
    ) -> Option<T> {
        tokio::pin!(begins);
        let end = Instant::now() + self.at_work;
        loop {
            let look = end.min(Instant::now() + self.writing);
            if let Ok(begun) = tokio::time::timeout_at(look, &mut begins).await {
                return Some(begun);
            }
            if look == end || !is_reached() {
                return None;
            }
        }
    }
}

/// Why rows are not staged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unstaged {
    /// The peer has said nothing for as long as it may, or not gone on with what it began.
    #[error("{0}")]
    Silent(String),
    /// It refused, or what it gave is of no use now.
    #[error("{0}")]
    Refused(String),
}

impl From<String> for Unstaged {
    fn from(reason: String) -> Unstaged {
        Unstaged::Refused(reason)
    }
}

/// Rows from elsewhere, in files.
struct Fetched {
    meta: ExportMeta,
    files: Vec<PathBuf>,
    _dir: StagingDir,
}

async fn fetch(
    link: &Link,
    pace: &SnapshotPace,
    ask: &Ask,
    wanted: Option<u128>,
    patience: Patience,
    is_reached: &impl Fn() -> bool,
) -> Result<Fetched, Unstaged> {
    let silent = |what: &str| Unstaged::Silent(format!("node {} {what}", link.node));
    let request = link.sign(ask.encode(link.hello(ask.shard.0)));
    let mut client = link.snapshot_client();
    let opened = tokio::time::timeout(patience.opening, client.slot_rows(request)).await;
    let mut steps = opened
        .map_err(|_| silent("did not answer"))?
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let begin = patience.wait_for(receive_begin(&mut steps), is_reached);
    let begin = begin.await.ok_or_else(|| silent("sends nothing"))??;
    if begin.format != EXPORT_FORMAT {
        let found = begin.format;
        let reason = format!("export format {found}, this build reads {EXPORT_FORMAT}");
        return Err(Unstaged::Refused(reason));
    }
    let meta = ExportMeta::decode(&begin.meta).map_err(|error| error.to_string())?;
    check_wanted(&meta, wanted)?;
    let received = receive_files(&begin, &mut steps, patience.stall(), pace).await;
    // Whoever stops in the middle is not asked for more at once.
    let (files, dir) = received.map_err(Unstaged::Silent)?;
    Ok(Fetched {
        meta,
        files,
        _dir: dir,
    })
}

/// Whole files take the place of whatever is staged: other rows than these must not come so far.
fn check_wanted(meta: &ExportMeta, wanted: Option<u128>) -> Result<(), String> {
    match wanted.is_none_or(|wanted| wanted == meta.digest) {
        true => Ok(()),
        false => Err(format!("it has other rows of slot {}", meta.slot)),
    }
}

/// A fault of this node's storage; all else is a *not now*.
fn is_fault(error: &mailbox_engine::Error) -> bool {
    use mailbox_engine::Error;
    !matches!(
        error,
        Error::NotImporting { .. }
            | Error::StagingBusy { .. }
            | Error::DropNotFlushed { .. }
            | Error::OtherCopy { .. }
            | Error::CorruptSnapshot { .. }
            | Error::SlotCount { .. }
            | Error::Stopped { .. }
    )
}

/// What staging needs.
pub(crate) struct Stager<'a> {
    pub(crate) holder: Holder,
    pub(crate) pace: &'a SnapshotPace,
    pub(crate) fault: &'a watch::Sender<Option<String>>,
}

impl Stager<'_> {
    /// Gets rows from a peer and stages them; if only those with one digest are `wanted`, no others. Gives their digest.
    /// A peer that `is_reached` may be silent for longer.
    pub(crate) async fn stage_from(
        &self,
        link: &Link,
        ask: Ask,
        wanted: Option<u128>,
        patience: Patience,
        is_reached: &impl Fn() -> bool,
    ) -> Result<u128, Unstaged> {
        let fetched = fetch(link, self.pace, &ask, wanted, patience, is_reached).await?;
        let staged = self.stage(ask.epoch, fetched.meta, fetched.files.clone());
        staged.await.map_err(Unstaged::from)
    }

    /// Stages rows that are in files. Gives their digest.
    pub(crate) async fn stage(
        &self,
        epoch: u64,
        meta: ExportMeta,
        files: Vec<PathBuf>,
    ) -> Result<u128, String> {
        let engine = self.holder.engine.clone();
        let digest = meta.digest;
        let work = move || engine.stage_slot(epoch, &meta, &files);
        // It ingests: flushes would wait for a thread that gives way.
        let staged = background::run(Haste::Now, work).await;
        match staged.map_err(|error| error.to_string())? {
            Ok(()) => Ok(digest),
            Err(error) => {
                if is_fault(&error) {
                    report(self.fault, &error_chain(&error));
                }
                Err(error_chain(&error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::{ShardId, SlotId};

    use super::*;

    #[test]
    fn only_rows_with_the_wanted_digest_are_taken() {
        let meta = ExportMeta {
            from: ShardId(1),
            slot: SlotId(9),
            slot_count: 16,
            digest: 7,
            base: None,
        };
        assert_eq!(check_wanted(&meta, None), Ok(()));
        assert_eq!(check_wanted(&meta, Some(7)), Ok(()));
        let refused = check_wanted(&meta, Some(8)).unwrap_err();
        assert!(refused.contains("slot 9"), "{refused}");
    }

    #[test]
    fn a_silent_peer_is_waited_for_longer_each_time_where_nobody_is_served() {
        let of = Patience::for_rows;
        let first = of(Rows::Frozen, 0);
        assert_eq!(
            (first.opening, first.writing),
            (URGENT_OPENING, URGENT_WRITING)
        );
        let second = of(Rows::Frozen, 1);
        assert_eq!(second.opening, URGENT_OPENING * 2);
        assert_eq!(second.writing, URGENT_WRITING * 2);
        // Whatever the slot weighs, some try is long enough; and none is as good as for ever.
        let served = of(Rows::Copy, 0);
        assert_eq!((served.opening, served.writing), (OPENING, WRITING));
        for silences in [7, 8, 31, 32, u32::MAX] {
            assert_eq!(of(Rows::Frozen, silences), served, "{silences}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_that_is_reached_has_longer_to_begin() {
        let patience = Patience::for_rows(Rows::Frozen, 0);
        let after = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        let begun = patience.wait_for(after(4), &|| false).await;
        assert_eq!(begun, Some(()));
        let begun = patience.wait_for(after(6), &|| false).await;
        assert_eq!(begun, None, "nothing is heard of it");
        let begun = patience.wait_for(after(59), &|| true).await;
        assert_eq!(begun, Some(()));
        let began = Instant::now();
        let begun = patience.wait_for(after(61), &|| true).await;
        assert_eq!((begun, began.elapsed()), (None, AT_WORK));
    }
}
