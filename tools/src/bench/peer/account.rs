//! Whom a process runs as: PostgreSQL refuses to run as root, as which a bench in a container often does.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Its package's own account, else the one that every system has for what is to own nothing.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// An account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Account {
    /// Whom to run as what refuses to run as root; `None` if the bench is not root.
    ///
    /// # Errors
    /// There is nobody else.
    pub(super) fn instead_of_root() -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let known = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        let found = NAMES.iter().find_map(|name| Self::find(&known, name));
        let found = found.with_context(|| {
            format!("PostgreSQL does not run as root, and there is no account {NAMES:?}")
        })?;
        Ok(Some(found))
    }

    fn find(known: &str, name: &str) -> Option<Self> {
        let mut lines = known.lines().map(|line| line.split(':'));
        let found = lines.find_map(|mut fields| (fields.next()? == name).then_some(fields));
        let mut fields = found?.skip(1);
        Some(Self {
            name: name.to_owned(),
            user: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }

    /// # Errors
    /// A folder above `path` lets nobody but its owner through.
    pub(super) fn require_way_to(&self, path: &Path) -> anyhow::Result<()> {
        for folder in path.ancestors().skip(1) {
            let metadata = std::fs::metadata(folder);
            let metadata = metadata.with_context(|| format!("look at {}", folder.display()))?;
            if metadata.permissions().mode() & 0o001 == 0 {
                bail!(
                    "PostgreSQL does not run as root, and {}, as which it runs here, may not enter {}: \
                     choose another --dir, or do not run the bench as root",
                    self.name,
                    folder.display()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "root:x:0:0:root:/root:/bin/sh\n\
        postgres2:x:7:8::/:/bin/sh\n\
        broken:x\n\
        postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let postgres = Account {
            name: "postgres".to_owned(),
            user: 101,
            group: 104,
        };
        assert_eq!(Account::find(KNOWN, "postgres"), Some(postgres));
        assert_eq!(Account::find(KNOWN, "nobody"), None);
        assert_eq!(Account::find(KNOWN, "broken"), None);
    }

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        let account = Account::find(KNOWN, "postgres").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let open = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path(), open(0o711)).unwrap();
        std::fs::set_permissions(&closed, open(0o700)).unwrap();
        // What is above may be closed, too: it is not ours.
        let names_it = |path| {
            let error = account.require_way_to(path).err();
            error.is_some_and(|error| {
                error.to_string().contains("may not enter")
                    && error.to_string().contains("/closed:")
            })
        };
        assert!(!names_it(&closed));
        assert!(names_it(&closed.join("under")));
    }
}
