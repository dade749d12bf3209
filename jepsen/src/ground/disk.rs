//! A file system for one node, on a loop device, whose power can be cut.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::blocks::{Blocks, Sectors};
use super::shell;

/// Size of an image, which takes room only where it was written.
const BYTES: u64 = 2 << 30;
/// What is left of the room when it cannot be reserved in one go is written in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// The disk of one node.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    /// What stands between the file system and the image, if anything does.
    blocks: Option<Mutex<Blocks>>,
    /// What a process finds there is the disk as it should be.
    is_well: AtomicBool,
    /// Nobody will want it again.
    is_abandoned: AtomicBool,
}

impl Disk {
    /// With a cache of its own or without.
    pub(super) fn make(dir: &Path, number: u64, is_cached: bool) -> anyhow::Result<Self> {
        let mount = dir.join(number.to_string());
        std::fs::create_dir_all(&mount).with_context(|| format!("create {}", mount.display()))?;
        let mut disk = Self {
            image: dir.join(format!("{number}.img")),
            mount,
            blocks: None,
            is_well: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
        };
        let file = File::create(&disk.image);
        let sized = file.and_then(|file| file.set_len(BYTES));
        sized.with_context(|| format!("create {}", disk.image.display()))?;
        // Without the disk no node may take its place for an empty one.
        std::fs::write(disk.data_dir(), "the disk is not attached")
            .with_context(|| format!("write {}", disk.data_dir().display()))?;
        // Without reserved blocks, which root may use when all others are gone.
        shell::run("mkfs.ext4", &["-qF", "-m", "0", &text(&disk.image)])?;
        if is_cached {
            let blocks = Blocks::serve(&disk.image, &dir.join(format!("{number}.blocks")))?;
            disk.blocks = Some(Mutex::new(blocks));
        }
        disk.attach()?;
        Ok(disk)
    }

    /// Where a node keeps its data on it.
    pub fn data_dir(&self) -> PathBuf {
        self.mount.join("data")
    }

    fn attach(&self) -> anyhow::Result<()> {
        let mut device = self.image.clone();
        if let Some(mut blocks) = self.blocks() {
            blocks.restore()?;
            device = blocks.file();
        }
        let words = ["-o", "loop", &text(&device), &text(&self.mount)];
        shell::run("mount", &words)?;
        self.is_well.store(true, Relaxed);
        Ok(())
    }

    /// Takes it out of use; the image is left to whoever wants to read it. No process may have a file on it open.
    pub(super) fn abandon(&self) -> anyhow::Result<()> {
        if self.is_abandoned.swap(true, Relaxed) {
            return Ok(());
        }
        self.detach()
    }

    fn detach(&self) -> anyhow::Result<()> {
        self.is_well.store(false, Relaxed);
        shell::run("umount", &[&text(&self.mount)]).map(drop)
    }

    /// As if the power had gone and come back: what no sync has made durable is lost, and the file system recovers from
    /// its journal. No process may have a file on it open.
    ///
    /// # Errors
    /// When the disk is busy, or does not come back; [`Disk::heal`] tries again.
    pub fn lose_power(&self) -> anyhow::Result<()> {
        self.is_well.store(false, Relaxed);
        // Without `-f` the journal's own log is not flushed either.
        shell::run("xfs_io", &["-x", "-c", "shutdown", &text(&self.mount)])?;
        self.detach()?;
        self.attach()
    }

    /// The power goes while the device has work: nothing is read or written any more, and of what was not flushed only a
    /// part is there, by the seed's choice. Its process can but end; then [`Disk::lose_power`] brings the power back.
    ///
    /// # Errors
    /// When the device has no cache of its own, or does not answer.
    pub fn cut(&self, seed: u64) -> anyhow::Result<Sectors> {
        self.is_well.store(false, Relaxed);
        let mut blocks = self.blocks().context("the disk has no cache of its own")?;
        blocks.cut(seed)
    }

    fn blocks(&self) -> Option<MutexGuard<'_, Blocks>> {
        let blocks = self.blocks.as_ref()?;
        Some(blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes all free room, mostly without writing: blocks are reserved.
    ///
    /// # Errors
    /// When something else but room is missing.
    pub fn fill(&self) -> anyhow::Result<()> {
        let path = self.filler();
        let fill = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            let (mut end, mut step) = (0, BYTES);
            while step >= PIECE_BYTES as u64 {
                match fallocate(&file, FallocateFlags::empty(), end, step) {
                    Ok(()) => end += step,
                    Err(Errno::NOSPC) => step /= 2,
                    Err(error) => return Err(error.into()),
                }
            }
            let piece = vec![0; PIECE_BYTES];
            loop {
                match file.write_all(&piece).and_then(|()| file.sync_data()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        fill().with_context(|| format!("fill {}", path.display()))
    }

    /// Gives the room back that [`Disk::fill`] took, and the disk to its node if it lacks it.
    ///
    /// # Errors
    /// When the filler cannot be removed, or the disk does not come back.
    pub fn heal(&self) -> anyhow::Result<()> {
        if self.is_abandoned.load(Relaxed) {
            return Ok(());
        }
        if !self.is_well.load(Relaxed) {
            // It may be there and dead, or not be there at all.
            let _ = self.detach();
            self.attach()?;
        }
        let path = self.filler();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
