//! Dedup rows leave by file: hours that no read can show any more.
//!
//! A row before its slot's floor is absent for readers and apply, whether or not it is still here.
//! An hour is *hidden* in a read view if it lies whole below the floors of all slots of the shard
//! in that view. The files of an hour may go once it is hidden in every read view of every shard
//! that is still held: RocksDB deletes files under its in-memory snapshots too, and a state hash
//! or a snapshot of an older flush still shows what a later floor hides. So an hour goes only
//! after the flush that carries its floor was ingested, and one slow reader, or one shard to which
//! nothing happens, keeps the hours of the node.
//!
//! Only files that hold nothing else are deleted, and not those of level 0; what lies beside other
//! rows goes a later time, when compaction has parted it.

use std::sync::{Arc, Weak};

use crate::base::ReadView;

/// What the read views of one shard hide.
#[derive(Default)]
pub(crate) struct HiddenHours {
    /// The first hour that is not hidden, of each view that may still be held. The last one is
    /// that of the newest view.
    views: Vec<(u32, Weak<dyn ReadView>)>,
}

impl HiddenHours {
    /// Takes in a view whose floors are not known: it may show everything.
    pub(crate) fn opened(&mut self, files: &Arc<dyn ReadView>) {
        self.add(0, files);
    }

    /// Takes in the view of a flush; `hour`, if apply knew the floors when it was frozen. Else
    /// they are what they were in the view before.
    pub(crate) fn flushed(&mut self, hour: Option<u32>, files: &Arc<dyn ReadView>) {
        let before = self.views.last().map_or(0, |(hour, _)| *hour);
        self.add(hour.unwrap_or(before), files);
    }

    fn add(&mut self, hour: u32, files: &Arc<dyn ReadView>) {
        self.views.retain(|(_, view)| view.strong_count() > 0);
        self.views.push((hour, Arc::downgrade(files)));
    }

    /// The first hour that some view may show.
    pub(crate) fn end(&self) -> u32 {
        let held = self
            .views
            .iter()
            .filter(|(_, view)| view.strong_count() > 0);
        held.map(|(hour, _)| *hour).min().unwrap_or(0)
    }
}
