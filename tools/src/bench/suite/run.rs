//! Runs one case: the bench that does its work, called as a function, and what that has measured.

use std::path::PathBuf;

use super::super::cluster::SpawnArgs;
use super::super::send::{self, LoadArgs};
use super::super::{gateway, group, idle, sync};
use super::case::{Case, Pressure, SETTLE_S, Sends, WARMUP_S, Work};
use super::figures::{self, Figures};

/// Closed loop: sends on the way at any time.
const IN_FLIGHT: u32 = 256;
/// Registered before the clock starts, in every case, so that cases differ in what their names say only.
const USERS: usize = 100_000;

/// Where clusters live, and what they are made of.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) allow_tmpfs: bool,
    pub(super) mailboxd: PathBuf,
}

impl Place {
    fn spawn(&self, nodes: usize, shards: u16) -> SpawnArgs {
        SpawnArgs {
            spawn: Some(nodes),
            dir: self.dir.clone(),
            shards,
            allow_tmpfs: self.allow_tmpfs,
            profile: None,
            mailboxd: Some(self.mailboxd.clone()),
        }
    }
}

/// What a case has measured, and how many operations failed.
pub(super) type Measured = (Figures, u64);

/// Runs a case. `sends_per_s` is what the case that this one needs has reached.
///
/// # Errors
/// The cluster does not start, or something else than a send fails.
pub(super) async fn run(
    case: &Case,
    seconds: u64,
    place: &Place,
    sends_per_s: Option<f64>,
) -> anyhow::Result<Measured> {
    match case.work {
        Work::Send(sends) => {
            let rate = rate(&sends.pressure, sends_per_s)?;
            let load = load(seconds, sends.body_bytes, rate);
            let Sends { pairs, syncs, .. } = sends;
            let spawn = place.spawn(sends.nodes, sends.shards);
            let args = send::Args::new(spawn, load, pairs, syncs);
            let report = Box::pin(send::run(args)).await?;
            Ok((figures::of(&report)?, report.errors))
        }
        Work::Gateway { nodes } => {
            let load = load(seconds, 100, None);
            let args = gateway::Args::new(place.spawn(nodes, 1), load);
            let report = Box::pin(gateway::run(args)).await?;
            Ok((figures::of(&report)?, report.errors))
        }
        Work::Group { members, tls } => {
            let options = group::Options {
                members,
                tls,
                seconds,
                ..group::Options::new(place.spawn(3, 1))
            };
            let report = Box::pin(group::run(&options)).await?;
            let lost = report.missing + report.out_of_order;
            Ok((figures::of(&report)?, report.errors + lost))
        }
        Work::Sync { rows, cold } => {
            let options = sync::Options {
                rows,
                cold,
                seconds,
                ..sync::Options::new(place.spawn(1, 1))
            };
            let report = Box::pin(sync::run(&options)).await?;
            Ok((figures::of(&report)?, report.errors + report.wrong))
        }
        Work::Idle { nodes, shards } => {
            let args = idle::Args::new(place.spawn(nodes, shards), seconds, SETTLE_S);
            let report = Box::pin(idle::run(args)).await?;
            Ok((figures::of(&report)?, 0))
        }
    }
}

fn load(seconds: u64, body_bytes: usize, rate: Option<u64>) -> LoadArgs {
    LoadArgs {
        seconds,
        warmup: WARMUP_S,
        in_flight: IN_FLIGHT,
        rate,
        users: USERS,
        body_bytes,
    }
}

/// The rate of an open loop; `None` for a closed one.
fn rate(pressure: &Pressure, sends_per_s: Option<f64>) -> anyhow::Result<Option<u64>> {
    match pressure {
        Pressure::Full => Ok(None),
        Pressure::Share { percent, of } => match sends_per_s {
            Some(all) => Ok(Some(((all * *percent as f64 / 100.0) as u64).max(1))),
            None => anyhow::bail!("the rate is a share of what {of} reaches, and it has no result"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_has_its_share_of_what_was_reached() {
        let share = |percent| Pressure::Share {
            percent,
            of: "send-x",
        };
        assert_eq!(rate(&share(25), Some(44_001.0)).unwrap(), Some(11_000));
        assert_eq!(
            rate(&share(25), Some(2.0)).unwrap(),
            Some(1),
            "0 is no rate"
        );
        assert_eq!(rate(&Pressure::Full, Some(44_001.0)).unwrap(), None);
        let error = rate(&share(25), None).unwrap_err().to_string();
        assert!(error.contains("send-x"), "{error}");
    }
}
