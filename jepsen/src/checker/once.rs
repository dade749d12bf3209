//! C2: a message is once in each place it belongs to, as it was sent; nothing else is there.

use std::collections::HashMap;

use super::index::{Index, home_of};
use super::violation::Violation;
use crate::history::{Append, Outcome, Row, Timeline};

/// What has to be said to something else under the identity of an acked send.
const REUSE_REFUSED: &str = "IdReused";

pub(super) fn check(index: &Index<'_>, violations: &mut Vec<Violation>) {
    for (timeline, view) in &index.views {
        for row in &view.rows {
            check_row(index, *timeline, row, violations);
        }
    }
    let refusals = refusals(index);
    for append in index.appends.values() {
        check_repeats(append, violations);
        for timeline in places_of(append) {
            if let [first, second, ..] = *index.places(timeline, append.id) {
                violations.push(Violation::Doubled {
                    id: append.id,
                    timeline,
                    first,
                    second,
                });
            }
        }
        check_delivery(index, append, &refusals, violations);
    }
}

/// How often each (home timeline, seq) was refused.
fn refusals(index: &Index<'_>) -> HashMap<(Timeline, u64), usize> {
    let mut refusals = HashMap::new();
    for (timeline, view) in &index.last {
        for seq in view.rows.iter().filter_map(|row| row.refused) {
            *refusals.entry((*timeline, seq)).or_default() += 1;
        }
    }
    refusals
}

/// Home first; a message to oneself has one place only.
fn places_of(append: &Append) -> Vec<Timeline> {
    let home = home_of(append);
    if home == append.to {
        vec![home]
    } else {
        vec![home, append.to]
    }
}

fn check_row(index: &Index<'_>, timeline: Timeline, row: &Row, violations: &mut Vec<Violation>) {
    let Some(id) = row.id else { return };
    let seq = row.seq;
    let sent = index.appends.get(&id).filter(|append| {
        places_of(append).contains(&timeline) && !matches!(append.outcome, Outcome::Fail(_))
    });
    let Some(append) = sent else {
        violations.push(Violation::Phantom { id, timeline, seq });
        return;
    };
    let recipient = match append.to {
        Timeline::Mailbox(user) => user,
        Timeline::Group(_) => 0,
    };
    let said = (row.content, row.sender, row.recipient);
    if said != (append.content, append.sender, recipient) {
        violations.push(Violation::Changed { id, timeline, seq });
    }
}

fn check_repeats(append: &Append, violations: &mut Vec<Violation>) {
    if let Some(code) = &append.repeat_refused {
        violations.push(Violation::RepeatRefused {
            id: append.id,
            code: code.clone(),
        });
    }
    if let Some(answer) = append.reuse.as_deref().filter(|it| *it != REUSE_REFUSED) {
        violations.push(Violation::Reuse {
            id: append.id,
            answer: answer.to_owned(),
        });
    }
    let Outcome::Ok(first) = append.outcome else {
        return;
    };
    if let Some(&repeat) = append.repeats.iter().find(|repeat| **repeat != first) {
        violations.push(Violation::RepeatDiffers {
            id: append.id,
            first,
            repeat,
        });
    }
}

/// An accepted 1:1 message is delivered once or refused once; one that is not at home is neither.
fn check_delivery(
    index: &Index<'_>,
    append: &Append,
    refusals: &HashMap<(Timeline, u64), usize>,
    violations: &mut Vec<Violation>,
) {
    let (id, recipient, home) = (append.id, append.to, home_of(append));
    let both_read = index.last.contains_key(&home) && index.last.contains_key(&recipient);
    if home == recipient || !both_read {
        return;
    }
    let deliveries = index.places(recipient, id).len();
    let Some(&seq) = index.places(home, id).first() else {
        if deliveries > 0 {
            violations.push(Violation::NotAtHome { id, recipient });
        }
        return;
    };
    let refusals = refusals.get(&(home, seq)).copied().unwrap_or(0);
    if refusals == 0 && deliveries == 0 {
        violations.push(Violation::NotDelivered { id, recipient });
    }
    if refusals > 1 || (refusals == 1 && deliveries > 0) {
        let timeline = home;
        violations.push(Violation::RefusedAndMore {
            id,
            timeline,
            seq,
            refusals,
            deliveries,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::history::REUSED;

    #[test]
    fn something_else_acked_under_the_same_identity_is_found_out() {
        let mut sample = Sample::good();
        sample.append_mut(0).reuse = Some("IdReused".into());
        assert_eq!(sample.violations(), []);
        for answer in [REUSED, "IdExpired"] {
            sample.append_mut(0).reuse = Some(answer.into());
            assert!(sample.breaks(|it| matches!(it, Violation::Reuse { .. })));
        }
    }

    #[test]
    fn a_message_twice_in_one_timeline_is_found_out() {
        for timeline in [Sample::ALICE, Sample::BOB, Sample::GROUP] {
            let mut sample = Sample::good();
            sample.copy_row_to_end(timeline, 2);
            assert!(
                sample.breaks(|it| matches!(it, Violation::Doubled { .. })),
                "{timeline}"
            );
        }
    }

    #[test]
    fn an_unknown_send_may_be_there_once_or_not_at_all_but_not_twice() {
        let mut sample = Sample::good();
        sample.copy_row_to_end(Sample::ALICE, Sample::UNKNOWN_SEQ);
        assert!(sample.breaks(|it| matches!(it, Violation::Doubled { .. })));

        let mut sample = Sample::good();
        sample.drop_row(Sample::ALICE, Sample::UNKNOWN_SEQ);
        sample.drop_row(Sample::BOB, Sample::UNKNOWN_SEQ_AT_BOB);
        assert_eq!(sample.violations(), [], "its not happening is no violation");
    }

    #[test]
    fn an_unknown_send_that_happened_by_half_is_found_out() {
        let mut sample = Sample::good();
        sample.drop_row(Sample::BOB, Sample::UNKNOWN_SEQ_AT_BOB);
        assert!(sample.breaks(|it| matches!(it, Violation::NotDelivered { .. })));

        let mut sample = Sample::good();
        sample.drop_row(Sample::ALICE, Sample::UNKNOWN_SEQ);
        assert!(sample.breaks(|it| matches!(it, Violation::NotAtHome { .. })));
    }

    #[test]
    fn an_acked_message_that_never_reached_its_recipient_is_found_out() {
        let mut sample = Sample::good();
        sample.drop_row(Sample::BOB, 1);
        sample.close_gaps(Sample::BOB);
        assert!(sample.breaks(|it| matches!(it, Violation::NotDelivered { .. })));
    }

    #[test]
    fn a_refusal_stands_for_the_delivery_but_not_beside_it() {
        let mut sample = Sample::good();
        sample.refuse(Sample::ALICE, 1);
        assert!(sample.breaks(|it| matches!(it, Violation::RefusedAndMore { .. })));
        sample.change_row(Sample::BOB, 1, |row| row.id = None);
        assert_eq!(sample.violations(), []);
        sample.refuse(Sample::ALICE, 1);
        assert!(sample.breaks(|it| matches!(it, Violation::RefusedAndMore { .. })));
    }

    #[test]
    fn a_repeat_that_is_refused_is_found_out() {
        let mut sample = Sample::good();
        sample.append_mut(0).repeat_refused = Some("IdReused".into());
        assert!(sample.breaks(|it| matches!(it, Violation::RepeatRefused { .. })));
    }

    #[test]
    fn a_message_that_nobody_sent_is_found_out() {
        let mut sample = Sample::good();
        sample.append_row(Sample::BOB, |row| row.id = Some(Sample::id(1000)));
        assert!(sample.breaks(|it| matches!(it, Violation::Phantom { .. })));
    }

    #[test]
    fn a_refused_send_that_happened_is_found_out() {
        let mut sample = Sample::good();
        sample.append_mut(0).outcome = Outcome::Fail("BodyTooLarge".into());
        assert!(sample.breaks(|it| matches!(it, Violation::Phantom { .. })));
    }

    #[test]
    fn a_message_in_a_strangers_mailbox_is_found_out() {
        let mut sample = Sample::good();
        sample.append_mut(0).to = Timeline::Mailbox(77);
        assert!(sample.breaks(|it| matches!(it, Violation::Phantom { .. })));
    }

    #[test]
    fn a_changed_message_is_found_out() {
        type Change = fn(&mut Row);
        let changes: [Change; 3] = [
            |row| row.content += 1,
            |row| row.sender += 1,
            |row| row.recipient += 1,
        ];
        for change in changes {
            let mut sample = Sample::good();
            sample.change_row(Sample::BOB, 1, change);
            assert!(sample.breaks(|it| matches!(it, Violation::Changed { .. })));
        }
    }

    #[test]
    fn a_repeat_with_another_answer_is_found_out() {
        let mut sample = Sample::good();
        let mut acked = *sample.ack_mut(0);
        sample.append_mut(0).repeats.push(acked);
        assert_eq!(sample.violations(), []);
        acked.seq += 1;
        sample.append_mut(0).repeats.push(acked);
        assert!(sample.breaks(|it| matches!(it, Violation::RepeatDiffers { .. })));
    }
}
