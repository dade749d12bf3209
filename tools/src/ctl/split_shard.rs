//! `mailboxctl shard split`: some slots of a shard become a shard of their own.

use std::str::FromStr;

use anyhow::bail;
use mailbox_client::Client;
use mailbox_client::v1::{ShardSplit, SlotSpan, SplitShardRequest};
use serde::Serialize;

use super::steps::{WaitArgs, wait_until_over};

/// Which slots go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The last ones, so many.
    Count(u32),
    /// These.
    Spans(Vec<SlotSpan>),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(count) = text.parse() {
            return Ok(Wanted::Count(count));
        }
        let spans = text.split(',').map(|span| {
            let (first, last) = span.split_once('-').unwrap_or((span, span));
            let number = |text: &str| text.trim().parse().ok();
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(SlotSpan { first, last })
        });
        let spans: Option<Vec<SlotSpan>> = spans.collect();
        spans.map(Wanted::Spans).ok_or_else(|| {
            "neither how many (such as 8) nor which ones (such as 8-15 or 3,5,9-12)".to_owned()
        })
    }
}

/// What is asked.
#[derive(clap::Args)]
pub(crate) struct Ask {
    /// The shard
    shard: u32,
    /// What goes: how many of its slots (the last ones), such as 8; or which, such as 8-15 or 3,5,9-12 (one alone:
    /// 8-8). Half of them if not given
    #[arg(long, value_name = "N|SLOTS")]
    slots: Option<Wanted>,
    /// Say whether it can be done, and what would go; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// How it ended.
#[derive(Serialize)]
pub(super) struct Outcome {
    shard: u32,
    to: u32,
    slots: String,
    /// `splitting`, `split`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
    #[serde(skip)]
    pub(super) words: String,
}

/// Begins a split.
pub(super) async fn run(client: &Client, ask: Ask) -> anyhow::Result<Outcome> {
    let shard = ask.shard;
    let spans = match ask.slots {
        None => Vec::new(),
        Some(Wanted::Spans(spans)) => spans,
        Some(Wanted::Count(count)) => last_slots(client, shard, count).await?,
    };
    // Which half is said once and for all: a call that is repeated must not split again.
    let mut call = SplitShardRequest {
        shard,
        slots: spans,
        dry_run: true,
    };
    let judged = client.split_shard(call.clone()).await?;
    call.slots = judged.slots.clone();
    let slots = spans_text(&judged.slots);
    let outcome = |to, state, words| Outcome {
        shard,
        to,
        slots: slots.clone(),
        state,
        dry_run: ask.dry_run,
        words,
    };
    let to = judged.to;
    if judged.done {
        let words = format!("slots {slots} are shard {to}");
        return Ok(outcome(to, "split", words));
    }
    if ask.dry_run {
        let words = format!("shard {shard} can split: slots {slots} would become shard {to}");
        return Ok(outcome(to, "possible", words));
    }
    call.dry_run = false;
    let to = client.split_shard(call.clone()).await?.to;
    if !ask.wait.wait {
        let words = format!(
            "shard {shard} splits: slots {slots} become shard {to}\n  `mailboxctl shard show {shard}` shows how far \
             it is"
        );
        return Ok(outcome(to, "splitting", words));
    }
    let left = async || {
        let splits = client.shard_splits().await?;
        let found = splits.iter().find(|found| found.shard == shard);
        Ok(found.map(words))
    };
    wait_until_over(ask.wait.timeout, left).await?;
    call.dry_run = true;
    // Judged by the newest map, which the node that tells the map may not have yet.
    if !client.split_shard(call).await?.done {
        bail!(
            "shard {shard}: slots {slots} are not a shard of their own: they have been moved on since"
        );
    }
    let words = format!("shard {shard} has split: slots {slots} are shard {to}");
    Ok(outcome(to, "split", words))
}

async fn last_slots(client: &Client, shard: u32, count: u32) -> anyhow::Result<Vec<SlotSpan>> {
    let map = client.cluster_map().await?;
    let row = super::shard::find(&map, shard)?;
    let mut left = count;
    let mut taken = Vec::new();
    for span in row.slots.iter().rev() {
        let here = left.min(span.last - span.first + 1);
        if here > 0 {
            let (first, last) = (span.last + 1 - here, span.last);
            taken.insert(0, SlotSpan { first, last });
        }
        left -= here;
    }
    if left > 0 || count == 0 {
        let held = count - left;
        bail!(
            "shard {shard} cannot give {count} of its slots up: it has {held}{}",
            if count == 0 { " or more" } else { "" }
        );
    }
    Ok(taken)
}

/// Slots in words, as they may be asked for.
pub(super) fn spans_text(spans: &[SlotSpan]) -> String {
    let spans = spans.iter();
    let spans = spans.map(|span| format!("{}-{}", span.first, span.last));
    spans.collect::<Vec<_>>().join(", ")
}

/// A split as a sentence.
pub(super) fn words(found: &ShardSplit) -> String {
    let slots = spans_text(&found.slots);
    let mut text = format!(
        "shard {} splits: slots {slots} become shard {}",
        found.shard, found.to
    );
    if !found.done_nodes.is_empty() {
        let done: Vec<String> = found.done_nodes.iter().map(u64::to_string).collect();
        text.push_str(&format!("; it runs on node {}", done.join(", ")));
    }
    if !found.waits_for.is_empty() {
        text.push_str(&format!("; waits: {}", found.waits_for));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_count_or_spans() {
        let span = |first, last| SlotSpan { first, last };
        assert_eq!("8".parse(), Ok(Wanted::Count(8)));
        assert_eq!("8-8".parse(), Ok(Wanted::Spans(vec![span(8, 8)])));
        let some = Wanted::Spans(vec![span(1, 1), span(3, 5)]);
        assert_eq!("1, 3-5".parse(), Ok(some));
        for bad in ["", "-", "5-3", "a", "1,,2", "-1", "4294967296"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_split_is_a_sentence() {
        let mut found = ShardSplit {
            shard: 1,
            to: 5,
            slots: vec![SlotSpan { first: 8, last: 15 }],
            ..ShardSplit::default()
        };
        assert_eq!(words(&found), "shard 1 splits: slots 8-15 become shard 5");
        found.done_nodes = vec![1, 2];
        found.waits_for = "node 3: no answer".to_owned();
        assert_eq!(
            words(&found),
            "shard 1 splits: slots 8-15 become shard 5; it runs on node 1, 2; waits: node 3: no answer"
        );
    }
}
