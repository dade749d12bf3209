//! The file that [`super::blocks`] serves, and the cache behind it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request,
    WriteFlags,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::blocks::{CUT, FILE, ON, READY, Sectors};

/// What the file system above writes in one go.
const BLOCK: usize = 4096;
/// What a device writes whole or not at all.
const SECTOR: usize = 512;
/// A cache with more blocks writes them all: 64 MiB.
const BLOCKS_MAX: usize = 16_384;
/// Of the blocks that a cut hits, those whose sectors have each a fate of their own.
const TORN: f64 = 0.5;
/// Where ext4 has its superblock, of two sectors: no file system outlives that one torn.
const SUPERBLOCK: u64 = 0;
/// How long a cut waits for a flush to come between.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);
const INODE: INodeNo = INodeNo(2);
/// For how long the kernel may believe what it was told of the file, which never changes.
const TTL: Duration = Duration::from_secs(3600);

pub(super) fn serve(image: &Path, dir: &Path) -> anyhow::Result<Infallible> {
    let device = Device::open(image).with_context(|| format!("open {}", image.display()))?;
    let size = device.size;
    let shared = Arc::new(Shared {
        device: Mutex::new(device),
        went: Condvar::new(),
    });
    let file = OneFile {
        shared: Arc::clone(&shared),
        size,
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("mailbox-blocks".to_owned())];
    let session = fuser::spawn_mount(file, dir, &config);
    let session = session.with_context(|| format!("mount on {}", dir.display()))?;
    obey(&shared)?;
    // What is still open there ends with this process.
    let _ = session.umount_and_join();
    std::process::exit(0);
}

/// Does what stdin says, until it ends.
fn obey(shared: &Shared) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let mut say = |words: &str| -> anyhow::Result<()> {
        writeln!(out, "{words}").context("answer")?;
        out.flush().context("answer")
    };
    say(READY)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read orders")?;
        match line.split_once(' ') {
            Some((CUT, seed)) => {
                let seed = seed.parse().context("read the seed of a cut")?;
                let sectors = shared.cut(seed).context("write what a cut left")?;
                say(&format!("{} {}", sectors.kept, sectors.lost))?;
            }
            None if line == ON => {
                shared.lock().restore();
                say(READY)?;
            }
            _ => bail!("there is no order {line:?}"),
        }
    }
    Ok(())
}

/// The device, for its file and for whoever cuts its power.
#[derive(Debug)]
struct Shared {
    device: Mutex<Device>,
    /// The power has gone.
    went: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Device> {
        // Each change is whole: one that panicked has left nothing halfway.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power in the middle of the next flush: between two of them there is seldom anything that is not flushed.
    fn cut(&self, seed: u64) -> std::io::Result<Sectors> {
        let mut device = self.lock();
        device.fails_at = Some(seed);
        let waited = self
            .went
            .wait_timeout_while(device, FLUSH_WITHIN, |device| device.has_power);
        (device, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if device.has_power {
            device.cut(seed)?;
        }
        Ok(device.left)
    }

    fn flush(&self) -> std::io::Result<()> {
        let flushed = self.lock().flush();
        if flushed.is_err() {
            self.went.notify_all();
        }
        flushed
    }
}

type Block = Box<[u8; BLOCK]>;

/// A file with a cache of what is not flushed.
#[derive(Debug)]
struct Device {
    file: File,
    size: u64,
    /// By number.
    unflushed: HashMap<u64, Block>,
    has_power: bool,
    /// The next flush is the last: by this seed's choice a part of it is done.
    fails_at: Option<u64>,
    /// What the last cut left.
    left: Sectors,
}

impl Device {
    fn open(image: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).open(image)?;
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            size,
            unflushed: HashMap::new(),
            has_power: true,
            fails_at: None,
            left: Sectors::default(),
        })
    }

    fn check_power(&self) -> std::io::Result<()> {
        if self.has_power {
            Ok(())
        } else {
            Err(std::io::Error::other("there is no power"))
        }
    }

    /// What was last written there, flushed or not; shorter at the end of the device.
    fn read(&self, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
        self.check_power()?;
        let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        for (number, within, part) in parts(at, bytes.len()) {
            let place = &mut bytes[part];
            match self.unflushed.get(&number) {
                Some(block) => place.copy_from_slice(&block[within..within + place.len()]),
                None => self
                    .file
                    .read_exact_at(place, start(number) + within as u64)?,
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.check_power()?;
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(ErrorKind::StorageFull.into());
        }
        if self.unflushed.len() >= BLOCKS_MAX {
            self.flush()?;
        }
        for (number, within, part) in parts(at, bytes.len()) {
            let bytes = &bytes[part];
            let block = match self.unflushed.entry(number) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(place) => place.insert(old(&self.file, number)?),
            };
            block[within..within + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.check_power()?;
        if let Some(seed) = self.fails_at
            && !self.unflushed.is_empty()
        {
            self.cut(seed)?;
            return self.check_power();
        }
        // Whoever reads the file later is on this machine, which goes on.
        for (number, block) in &self.unflushed {
            self.file.write_all_at(&block[..], start(*number))?;
        }
        self.unflushed.clear();
        Ok(())
    }

    /// The power goes: of what is not flushed, a part of the seed's choice is written.
    fn cut(&mut self, seed: u64) -> std::io::Result<()> {
        self.has_power = false;
        let mut rng = StdRng::seed_from_u64(seed);
        let share = rng.random_range(0.0..=1.0);
        let mut sectors = Sectors::default();
        // In order, so that a seed does the same to the same blocks.
        let mut unflushed: Vec<_> = self.unflushed.drain().collect();
        unflushed.sort_unstable_by_key(|(number, _)| *number);
        for (number, block) in unflushed {
            let is_torn = number != SUPERBLOCK && rng.random_bool(TORN);
            let is_kept = rng.random_bool(share);
            for (i, sector) in block.chunks(SECTOR).enumerate() {
                let is_kept = if is_torn {
                    rng.random_bool(0.5)
                } else {
                    is_kept
                };
                if is_kept {
                    let at = start(number) + (i * SECTOR) as u64;
                    self.file.write_all_at(sector, at)?;
                    sectors.kept += 1;
                } else {
                    sectors.lost += 1;
                }
            }
        }
        self.left = sectors;
        Ok(())
    }

    fn restore(&mut self) {
        self.has_power = true;
        self.fails_at = None;
    }
}

fn start(number: u64) -> u64 {
    number * BLOCK as u64
}

/// The block as it was flushed; zeros behind the end of the file.
fn old(file: &File, number: u64) -> std::io::Result<Block> {
    let mut block = Box::new([0; BLOCK]);
    let mut read = 0;
    while read < BLOCK {
        match file.read_at(&mut block[read..], start(number) + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(block)
}

/// The blocks that so many bytes from `at` on lie in: its number, where in it, and which of the bytes.
fn parts(at: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let place = at + done as u64;
        let number = place / BLOCK as u64;
        let within = usize::try_from(place % BLOCK as u64).unwrap_or_default();
        let end = length.min(done + BLOCK - within);
        let part = done..end;
        done = end;
        Some((number, within, part))
    })
}

/// A file system of one file.
#[derive(Debug)]
struct OneFile {
    shared: Arc<Shared>,
    size: u64,
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, perm) = if inode == INodeNo::ROOT {
            (FileType::Directory, 0, 0o700)
        } else if inode == INODE {
            (FileType::RegularFile, self.size, 0o600)
        } else {
            return None;
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / SECTOR as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(INODE) {
            Some(found) if parent == INodeNo::ROOT && name == FILE => {
                reply.entry(&TTL, &found, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(found) => reply.attr(&TTL, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = usize::try_from(size).unwrap_or_default();
        match self.shared.lock().read(offset, length) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _written: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.shared.lock().write(offset, bytes) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // A file that is closed is not synced.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _only_bytes: bool,
        reply: ReplyEmpty,
    ) {
        match self.shared.flush() {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(dir: &Path) -> Device {
        let image = dir.join("image");
        let file = File::create(&image).unwrap();
        file.set_len(10 * BLOCK as u64).unwrap();
        Device::open(&image).unwrap()
    }

    #[test]
    fn what_was_flushed_is_there_after_a_cut_and_what_was_not_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..50 {
            let mut device = device(dir.path());
            device.write(0, &[1; 2 * BLOCK]).unwrap();
            device.flush().unwrap();
            device.write(BLOCK as u64, &[2; 3 * BLOCK]).unwrap();
            device.cut(seed).unwrap();
            assert_eq!(device.left.kept + device.left.lost, 24);
            assert!(device.read(0, 1).is_err() && device.write(0, &[3]).is_err());
            assert!(device.flush().is_err(), "nothing is flushed without power");
            device.restore();
            assert_eq!(device.read(0, BLOCK).unwrap(), [1; BLOCK], "flushed");
            for number in 1..4 {
                let before = u8::from(number == 1);
                let block = device.read(start(number), BLOCK).unwrap();
                let new = block.chunks(SECTOR).filter(|it| **it == [2; SECTOR]);
                let old = block.chunks(SECTOR).filter(|it| **it == [before; SECTOR]);
                let (new, old) = (new.count(), old.count());
                assert_eq!(new + old, BLOCK / SECTOR, "a sector is whole");
                kept += u32::from(old == 0);
                lost += u32::from(new == 0);
                torn += u32::from(new > 0 && old > 0);
            }
        }
        assert!(kept > 10 && lost > 10 && torn > 10, "{kept} {lost} {torn}");
    }

    #[test]
    fn a_part_of_a_block_is_written_over_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(dir.path());
        device.write(0, &[1; BLOCK]).unwrap();
        device.flush().unwrap();
        device.write(1000, &[2; 4000]).unwrap();
        let seen = device.read(990, 4020).unwrap();
        assert_eq!(seen[..10], [1; 10]);
        assert_eq!(seen[10..4010], [2; 4000]);
        assert_eq!(seen[4010..], [0; 10]);
        device.flush().unwrap();
        assert!(device.unflushed.is_empty());
        assert_eq!(device.read(990, 4020).unwrap(), seen);
    }

    #[test]
    fn the_device_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(dir.path());
        let size = device.size;
        assert!(device.write(size - 1, &[1; 2]).is_err());
        assert!(device.write(u64::MAX, &[1]).is_err());
        assert_eq!(device.read(size - 1, 10).unwrap(), [0]);
        assert!(device.read(size + 5, 10).unwrap().is_empty());
    }

    #[test]
    fn the_power_goes_in_the_middle_of_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared {
            device: Mutex::new(device(dir.path())),
            went: Condvar::new(),
        };
        let sectors = std::thread::scope(|scope| {
            let cut = scope.spawn(|| shared.cut(7).unwrap());
            while shared.lock().fails_at.is_none() {
                std::thread::yield_now();
            }
            // One with nothing to do comes through.
            shared.flush().unwrap();
            shared.lock().write(0, &[1; 2 * BLOCK]).unwrap();
            assert!(shared.flush().is_err());
            cut.join().unwrap()
        });
        assert_eq!(sectors.kept + sectors.lost, 16);
        shared.lock().restore();
        shared.lock().write(0, &[2]).unwrap();
        shared.flush().unwrap();
    }

    #[test]
    fn a_seed_does_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let left = |seed| {
            let mut device = device(dir.path());
            device.write(0, &[7; 8 * BLOCK]).unwrap();
            device.cut(seed).unwrap();
            device.restore();
            (device.left, device.read(0, 8 * BLOCK).unwrap())
        };
        assert_eq!(left(3), left(3));
    }
}
