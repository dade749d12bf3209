//! The file that says whose directory this is: `IDENTITY`, one `name = value` a line. Written last of all at a
//! node's first start: a directory without it holds nothing that anybody relies on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use mailbox_engine::{SNAPSHOT_FORMAT, STORE_FORMAT};

use crate::error::Error;
use crate::peer_link::PEER_PROTOCOL;

const FILE: &str = "IDENTITY";
/// Format of the file itself and of the directory's layout; no build reads two. 1: one shard, with id 0, holds every
/// slot, and `shard_count` is not there. 2: every shard has a replica here, and there is no `incarnation`. 3: there
/// is no meta shard.
const NODE_FORMAT: u32 = 4;

/// Who a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) node: u64,
    pub(crate) slot_count: u16,
    pub(crate) shard_count: u16,
    /// Tells this directory from any other one of a node with this id; never 0.
    pub(crate) incarnation: u64,
}

/// A number that nobody else makes; never 0.
pub(crate) fn new_incarnation() -> u64 {
    let (high, low) = uuid::Uuid::now_v7().as_u64_pair();
    // The time is in the upper bits of `high` only; the upper ones of `low` are not random.
    (high ^ low.rotate_left(32)).max(1)
}

fn formats() -> [(&'static str, u32); 4] {
    [
        ("node_format", NODE_FORMAT),
        ("store_format", STORE_FORMAT),
        ("snapshot_format", SNAPSHOT_FORMAT),
        ("peer_protocol", PEER_PROTOCOL),
    ]
}

impl Identity {
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// What the file says; `None` if there is none yet.
    pub(crate) fn read(dir: &Path) -> Result<Option<Identity>, Error> {
        let path = Identity::path(dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        Identity::parse(&path, &text).map(Some)
    }

    fn parse(path: &Path, text: &str) -> Result<Identity, Error> {
        let damaged = |reason: String| Error::DamagedIdentity {
            path: path.to_owned(),
            reason,
        };
        let mut fields = BTreeMap::new();
        for line in text.lines() {
            let (name, value) = line
                .split_once(" = ")
                .ok_or_else(|| damaged(format!("{line:?} is no field")))?;
            fields.insert(name, value);
        }
        let field = |name: &str| {
            let value = fields.get(name).copied();
            value.ok_or_else(|| damaged(format!("{name} is missing")))
        };
        let number = |name: &str| {
            let value = field(name)?;
            value
                .parse::<u64>()
                .map_err(|error| damaged(format!("{name} {value:?}: {error}")))
        };
        let small = |name: &str| {
            u16::try_from(number(name)?).map_err(|error| damaged(format!("{name}: {error}")))
        };
        for (what, supported) in formats() {
            let found = u32::try_from(number(what)?).unwrap_or(u32::MAX);
            if found != supported {
                return Err(Error::UnknownFormat {
                    path: path.to_owned(),
                    what,
                    found,
                    supported,
                });
            }
        }
        let incarnation = number("incarnation")?;
        if incarnation == 0 {
            return Err(damaged("incarnation 0".to_owned()));
        }
        Ok(Identity {
            cluster_id: field("cluster_id")?.to_owned(),
            node: number("node")?,
            slot_count: small("slot_count")?,
            shard_count: small("shard_count")?,
            incarnation,
        })
    }

    /// Writes the file so that after a power cut it is there whole or not at all.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = Identity::path(dir);
        let failed = |error| Error::io("write", &path, error);
        let mut text = String::new();
        for (name, number) in formats() {
            text.push_str(&format!("{name} = {number}\n"));
        }
        text.push_str(&format!(
            "cluster_id = {}\nnode = {}\nslot_count = {}\nshard_count = {}\nincarnation = {}\n",
            self.cluster_id, self.node, self.slot_count, self.shard_count, self.incarnation
        ));
        let draft = path.with_extension("new");
        let mut file = File::create(&draft).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }

    /// Refuses options that are not this directory's.
    pub(crate) fn check(&self, dir: &Path, wanted: &Identity) -> Result<(), Error> {
        let fields = [
            (
                "cluster_id",
                self.cluster_id.clone(),
                wanted.cluster_id.clone(),
            ),
            ("node", self.node.to_string(), wanted.node.to_string()),
            (
                "slot_count",
                self.slot_count.to_string(),
                wanted.slot_count.to_string(),
            ),
            (
                "shard_count",
                self.shard_count.to_string(),
                wanted.shard_count.to_string(),
            ),
        ];
        for (what, found, wanted) in fields {
            if found != wanted {
                return Err(Error::Identity {
                    path: Identity::path(dir),
                    what,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: "blue".to_owned(),
            node: 3,
            slot_count: 64,
            shard_count: 4,
            incarnation: 77,
        }
    }

    #[test]
    fn an_identity_is_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), None);
        identity().write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity()));
    }

    #[test]
    fn another_slot_or_shard_count_is_refused_with_both_numbers() {
        let slots = Identity {
            slot_count: 128,
            ..identity()
        };
        let shards = Identity {
            shard_count: 16,
            ..identity()
        };
        for (other, found, wanted) in [
            (slots, "slot_count 64", "128"),
            (shards, "shard_count 4", "16"),
        ] {
            let error = identity()
                .check(Path::new("/d"), &other)
                .unwrap_err()
                .to_string();
            assert!(error.contains(found), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_directory_of_an_older_layout_is_refused_with_the_build_to_use() {
        let dir = tempfile::tempdir().unwrap();
        identity().write(dir.path()).unwrap();
        let path = Identity::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        for older in 1..NODE_FORMAT {
            let old = text.replace("node_format = 4", &format!("node_format = {older}"));
            fs::write(&path, old).unwrap();
            let error = Identity::read(dir.path()).unwrap_err().to_string();
            for words in [
                format!("node_format format {older}; this build reads 4"),
                format!("use a build that reads {older}"),
            ] {
                assert!(error.contains(&words), "{error}");
            }
        }
    }

    #[test]
    fn an_incarnation_is_there_and_not_0() {
        let dir = tempfile::tempdir().unwrap();
        identity().write(dir.path()).unwrap();
        let path = Identity::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        for bad in ["", "incarnation = 0\n"] {
            fs::write(&path, text.replace("incarnation = 77\n", bad)).unwrap();
            let refused = Identity::read(dir.path());
            assert!(matches!(refused, Err(Error::DamagedIdentity { .. })));
        }
        assert_ne!(new_incarnation(), new_incarnation());
    }

    #[test]
    fn an_unknown_format_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        identity().write(dir.path()).unwrap();
        let path = Identity::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replace(
                &format!("peer_protocol = {PEER_PROTOCOL}"),
                "peer_protocol = 9",
            ),
        )
        .unwrap();
        let error = Identity::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("peer_protocol format 9"), "{error}");
        assert!(error.contains(&format!("reads {PEER_PROTOCOL}")), "{error}");
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(Identity::path(dir.path()), "node_format = x\n").unwrap();
        assert!(matches!(
            Identity::read(dir.path()),
            Err(Error::DamagedIdentity { .. })
        ));
    }
}
