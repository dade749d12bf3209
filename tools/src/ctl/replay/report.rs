//! What a replay prints.

use serde::Serialize;

use super::script::Script;
use super::verify::Verdict;
use crate::ctl::inspect::NodeReport;
use crate::output::grouped;

/// The result of a replay. Keys are for ever.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Chat lines sent to the group.
    pub(super) lines: u64,
    pub(super) skipped: u64,
    pub(super) users: u64,
    /// Sends to one nick.
    pub(super) direct: u64,
    /// Of `lines` and `direct` together.
    pub(super) acked: u64,
    pub(super) missing: u64,
    pub(super) duplicated: u64,
    pub(super) misordered: u64,
    /// Longest time without any ack while a send waits.
    pub(super) longest_pause_ms: u64,
    /// Processes killed.
    pub(super) kills: u64,
    /// From the first send to the last ack.
    pub(super) seconds: f64,
    /// Only if so: no node's own replica was read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) gateways_only: bool,
    /// Only with `--inspect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inspected: Option<Inspected>,
}

/// All nodes' files after the run.
#[derive(Debug, Serialize)]
pub(super) struct Inspected {
    /// Every node verified, and all state hashes are equal at equal index.
    pub(super) equal: bool,
    pub(super) nodes: Vec<NodeReport>,
}

impl Report {
    pub(super) fn new(script: &Script) -> Self {
        Self {
            lines: script.lines,
            skipped: script.skipped,
            users: script.nicks.len() as u64,
            direct: script.direct,
            acked: 0,
            missing: 0,
            duplicated: 0,
            misordered: 0,
            longest_pause_ms: 0,
            kills: 0,
            seconds: 0.0,
            gateways_only: false,
            inspected: None,
        }
    }

    /// Takes over the counts of the verification.
    pub(super) fn take(&mut self, verdict: &Verdict) {
        self.missing = verdict.missing;
        self.duplicated = verdict.duplicated;
        self.misordered = verdict.misordered;
    }

    /// Whether everything was acked and nothing was found.
    pub(super) fn is_good(&self) -> bool {
        self.acked == self.lines + self.direct
            && self.missing == 0
            && self.duplicated == 0
            && self.misordered == 0
            && self
                .inspected
                .as_ref()
                .is_none_or(|inspected| inspected.equal)
    }

    pub(super) fn human(&self) -> String {
        let sends = self.lines + self.direct;
        let mut text = format!(
            "{} lines and {} directed ones by {} users ({} lines skipped)\n\
             {} of {} acked in {:.1} s ({:.0}/s), longest pause {} ms, {} kills\n\
             {} missing, {} duplicated, {} misordered",
            grouped(self.lines),
            grouped(self.direct),
            grouped(self.users),
            grouped(self.skipped),
            grouped(self.acked),
            grouped(sends),
            self.seconds,
            self.acked as f64 / self.seconds.max(0.001),
            grouped(self.longest_pause_ms),
            self.kills,
            self.missing,
            self.duplicated,
            self.misordered,
        );
        if self.gateways_only {
            text.push_str(
                "\nread back through gateways only: --address and --secret-file let each node's \
                 replica be read, too",
            );
        }
        if let Some(inspected) = &self.inspected {
            for node in &inspected.nodes {
                text.push('\n');
                text.push_str(&node.human());
            }
            let verdict = if inspected.equal {
                "equal"
            } else {
                "NOT EQUAL"
            };
            text.push_str(&format!("\nstate hashes at equal index: {verdict}"));
        }
        let verdict = if self.is_good() {
            "nothing lost"
        } else {
            "FAILED"
        };
        format!("{text}\n{verdict}")
    }
}

/// What a dry run counts.
#[derive(Debug, Serialize)]
pub(super) struct DryRun {
    lines: u64,
    skipped: u64,
    users: u64,
    direct: u64,
}

impl DryRun {
    pub(super) fn new(script: &Script) -> Self {
        Self {
            lines: script.lines,
            skipped: script.skipped,
            users: script.nicks.len() as u64,
            direct: script.direct,
        }
    }

    pub(super) fn human(&self) -> String {
        format!(
            "{} chat lines, {} of them directed, by {} nicks; {} lines skipped",
            grouped(self.lines),
            grouped(self.direct),
            grouped(self.users),
            grouped(self.skipped)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let script = Script {
            lines: 2,
            direct: 1,
            ..Script::default()
        };
        Report {
            acked: 3,
            ..Report::new(&script)
        }
    }

    #[test]
    fn the_json_keys_are_the_promised_ones() {
        let json = serde_json::to_value(good()).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut promised = [
            "lines",
            "skipped",
            "users",
            "direct",
            "acked",
            "missing",
            "duplicated",
            "misordered",
            "longest_pause_ms",
            "kills",
            "seconds",
        ];
        promised.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, promised);
    }

    #[test]
    fn each_fault_makes_a_run_bad() {
        assert!(good().is_good());
        assert!(!Report { acked: 2, ..good() }.is_good());
        assert!(
            !Report {
                missing: 1,
                ..good()
            }
            .is_good()
        );
        assert!(
            !Report {
                duplicated: 1,
                ..good()
            }
            .is_good()
        );
        assert!(
            !Report {
                misordered: 1,
                ..good()
            }
            .is_good()
        );
        let inspected = Some(Inspected {
            equal: false,
            nodes: Vec::new(),
        });
        assert!(
            !Report {
                inspected,
                ..good()
            }
            .is_good()
        );
        assert!(good().human().ends_with("nothing lost"));
    }
}
