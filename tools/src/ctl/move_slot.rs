//! `mailboxctl shard move-slot`: a slot goes to another shard.

use std::time::Duration;

use anyhow::bail;
use mailbox_client::Client;
use mailbox_client::v1::{MoveSlotRequest, SlotMove, SlotMoveStage};
use serde::Serialize;

use super::steps::{WaitArgs, wait_until_over};

/// What is asked.
pub(super) struct Ask {
    pub(super) slot: u32,
    /// Nothing: the move is given up.
    pub(super) to: Option<u32>,
    pub(super) dry_run: bool,
    pub(super) wait: WaitArgs,
}

/// How it ended.
#[derive(Serialize)]
pub(super) struct Outcome {
    slot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u32>,
    /// `moving`, `moved`, `given up`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
    #[serde(skip)]
    pub(super) words: String,
}

/// Begins a move, or gives one up.
pub(super) async fn run(client: &Client, ask: Ask) -> anyhow::Result<Outcome> {
    let Some(to) = ask.to else {
        return give_up(client, ask).await;
    };
    let (slot, dry_run) = (ask.slot, ask.dry_run);
    let call = MoveSlotRequest { slot, to, dry_run };
    let answer = client.move_slot(call).await?;
    let from = answer.from;
    let outcome = |state, words| Outcome {
        slot,
        from: Some(from),
        to: Some(to),
        state,
        dry_run,
        words,
    };
    if from == to {
        let words = format!("slot {slot} is in shard {to}");
        return Ok(outcome("moved", words));
    }
    if dry_run {
        let words = format!("slot {slot} can move from shard {from} to shard {to}");
        return Ok(outcome("possible", words));
    }
    if !ask.wait.wait {
        let words = format!(
            "slot {slot} moves from shard {from} to shard {to}\n  `mailboxctl shard show {to}` shows how far it is; \
             `mailboxctl shard move-slot {slot} --abort` gives it up while it is copied"
        );
        return Ok(outcome("moving", words));
    }
    wait_for_end(client, slot, ask.wait.timeout).await?;
    // Judged by the newest map, which the node that tells the map may not have yet.
    let call = MoveSlotRequest {
        dry_run: true,
        ..call
    };
    if client.move_slot(call).await?.from != to {
        bail!("slot {slot}: the move was given up: it stays in shard {from}");
    }
    let words = format!("slot {slot} has moved from shard {from} to shard {to}");
    Ok(outcome("moved", words))
}

async fn give_up(client: &Client, ask: Ask) -> anyhow::Result<Outcome> {
    let slot = ask.slot;
    if ask.dry_run {
        let moves = client.slot_moves().await?;
        let Some(found) = moves.iter().find(|found| found.slot == slot) else {
            bail!("slot {slot} is on no move");
        };
        if found.stage() != SlotMoveStage::Copying {
            bail!(
                "{}\n  It cannot be given up any more: it goes on by itself. Move the slot back afterwards",
                words(found)
            );
        }
    } else {
        client.abort_slot_move(slot).await?;
        if ask.wait.wait {
            wait_for_end(client, slot, ask.wait.timeout).await?;
        }
    }
    let state = if ask.dry_run { "possible" } else { "given up" };
    let words = match ask.dry_run {
        true => format!("slot {slot}: the move can be given up"),
        false => format!("slot {slot}: the move is given up; the slot stays where it is"),
    };
    Ok(Outcome {
        slot,
        from: None,
        to: None,
        state,
        dry_run: ask.dry_run,
        words,
    })
}

async fn wait_for_end(client: &Client, slot: u32, within: Duration) -> anyhow::Result<()> {
    let left = async || {
        let moves = client.slot_moves().await?;
        let found = moves.iter().find(|found| found.slot == slot);
        Ok(found.map(words))
    };
    wait_until_over(within, left).await
}

/// A move as a sentence.
pub(super) fn words(found: &SlotMove) -> String {
    let stage = match found.stage() {
        SlotMoveStage::Copying => "is copied",
        SlotMoveStage::Freezing => "changes hands",
        SlotMoveStage::Dropping => {
            "is served by its new shard; the old one keeps its rows until all replicas have it"
        }
        SlotMoveStage::Aborting => "stays: the move is given up",
        SlotMoveStage::Unspecified => "is in a stage that this version does not know",
    };
    let SlotMove { slot, from, to, .. } = found;
    let mut text = format!("slot {slot} from shard {from} to shard {to}: it {stage}");
    if !found.done_nodes.is_empty() {
        let done: Vec<String> = found.done_nodes.iter().map(u64::to_string).collect();
        text.push_str(&format!("; done: node {}", done.join(", ")));
    }
    if !found.waits_for.is_empty() {
        text.push_str(&format!("; waits: {}", found.waits_for));
    }
    text
}

/// The moves that concern a shard.
pub(super) fn of_shard(moves: &[SlotMove], shard: u32) -> Vec<String> {
    let concerns = |found: &&SlotMove| [found.from, found.to].contains(&shard);
    moves.iter().filter(concerns).map(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_a_sentence() {
        let mut found = SlotMove {
            slot: 5,
            from: 1,
            to: 2,
            stage: SlotMoveStage::Copying.into(),
            ..SlotMove::default()
        };
        assert_eq!(
            words(&found),
            "slot 5 from shard 1 to shard 2: it is copied"
        );
        found.done_nodes = vec![1, 2];
        found.waits_for = "node 3: no answer".to_owned();
        assert_eq!(
            words(&found),
            "slot 5 from shard 1 to shard 2: it is copied; done: node 1, 2; waits: node 3: no answer"
        );
    }
}
