//! A file system of its own for one node, small enough to be filled.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A loop-mounted ext4, unmounted when dropped. Nothing may use it any more by then.
pub(crate) struct SmallDisk {
    mounted: PathBuf,
    _image: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of `mib` MiB at `dir`, or says why that cannot be done on this machine.
    pub(crate) fn mount(dir: &Path, mib: u64) -> Result<Self, String> {
        std::fs::create_dir_all(dir).unwrap();
        let image = tempfile::tempdir().unwrap();
        let file = image.path().join("disk.img");
        let size = format!("{mib}M");
        run(Command::new("truncate").args(["-s", &size]).arg(&file))?;
        // No blocks kept back for root: full is full.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&file))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(dir))?;
        Ok(Self {
            mounted: dir.to_owned(),
            _image: image,
        })
    }

    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mounted).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }

    /// Writes ballast until no more than `free` bytes are left.
    pub(crate) fn leave(&self, free: u64) {
        let mut file = self.grow();
        while self.free() > free {
            let step = (self.free() - free).min(8 * MIB);
            file.write_all(&vec![1; usize::try_from(step).unwrap()])
                .unwrap();
            // Until then the blocks are promised, not taken.
            file.sync_all().unwrap();
        }
    }

    /// Writes ballast until not one block is left.
    pub(crate) fn fill(&self) {
        let mut file = self.grow();
        for step in [MIB, 4096, 1] {
            let piece = vec![1; usize::try_from(step).unwrap()];
            loop {
                let written = file.write_all(&piece).and_then(|()| match step {
                    1 => Ok(()),
                    _ => file.sync_all(),
                });
                match written {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("fill the disk: {error}"),
                }
            }
        }
    }

    fn grow(&self) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())
            .unwrap()
    }

    /// There is room again.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(reason) = run(Command::new("umount").arg(&self.mounted)) {
            eprintln!("{reason}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", words.trim()))
}
