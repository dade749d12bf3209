//! The files of a replay, in file-name order: text files, folders of them, or a `.tar.gz`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};

/// Greatest size of one text file, in bytes: a replay keeps its input in memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads every file. Bytes that are not UTF-8 become `�`: a message's text is UTF-8.
pub(super) fn read(paths: &[impl AsRef<Path>]) -> anyhow::Result<Vec<String>> {
    let mut files = BTreeMap::new();
    for path in paths {
        let path = path.as_ref();
        let read = if path.is_dir() {
            read_folder(path, &mut files)
        } else if is_archive(path) {
            read_archive(path, &mut files)
        } else {
            read_text(path, &mut files)
        };
        read.with_context(|| format!("read {}", path.display()))?;
    }
    if files.is_empty() {
        bail!("there is no file to replay");
    }
    Ok(files.into_values().collect())
}

/// The texts by file name, then by whole path: file-name order, and no file hides another.
type Files = BTreeMap<(String, String), String>;

fn is_archive(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().to_ascii_lowercase());
    name.is_some_and(|name| name.ends_with(".tar.gz") || name.ends_with(".tgz"))
}

fn read_folder(folder: &Path, files: &mut Files) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_folder(&path, files)?;
        } else if is_archive(&path) {
            read_archive(&path, files)?;
        } else {
            read_text(&path, files)?;
        }
    }
    Ok(())
}

fn read_text(path: &Path, files: &mut Files) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let bytes = read_bounded(file, path)?;
    insert(files, path, &bytes);
    Ok(())
}

fn read_archive(path: &Path, files: &mut Files) -> anyhow::Result<()> {
    let unpacked = flate2::read::MultiGzDecoder::new(BufReader::new(File::open(path)?));
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inner = path.join(entry.path()?);
        let bytes = read_bounded(entry, &inner)?;
        insert(files, &inner, &bytes);
    }
    Ok(())
}

fn read_bounded(from: impl std::io::Read, path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)? as u64;
    if read > FILE_BYTES_MAX {
        bail!(
            "{} is larger than the limit of {FILE_BYTES_MAX} bytes",
            path.display()
        );
    }
    Ok(bytes)
}

fn insert(files: &mut Files, path: &Path, bytes: &[u8]) {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let whole = path.to_string_lossy().into_owned();
    files.insert((name, whole), String::from_utf8_lossy(bytes).into_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut archive = tar::Builder::new(packed);
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            archive
                .append_data(&mut header, name, text.as_bytes())
                .unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn all_inputs_are_one_channel_in_file_name_order() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("2005.txt"), "b").unwrap();
        fs::write(dir.path().join("2009.txt"), "d").unwrap();
        let packed = dir.path().join("logs.tar.gz");
        fs::write(
            &packed,
            archive(&[("logs/2007.txt", "c"), ("logs/2004.txt", "a")]),
        )
        .unwrap();
        let files = read(&[dir.path().join("2009.txt"), packed, folder]).unwrap();
        assert_eq!(files, ["a", "b", "c", "d"]);
    }

    #[test]
    fn an_empty_or_absent_input_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&[dir.path()]).is_err());
        let absent = read(&[dir.path().join("absent.txt")]).unwrap_err();
        assert!(format!("{absent:#}").contains("absent.txt"), "{absent:#}");
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("cut.tar.gz");
        let whole = archive(&[("a.txt", &"[00:00] <a> b\n".repeat(1000))]);
        fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
        assert!(read(&[packed]).is_err());
    }
}
