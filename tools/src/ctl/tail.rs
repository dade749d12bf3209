//! `mailboxctl tail`: follows everything that reaches one user.

use mailbox_sdk::Event;

use super::show::{Names, Shown, in_group};
use crate::device::{DeviceArgs, StateArgs};
use crate::output::OutputArgs;

/// Follow everything that reaches one user: its mailbox and its groups, until Ctrl-C.
///
/// Begins where the last `tail` or `chat` of this device ended, or with the whole mailbox.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    state: StateArgs,
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.device.connect(&args.state).await?;
    let mut names = Names::new(client.clone());
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
            event = client.next() => event,
        };
        match event {
            Some(Event::Message(message)) => {
                let shown = Shown::new(&message, &mut names).await;
                output.print(&shown, |shown| {
                    shown.human(client.user(), in_group(&message))
                })?;
                left -= 1;
            }
            Some(event) => tell(&event),
            None => break,
        }
    }
    client.close().await?;
    Ok(true)
}

/// Says on stderr how the connection is doing.
pub(super) fn tell(event: &Event) {
    match event {
        Event::Connected => eprintln!("connected"),
        Event::Disconnected { reason, retry_in } => {
            eprintln!(
                "disconnected ({reason}); trying again in {} ms",
                retry_in.as_millis()
            );
        }
        Event::Resync { reason } => eprintln!("beginning at the start again: {reason}"),
        // The SDK may tell more in time.
        _ => {}
    }
}
