//! `mailboxctl chat`: a person talks.
//!
//! ```text
//!  stdin ─ lines ─▶ sender: one send after another, the same id until acked ─▶ acks on stdout
//!  gateway ─ events ─▶ messages on stdout, all else on stderr
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mailbox_sdk::{Client, Destination, Event, Message};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::send::Acked;
use super::show::{Names, Shown, in_group};
use super::tail::tell;
use crate::device::{DeviceArgs, StateArgs};
use crate::output::OutputArgs;

/// Lines typed ahead of their sends; beyond it stdin is not read.
const LINES_MAX: usize = 1024;
/// Pause before a send is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const HELP: &str = "\
every line you type is sent; what others send is shown
  /to DEST   talk to someone else: @handle, a user id or group:<id>
  /help      this
  /quit      leave (Ctrl-D does the same)
  //text     send a line that begins with /";

/// Talk: each line you type is sent, what others send is shown.
///
/// Works in a terminal and in a pipe. A broken connection comes back by itself; what was typed
/// meanwhile is sent then, once. The next chat of this device goes on where this one ended.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// With whom: `@handle`, a user id or `group:<id>`
    #[arg(long, value_name = "DEST")]
    to: Destination,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// What stdin brings.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Text(String),
    To(String),
    Help,
    Quit,
    Unknown(String),
    Nothing,
}

impl Typed {
    fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(command) = line.strip_prefix('/') else {
            let blank = line.trim().is_empty();
            return if blank {
                Self::Nothing
            } else {
                Self::Text(line.to_owned())
            };
        };
        if command.starts_with('/') {
            return Self::Text(command.to_owned());
        }
        match command.split_once(' ').unwrap_or((command, "")) {
            ("help" | "?", _) => Self::Help,
            ("quit" | "q" | "exit", _) => Self::Quit,
            ("to", to) => Self::To(to.trim().to_owned()),
            (other, _) => Self::Unknown(other.to_owned()),
        }
    }
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Message(&'a Shown),
    Sent(&'a Acked),
}

/// A typed line on its way.
struct Outgoing {
    to: Destination,
    text: String,
}

/// Ids sent by this chat: their messages come back by sync and were seen when typed.
type Own = Arc<Mutex<HashSet<Uuid>>>;

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.device.connect(&args.state).await?;
    eprintln!(
        "talking to {} as user {}; /help tells more",
        args.to,
        client.user()
    );
    let own = Own::default();
    let (outgoing, sends) = mpsc::channel(LINES_MAX);
    let sender = tokio::spawn(send_all(client.clone(), sends, Arc::clone(&own), output));
    let all_acked = talk(&client, args.to, outgoing, sender, &own, output).await?;
    client.close().await?;
    Ok(all_acked)
}

/// Until /quit, the end of stdin or Ctrl-C. Whether everything typed was acked.
async fn talk(
    client: &Client,
    mut to: Destination,
    outgoing: mpsc::Sender<Outgoing>,
    mut sender: JoinHandle<anyhow::Result<bool>>,
    own: &Own,
    output: OutputArgs,
) -> anyhow::Result<bool> {
    let mut names = Names::new(client.clone());
    let mut lines = stdin_lines();
    // Dropped when nothing more is typed: the sender then ends after the last ack.
    let mut outgoing = Some(outgoing);
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                sender.abort();
                return Ok(true);
            }
            sent = &mut sender => return sent?,
            line = lines.recv(), if outgoing.is_some() => {
                let typed = line.map_or(Typed::Quit, |line| Typed::parse(&line));
                match typed {
                    Typed::Text(text) => {
                        if let Some(outgoing) = &outgoing {
                            // Full: wait; closed: the sender has failed and is seen above.
                            let _closed = outgoing.send(Outgoing { to: to.clone(), text }).await;
                        }
                    }
                    Typed::To(text) => match text.parse() {
                        Ok(other) => {
                            to = other;
                            eprintln!("talking to {to}");
                        }
                        Err(error) => eprintln!("{error}"),
                    },
                    Typed::Help => eprintln!("{HELP}"),
                    Typed::Unknown(command) => eprintln!("there is no /{command}; /help lists all"),
                    Typed::Quit => outgoing = None,
                    Typed::Nothing => {}
                }
            }
            event = client.next() => match event {
                Some(Event::Message(message)) => {
                    show(client, &message, &mut names, own, output).await?;
                }
                Some(event) => tell(&event),
                None => anyhow::bail!("the connection was closed for good"),
            }
        }
    }
}

async fn show(
    client: &Client,
    message: &Message,
    names: &mut Names,
    own: &Own,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let id = message
        .client_msg_id
        .filter(|_| message.sender == client.user());
    if id.is_some_and(|id| {
        own.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
    }) {
        return Ok(());
    }
    let shown = Shown::new(message, names).await;
    output.print(&Line::Message(&shown), |_| {
        shown.human(client.user(), in_group(message))
    })?;
    Ok(())
}

/// Sends one line after another, each until it is acked or refused. Whether all were acked.
async fn send_all(
    client: Client,
    mut sends: mpsc::Receiver<Outgoing>,
    own: Own,
    output: OutputArgs,
) -> anyhow::Result<bool> {
    let mut all_acked = true;
    while let Some(Outgoing { to, text }) = sends.recv().await {
        let id = client.new_message_id();
        own.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id);
        loop {
            match client.send_with_id(&to, id, text.as_str()).await {
                Ok(sent) => {
                    let acked = Acked::new(id, &sent);
                    output.print(&Line::Sent(&acked), |_| {
                        format!("  sent: {} seq {}", acked.timeline, acked.seq)
                    })?;
                    break;
                }
                Err(error) if error.is_retryable() => {
                    eprintln!("not sent yet, trying again: {error}");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                Err(error) => {
                    eprintln!("not sent: {error}");
                    all_acked = false;
                    break;
                }
            }
        }
    }
    Ok(all_acked)
}

/// Lines of stdin, read on a thread of their own: a read of a terminal cannot be stopped.
fn stdin_lines() -> mpsc::Receiver<String> {
    let (lines, received) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    received
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_begin_with_a_slash() {
        assert_eq!(
            Typed::parse("hello /quit\n"),
            Typed::Text("hello /quit".to_owned())
        );
        assert_eq!(Typed::parse("/quit\r\n"), Typed::Quit);
        assert_eq!(Typed::parse("/help"), Typed::Help);
        assert_eq!(Typed::parse("/to @bob "), Typed::To("@bob".to_owned()));
        assert_eq!(
            Typed::parse("//etc/passwd"),
            Typed::Text("/etc/passwd".to_owned())
        );
        assert_eq!(Typed::parse("/etc"), Typed::Unknown("etc".to_owned()));
        assert_eq!(Typed::parse("  "), Typed::Nothing);
    }

    #[test]
    fn a_json_line_says_what_it_is() {
        let acked = Acked {
            timeline: "mailbox:65".to_owned(),
            seq: "1".to_owned(),
            message_id: "2".to_owned(),
            client_msg_id: Uuid::nil().to_string(),
        };
        let json = serde_json::to_value(Line::Sent(&acked)).unwrap();
        assert_eq!(json["sent"]["timeline"], "mailbox:65");
    }
}
