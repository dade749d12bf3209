//! Each planted flaw is found: the rule that it breaks is needed, and the check can see.

use mailbox_lane_model::{Flaw, Rule};

use crate::checker::{Play, known, moves, scene};

/// Two shards, three sends one way.
fn apart() -> Play {
    let mut scene = scene(&[0, 1], 2);
    scene.sends = vec![vec![known(1); 3], vec![]];
    scene.proposals_max = 2;
    Play {
        scene,
        must_reach: Vec::new(),
    }
}

/// The same, while the destination moves in with the source.
fn moving() -> Play {
    let mut play = apart();
    play.scene.proposals_max = 1;
    play.scene.moves = vec![moves(1, 0)];
    play
}

/// The same, while the source moves in with the destination.
fn leaving() -> Play {
    let mut play = moving();
    play.scene.moves = vec![moves(0, 1)];
    play
}

#[test]
fn a_mark_raised_before_its_effect() {
    apart().breaks(Flaw::MarkBeforeEffect, Rule::Drains);
}

#[test]
fn a_mark_reported_before_it_is_committed() {
    apart().breaks(Flaw::ReportBeforeCommit, Rule::MarksBounded);
}

#[test]
fn no_contiguity_check() {
    apart().breaks(Flaw::NoContiguityCheck, Rule::OnceAndInOrder);
}

#[test]
fn a_seq_compared_on_arrival() {
    apart().breaks(Flaw::CheckOnArrival, Rule::OnceAndInOrder);
}

#[test]
fn a_duplicate_answered_with_an_error() {
    apart().breaks(Flaw::DuplicateIsAnError, Rule::Drains);
}

#[test]
fn a_direct_delivery_past_unacked_rows() {
    moving().breaks(Flaw::DirectPastUnacked, Rule::OnceAndInOrder);
}

#[test]
fn an_import_before_the_freeze() {
    moving().breaks(Flaw::ImportBeforeFreeze, Rule::OneOwner);
}

#[test]
fn an_import_after_the_abort() {
    let mut play = moving();
    play.scene.aborts = true;
    play.breaks(Flaw::ImportAfterAbort, Rule::OneOwner);
}

#[test]
fn a_frozen_source_that_serves() {
    moving().breaks(Flaw::FrozenServes, Rule::NothingLost);
}

#[test]
fn marks_left_behind() {
    moving().breaks(Flaw::MarksLeftBehind, Rule::OnceAndInOrder);
}

#[test]
fn an_outbox_left_behind() {
    leaving().breaks(Flaw::OutboxLeftBehind, Rule::Drains);
}

#[test]
fn dedup_rows_left_behind() {
    leaving().breaks(Flaw::DedupLeftBehind, Rule::AcceptedOnce);
}
