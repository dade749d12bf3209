//! A copy of a node's store that may be opened and changed without touching the node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// Where the store keeps its files in a node's directory, and in a view of it.
const STATE_DIR: &str = "state";

/// Hard links to a store's SST files, which never change, and copies of its small other files.
/// Removed when dropped.
pub(super) struct StateView {
    dir: TempDir,
    original: PathBuf,
}

impl StateView {
    /// Makes the view beside `dir`: hard links need the same file system.
    pub(super) fn of(dir: &Path) -> anyhow::Result<Self> {
        let original = fs::canonicalize(dir).with_context(|| format!("open {}", dir.display()))?;
        let beside = original.parent().unwrap_or(&original);
        let view = tempfile::Builder::new()
            .prefix(".inspect-")
            .tempdir_in(beside)
            .with_context(|| format!("make a view in {}", beside.display()))?;
        let (from, to) = (original.join(STATE_DIR), view.path().join(STATE_DIR));
        fs::create_dir(&to).with_context(|| format!("make {}", to.display()))?;
        for entry in fs::read_dir(&from).with_context(|| format!("read {}", from.display()))? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            let path = entry.path();
            if path.is_dir() {
                continue;
            }
            let immutable = path.extension().is_some_and(|extension| extension == "sst");
            if !immutable || fs::hard_link(&path, &target).is_err() {
                fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
            }
        }
        Ok(Self {
            dir: view,
            original,
        })
    }

    /// The view's directory: like a node's, with nothing but the store in it.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Words about the view, told as words about the node's own files.
    pub(super) fn in_original(&self, text: &str) -> String {
        text.replace(
            &*self.path().to_string_lossy(),
            &self.original.to_string_lossy(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_changes_nothing_and_goes_away() {
        let parent = tempfile::tempdir().unwrap();
        let node = parent.path().join("node");
        fs::create_dir_all(node.join(STATE_DIR)).unwrap();
        fs::write(node.join("state/000001.sst"), "rows").unwrap();
        fs::write(node.join("state/CURRENT"), "MANIFEST-1").unwrap();
        let view = StateView::of(&node).unwrap();
        let state = view.path().join(STATE_DIR);
        fs::write(state.join("CURRENT"), "MANIFEST-2").unwrap();
        fs::remove_file(state.join("000001.sst")).unwrap();
        let text = format!("{}/000001.sst: bad block", state.display());
        let expected = fs::canonicalize(node.join("state/000001.sst")).unwrap();
        assert_eq!(
            view.in_original(&text),
            format!("{}: bad block", expected.display())
        );
        drop(view);
        assert_eq!(
            fs::read_to_string(node.join("state/CURRENT")).unwrap(),
            "MANIFEST-1"
        );
        assert_eq!(
            fs::read_to_string(node.join("state/000001.sst")).unwrap(),
            "rows"
        );
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_without_a_store_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateView::of(&dir.path().join("absent")).is_err());
        let node = dir.path().join("empty");
        fs::create_dir(&node).unwrap();
        assert!(StateView::of(&node).is_err());
    }
}
