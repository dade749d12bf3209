//! `mailboxctl dlq`: messages that could not be delivered, and what an operator does with them.

use std::fmt;
use std::str::FromStr;

use anyhow::bail;
use base64::Engine as _;
use mailbox_client::v1::{
    DeadLetter, DeadLetterCount, DeadLetterStanding, DropDeadLetterRequest, ErrorCode,
    ListDeadLettersRequest, MessageType, RequeueDeadLetterRequest,
};
use mailbox_client::{CallError, Client};
use serde::Serialize;
use uuid::Uuid;

use crate::node::{NodeArgs, type_text};
use crate::output::{OutputArgs, grouped, printable};

/// Letters asked for at a time.
const PAGE_LETTERS: u32 = 500;

/// See messages that could not be delivered, and requeue or drop them.
///
/// When the recipient of a 1:1 message turns out not to exist, its sender is told, and the message is kept as
/// a dead letter in the recipient's slot. Each slot keeps so many (cluster.dead_letters_max), the newest.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the dead letters that wait, oldest first in each slot
    List {
        /// Of this slot only
        #[arg(long, value_name = "SLOT")]
        slot: Option<u32>,
        /// Also those that were requeued or dropped
        #[arg(long)]
        all: bool,
        /// Print at most so many letters
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u64,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Show one dead letter with everything that is known of it
    Show {
        /// `slot/seq`, as `list` prints it
        letter: LetterId,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Deliver dead letters after all
    ///
    /// Each arrives as a new message, flagged, once however often this is repeated; its sender is not told. It
    /// is refused again while its recipient still does not exist, and stays where it is.
    Requeue {
        /// `slot/seq`, as `list` prints it; several with spaces
        #[arg(required = true)]
        letters: Vec<LetterId>,
        /// Say what would happen; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Mark dead letters as done with: they cannot be requeued any more
    ///
    /// That makes no room: a letter that was requeued or dropped keeps its place in its slot until it is the oldest
    /// and a newer one takes it. How many places a slot has is cluster.dead_letters_max.
    Drop {
        /// `slot/seq`, as `list` prints it; several with spaces
        #[arg(required = true)]
        letters: Vec<LetterId>,
        /// Say what would happen; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// Names a dead letter on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LetterId {
    slot: u32,
    seq: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.slot, self.seq)
    }
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let id = parts.and_then(|(slot, seq)| {
            Some(Self {
                slot: slot.parse().ok()?,
                seq: seq.parse().ok().filter(|seq| *seq > 0)?,
            })
        });
        id.ok_or_else(|| {
            format!("`{text}` names no dead letter: write `slot/seq`, as `mailboxctl dlq list` prints it")
        })
    }
}

/// One letter in JSON; 64-bit numbers are decimal strings.
#[derive(Serialize)]
struct Shown {
    letter: String,
    slot: u32,
    seq: String,
    standing: &'static str,
    code: &'static str,
    sender: String,
    recipient: String,
    home_seq: String,
    message_id: String,
    sent_at_ms: String,
    refused_at_ms: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved_at_ms: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requeued_seq: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requeued_message_id: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    client_msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// What became of one letter.
#[derive(Serialize)]
struct Outcome {
    letter: String,
    /// `requeued`, `dropped`, or `refused`; in a dry run `possible` where it has not been done before.
    state: &'static str,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    words: String,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::List {
            slot,
            all,
            limit,
            node,
        } => {
            let client = node.connect().await?;
            let mut listing = Listing {
                client: &client,
                output,
                all,
                left: limit,
                more: false,
            };
            listing.run(slot).await?;
            Ok(true)
        }
        Command::Show { letter, node } => {
            let client = node.connect().await?;
            let found = find(&client, letter).await?;
            let now_ms = client.server_time_ms();
            output.print(&Shown::new(&found), |shown| shown.whole(now_ms))?;
            Ok(true)
        }
        Command::Requeue {
            letters,
            dry_run,
            node,
        } => {
            let client = node.connect().await?;
            let mut good = true;
            for letter in letters {
                good &= tell(output, requeue(&client, letter, dry_run).await?)?;
            }
            Ok(good)
        }
        Command::Drop {
            letters,
            dry_run,
            node,
        } => {
            let client = node.connect().await?;
            let mut good = true;
            for letter in letters {
                good &= tell(output, drop_letter(&client, letter, dry_run).await?)?;
            }
            Ok(good)
        }
    }
}

fn tell(output: OutputArgs, outcome: Outcome) -> anyhow::Result<bool> {
    output.print(&outcome, |outcome| outcome.words.clone())?;
    Ok(outcome.code.is_none())
}

/// A list on its way out.
struct Listing<'a> {
    client: &'a Client,
    output: OutputArgs,
    all: bool,
    left: u64,
    more: bool,
}

impl Listing<'_> {
    async fn run(&mut self, only: Option<u32>) -> anyhow::Result<()> {
        let counts = counts(self.client, only).await?;
        for count in &counts {
            let kept = count.written - count.unseen;
            if count.waiting > 0 || (self.all && kept > 0) {
                self.slot(count.slot).await?;
            }
        }
        let sum = |of: fn(&DeadLetterCount) -> u64| counts.iter().map(of).sum::<u64>();
        let (waiting, unseen) = (sum(|count| count.waiting), sum(|count| count.unseen));
        let slots = counts.iter().filter(|count| count.waiting > 0).count();
        match waiting {
            0 => eprintln!("no dead letter waits"),
            _ => eprintln!("{} wait, in {slots} slot(s)", grouped(waiting)),
        }
        if self.more {
            eprintln!("there are more: repeat with a greater --limit, or with --slot");
        }
        if unseen > 0 {
            eprintln!(
                "since the cluster began, newer letters have taken the places of {} that nobody had requeued or \
                 dropped\n  Those that were requeued or dropped keep theirs too: only a greater \
                 cluster.dead_letters_max makes room",
                grouped(unseen)
            );
        }
        Ok(())
    }

    async fn slot(&mut self, slot: u32) -> anyhow::Result<()> {
        let now_ms = self.client.server_time_ms();
        let mut from_seq = 1;
        while from_seq != 0 {
            let call = ListDeadLettersRequest {
                slot,
                from_seq,
                limit: PAGE_LETTERS,
                resolved: self.all,
            };
            let page = self.client.list_dead_letters(call).await?;
            for letter in &page.letters {
                if self.left == 0 {
                    self.more = true;
                    return Ok(());
                }
                self.left -= 1;
                self.output
                    .print(&Shown::new(letter), |shown| shown.line(now_ms))?;
            }
            from_seq = page.next_seq;
        }
        Ok(())
    }
}

/// Of all slots that have had letters, or of one.
async fn counts(client: &Client, only: Option<u32>) -> anyhow::Result<Vec<DeadLetterCount>> {
    let map = client.shard_map().await?;
    if let Some(slot) = only.filter(|slot| *slot >= map.slot_count) {
        bail!(
            "there is no slot {slot}: the cluster has 0 to {}",
            map.slot_count.saturating_sub(1)
        );
    }
    let mut counts = Vec::new();
    for shard in &map.shards {
        let holds = |slot| {
            let spans = shard.slots.iter();
            spans
                .clone()
                .any(|span| (span.first..=span.last).contains(&slot))
        };
        if only.is_some_and(|slot| !holds(slot)) {
            continue;
        }
        let slots = client.count_dead_letters(shard.shard).await?.slots;
        let wanted = |count: &DeadLetterCount| only.is_none_or(|slot| slot == count.slot);
        counts.extend(slots.into_iter().filter(wanted));
    }
    counts.sort_unstable_by_key(|count| count.slot);
    Ok(counts)
}

async fn find(client: &Client, id: LetterId) -> anyhow::Result<DeadLetter> {
    let call = ListDeadLettersRequest {
        slot: id.slot,
        from_seq: id.seq,
        limit: 1,
        resolved: true,
    };
    let page = client.list_dead_letters(call).await?;
    let is = |letter: &DeadLetter| seq_of(letter) == id.seq;
    match page.letters.into_iter().find(is) {
        Some(letter) => Ok(letter),
        None if page.head == 0 => bail!("there is no dead letter {id}: slot {} has none", id.slot),
        None => bail!(
            "there is no dead letter {id}: slot {} has {} to {}",
            id.slot,
            page.trim_point + 1,
            page.head
        ),
    }
}

async fn requeue(client: &Client, letter: LetterId, dry_run: bool) -> anyhow::Result<Outcome> {
    let call = RequeueDeadLetterRequest {
        slot: letter.slot,
        seq: letter.seq,
        dry_run,
        ..RequeueDeadLetterRequest::default()
    };
    let done = match client.requeue_dead_letter(call).await {
        Ok(done) => done,
        Err(error) => return refused(letter, dry_run, error),
    };
    let words = match (dry_run, done.seq) {
        (true, 0) => format!("{letter}: its recipient exists, it can be requeued"),
        (true, seq) => format!("{letter}: was requeued before, as seq {seq}: nothing to do"),
        (false, seq) => format!("{letter}: requeued, as seq {seq} of its recipient's mailbox"),
    };
    let possible = dry_run && done.seq == 0;
    Ok(Outcome {
        letter: letter.to_string(),
        state: if possible { "possible" } else { "requeued" },
        dry_run,
        seq: (done.seq != 0).then(|| done.seq.to_string()),
        message_id: (done.seq != 0).then(|| done.message_id.to_string()),
        code: None,
        words,
    })
}

async fn drop_letter(client: &Client, letter: LetterId, dry_run: bool) -> anyhow::Result<Outcome> {
    let call = DropDeadLetterRequest {
        slot: letter.slot,
        seq: letter.seq,
        dry_run,
        ..DropDeadLetterRequest::default()
    };
    let done = match client.drop_dead_letter(call).await {
        Ok(done) => done,
        Err(error) => return refused(letter, dry_run, error),
    };
    let (state, words) = match (dry_run, done.dropped_before) {
        (true, false) => ("possible", format!("{letter}: can be dropped")),
        (true, true) => (
            "dropped",
            format!("{letter}: was dropped before: nothing to do"),
        ),
        (false, _) => ("dropped", format!("{letter}: dropped")),
    };
    Ok(Outcome {
        letter: letter.to_string(),
        state,
        dry_run,
        seq: None,
        message_id: None,
        code: None,
        words,
    })
}

/// A *no* about one letter; any other error ends the command.
fn refused(letter: LetterId, dry_run: bool, error: CallError) -> anyhow::Result<Outcome> {
    let code = error.code();
    let next = match code {
        ErrorCode::UnknownUser => {
            "\n  It stays. Requeue it again once the user exists, or drop it: `mailboxctl dlq drop`"
        }
        ErrorCode::UnknownDeadLetter => {
            "\n  `mailboxctl dlq list --all` shows those that are there"
        }
        ErrorCode::DeadLetterResolved => "\n  `mailboxctl dlq show` says when",
        _ => return Err(error.into()),
    };
    Ok(Outcome {
        letter: letter.to_string(),
        state: "refused",
        dry_run,
        seq: None,
        message_id: None,
        code: Some(code.name()),
        words: format!("{letter}: {}{next}", error.0.message),
    })
}

fn seq_of(letter: &DeadLetter) -> u64 {
    letter.message.as_ref().map_or(0, |message| message.seq)
}

impl Shown {
    fn new(letter: &DeadLetter) -> Self {
        let message = letter.message.clone().unwrap_or_default();
        let kind = message.r#type();
        let text = match kind {
            MessageType::Opaque => None,
            _ => std::str::from_utf8(&message.body).ok().map(str::to_owned),
        };
        let encode = |body: &[u8]| base64::engine::general_purpose::STANDARD.encode(body);
        let (standing, requeued) = match letter.standing() {
            DeadLetterStanding::Waiting => ("waiting", false),
            DeadLetterStanding::Requeued => ("requeued", true),
            DeadLetterStanding::Dropped => ("dropped", false),
            DeadLetterStanding::Unspecified => ("unknown", false),
        };
        Self {
            letter: format!("{}/{}", letter.slot, message.seq),
            slot: letter.slot,
            seq: message.seq.to_string(),
            standing,
            code: letter.code().name(),
            sender: message.sender.to_string(),
            recipient: message.recipient.to_string(),
            home_seq: letter.home_seq.to_string(),
            message_id: message.message_id.to_string(),
            sent_at_ms: message.sent_at_ms.to_string(),
            refused_at_ms: letter.refused_at_ms.to_string(),
            resolved_at_ms: (letter.resolved_at_ms != 0).then(|| letter.resolved_at_ms.to_string()),
            requeued_seq: requeued.then(|| letter.requeued_seq.to_string()),
            requeued_message_id: requeued.then(|| letter.requeued_message_id.to_string()),
            kind: type_text(kind),
            client_msg_id: Uuid::from_slice(&message.client_msg_id)
                .ok()
                .map(|id| id.to_string()),
            body_base64: text.is_none().then(|| encode(&message.body)),
            text,
        }
    }

    fn body(&self) -> String {
        match (&self.text, &self.body_base64) {
            (Some(text), _) => printable(text),
            (None, Some(body)) => format!("base64:{body}"),
            (None, None) => String::new(),
        }
    }

    fn line(&self, now_ms: u64) -> String {
        format!(
            "{:<10} {} -> {}  {}, {}  {}  [{}]  {}",
            self.letter,
            self.sender,
            self.recipient,
            self.code,
            ago(&self.refused_at_ms, now_ms),
            self.standing,
            self.kind,
            self.body()
        )
    }

    fn whole(&self, now_ms: u64) -> String {
        let after = |ms: &Option<String>| ms.as_ref().map(|ms| ago(ms, now_ms));
        let standing = match (&self.requeued_seq, after(&self.resolved_at_ms)) {
            (Some(seq), Some(when)) => format!(
                "requeued {when}, as seq {seq} of mailbox:{}, message id {}",
                self.recipient,
                self.requeued_message_id.as_deref().unwrap_or("?")
            ),
            (_, Some(when)) => format!("{} {when}", self.standing),
            (_, None) => self.standing.to_owned(),
        };
        format!(
            "dead letter {}\n  from      user {} (seq {} of mailbox:{})\n  to        user {}\n  sent      {} ms\n  \
             refused   {}: {}\n  standing  {standing}\n  message   id {}, client_msg_id {}, {}\n  body      {}",
            self.letter,
            self.sender,
            self.home_seq,
            self.sender,
            self.recipient,
            self.sent_at_ms,
            ago(&self.refused_at_ms, now_ms),
            self.code,
            self.message_id,
            self.client_msg_id.as_deref().unwrap_or("-"),
            self.kind,
            self.body()
        )
    }
}

/// How long ago a time was, in its greatest unit.
fn ago(at_ms: &str, now_ms: u64) -> String {
    let at_ms = at_ms.parse().unwrap_or(now_ms);
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::Message;

    use super::*;

    #[test]
    fn a_letter_survives_its_text() {
        let id: LetterId = "3/17".parse().unwrap();
        assert_eq!(
            (id, id.to_string()),
            (LetterId { slot: 3, seq: 17 }, "3/17".to_owned())
        );
        for wrong in ["", "3", "3/", "/1", "3/0", "3/x", "-1/2", "3/1/2"] {
            let fault = wrong.parse::<LetterId>().unwrap_err();
            assert!(fault.contains("dlq list"), "{fault}");
        }
    }

    #[test]
    fn a_letter_is_told_in_words() {
        let mut letter = DeadLetter {
            slot: 3,
            message: Some(Message {
                seq: 17,
                message_id: 5,
                sender: 8,
                recipient: 9,
                sent_at_ms: 1000,
                r#type: MessageType::Text as i32,
                body: "hi \x1b[2J".into(),
                ..Message::default()
            }),
            home_seq: 2,
            code: ErrorCode::UnknownUser as i32,
            refused_at_ms: 2000,
            standing: DeadLetterStanding::Waiting as i32,
            ..DeadLetter::default()
        };
        assert_eq!(
            Shown::new(&letter).line(2_000 + 3 * 3_600_000),
            "3/17       8 -> 9  UnknownUser, 3 h ago  waiting  [text]  hi \u{fffd}[2J"
        );
        letter.standing = DeadLetterStanding::Requeued as i32;
        letter.resolved_at_ms = 62_000;
        letter.requeued_seq = 4;
        letter.requeued_message_id = 6;
        let words = Shown::new(&letter).whole(122_000);
        assert!(
            words.contains("requeued 60 s ago, as seq 4 of mailbox:9, message id 6"),
            "{words}"
        );
    }
}
