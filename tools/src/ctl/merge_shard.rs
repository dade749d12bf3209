//! `mailboxctl shard merge`: all slots of a shard go to another one, and the shard is retired.

use anyhow::bail;
use mailbox_client::Client;
use mailbox_client::v1::{MergeShardRequest, ShardMerge};
use serde::Serialize;

use super::steps::{WaitArgs, wait_until_over};

/// What is asked.
#[derive(clap::Args)]
pub(crate) struct Ask {
    /// The shard that goes
    #[arg(value_name = "FROM")]
    shard: u32,
    /// The shard that gets its slots
    #[arg(long, value_name = "TO", required_unless_present = "abort")]
    into: Option<u32>,
    /// Give the merge up that is under way; what has moved stays where it is
    #[arg(long, conflicts_with = "into")]
    abort: bool,
    /// Say whether it can be done; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// How it ended.
#[derive(Serialize)]
pub(super) struct Outcome {
    shard: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<u32>,
    /// `merging`, `merged`, `given up`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
    #[serde(skip)]
    pub(super) words: String,
}

/// Begins a merge, or gives one up.
pub(super) async fn run(client: &Client, ask: Ask) -> anyhow::Result<Outcome> {
    let Some(into) = ask.into else {
        return give_up(client, &ask).await;
    };
    let (shard, dry_run) = (ask.shard, ask.dry_run);
    let call = MergeShardRequest {
        shard,
        into,
        dry_run,
    };
    let outcome = |state, words| Outcome {
        shard,
        into: Some(into),
        state,
        dry_run,
        words,
    };
    let merged = || {
        let words = format!(
            "shard {shard} has merged into shard {into}: it is retired, and its id is never used again"
        );
        outcome("merged", words)
    };
    let answer = client.merge_shard(call).await?;
    if answer.done {
        return Ok(merged());
    }
    let slots = answer.slots_left;
    if dry_run {
        let words = format!("shard {shard} can merge into shard {into}: {slots} slots would move");
        return Ok(outcome("possible", words));
    }
    if !ask.wait.wait {
        let words = format!(
            "shard {shard} merges into shard {into}: {slots} slots move\n  `mailboxctl shard show {shard}` shows how far \
             it is; `mailboxctl shard merge {shard} --abort` gives it up, and what has moved stays"
        );
        return Ok(outcome("merging", words));
    }
    let left = async || {
        let merges = client.shard_merges().await?;
        let found = merges.iter().find(|found| found.shard == shard);
        Ok(found.map(words))
    };
    wait_until_over(ask.wait.timeout, left).await?;
    let call = MergeShardRequest {
        dry_run: true,
        ..call
    };
    if !client.merge_shard(call).await?.done {
        bail!(
            "shard {shard}: the merge was given up: what has moved stays in shard {into}\n  the same command begins it \
             again"
        );
    }
    Ok(merged())
}

async fn give_up(client: &Client, ask: &Ask) -> anyhow::Result<Outcome> {
    let shard = ask.shard;
    let merges = client.shard_merges().await?;
    let found = merges.iter().find(|found| found.shard == shard);
    let Some(found) = found else {
        bail!("no merge of shard {shard} is under way: there is nothing to give up");
    };
    let (state, words) = match ask.dry_run {
        true => (
            "possible",
            format!("the merge can be given up: {}", words(found)),
        ),
        false => {
            client.abort_shard_merge(shard).await?;
            let words = format!(
                "shard {shard}: the merge is given up; it keeps the slots that it has ({}), and moves that have begun go on",
                found.slots_left
            );
            ("given up", words)
        }
    };
    Ok(Outcome {
        shard,
        into: Some(found.into),
        state,
        dry_run: ask.dry_run,
        words,
    })
}

/// A merge as a sentence.
pub(super) fn words(found: &ShardMerge) -> String {
    let ShardMerge { shard, into, .. } = found;
    let mut text = format!(
        "shard {shard} merges into shard {into}: {} slots are left, {} moves under way",
        found.slots_left, found.moves_left
    );
    if !found.waits_for.is_empty() {
        text.push_str(&format!("; waits: {}", found.waits_for));
    }
    text
}

/// The merges that concern a shard.
pub(super) fn of_shard(merges: &[ShardMerge], shard: u32) -> Vec<String> {
    let concerns = |found: &&ShardMerge| [found.shard, found.into].contains(&shard);
    merges.iter().filter(concerns).map(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_is_a_sentence_told_by_both_shards() {
        let mut found = ShardMerge {
            shard: 5,
            into: 2,
            slots_left: 7,
            moves_left: 2,
            ..ShardMerge::default()
        };
        let text = "shard 5 merges into shard 2: 7 slots are left, 2 moves under way";
        assert_eq!(words(&found), text);
        for shard in [5, 2] {
            assert_eq!(of_shard(&[found.clone()], shard), [text]);
        }
        assert!(of_shard(&[found.clone()], 3).is_empty());
        found.waits_for = "slot 9: node 3: no answer".to_owned();
        assert!(words(&found).ends_with("; waits: slot 9: node 3: no answer"));
    }
}
