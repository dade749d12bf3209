//! `mailboxctl top`: a cluster at work, on a terminal that is drawn anew again and again.

mod draw;
mod picture;
mod screen;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mailbox_client::Client;
use mailbox_client::v1::StatusRequest;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::duration;
use crate::node::NodeArgs;
use crate::output::OutputArgs;
use crate::survey::{self, Survey};
use draw::{Sort, View};
use picture::Picture;
use screen::{Key, Screen};

/// Watch a cluster at work: nodes, shards, rates, lag, hot timelines
///
/// On a terminal the picture is drawn anew every --interval, until `q` or Ctrl-C; `?` shows the keys. Into a
/// pipe, with --once or with --json it is one picture: two looks, --interval apart, and the rates
/// between them.
///
/// Each node answers for itself, so this works without a quorum. Sends are messages appended to their home
/// timelines, deliveries are rows appended to mailboxes of others than the sender, reads are
/// timelines of which pages or heads were read, all per second. `behind` is how many entries the slowest
/// replica of a shard lacks. Hot timelines are those with the most traffic of the last seconds: each node
/// remembers up to 64 for every shard, so one with more than a 64th of a shard's traffic is never missing, and its
/// rates are at least those shown.
///
/// The exit status is 1 when a node does not answer or a shard has no leader. `mailboxctl doctor` says
/// what to do about it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one picture and end
    #[arg(long)]
    once: bool,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// How the shards are ordered
    #[arg(long, value_enum, default_value = "shard")]
    sort: Sort,
    /// Hot timelines asked of each shard, at most 64
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=64))]
    hot: u32,
    #[command(flatten)]
    node: NodeArgs,
}

/// Looks cost every node something: not more than ten a second.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < Duration::from_millis(100) {
        return Err(format!("`{text}` is too short: 100ms is the least"));
    }
    Ok(interval)
}

pub(super) async fn run(args: Args, output: OutputArgs) -> anyhow::Result<bool> {
    let client = args.node.connect().await?;
    let mut looks = Looks {
        client,
        hot: args.hot,
        last: None,
    };
    let live = !args.once
        && !output.is_json()
        && std::io::stdout().is_terminal()
        && std::io::stdin().is_terminal();
    if live {
        return watch(looks, args.interval, args.sort).await;
    }
    looks.take().await?;
    tokio::time::sleep(args.interval).await;
    let picture = looks.take().await?;
    output.print(&picture, |picture| {
        let lines = draw::all(View {
            picture: Some(picture),
            fault: None,
            sort: args.sort,
            scroll: 0,
            paused: false,
            help: false,
        });
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    Ok(is_well(&picture))
}

fn is_well(picture: &Picture) -> bool {
    picture.serves && picture.nodes.iter().all(|node| node.up)
}

/// One look after the other.
struct Looks {
    client: Client,
    hot: u32,
    last: Option<(Instant, Survey)>,
}

impl Looks {
    /// What is now, and what went on since the last look.
    async fn take(&mut self) -> anyhow::Result<Picture> {
        let request = StatusRequest {
            hot_timelines: self.hot,
            ..StatusRequest::default()
        };
        let at = Instant::now();
        let (seen, steps) = tokio::join!(
            Survey::take_with(&self.client, request),
            survey::steps(&self.client)
        );
        let seen = seen?;
        let before = self.last.as_ref();
        let before = before.map(|(then, seen)| (seen, at.duration_since(*then)));
        let picture = Picture::of(&seen, before, steps.as_ref().ok());
        self.last = Some((at, seen));
        Ok(picture)
    }
}

/// The live view, until it is left.
async fn watch(mut looks: Looks, interval: Duration, sort: Sort) -> anyhow::Result<bool> {
    let (pictures, mut inbox) = mpsc::channel(1);
    // A look that waits for a dead node holds up no key.
    tokio::spawn(async move {
        loop {
            let looked = looks.take().await;
            let looked = looked.map(Arc::new).map_err(|error| format!("{error:#}"));
            if pictures.send(looked).await.is_err() {
                return;
            }
            tokio::time::sleep(interval).await;
        }
    });
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut screen = Screen::take().context("take the terminal; --once needs none")?;
    let mut keys = screen::keys();
    let mut state = State {
        picture: None,
        fault: None,
        sort,
        scroll: 0,
        held: false,
        help: false,
    };
    loop {
        screen.draw(draw::screen(state.view(), screen.height()?))?;
        tokio::select! {
            Some(looked) = inbox.recv() => state.take(looked),
            key = keys.recv() => match key {
                Some(Key::Leave) | None => break,
                Some(key) => state.press(key),
            },
            _ = hangup.recv() => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // Whoever left has seen what there was to see.
    Ok(true)
}

/// What the live view shows, and how.
struct State {
    picture: Option<Arc<Picture>>,
    fault: Option<String>,
    sort: Sort,
    scroll: usize,
    held: bool,
    help: bool,
}

impl State {
    fn take(&mut self, looked: Result<Arc<Picture>, String>) {
        if self.held {
            return;
        }
        match looked {
            Ok(picture) => {
                self.picture = Some(picture);
                self.fault = None;
            }
            // The last picture stays: it is better than none.
            Err(fault) => self.fault = Some(fault),
        }
    }

    fn press(&mut self, key: Key) {
        let shards = self
            .picture
            .as_ref()
            .map_or(0, |picture| picture.shards.len());
        match key {
            Key::Sort => self.sort = self.sort.next(),
            Key::Up(lines) => self.scroll = self.scroll.saturating_sub(lines),
            Key::Down(lines) => self.scroll = (self.scroll + lines).min(shards.saturating_sub(1)),
            Key::Home => self.scroll = 0,
            Key::Hold => self.held = !self.held,
            Key::Help => self.help = !self.help,
            Key::Draw | Key::Leave => {}
        }
    }

    fn view(&self) -> View<'_> {
        View {
            picture: self.picture.as_deref(),
            fault: self.fault.as_deref(),
            sort: self.sort,
            scroll: self.scroll,
            paused: self.held,
            help: self.help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_picture_stays_and_a_failed_look_keeps_the_last() {
        let picture = || {
            let seen = picture::tests::survey(1);
            Ok(Arc::new(Picture::of(&seen, None, None)))
        };
        let mut state = State {
            picture: None,
            fault: None,
            sort: Sort::Shard,
            scroll: 0,
            held: false,
            help: false,
        };
        state.take(Err("nobody answers".to_owned()));
        assert!(state.view().fault.is_some() && state.picture.is_none());
        state.take(picture());
        assert!(state.view().fault.is_none() && state.picture.is_some());
        let first = state.picture.clone().unwrap();
        state.press(Key::Hold);
        state.take(picture());
        assert!(Arc::ptr_eq(&first, state.picture.as_ref().unwrap()));
        state.press(Key::Hold);
        state.take(Err("nobody answers".to_owned()));
        assert!(state.picture.is_some() && state.fault.is_some());
        state.press(Key::Down(10));
        assert_eq!(state.scroll, 1, "not beyond the last shard");
        state.press(Key::Up(10));
        assert_eq!(state.scroll, 0);
    }

    #[test]
    fn an_interval_that_would_be_a_load_is_refused() {
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        assert!(interval("99ms").unwrap_err().contains("100ms"));
        assert!(interval("2").is_err());
    }
}
