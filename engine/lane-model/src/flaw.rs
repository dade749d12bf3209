//! Ways to get the protocol wrong. Each breaks one rule, so that a check which passes with the rule and
//! fails without it shows both that the rule is needed and that the check can see.

/// One broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The mark rises in one entry, the effect follows in another.
    MarkBeforeEffect,
    /// The destination's leader reports the mark that a proposal *would* give.
    ReportBeforeCommit,
    /// Any lane seq above the mark is delivered, the next one or not.
    NoContiguityCheck,
    /// The seq is compared when the item arrives, not when its entry is applied.
    CheckOnArrival,
    /// An item at or below the mark is answered with an error, which reports no mark.
    DuplicateIsAnError,
    /// Inside one shard a send is delivered at once, whatever of its lane is still on the way.
    DirectPastUnacked,
    /// The destination takes the slot over from a copy made before the source stopped.
    ImportBeforeFreeze,
    /// The import takes a slot although the move was given up.
    ImportAfterAbort,
    /// The frozen source still serves.
    FrozenServes,
    /// The marks stay behind when a slot moves.
    MarksLeftBehind,
    /// The outbox stays behind.
    OutboxLeftBehind,
    /// The dedup rows stay behind.
    DedupLeftBehind,
}
