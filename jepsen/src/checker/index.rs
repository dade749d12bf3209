//! A history, sorted for the checks.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Append, History, Outcome, Read, Row, SendId, Source, Timeline, View};

/// A history by what the checks ask for.
pub(super) struct Index<'a> {
    pub(super) appends: HashMap<SendId, &'a Append>,
    /// Reads through the leader that were answered while the run went on.
    pub(super) reads: Vec<(&'a Read, &'a View)>,
    /// Reads of the run that any replica may have answered, and what these may lack, in milliseconds.
    pub(super) stale: Vec<(&'a Read, &'a View, u32)>,
    /// Every answered read, final ones included.
    pub(super) views: Vec<(Timeline, &'a View)>,
    /// Final reads by timeline: the leader's first.
    pub(super) finals: BTreeMap<Timeline, Vec<(Source, &'a View)>>,
    /// The leader's final read of each timeline.
    pub(super) last: BTreeMap<Timeline, &'a View>,
    /// Where each message is in the leader's final reads.
    places: HashMap<(Timeline, SendId), Vec<u64>>,
    /// What is missing for a judgement.
    pub(super) doubts: Vec<String>,
}

impl<'a> Index<'a> {
    pub(super) fn new(history: &'a History) -> Self {
        let mut index = Self {
            appends: history
                .appends()
                .map(|append| (append.id, append))
                .collect(),
            reads: Vec::new(),
            stale: Vec::new(),
            views: Vec::new(),
            finals: BTreeMap::new(),
            last: BTreeMap::new(),
            places: HashMap::new(),
            doubts: Vec::new(),
        };
        for read in history.reads() {
            index.take_read(read);
        }
        for views in index.finals.values_mut() {
            views.sort_by_key(|(source, _)| *source);
        }
        for append in history.appends() {
            for timeline in [home_of(append), append.to] {
                if !index.last.contains_key(&timeline) {
                    let doubt = format!("{timeline} was not read through the leader at the end");
                    if !index.doubts.contains(&doubt) {
                        index.doubts.push(doubt);
                    }
                }
            }
        }
        index
    }

    fn take_read(&mut self, read: &'a Read) {
        let view = match &read.outcome {
            Outcome::Ok(view) => view,
            Outcome::Fail(code) | Outcome::Unknown(code) => {
                if read.last {
                    let Read {
                        timeline, source, ..
                    } = read;
                    self.doubts
                        .push(format!("{source:?} did not answer for {timeline}: {code}"));
                }
                return;
            }
        };
        self.views.push((read.timeline, view));
        if !read.last {
            match read.source {
                Source::Leader => self.reads.push((read, view)),
                Source::Stale(ms) => self.stale.push((read, view, ms)),
                Source::Node(_) => {}
            }
            return;
        }
        self.finals
            .entry(read.timeline)
            .or_default()
            .push((read.source, view));
        if read.source == Source::Leader {
            self.last.insert(read.timeline, view);
            for row in &view.rows {
                if let Some(id) = row.id {
                    self.places
                        .entry((read.timeline, id))
                        .or_default()
                        .push(row.seq);
                }
            }
        }
    }

    /// Where a message is in a timeline, at the end.
    pub(super) fn places(&self, timeline: Timeline, id: SendId) -> &[u64] {
        self.places.get(&(timeline, id)).map_or(&[], Vec::as_slice)
    }

    /// The row at a seq, at the end.
    pub(super) fn row(&self, timeline: Timeline, seq: u64) -> Option<&'a Row> {
        let view = self.last.get(&timeline)?;
        let guess = usize::try_from(seq.checked_sub(1)?)
            .ok()
            .and_then(|i| view.rows.get(i));
        guess
            .filter(|row| row.seq == seq)
            .or_else(|| view.rows.iter().find(|row| row.seq == seq))
    }

    /// The seq of a send in its home timeline: the acked one, else where it was found.
    pub(super) fn home_seq(&self, append: &Append) -> Option<u64> {
        match &append.outcome {
            Outcome::Ok(acked) => Some(acked.seq),
            Outcome::Unknown(_) | Outcome::Fail(_) => {
                self.places(home_of(append), append.id).first().copied()
            }
        }
    }
}

/// Where a send's seq is assigned.
pub(super) fn home_of(append: &Append) -> Timeline {
    match append.to {
        Timeline::Mailbox(_) => Timeline::Mailbox(append.sender),
        Timeline::Group(_) => append.to,
    }
}
