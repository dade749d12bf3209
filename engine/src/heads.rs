//! The heads of the timelines touched last, in bounded memory.
//!
//! Only apply puts heads in, under the lock under which it appends, so a head here is never older
//! than the rows. A reader that found a head in files must not put it in: apply may have appended
//! since, and a stale head would issue a seq twice.

use xxhash_rust::xxh3::xxh3_64;

use crate::id::{RangeId, Seq, TimelineId};

/// Places per set. A lookup reads one set: three cache lines. With four, one in thirty of as many
/// heads as half the places found its set full; with eight, one in two hundred.
const WAYS: usize = 8;

/// Sets that are allocated together, when the first of them is needed: a shard that nobody writes to
/// holds none.
const CHUNK_SETS: usize = 32;

/// One timeline's head. Range 0 marks a free place: no timeline is in it.
#[derive(Clone, Copy, Default)]
struct Place {
    owner: u64,
    seq: u64,
    range: u32,
    kind: u8,
    /// The owner is known to exist. Of a timeline with rows it does in any case.
    owned: bool,
}

/// A set-associative cache of heads, keyed by range and timeline.
pub(crate) struct HeadCache {
    chunks: Vec<Option<Box<[Set; CHUNK_SETS]>>>,
    /// A power of two.
    sets: usize,
}

type Set = [Place; WAYS];

impl HeadCache {
    /// A cache for about this many timelines.
    pub(crate) fn new(entries: usize) -> HeadCache {
        let sets = (entries / WAYS).max(1).next_power_of_two();
        let mut chunks = Vec::new();
        chunks.resize_with(sets.div_ceil(CHUNK_SETS), || None);
        HeadCache { chunks, sets }
    }

    /// The head of a timeline, if it is here.
    pub(crate) fn get(&self, range: RangeId, timeline: TimelineId) -> Option<Seq> {
        self.find(range, timeline).map(|place| Seq(place.seq))
    }

    /// The owner of a timeline exists, as far as is known here: false says nothing.
    pub(crate) fn is_owned(&self, range: RangeId, timeline: TimelineId) -> bool {
        let place = self.find(range, timeline);
        place.is_some_and(|place| place.owned || place.seq > 0)
    }

    fn find(&self, range: RangeId, timeline: TimelineId) -> Option<&Place> {
        let wanted = Place::of(range, timeline, Seq::ZERO);
        let index = self.set(wanted);
        let set = &self.chunks[index / CHUNK_SETS].as_ref()?[index % CHUNK_SETS];
        set.iter().find(|place| place.is(wanted))
    }

    /// Notes the head of a timeline whose owner has been found or made.
    pub(crate) fn put_owned(&mut self, range: RangeId, timeline: TimelineId, head: Seq) {
        self.put(range, timeline, head);
        let set = self.set(Place::of(range, timeline, head));
        let chunk = self.chunks[set / CHUNK_SETS].as_mut();
        chunk.expect("a head has just been put into it")[set % CHUNK_SETS][0].owned = true;
    }

    /// Notes a timeline's new head, in the place of the one of its set touched longest ago.
    pub(crate) fn put(&mut self, range: RangeId, timeline: TimelineId, head: Seq) {
        let place = Place::of(range, timeline, head);
        let set_index = self.set(place);
        let chunk = self.chunks[set_index / CHUNK_SETS]
            .get_or_insert_with(|| Box::new([Set::default(); CHUNK_SETS]));
        let set = &mut chunk[set_index % CHUNK_SETS];
        let last = set
            .iter()
            .position(|other| other.is(place))
            .unwrap_or(WAYS - 1);
        set.copy_within(0..last, 1);
        set[0] = place;
    }

    fn set(&self, place: Place) -> usize {
        let mut key = [0; 13];
        key[..8].copy_from_slice(&place.owner.to_be_bytes());
        key[8..12].copy_from_slice(&place.range.to_be_bytes());
        key[12] = place.kind;
        let mask = u64::try_from(self.sets - 1).expect("a usize fits");
        usize::try_from(xxh3_64(&key) & mask).expect("below the number of sets")
    }
}

impl Place {
    fn of(range: RangeId, timeline: TimelineId, head: Seq) -> Place {
        let kind = timeline.kind as u8;
        Place {
            owner: timeline.owner,
            seq: head.0,
            range: range.0,
            kind,
            owned: false,
        }
    }

    fn is(&self, other: Place) -> bool {
        (self.owner, self.range, self.kind) == (other.owner, other.range, other.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{GroupId, UserId};

    #[test]
    fn a_head_is_kept_by_range_and_kind() {
        let mut heads = HeadCache::new(16);
        let mailbox = UserId(1).mailbox();
        heads.put(RangeId(1), mailbox, Seq(5));
        assert_eq!(heads.get(RangeId(1), mailbox), Some(Seq(5)));
        assert_eq!(heads.get(RangeId(2), mailbox), None);
        assert_eq!(heads.get(RangeId(1), GroupId(1).timeline()), None);
        heads.put(RangeId(1), mailbox, Seq(6));
        assert_eq!(heads.get(RangeId(1), mailbox), Some(Seq(6)));
    }

    #[test]
    fn an_owner_is_known_by_its_rows_or_by_having_been_found() {
        let mut heads = HeadCache::new(16);
        let (range, mailbox) = (RangeId(1), UserId(1).mailbox());
        assert!(!heads.is_owned(range, mailbox));
        heads.put(range, mailbox, Seq::ZERO);
        assert!(!heads.is_owned(range, mailbox));
        heads.put_owned(range, mailbox, Seq::ZERO);
        assert!(heads.is_owned(range, mailbox) && !heads.is_owned(RangeId(2), mailbox));
        assert!(!heads.is_owned(range, UserId(2).mailbox()));
        heads.put(range, UserId(2).mailbox(), Seq(1));
        assert!(heads.is_owned(range, UserId(2).mailbox()) && heads.is_owned(range, mailbox));
    }

    #[test]
    fn memory_is_taken_only_for_heads_that_are_there() {
        let mut heads = HeadCache::new(1 << 20);
        let taken = |heads: &HeadCache| heads.chunks.iter().flatten().count();
        assert_eq!(heads.get(RangeId(1), UserId(1).mailbox()), None);
        assert_eq!(taken(&heads), 0);
        for owner in 1..=20 {
            heads.put(RangeId(1), UserId(owner).mailbox(), Seq(owner));
        }
        assert!((1..=20).contains(&taken(&heads)));
        for owner in 1..=20 {
            let head = heads.get(RangeId(1), UserId(owner).mailbox());
            assert_eq!(head, Some(Seq(owner)));
        }
    }

    #[test]
    fn a_full_set_loses_the_one_touched_longest_ago() {
        let mut heads = HeadCache::new(1);
        for owner in 1..=8 {
            heads.put(RangeId(1), UserId(owner).mailbox(), Seq(owner));
        }
        heads.put(RangeId(1), UserId(1).mailbox(), Seq(10));
        heads.put(RangeId(1), UserId(9).mailbox(), Seq(9));
        assert_eq!(heads.get(RangeId(1), UserId(2).mailbox()), None);
        for (owner, head) in [(1, 10), (3, 3), (4, 4), (8, 8), (9, 9)] {
            assert_eq!(
                heads.get(RangeId(1), UserId(owner).mailbox()),
                Some(Seq(head))
            );
        }
    }
}
