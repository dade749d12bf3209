//! What can be asked for.

pub(crate) mod cells;
pub(crate) mod planted;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use mailbox_jepsen::nemesis::Family;
use mailbox_jepsen::options::RunOptions;
use mailbox_jepsen::{ground, workload};

/// Puts a mailbox cluster under faults and checks what it promises.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Exit status: 0 valid, 1 a promise was broken, 2 a run proves nothing or the harness failed.

Examples:
  mailbox-jepsen test --nemesis kill,pause --time-limit 60
  mailbox-jepsen test --workload lanes --nemesis partition --nodes 5 --seed 7
  mailbox-jepsen test-all --resume
  mailbox-jepsen recheck target/jepsen/latest"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One workload under some nemeses.
    Test(Test),
    /// Every workload under every nemesis, a cell each.
    TestAll(TestAll),
    /// The five cells that every change has to pass.
    Smoke(Smoke),
    /// Whether bugs that are there on purpose are found; with a mailboxd that was built with the feature `planted`.
    Planted(planted::Planted),
    /// Judges what is kept of a run again.
    Recheck {
        /// The directory of a run.
        dir: PathBuf,
        #[command(flatten)]
        print: Print,
    },
    /// Shows what is kept of runs in a browser.
    Serve {
        /// Where runs are kept.
        #[arg(long, default_value = "./target/jepsen")]
        store: PathBuf,
        /// Where to listen. Whoever reaches it may read the store: there is no password.
        #[arg(long, default_value = "127.0.0.1:8087")]
        listen: SocketAddr,
    },
    /// Lists workloads and nemeses, and what this machine lacks for them.
    List,
    /// Holds packets of the network that it runs in; for the harness itself.
    #[command(name = ground::HOLD_COMMAND, hide = true)]
    HoldPackets {
        /// The longest time, in milliseconds.
        longest_ms: u64,
    },
    /// Serves a device that loses what is not flushed; for the harness itself.
    #[command(name = ground::BLOCKS_COMMAND, hide = true)]
    ServeBlocks {
        /// What it holds.
        image: PathBuf,
        /// Where its file appears.
        dir: PathBuf,
    },
}

/// How to print.
#[derive(Debug, Clone, Args)]
pub(crate) struct Print {
    /// One JSON object instead of words (also: --output json).
    #[arg(long)]
    json: bool,
    /// `text` or `json`.
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Print {
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.output == "json"
    }
}

/// Of every run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Scale {
    /// Nodes of the cluster: 1, 3 or more.
    #[arg(long, default_value_t = 3, value_parser = nodes)]
    nodes: usize,
    /// Shards of the cluster.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// How long faults are installed, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,
    /// Sends a second, of all processes together; slower if the cluster is.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// What faults and messages follow from; random if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The mailboxd to run; the one beside this program if not given.
    #[arg(long, env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
    /// The mailboxd that `upgrade` brings nodes to, and back from.
    #[arg(long)]
    other_mailboxd: Option<PathBuf>,
    /// Where histories and judgements go, and the nodes' files of runs that were not valid.
    #[arg(long, default_value = "./target/jepsen")]
    store: PathBuf,
}

impl Scale {
    /// All of it but where it goes to.
    fn words(&self) -> String {
        let Self {
            nodes,
            shards,
            time_limit,
            rate,
            other_mailboxd,
            ..
        } = self;
        let other = if other_mailboxd.is_some() {
            ", two builds"
        } else {
            ""
        };
        format!("{nodes} nodes, {shards} shards, {time_limit} s, {rate} sends/s{other}")
    }
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(2) => Err("of two nodes each is needed for a majority; take 1, 3 or more".to_owned()),
        Ok(nodes @ 1..=9) => Ok(nodes),
        _ => Err("1, 3 or more nodes, at most 9".to_owned()),
    }
}

/// One run.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// What people do; see `list`.
    #[arg(long, default_value = "mixed", value_parser = |name: &str| workload::named(name).map(|it| it.name.to_owned()))]
    workload: String,
    /// What is done to them, in any order; see `list`.
    #[arg(long, value_delimiter = ',', default_value = "kill,pause")]
    nemesis: Vec<Family>,
    /// Each fault beside another one of another nemesis, where that can be.
    #[arg(long)]
    pairs: bool,
    #[command(flatten)]
    scale: Scale,
    #[command(flatten)]
    pub(crate) print: Print,
}

impl Test {
    /// With a directory of its own for what is kept, not yet made.
    pub(crate) fn options(&self) -> anyhow::Result<RunOptions> {
        let scale = &self.scale;
        let seed = scale.seed;
        let mut options = RunOptions {
            workload: self.workload.clone(),
            nemeses: self.nemesis.iter().map(|it| it.name().into()).collect(),
            pairs: self.pairs,
            nodes: scale.nodes,
            shards: scale.shards,
            seconds: scale.time_limit,
            rate: scale.rate,
            seed: seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
            revision: revision(),
            binary: scale.mailboxd.clone(),
            other_binary: scale.other_mailboxd.clone(),
            dir: PathBuf::new(),
            tells: true,
        };
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let of_run = PathBuf::from(options.name()).join(format!("{now}-{}", options.seed));
        options.dir = scale.store.join(&of_run);
        Ok(options)
    }

    /// Makes the directory; `latest` in the store leads to it.
    pub(crate) fn make_dir(&self, options: &RunOptions) -> anyhow::Result<()> {
        let (store, dir) = (&self.scale.store, &options.dir);
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let of_run = dir.strip_prefix(store).unwrap_or(dir);
        lead_to(&store.join("latest"), of_run)
    }
}

/// What is checked out where this is run, as git says it; with a `+` if there is more to it.
fn revision() -> Option<String> {
    let git = |words: &[&str]| {
        let output = std::process::Command::new("git")
            .args(words)
            .output()
            .ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    let revision = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let more = if changes.is_empty() { "" } else { "+" };
    Some(revision + more)
}

/// Makes a link lead somewhere else.
fn lead_to(link: &Path, to: &Path) -> anyhow::Result<()> {
    let next = link.with_extension("next");
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(to, &next)
        .and_then(|()| std::fs::rename(&next, link))
        .with_context(|| format!("link {}", link.display()))
}

/// Many runs.
#[derive(Debug, Args)]
pub(crate) struct TestAll {
    /// Only these workloads.
    #[arg(long, value_delimiter = ',', value_parser = |name: &str| workload::named(name).map(|it| it.name.to_owned()))]
    workload: Vec<String>,
    /// Only cells with one of these nemeses.
    #[arg(long, value_delimiter = ',')]
    nemesis: Vec<Family>,
    /// Goes on where a run with the same store stopped: cells that were valid are not run again.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    scale: Scale,
    /// The cells of `smoke` instead.
    #[arg(skip)]
    smoke: bool,
}

/// The five cells.
#[derive(Debug, Args)]
pub(crate) struct Smoke {
    #[command(flatten)]
    scale: Scale,
}

impl Smoke {
    pub(crate) fn test_all(&self) -> TestAll {
        TestAll {
            workload: Vec::new(),
            nemesis: Vec::new(),
            resume: false,
            scale: self.scale.clone(),
            smoke: true,
        }
    }
}

pub(crate) fn list() {
    println!("workloads:");
    for workload in &workload::ALL {
        println!("  {:<14}{}", workload.name, workload.about);
    }
    println!("\nnemeses:");
    for family in Family::ALL {
        let lacks = family.needs().iter().copied().find_map(ground::lacks);
        let lacks = lacks.map_or_else(String::new, |why| format!(" (not here: {why})"));
        println!("  {:<14}{}{lacks}", family.name(), family.about());
        let kinds: Vec<_> = family.kinds().iter().map(|kind| kind.name()).collect();
        println!("  {:<14}{}", "", kinds.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_a_directory_of_its_own_and_latest_leads_to_it() {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().to_string_lossy().into_owned();
        let words = [
            "",
            "test",
            "--nemesis",
            "pause,kill",
            "--seed",
            "7",
            "--store",
            &path,
        ];
        let Command::Test(test) = Cli::parse_from(words).command else {
            panic!("it is a test");
        };
        let options = test.options().unwrap();
        assert_eq!((options.seed, options.nemeses.len()), (7, 2));
        assert!(!options.dir.exists());
        for _ in 0..2 {
            test.make_dir(&options).unwrap();
            let latest = std::fs::canonicalize(store.path().join("latest")).unwrap();
            assert_eq!(latest, std::fs::canonicalize(&options.dir).unwrap());
        }
    }

    #[test]
    fn what_there_is_not_is_refused_with_what_there_is() {
        for (words, says) in [
            (["", "test", "--nemesis", "quake"], "kill, pause"),
            (["", "test", "--workload", "quake"], "mixed, append"),
            (["", "test", "--nodes", "2"], "1, 3 or more"),
        ] {
            let error = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
