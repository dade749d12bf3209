//! The disk under a benchmark: its file system, how fast it syncs, and what the data take on it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::RngExt as _;

/// Bytes of one probe write: a page.
const PROBE_WRITE_BYTES: usize = 4096;
/// Pages of the probe's file.
const PROBE_PAGES: u64 = 1024;

/// The file system that holds `dir`, by its usual name, or its magic number in hex.
pub(super) fn file_system(dir: &Path) -> io::Result<String> {
    let magic = rustix::fs::statfs(dir)?.f_type;
    let name = match u64::try_from(magic).unwrap_or(0) & 0xffff_ffff {
        0xef53 => "ext4",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0xf2f5_2010 => "f2fs",
        0x6969 => "nfs",
        0x2fc1_2fc1 => "zfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        other => return Ok(format!("0x{other:x}")),
    };
    Ok(name.to_owned())
}

/// Whether a file system keeps its files in memory: an fsync there costs and proves nothing.
pub(super) fn is_memory(file_system: &str) -> bool {
    matches!(file_system, "tmpfs" | "ramfs")
}

/// Measures how many `fdatasync`s per second `dir` takes, one after another, each of one page
/// overwritten in a file that was preallocated and written before: no metadata changes, so this
/// is the best that a log with recycled files can reach.
pub(super) fn fdatasync_per_s(dir: &Path, time: Duration) -> io::Result<f64> {
    let path = dir.join("fdatasync-probe");
    let result = probe(&path, time);
    fs::remove_file(&path)?;
    result
}

fn probe(path: &Path, time: Duration) -> io::Result<f64> {
    let mut page = [0_u8; PROBE_WRITE_BYTES];
    rand::rng().fill(&mut page);
    let mut file = File::create(path)?;
    for _ in 0..PROBE_PAGES {
        file.write_all(&page)?;
    }
    file.sync_all()?;
    let begin = Instant::now();
    let mut syncs = 0_u64;
    while begin.elapsed() < time {
        page[0] = page[0].wrapping_add(1);
        file.write_all_at(&page, syncs % PROBE_PAGES * PROBE_WRITE_BYTES as u64)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(syncs as f64 / begin.elapsed().as_secs_f64())
}

/// Bytes that the files under `dir` take on disk; a file with several hard links counts once.
pub(super) fn stored_bytes(dir: &Path) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let mut folders = vec![dir.to_owned()];
    let mut blocks = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // A file may vanish while we look: the store deletes what it has compacted.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if seen.insert((metadata.dev(), metadata.ino())) {
                blocks += metadata.blocks();
            }
        }
    }
    // `st_blocks` counts 512-byte units on every file system.
    Ok(blocks * 512)
}

/// Files that were dropped from the page cache, and their length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Has the system forget what it keeps in memory of the files under `dir`. It is advice: file systems in memory keep
/// everything, and pages that a process has mapped stay.
pub(super) fn drop_page_cache(dir: &Path) -> io::Result<Dropped> {
    let mut folders = vec![dir.to_owned()];
    let mut dropped = Dropped::default();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let file = File::open(entry.path())?;
                // What is not on the disk yet cannot be dropped.
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                dropped.files += 1;
                dropped.bytes += file.metadata()?.len();
            }
        }
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_counts_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert!(fdatasync_per_s(dir.path(), Duration::from_millis(20)).unwrap() > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_hard_link_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let file = sub.join("a");
        let mut content = vec![0_u8; 64 << 10];
        rand::rng().fill(content.as_mut_slice());
        fs::write(&file, &content).unwrap();
        File::open(&file).unwrap().sync_all().unwrap();
        let once = stored_bytes(dir.path()).unwrap();
        assert!(once >= 64 << 10);
        fs::hard_link(&file, dir.path().join("b")).unwrap();
        assert_eq!(stored_bytes(dir.path()).unwrap(), once);
    }

    #[test]
    fn every_file_is_dropped_from_the_page_cache_and_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(dir.path().join("a"), [1; 5000]).unwrap();
        fs::write(sub.join("b"), [2; 7]).unwrap();
        let dropped = drop_page_cache(dir.path()).unwrap();
        let (files, bytes) = (2, 5007);
        assert_eq!(dropped, Dropped { files, bytes });
        assert_eq!(fs::read(sub.join("b")).unwrap(), [2; 7]);
    }

    #[test]
    fn memory_file_systems_are_known() {
        assert!(is_memory("tmpfs"));
        assert!(is_memory("ramfs"));
        assert!(!is_memory("ext4"));
        assert!(!file_system(&std::env::temp_dir()).unwrap().is_empty());
    }
}
