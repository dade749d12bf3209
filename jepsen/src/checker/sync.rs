//! C5: a device's pages give every message up to the head, in order, each once.

use std::collections::BTreeMap;

use super::index::Index;
use super::violation::Violation;
use crate::history::{History, Outcome, Source, Timeline};
use crate::page::{Page, Synced};

pub(super) fn check(index: &Index<'_>, history: &History, violations: &mut Vec<Violation>) {
    let shown = Shown::new(history);
    let mut walks: BTreeMap<(u64, &str), Walk> = BTreeMap::new();
    for page in history.pages() {
        let walk = walks
            .entry((page.user, &page.device))
            .or_insert_with(|| Walk::new(history, page.user));
        match &page.outcome {
            Outcome::Ok(synced) => {
                walk.take(index, page, synced, violations);
                if !synced.more {
                    walk.must_be_at_head(index, &shown, page, violations);
                }
            }
            // Nothing is trimmed and nothing restored, so that every key stays good.
            Outcome::Fail(code) if code == "Resync" => {
                let (user, device) = (page.user, page.device.clone());
                violations.push(Violation::NeedlessResync { user, device });
                *walk = Walk::new(history, page.user);
            }
            Outcome::Fail(_) | Outcome::Unknown(_) => {}
        }
    }
}

/// How many devices there are, and how many got to their head at the end.
pub(super) fn arrived(history: &History) -> (usize, usize) {
    let mut devices: BTreeMap<(u64, &str), bool> = BTreeMap::new();
    for page in history.pages() {
        let arrived = devices.entry((page.user, &page.device)).or_default();
        *arrived |= page.last && matches!(&page.outcome, Outcome::Ok(synced) if !synced.more);
    }
    let arrived = devices.values().filter(|arrived| **arrived).count();
    (devices.len(), arrived)
}

/// A time in which a user may read a timeline.
struct Span {
    /// From this seq on,
    first: u64,
    /// to this one.
    last: u64,
    /// Since when the user has been told so.
    known_ns: u64,
}

/// Where a device is in a timeline.
#[derive(Default)]
struct Place {
    /// Greatest seq given.
    at: u64,
    spans: Vec<Span>,
    /// Joins and leaves that were asked for and did not end, less those that did: nobody knows what may be read.
    in_doubt: i64,
}

impl Place {
    fn is_in_doubt(&self) -> bool {
        self.in_doubt > 0
    }

    /// The next seq to be given; `None`: there is none that its user may read.
    fn next(&self) -> Option<u64> {
        let behind = self.spans.iter().find(|span| span.last > self.at);
        behind.map(|span| (self.at + 1).max(span.first))
    }

    /// The greatest seq up to a head that its user may read, as it knew by then.
    fn end(&self, head: u64, then_ns: u64) -> u64 {
        let mut spans = self.spans.iter();
        let begun = spans.rfind(|span| span.first <= head && span.known_ns <= then_ns);
        begun.map_or(0, |span| head.min(span.last))
    }
}

/// Where a device is.
struct Walk {
    /// In each timeline that its user may read.
    places: BTreeMap<Timeline, Place>,
}

impl Walk {
    fn new(history: &History, user: u64) -> Self {
        let mut own = Place::default();
        own.spans.push(Span {
            first: 1,
            last: u64::MAX,
            known_ns: 0,
        });
        let mut places = BTreeMap::from([(Timeline::Mailbox(user), own)]);
        for join in history.joins().filter(|join| join.user == user) {
            let place = places.entry(Timeline::Group(join.group));
            let place = place.or_insert_with(Place::default);
            if join.first == 0 {
                place.in_doubt += 1;
                continue;
            }
            place.in_doubt -= 1;
            place.spans.push(Span {
                first: join.first,
                last: u64::MAX,
                known_ns: join.completed_ns,
            });
        }
        for leave in history.leaves().filter(|leave| leave.user == user) {
            let Some(place) = places.get_mut(&Timeline::Group(leave.group)) else {
                continue;
            };
            if leave.last == 0 {
                place.in_doubt += 1;
                continue;
            }
            place.in_doubt -= 1;
            // It ends what began last before it.
            let mut spans = place.spans.iter_mut();
            if let Some(span) = spans.rfind(|span| span.first <= leave.last) {
                span.last = leave.last;
            }
        }
        Self { places }
    }

    fn take(
        &mut self,
        index: &Index<'_>,
        page: &Page,
        synced: &Synced,
        violations: &mut Vec<Violation>,
    ) {
        for (timeline, row) in &synced.rows {
            let (user, device, timeline) = (page.user, page.device.clone(), *timeline);
            let Some(place) = self.places.get_mut(&timeline) else {
                violations.push(Violation::SyncedForeign {
                    user,
                    device,
                    timeline,
                });
                continue;
            };
            if place.is_in_doubt() {
                continue;
            }
            let expected = place.next().unwrap_or(0);
            place.at = row.seq;
            if row.seq != expected {
                violations.push(Violation::SyncSkips {
                    user,
                    device,
                    timeline,
                    expected,
                    found: row.seq,
                });
            } else if index.row(timeline, row.seq).is_some_and(|last| last != row) {
                violations.push(Violation::SyncDiffers {
                    user,
                    device,
                    timeline,
                    seq: row.seq,
                });
            }
        }
    }

    /// After a page that says that there is no more.
    fn must_be_at_head(
        &self,
        index: &Index<'_>,
        shown: &Shown,
        page: &Page,
        violations: &mut Vec<Violation>,
    ) {
        for (&timeline, place) in &self.places {
            if place.is_in_doubt() {
                continue;
            }
            let mut head = shown.before(timeline, page.invoked_ns);
            if page.last
                && let Some(view) = index.last.get(&timeline)
            {
                head = head.max(view.head);
            }
            let (at, head) = (place.at, place.end(head, page.invoked_ns));
            if at < head {
                violations.push(Violation::SyncEndsEarly {
                    user: page.user,
                    device: page.device.clone(),
                    timeline,
                    at,
                    head,
                });
            }
        }
    }
}

/// What was known to be there, and since when: acked, or read by somebody.
struct Shown(BTreeMap<Timeline, Vec<(u64, u64)>>);

impl Shown {
    fn new(history: &History) -> Self {
        let mut shown: BTreeMap<Timeline, Vec<(u64, u64)>> = BTreeMap::new();
        let mut show = |timeline, since, seq| {
            shown.entry(timeline).or_default().push((since, seq));
        };
        for append in history.appends() {
            if let Outcome::Ok(acked) = &append.outcome {
                show(acked.timeline, append.completed_ns, acked.seq);
            }
        }
        for read in history.reads() {
            if let (Outcome::Ok(view), Source::Leader) = (&read.outcome, read.source) {
                show(read.timeline, read.completed_ns, view.head);
            }
        }
        for page in history.pages() {
            if let Outcome::Ok(synced) = &page.outcome {
                for (timeline, row) in &synced.rows {
                    show(*timeline, page.completed_ns, row.seq);
                }
            }
        }
        for seqs in shown.values_mut() {
            seqs.sort_unstable();
            let mut greatest = 0;
            for (_, seq) in seqs {
                greatest = greatest.max(*seq);
                *seq = greatest;
            }
        }
        Self(shown)
    }

    /// The greatest seq that was known before then.
    fn before(&self, timeline: Timeline, then_ns: u64) -> u64 {
        let Some(seqs) = self.0.get(&timeline) else {
            return 0;
        };
        let place = seqs.partition_point(|(since, _)| *since < then_ns);
        place.checked_sub(1).map_or(0, |place| seqs[place].1)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::super::sample::Sample;
    use super::*;

    const EARLY: (u64, u64) = (95, 99);
    const LATE: (u64, u64) = (Sample::END, Sample::END + 1);

    /// Alice's device: a page while the run goes on, and two at the end.
    fn good() -> Sample {
        let mut sample = Sample::good();
        for user in [1, 2] {
            sample.join(user, 1);
        }
        sample.page(1, EARLY, &[(Sample::ALICE, 1..=1)], true);
        sample.page(
            1,
            LATE,
            &[(Sample::ALICE, 2..=3), (Sample::GROUP, 1..=2)],
            true,
        );
        sample.page(
            1,
            LATE,
            &[(Sample::ALICE, 4..=4), (Sample::GROUP, 3..=3)],
            false,
        );
        sample
    }

    #[test]
    fn a_good_walk_is_valid() {
        assert_eq!(good().violations(), []);
        assert_eq!(arrived(&good().history), (1, 0));
        let mut sample = good();
        sample.change_page(2, |page| page.last = true);
        assert_eq!(sample.violations(), []);
        assert_eq!(arrived(&sample.history), (1, 1));
    }

    #[test]
    fn a_skipped_message_is_found_out() {
        for timeline in [Sample::ALICE, Sample::GROUP] {
            let mut sample = good();
            sample.change_rows(1, |rows| {
                let first = rows.iter().position(|(of, _)| *of == timeline);
                rows.remove(first.expect("a row of it"));
            });
            assert!(sample.breaks(|it| matches!(it, Violation::SyncSkips { .. })));
        }
    }

    #[test]
    fn a_message_given_twice_is_found_out() {
        let mut sample = good();
        sample.change_rows(1, |rows| rows.insert(0, rows[0].clone()));
        assert!(sample.breaks(|it| {
            matches!(
                it,
                Violation::SyncSkips {
                    expected: 3,
                    found: 2,
                    ..
                }
            )
        }));
    }

    #[test]
    fn a_walk_that_ends_before_what_was_acked_is_found_out() {
        for timeline in [Sample::ALICE, Sample::GROUP] {
            let mut sample = good();
            sample.change_rows(2, |rows| rows.retain(|(of, _)| *of != timeline));
            let early = |it: &Violation| matches!(it, Violation::SyncEndsEarly { .. });
            // Nobody had been told of the unknown send; the one to the group was acked.
            assert_eq!(sample.breaks(early), timeline == Sample::GROUP);
            sample.change_page(2, |page| page.last = true);
            assert!(sample.breaks(early));
        }
    }

    #[test]
    fn a_page_that_ended_before_an_ack_need_not_show_it() {
        let mut sample = good();
        sample.change_page(0, |page| {
            if let Outcome::Ok(synced) = &mut page.outcome {
                synced.more = false;
            }
        });
        assert_eq!(sample.violations(), []);
        sample.change_page(0, |page| page.invoked_ns = 191);
        assert!(
            sample.breaks(|it| { matches!(it, Violation::SyncEndsEarly { at: 1, head: 2, .. }) })
        );
    }

    #[test]
    fn what_another_device_was_given_must_be_there() {
        let mut sample = good();
        sample.change_rows(2, |rows| rows.retain(|(of, _)| *of != Sample::ALICE));
        assert_eq!(sample.violations(), []);
        sample.page(1, EARLY, &[(Sample::ALICE, 1..=4)], true);
        sample.change_page(3, |page| page.device = "desk".into());
        assert!(
            sample.breaks(|it| { matches!(it, Violation::SyncEndsEarly { at: 3, head: 4, .. }) })
        );
    }

    #[test]
    fn another_message_at_a_seq_is_found_out() {
        let mut sample = good();
        sample.change_rows(2, |rows| rows[0].1.content += 1);
        assert!(sample.breaks(|it| matches!(it, Violation::SyncDiffers { seq: 4, .. })));
    }

    #[test]
    fn a_timeline_of_others_is_found_out() {
        let mut sample = good();
        sample.change_rows(1, |rows| rows[0].0 = Sample::BOB);
        assert!(sample.breaks(|it| matches!(it, Violation::SyncedForeign { .. })));
    }

    #[test]
    fn who_comes_and_goes_is_given_what_is_said_meanwhile() {
        let walk = |spans: &[(u64, u64)], parts: &[RangeInclusive<u64>]| {
            let mut sample = Sample::good();
            for (first, last) in spans {
                sample.join(9, *first);
                sample.leave(9, *last);
            }
            let parts = parts.iter().map(|seqs| (Sample::GROUP, seqs.clone()));
            sample.page(9, LATE, &parts.collect::<Vec<_>>(), false);
            sample
        };
        let twice = [(1, 1), (3, 3)];
        assert_eq!(walk(&twice, &[1..=1, 3..=3]).violations(), []);
        let skips = |it: &Violation| matches!(it, Violation::SyncSkips { .. });
        assert!(walk(&twice, &[1..=3]).breaks(skips), "gone at 2");
        assert!(walk(&twice, &[3..=3]).breaks(skips));
        assert!(walk(&[(1, 2)], &[1..=3]).breaks(skips), "gone at 3");
        let early = |it: &Violation| matches!(it, Violation::SyncEndsEarly { head: 3, .. });
        assert!(walk(&twice, &[1..=1]).breaks(early));
        // What the user was told only after the page had been asked for, it need not show.
        let mut late = walk(&[(1, 1)], &[1..=1]);
        late.join(9, 3);
        late.joined_at(LATE.0 + 1);
        assert_eq!(late.violations(), []);
        late.joined_at(LATE.0);
        assert!(late.breaks(early));
    }

    #[test]
    fn what_nobody_knows_of_is_not_judged() {
        let mut sample = Sample::good();
        sample.join(9, 0);
        sample.page(9, LATE, &[(Sample::GROUP, 2..=2)], false);
        assert_eq!(sample.violations(), []);
        sample.join(9, 1);
        let skips = |it: &Violation| matches!(it, Violation::SyncSkips { .. });
        assert!(sample.breaks(skips), "it was let in at 1");
        sample.leave(9, 0);
        assert!(!sample.breaks(skips), "and may have left");
    }

    #[test]
    fn a_resync_without_need_is_found_out() {
        let mut sample = good();
        sample.change_page(1, |page| page.outcome = Outcome::Fail("Resync".into()));
        assert!(sample.breaks(|it| matches!(it, Violation::NeedlessResync { .. })));
        let mut sample = good();
        sample.page(1, LATE, &[], true);
        sample.change_page(3, |page| page.outcome = Outcome::Fail("Unavailable".into()));
        assert_eq!(sample.violations(), []);
    }
}
