//! What this process is and has used, as the system tells: build, CPU time, memory. Where the system does
//! not tell, nothing is known, and nothing depends on it.

use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

/// Ticks per second of the times in `/proc/self/stat`: `USER_HZ`, 100 on every Linux that this
/// build supports, whatever the kernel's own tick.
const TICKS_PER_SECOND: u64 = 100;
/// Bytes of program headers and of notes that are looked at, at most.
const HEADERS_MAX: usize = 64 << 10;

/// CPU time of this process so far, user and system, all threads, in milliseconds.
pub(crate) fn cpu_ms() -> Option<u64> {
    cpu_ms_of(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Memory of this process that is resident.
pub(crate) fn rss_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

fn cpu_ms_of(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000 / TICKS_PER_SECOND))
}

/// Which build this is: the id that the linker wrote into the program, in hex. Two programs with the
/// same one are the same.
pub(crate) fn build_id() -> Option<String> {
    let program = File::open("/proc/self/exe").ok()?;
    let mut head = Vec::new();
    (&program)
        .take(HEADERS_MAX as u64)
        .read_to_end(&mut head)
        .ok()?;
    let id = notes(&head)?.into_iter().find_map(|(offset, len)| {
        let mut note = vec![0; len.min(HEADERS_MAX)];
        program.read_exact_at(&mut note, offset).ok()?;
        gnu_build_id(&note).map(<[u8]>::to_vec)
    })?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Where the notes of a 64-bit little-endian ELF file are, and how long.
fn notes(head: &[u8]) -> Option<Vec<(u64, usize)>> {
    const NOTE: usize = 4;
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64_at(head, 32)?).ok()?;
    let (size, count) = (u16_at(head, 54)?, u16_at(head, 56)?);
    let mut found = Vec::new();
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        if u32_at(head, at)? == NOTE {
            let len = usize::try_from(u64_at(head, at.checked_add(32)?)?).ok()?;
            found.push((u64_at(head, at.checked_add(8)?)?, len));
        }
    }
    Some(found)
}

/// The build id among the notes of one segment, each `name length | length | type | name | bytes`, padded to 4.
fn gnu_build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const BUILD_ID: usize = 3;
    loop {
        let (name, len, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let begin = name.checked_next_multiple_of(4)?.checked_add(12)?;
        let end = begin.checked_add(len)?;
        let id = notes.get(begin..end)?;
        if kind == BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" {
            return Some(id);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system() {
        let stat = "42 (mail) box) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 7 8 20 0 9 0 1 2 3";
        assert_eq!(cpu_ms_of(stat), Some(2_000));
        assert_eq!(cpu_ms_of("42 (mailboxd) S 1"), None);
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let note = |kind: u32, name: &[u8], bytes: &[u8]| {
            let mut note = Vec::new();
            for number in [name.len() as u32, bytes.len() as u32, kind] {
                note.extend_from_slice(&number.to_le_bytes());
            }
            for part in [name, bytes] {
                note.extend_from_slice(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let mut notes = note(1, b"GNU\0", &[9; 16]);
        notes.extend(note(3, b"Go\0", &[8; 5]));
        notes.extend(note(3, b"GNU\0", &[7; 20]));
        assert_eq!(gnu_build_id(&notes), Some(&[7; 20][..]));
        assert_eq!(gnu_build_id(&notes[..60]), None);
        assert_eq!(super::notes(b"#!/bin/sh"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_knows_itself() {
        assert!(cpu_ms().is_some());
        assert!(rss_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(build_id().is_some_and(|id| id.len() >= 16));
    }
}
