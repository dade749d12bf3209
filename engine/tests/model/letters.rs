//! Dead letters in the reference.

use mailbox_engine::{
    ClusterOptions, DeadLetter, DeadLetterTotals, DropDeadLetter, Flags, LetterStanding, Refusal,
    RefusalCode, Reply, RequeueDeadLetter, Row, Seq, Shard, SlotId, slot_of_owner,
};

use crate::reference::{Reference, SLOT_COUNT};

/// Those of one slot, trimmed ones included.
#[derive(Default)]
pub(crate) struct Letters {
    pub(crate) all: Vec<DeadLetter>,
    pub(crate) trimmed: usize,
    unseen: u64,
}

impl Letters {
    fn count(&self, is: impl Fn(&LetterStanding) -> bool) -> u64 {
        let found = self.all.iter().filter(|letter| is(&letter.standing));
        found.count() as u64
    }

    fn totals(&self) -> DeadLetterTotals {
        DeadLetterTotals {
            written: self.all.len() as u64,
            unseen: self.unseen,
            requeued: self.count(|standing| matches!(standing, LetterStanding::Requeued { .. })),
            dropped: self.count(|standing| matches!(standing, LetterStanding::Dropped { .. })),
        }
    }
}

impl Reference {
    pub(crate) fn keep_letter(&mut self, row: Row, home_seq: Seq, options: &ClusterOptions) {
        let Some(max) = options.dead_letters_max else {
            return;
        };
        let slot = slot_of_owner(row.recipient.0, SLOT_COUNT);
        let letters = self.letters.entry(slot).or_default();
        let seq = Seq(letters.all.len() as u64 + 1);
        letters.all.push(DeadLetter {
            row: Row { seq, ..row },
            home_seq,
            code: RefusalCode::UnknownUser,
            refused_at_ms: self.time_ms,
            standing: LetterStanding::Waiting,
        });
        while letters.all.len() - letters.trimmed > max as usize {
            let oldest = letters.all[letters.trimmed].standing;
            letters.unseen += u64::from(oldest == LetterStanding::Waiting);
            letters.trimmed += 1;
        }
    }

    fn letter(&self, slot: SlotId, seq: Seq) -> Result<DeadLetter, Refusal> {
        let letters = self.letters.get(&slot);
        let trimmed = letters.map_or(0, |letters| letters.trimmed);
        let all = letters.map_or(&[][..], |letters| &letters.all);
        let found = all[trimmed..].iter().find(|letter| letter.row.seq == seq);
        found.cloned().ok_or(Refusal::UnknownDeadLetter {
            slot,
            seq,
            trim_point: Seq(trimmed as u64),
            head: Seq(all.len() as u64),
        })
    }

    fn resolve(&mut self, slot: SlotId, seq: Seq, standing: LetterStanding) {
        let letters = &mut self.letters.get_mut(&slot).unwrap().all;
        letters[usize::try_from(seq.0).unwrap() - 1].standing = standing;
    }

    pub(crate) fn requeue(&mut self, call: &RequeueDeadLetter) -> Result<Reply, Refusal> {
        let (slot, seq) = (call.slot, call.seq);
        let letter = self.letter(slot, seq)?;
        match letter.standing {
            LetterStanding::Waiting => {}
            LetterStanding::Requeued {
                seq, message_id, ..
            } => return Ok(Reply::DeadLetterRequeued { seq, message_id }),
            standing @ LetterStanding::Dropped { .. } => {
                return Err(Refusal::DeadLetterResolved {
                    slot,
                    seq,
                    standing,
                });
            }
        }
        self.user(letter.row.recipient)?;
        self.claim(call.message_id)?;
        let (message_id, at_ms) = (call.message_id, self.time_ms);
        let row = Row {
            message_id,
            flags: letter.row.flags.with(Flags::REQUEUED),
            ..letter.row
        };
        let reached = self.append(row.recipient.mailbox(), row);
        let standing = LetterStanding::Requeued {
            at_ms,
            seq: reached,
            message_id,
        };
        self.resolve(slot, seq, standing);
        let seq = reached;
        Ok(Reply::DeadLetterRequeued { seq, message_id })
    }

    pub(crate) fn drop_letter(&mut self, call: &DropDeadLetter) -> Result<Reply, Refusal> {
        let (slot, seq) = (call.slot, call.seq);
        let standing = self.letter(slot, seq)?.standing;
        if let LetterStanding::Requeued { .. } = standing {
            return Err(Refusal::DeadLetterResolved {
                slot,
                seq,
                standing,
            });
        }
        if standing == LetterStanding::Waiting {
            let at_ms = self.time_ms;
            self.resolve(slot, seq, LetterStanding::Dropped { at_ms });
        }
        Ok(Reply::DeadLetterDropped)
    }
}

/// The letters of every slot, page by page.
pub(crate) fn compare_letters(shard: &Shard, reference: &Reference) {
    let mut sum = DeadLetterTotals::default();
    for slot in (0..SLOT_COUNT).map(SlotId) {
        let none = Letters::default();
        let letters = reference.letters.get(&slot).unwrap_or(&none);
        for (limit, bytes) in [(1, usize::MAX), (usize::MAX, 30), (1000, 1 << 20)] {
            let (mut found, mut next) = (Vec::new(), Some(Seq(1)));
            while let Some(from) = next {
                let page = shard.dead_letters(slot, from, limit, bytes).unwrap();
                assert_eq!(page.trim_point, Seq(letters.trimmed as u64));
                assert_eq!(page.head, Seq(letters.all.len() as u64));
                assert!(page.letters.len() <= limit);
                next = page.next;
                found.extend(page.letters);
            }
            assert_eq!(found, letters.all[letters.trimmed..], "slot {slot}");
        }
        let totals = letters.totals();
        assert_eq!(shard.dead_letter_totals(slot).unwrap(), totals);
        sum.written += totals.written;
        sum.unseen += totals.unseen;
        sum.requeued += totals.requeued;
        sum.dropped += totals.dropped;
    }
    assert_eq!(shard.metrics().dead_letters, sum);
}
