//! Rows that a peer gives, into what an import has staged.

use std::path::PathBuf;
use std::time::Duration;

use mailbox_engine::{EXPORT_FORMAT, ExportMeta};
use tokio::sync::watch;

use crate::background::{self, Haste};
use crate::base_thread::{error_chain, report};
use crate::peer_link::Link;
use crate::slot_copy::{Ask, Holder};
use crate::snapshot::{SnapshotPace, StagingDir, receive_begin, receive_files};

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
) -> Result<Fetched, String> {
    let request = link.sign(ask.encode(link.hello(ask.shard.0)));
    let mut client = link.snapshot_client();
    let opened = client.slot_rows(request);
    let mut steps = tokio::time::timeout(Duration::from_secs(10), opened)
        .await
        .map_err(|_| format!("node {} did not answer", link.node))?
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let begin = receive_begin(&mut steps).await?;
    if begin.format != EXPORT_FORMAT {
        return Err(format!(
            "export format {}, this build reads {EXPORT_FORMAT}",
            begin.format
        ));
    }
    let meta = ExportMeta::decode(&begin.meta).map_err(|error| error.to_string())?;
    check_wanted(&meta, wanted)?;
    let (files, dir) = receive_files(&begin, &mut steps, pace).await?;
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
    pub(crate) async fn stage_from(
        &self,
        link: &Link,
        ask: Ask,
        wanted: Option<u128>,
    ) -> Result<u128, String> {
        let fetched = fetch(link, self.pace, &ask, wanted).await?;
        self.stage(ask.epoch, fetched.meta, fetched.files.clone())
            .await
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
}
