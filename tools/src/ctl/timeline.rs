//! `mailboxctl timeline`: reads timelines from the store.

use base64::Engine as _;
use mailbox_client::Client;
use mailbox_client::v1::{self, Message, MessageType, SyncRange, SyncRequest, Timeline};
use serde::Serialize;
use uuid::Uuid;

use crate::node::{NodeArgs, parse_timeline, timeline_text, type_text};
use crate::output::{OutputArgs, printable};

/// Messages asked for at a time.
const PAGE_MESSAGES: u32 = 500;

/// Read timelines from the store.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print the messages of one timeline, in order of seq
    Show(ShowArgs),
}

/// Print the messages of one timeline.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// `mailbox:<user id>` or `group:<group id>`
    #[arg(value_parser = parse_timeline)]
    timeline: Timeline,
    /// Begin after this seq
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Print at most so many messages
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,
    /// Read the replica of the first --address as it is, which may be behind
    #[arg(long)]
    stale: bool,
    /// Let any replica answer whose rows are at most so old
    #[arg(long, value_name = "MS", conflicts_with = "stale", value_parser = clap::value_parser!(u32).range(1..))]
    max_staleness_ms: Option<u32>,
    #[command(flatten)]
    node: NodeArgs,
}

/// One message in JSON; 64-bit ids are decimal strings, since many readers round larger numbers.
#[derive(Serialize)]
struct Shown {
    timeline: String,
    seq: String,
    message_id: String,
    sender: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    sent_at_ms: String,
    #[serde(rename = "type")]
    kind: &'static str,
    client_msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_seq: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Show(args) => show(&args, output).await,
    }
}

async fn show(args: &ShowArgs, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.node.connect().await?;
    let (mut after, mut left) = (args.after, args.limit);
    while left > 0 {
        let limit = u32::try_from(left).unwrap_or(u32::MAX).min(PAGE_MESSAGES);
        let range = SyncRange {
            timeline: Some(args.timeline),
            after_seq: after,
        };
        let request = SyncRequest {
            ranges: vec![range],
            limit,
            stale: args.stale,
            max_staleness_ms: args.max_staleness_ms,
            ..SyncRequest::default()
        };
        let page = read(&client, args, request).await?;
        let Some(page) = page.pages.into_iter().next() else {
            break;
        };
        for message in &page.messages {
            output.print(&Shown::new(args.timeline, message), Shown::human)?;
        }
        if after < page.trim_point {
            eprintln!(
                "messages up to seq {} are no longer in the hot store",
                page.trim_point
            );
        }
        let Some(last) = page.messages.last() else {
            break;
        };
        after = last.seq;
        left = left.saturating_sub(page.messages.len() as u64);
        if !page.more {
            break;
        }
        if left == 0 {
            eprintln!(
                "there is more, up to seq {}: repeat with --after {after}",
                page.head
            );
        }
    }
    Ok(true)
}

async fn read(
    client: &Client,
    args: &ShowArgs,
    request: SyncRequest,
) -> anyhow::Result<v1::SyncResponse> {
    let response = match args.node.addresses.first().filter(|_| args.stale) {
        Some(address) => client.sync_at(address, request).await,
        None => client.sync(request).await,
    };
    Ok(response?)
}

impl Shown {
    fn new(timeline: Timeline, message: &Message) -> Self {
        let kind = message.r#type();
        let text = match kind {
            MessageType::Opaque => None,
            _ => std::str::from_utf8(&message.body).ok().map(str::to_owned),
        };
        let refused = kind == MessageType::Refusal;
        let encode = |body: &[u8]| base64::engine::general_purpose::STANDARD.encode(body);
        Self {
            timeline: timeline_text(timeline),
            seq: message.seq.to_string(),
            message_id: message.message_id.to_string(),
            sender: message.sender.to_string(),
            recipient: (message.recipient != 0).then(|| message.recipient.to_string()),
            sent_at_ms: message.sent_at_ms.to_string(),
            kind: type_text(kind),
            client_msg_id: Uuid::from_slice(&message.client_msg_id)
                .ok()
                .map(|id| id.to_string()),
            body_base64: text.is_none().then(|| encode(&message.body)),
            text,
            refused_seq: refused.then(|| message.refused_seq.to_string()),
            refusal: refused.then(|| message.refusal().name()),
        }
    }

    fn human(&self) -> String {
        let whom = self
            .recipient
            .as_ref()
            .map(|to| format!(" -> {to}"))
            .unwrap_or_default();
        let what = match (&self.refusal, &self.text, &self.body_base64) {
            (Some(why), _, _) => {
                format!(
                    "seq {} was refused: {why}",
                    self.refused_seq.as_deref().unwrap_or("?")
                )
            }
            (None, Some(text), _) => printable(text),
            (None, None, Some(body)) => format!("base64:{body}"),
            (None, None, None) => String::new(),
        };
        format!(
            "{:>6}  {}{whom}  [{}]  {what}",
            self.seq, self.sender, self.kind
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mailbox_client::v1::{ErrorCode, TimelineKind};

    fn mailbox() -> Timeline {
        Timeline {
            kind: TimelineKind::Mailbox as i32,
            owner: 65,
        }
    }

    #[test]
    fn ids_are_strings_in_json() {
        let message = Message {
            seq: 3,
            message_id: u64::MAX,
            sender: 65,
            recipient: 130,
            sent_at_ms: 1_700_000_000_000,
            r#type: MessageType::Text as i32,
            client_msg_id: Uuid::from_u128(7).into_bytes().to_vec().into(),
            body: b"hi\x07".to_vec().into(),
            ..Message::default()
        };
        let shown = Shown::new(mailbox(), &message);
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json["message_id"], "18446744073709551615");
        assert_eq!(json["timeline"], "mailbox:65");
        assert_eq!(json["client_msg_id"], Uuid::from_u128(7).to_string());
        assert!(json.get("refusal").is_none());
        assert_eq!(shown.human(), "     3  65 -> 130  [text]  hi\u{fffd}");
    }

    #[test]
    fn a_refusal_says_of_what_and_why() {
        let message = Message {
            seq: 4,
            sender: 65,
            r#type: MessageType::Refusal as i32,
            refused_seq: 3,
            refusal: ErrorCode::UnknownUser as i32,
            ..Message::default()
        };
        let shown = Shown::new(mailbox(), &message);
        assert!(
            shown.human().ends_with("seq 3 was refused: UnknownUser"),
            "{}",
            shown.human()
        );
    }
}
