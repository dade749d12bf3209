//! CPU profiles of a leader and of a follower under load, with the system's `perf`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, bail};
use mailbox_cluster::Cluster;

/// Samples per second: not a divisor of anything that a node does regularly.
const SAMPLES_PER_SECOND: &str = "197";
/// Costs that are kept.
const COSTS: usize = 10;

/// Recordings under way.
pub(super) struct Profile {
    dir: PathBuf,
    recordings: Vec<Recording>,
}

struct Recording {
    role: &'static str,
    samples: PathBuf,
    perf: Child,
}

impl Profile {
    /// Records the leader and one follower (if there is one) for `seconds` from now; the texts go
    /// into `dir`.
    pub(super) async fn start(dir: &Path, cluster: &Cluster, seconds: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let leader = cluster
            .leader()
            .await
            .context("nobody leads: there is nothing to profile")?;
        let follower = (0..cluster.nodes().len()).find(|&node| node != leader);
        let roles = [("leader", Some(leader)), ("follower", follower)];
        let mut recordings = Vec::new();
        for (role, node) in roles {
            let Some(node) = node else { continue };
            let pid = cluster
                .node(node)
                .pid()
                .context("a node does not run any more")?;
            // Not among the cluster's files: their size is measured.
            let samples = dir.join(format!(".perf-{role}"));
            let perf = Command::new("perf")
                .args([
                    "record",
                    "--quiet",
                    "-e",
                    "cpu-clock",
                    "-F",
                    SAMPLES_PER_SECOND,
                    "-o",
                ])
                .arg(&samples)
                .args(["-p", &pid.to_string(), "--", "sleep", &seconds.to_string()])
                .stdout(Stdio::null())
                .spawn()
                .context("run `perf`")?;
            recordings.push(Recording {
                role,
                samples,
                perf,
            });
        }
        Ok(Self {
            dir: dir.to_owned(),
            recordings,
        })
    }

    /// Waits for the recordings and writes `profile-<role>-<nodes>.txt` for each.
    pub(super) fn finish(self, nodes: usize) -> anyhow::Result<()> {
        for mut recording in self.recordings {
            let status = recording.perf.wait()?;
            if !status.success() {
                bail!(
                    "`perf record` of the {} ended with {status}",
                    recording.role
                );
            }
            let functions = report(&recording.samples, "symbol")?;
            let threads = report(&recording.samples, "comm")?;
            fs::remove_file(&recording.samples)?;
            let role = recording.role;
            let text = format!(
                "The {role} of {nodes} node(s) under `mailbox-bench send`: share of its CPU time.\n\n\
                 By function, the top {COSTS}:\n{functions}\nBy thread, the top {COSTS}:\n{threads}"
            );
            let path = self.dir.join(format!("profile-{role}-{nodes}.txt"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }
}

fn report(samples: &Path, sort: &str) -> anyhow::Result<String> {
    let output = Command::new("perf")
        .args([
            "report",
            "--stdio",
            "--no-children",
            "-g",
            "none",
            "--sort",
            sort,
            "-i",
        ])
        .arg(samples)
        .output()
        .context("run `perf report`")?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    if !status.success() {
        bail!(
            "`perf report` ended with {status}: {}",
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(top(&String::from_utf8_lossy(&stdout)))
}

/// The first costs of a report, without its comments.
fn top(report: &str) -> String {
    let costs = report.lines().map(str::trim_end);
    let costs = costs.filter(|line| !line.is_empty() && !line.starts_with('#'));
    costs
        .take(COSTS)
        .fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_costs_are_kept_and_comments_are_not() {
        let mut report = String::from("# Samples: 100\n#\n\n");
        for cost in 0..20 {
            report.push_str(&format!("    {}.00%  [.] function{cost}  \n", 20 - cost));
        }
        let top = top(&report);
        assert_eq!(top.lines().count(), COSTS);
        assert!(top.starts_with("    20.00%  [.] function0\n"), "{top}");
    }
}
