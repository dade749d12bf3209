//! Messages that reach a device, in words and as JSON.

use std::collections::HashMap;

use base64::Engine as _;
use mailbox_sdk::{Client, Message, MessageType, Timeline, UserRef};
use serde::Serialize;

use crate::output::printable;

/// Names remembered; beyond it they are asked anew.
const NAMES_MAX: usize = 10_000;

/// Handles of users, asked once each.
pub(super) struct Names {
    client: Client,
    known: HashMap<u64, String>,
}

impl Names {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: HashMap::new(),
        }
    }

    /// The handle of a user, or its id where the gateway does not tell.
    pub(super) async fn of(&mut self, user: u64) -> String {
        if let Some(name) = self.known.get(&user) {
            return name.clone();
        }
        match self.client.resolve_user(&UserRef::Id(user)).await {
            Ok((_, handle)) => {
                if self.known.len() >= NAMES_MAX {
                    self.known.clear();
                }
                self.known.insert(user, handle.clone());
                handle
            }
            Err(_) => user.to_string(),
        }
    }
}

/// One message in JSON; 64-bit numbers are decimal strings.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    timeline: String,
    seq: String,
    message_id: String,
    sender: String,
    sender_handle: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient_handle: Option<String>,
    sent_at_ms: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_seq: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

impl Shown {
    pub(super) async fn new(message: &Message, names: &mut Names) -> Self {
        let recipient = (message.recipient != 0).then_some(message.recipient);
        let recipient_handle = match recipient {
            Some(user) => Some(names.of(user).await),
            None => None,
        };
        let text = message.text().map(str::to_owned);
        let opaque = message.kind == MessageType::OPAQUE;
        let encode = |body: &[u8]| base64::engine::general_purpose::STANDARD.encode(body);
        let (refused_seq, refusal) = match &message.refused {
            Some((seq, why)) => (Some(seq.to_string()), Some(why.clone())),
            None => (None, None),
        };
        let kind = message
            .kind
            .name()
            .map_or_else(|| message.kind.0.to_string(), str::to_owned);
        Self {
            timeline: message.timeline.to_string(),
            seq: message.seq.to_string(),
            message_id: message.message_id.to_string(),
            sender: message.sender.to_string(),
            sender_handle: names.of(message.sender).await,
            recipient: recipient.map(|user| user.to_string()),
            recipient_handle,
            sent_at_ms: message.sent_at_ms.to_string(),
            kind,
            client_msg_id: message.client_msg_id.map(|id| id.to_string()),
            text,
            body_base64: opaque.then(|| encode(&message.body)),
            refused_seq,
            refusal,
        }
    }

    /// `bob: hi` in a mailbox, `bob in group:65: hi` in a group.
    pub(super) fn human(&self, me: u64, in_group: bool) -> String {
        let sender = printable(&self.sender_handle);
        if let (Some(seq), Some(why)) = (&self.refused_seq, &self.refusal) {
            return format!("* your message {seq} was not delivered: {why}");
        }
        let place = if in_group {
            format!(" in {}", self.timeline)
        } else {
            String::new()
        };
        let whom = match &self.recipient_handle {
            Some(to) if self.sender == me.to_string() => format!(" to {}", printable(to)),
            _ => place,
        };
        match (&self.text, self.kind.as_str()) {
            (Some(text), "text") => format!("{sender}{whom}: {}", printable(text)),
            (_, "opaque") => {
                format!(
                    "{sender}{whom}: [{}]",
                    self.body_base64.as_deref().unwrap_or_default()
                )
            }
            (Some(name), "group_created") => {
                format!(
                    "* {sender} created {}, \"{}\"",
                    self.timeline,
                    printable(name)
                )
            }
            (_, "member_joined") => format!("* {sender} joined {}", self.timeline),
            (_, "member_left") => format!("* {sender} left {}", self.timeline),
            (_, kind) => format!("* {sender}{whom} [{kind}]"),
        }
    }
}

/// Whether a message lies in a group's timeline.
pub(super) fn in_group(message: &Message) -> bool {
    match message.timeline {
        Timeline::Group(_) => true,
        Timeline::Mailbox(_) => false,
    }
}
