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

/// Where a device is.
struct Walk {
    /// Greatest seq given, of each timeline that its user may read.
    at: BTreeMap<Timeline, u64>,
}

impl Walk {
    fn new(history: &History, user: u64) -> Self {
        let mut at = BTreeMap::from([(Timeline::Mailbox(user), 0)]);
        for join in history.joins().filter(|join| join.user == user) {
            at.insert(Timeline::Group(join.group), join.first - join.first.min(1));
        }
        Self { at }
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
            let Some(at) = self.at.get_mut(&timeline) else {
                violations.push(Violation::SyncedForeign {
                    user,
                    device,
                    timeline,
                });
                continue;
            };
            let expected = *at + 1;
            *at = row.seq;
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
        for (&timeline, &at) in &self.at {
            let mut head = shown.before(timeline, page.invoked_ns);
            if page.last
                && let Some(view) = index.last.get(&timeline)
            {
                head = head.max(view.head);
            }
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
