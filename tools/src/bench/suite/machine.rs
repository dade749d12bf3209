//! Where and with what a result came about: figures of two machines, or of two builds, are not the same figures.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::super::cluster::probe;
use super::super::report::round;

/// The machine under a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::bench) struct Machine {
    /// That this process may use.
    pub(in crate::bench) cores: u64,
    pub(in crate::bench) cpu: String,
    /// GiB.
    pub(in crate::bench) memory_gib: f64,
    pub(in crate::bench) kernel: String,
    /// The file system under the data.
    pub(in crate::bench) fs: String,
    /// Of one page, one after another, before the first case. It differs from run to run on any machine.
    pub(in crate::bench) disk_fdatasync_per_s: f64,
}

impl Machine {
    /// Looks around; `dir` is made and its disk probed.
    ///
    /// # Errors
    /// `dir` is in memory and that is not allowed, or cannot be written to.
    pub(super) fn look(dir: &Path, allow_tmpfs: bool) -> anyhow::Result<Self> {
        let (fs, fdatasync_per_s) = probe(dir, allow_tmpfs)?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cores = std::thread::available_parallelism();
        Ok(Self {
            cores: cores.map_or(0, |cores| cores.get() as u64),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            memory_gib: memory_gib(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            fs,
            disk_fdatasync_per_s: round(fdatasync_per_s, 1),
        })
    }

    /// Whether it is the same machine, as far as one can see.
    pub(in crate::bench) fn is(&self, other: &Self) -> bool {
        let looks = |machine: &Self| Self {
            disk_fdatasync_per_s: 0.0,
            ..machine.clone()
        };
        looks(self) == looks(other)
    }

    /// The machine in a line.
    pub(in crate::bench) fn human(&self) -> String {
        format!(
            "{} cores ({}), {:.1} GiB, Linux {}, {} at {:.0} fdatasync/s",
            self.cores, self.cpu, self.memory_gib, self.kernel, self.fs, self.disk_fdatasync_per_s
        )
    }
}

/// A field of `/proc/cpuinfo` or `/proc/meminfo`, the first of its name.
fn field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

fn memory_gib(meminfo: &str) -> f64 {
    let kib = field(meminfo, "MemTotal");
    let kib = kib.and_then(|text| text.strip_suffix(" kB")?.trim().parse::<f64>().ok());
    // A reboot may take or leave some MiB.
    round(kib.unwrap_or_default() / f64::from(1 << 20), 1)
}

/// What git says of the directory that this runs in: the commit, with a `+` if files of it are changed. `None` where
/// there is no git or no repository.
pub(super) fn revision() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "+" };
    Some(commit + mark)
}

/// The checksums of the two programs that make a figure: a tree with changes has no revision of its own, and a program
/// may be older than the tree.
///
/// # Errors
/// A program cannot be read.
pub(super) fn build(mailboxd: &Path) -> anyhow::Result<String> {
    let own = std::env::current_exe().context("find the running executable")?;
    Ok(format!("{}-{}", checksum(mailboxd)?, checksum(&own)?))
}

fn checksum(path: &Path) -> anyhow::Result<String> {
    let read = || -> std::io::Result<u32> {
        let mut file = fs::File::open(path)?;
        let (mut crc, mut piece) = (flate2::Crc::new(), vec![0; 1 << 20]);
        loop {
            let bytes = file.read(&mut piece)?;
            let Some(bytes) = piece.get(..bytes).filter(|bytes| !bytes.is_empty()) else {
                return Ok(crc.sum());
            };
            crc.update(bytes);
        }
    };
    let crc = read().with_context(|| format!("read {}", path.display()))?;
    Ok(format!("{crc:08x}"))
}

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::*;

    pub(in crate::bench) fn machine() -> Machine {
        Machine {
            cores: 2,
            cpu: "A Processor".to_owned(),
            memory_gib: 23.5,
            kernel: "6.1.0".to_owned(),
            fs: "ext4".to_owned(),
            disk_fdatasync_per_s: 5_000.0,
        }
    }

    #[test]
    fn a_machine_is_the_same_though_its_disk_is_in_another_mood() {
        let other = Machine {
            disk_fdatasync_per_s: 9_000.0,
            ..machine()
        };
        assert!(machine().is(&other));
        let other = Machine {
            cores: 4,
            ..machine()
        };
        assert!(!machine().is(&other));
    }

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let text = "model\t\t: 79\nmodel name\t: A Processor\nmodel name\t: Another\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A Processor"));
        assert_eq!(field(text, "name"), None);
        assert_eq!(memory_gib("MemTotal:       24641536 kB\n"), 23.5);
        assert_eq!(memory_gib(""), 0.0);
    }

    #[test]
    fn a_checksum_follows_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "123456789").unwrap();
        // The check value of CRC-32.
        assert_eq!(checksum(&file).unwrap(), "cbf43926");
        let error = checksum(&dir.path().join("b")).unwrap_err();
        assert!(format!("{error:#}").starts_with("read "), "{error:#}");
    }
}
