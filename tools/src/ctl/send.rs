//! `mailboxctl send`: one message through a gateway.

use std::io::Read as _;

use anyhow::Context as _;
use mailbox_sdk::{Destination, Sent};
use serde::Serialize;
use uuid::Uuid;

use crate::device::DeviceArgs;
use crate::output::OutputArgs;

/// Send one message through a gateway and wait until it is durable.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// To whom: `@handle`, a user id or `group:<id>`
    #[arg(long, value_name = "DEST")]
    to: Destination,
    /// The text; `-` reads it from stdin
    text: String,
    /// The message's id, a UUIDv7: repeat an unacked send with the same id and it is sent once
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// An ack, in JSON; 64-bit numbers are decimal strings as in the gateway's own JSON.
#[derive(Debug, Serialize)]
pub(super) struct Acked {
    pub(super) timeline: String,
    pub(super) seq: String,
    pub(super) message_id: String,
    pub(super) client_msg_id: String,
}

impl Acked {
    pub(super) fn new(id: Uuid, sent: &Sent) -> Self {
        Self {
            timeline: sent.timeline.to_string(),
            seq: sent.seq.to_string(),
            message_id: sent.message_id.to_string(),
            client_msg_id: id.to_string(),
        }
    }
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let mut text = args.text;
    if text == "-" {
        text.clear();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("read the text from stdin")?;
    }
    let client = args.device.connect_to_send().await?;
    let id = args.id.unwrap_or_else(|| client.new_message_id());
    let sent = client.send_with_id(&args.to, id, text).await;
    let sent = sent.with_context(|| format!("send {id} (repeat it with --id {id})"))?;
    client.close().await?;
    let acked = Acked::new(id, &sent);
    output.print(&acked, |acked| {
        format!("sent: {} seq {}", acked.timeline, acked.seq)
    })?;
    Ok(true)
}
