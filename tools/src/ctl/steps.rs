//! Steps of the placement in words, and waiting for them.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use mailbox_client::v1::placement_step::Step;
use mailbox_client::v1::{ClusterMap, PlacementStep};
use mailbox_client::{CallError, Client};

use crate::duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Whether and how long a command waits for what it has begun.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct WaitArgs {
    /// Return when it is done, not when it has begun; progress goes to stderr
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: give up waiting (not the work itself) after this time
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

/// One step as a sentence.
pub(crate) fn step_text(step: &PlacementStep) -> String {
    let shard = step.shard;
    match &step.step {
        Some(Step::AddLearner(add)) => match add.replaces {
            0 => format!("shard {shard}: node {} gets a new replica", add.node),
            replaces => format!(
                "shard {shard}: node {} gets a replica in place of node {replaces}'s",
                add.node
            ),
        },
        Some(Step::PromoteReplace(promote)) => match promote.replaced {
            0 => format!("shard {shard}: node {} votes", promote.learner),
            replaced => format!(
                "shard {shard}: node {} votes in place of node {replaced}",
                promote.learner
            ),
        },
        Some(Step::TransferLeader(transfer)) => format!(
            "shard {shard}: node {} leads after node {}",
            transfer.to, transfer.from
        ),
        Some(Step::RemoveReplica(remove)) => {
            format!("shard {shard}: node {} drops its replica", remove.node)
        }
        None => format!("shard {shard}: a step that this version does not know"),
    }
}

/// Looks until nothing is left, or time is up. `left` gives what is left in words, which go to stderr as they change.
pub(crate) async fn wait_until_over(
    within: Duration,
    left: impl AsyncFn() -> Result<Option<String>, CallError>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let now = match left().await {
            Ok(None) => return Ok(()),
            Ok(Some(words)) => words,
            // The one that answered may have been the one that goes.
            Err(error) => format!("nobody tells how far it is: {error}"),
        };
        if told != now {
            eprintln!("{:>4} s  {now}", begun.elapsed().as_secs());
            told = now;
        }
        if begun.elapsed() >= within {
            bail!(
                "not done within {within:?}: {told}\n  It goes on by itself. `mailboxctl doctor` says what hinders \
                 it; the same command with --wait waits on"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks at the map until `left` says that nothing is left, or time is up. `left` gives what is left in words.
pub(crate) async fn wait_for(
    client: &Client,
    within: Duration,
    left: impl Fn(&ClusterMap) -> Option<String>,
) -> anyhow::Result<ClusterMap> {
    let begun = Instant::now();
    let mut told = None;
    let on_terminal = std::io::stderr().is_terminal();
    loop {
        let now = match client.cluster_map().await {
            Ok(map) => match left(&map) {
                None => return Ok(map),
                Some(words) => words,
            },
            // The one that answered may have been the one that goes.
            Err(error) => told_error(&error),
        };
        if told.as_ref() != Some(&now) {
            let seconds = begun.elapsed().as_secs();
            if on_terminal || told.is_none() || seconds > 0 {
                eprintln!("{seconds:>4} s  {now}");
            }
            told = Some(now.clone());
        }
        if begun.elapsed() >= within {
            let fault = client.steps().await.ok().map(|steps| steps.fault);
            let fault = fault.filter(|fault| !fault.is_empty());
            let why = fault.map_or_else(String::new, |fault| {
                format!("; the placement says: {fault}")
            });
            bail!(
                "not done within {within:?}: {now}{why}\n  It goes on by itself. `mailboxctl doctor` says what \
                 hinders it; the same command with --wait waits on"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn told_error(error: &CallError) -> String {
    format!("no node tells the map: {error}")
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::{AddLearnerStep, PromoteReplaceStep};

    use super::*;

    #[test]
    fn a_step_is_a_sentence() {
        let add = PlacementStep {
            step: Some(Step::AddLearner(AddLearnerStep {
                node: 4,
                replaces: 1,
            })),
            shard: 2,
            ..PlacementStep::default()
        };
        assert_eq!(
            step_text(&add),
            "shard 2: node 4 gets a replica in place of node 1's"
        );
        let vote = PlacementStep {
            step: Some(Step::PromoteReplace(PromoteReplaceStep {
                learner: 4,
                replaced: 0,
            })),
            shard: 2,
            ..PlacementStep::default()
        };
        assert_eq!(step_text(&vote), "shard 2: node 4 votes");
    }
}
