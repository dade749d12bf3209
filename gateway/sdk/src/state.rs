//! The state file: how far the app has got, written atomically.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use mailbox_wire::Timeline;
use mailbox_wire::json::{U64, quoted};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The only format so far.
const FORMAT: u32 = 1;

/// How far the app has got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// The sync key that covers everything taken up to it.
    pub(crate) key: String,
    /// What was taken beyond the key: greatest seqs, inclusive.
    pub(crate) have: BTreeMap<Timeline, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    user: U64,
    key: String,
    have: Vec<Have>,
}

#[derive(Serialize, Deserialize)]
struct Have {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
}

/// Reads the file; the empty state if there is none.
pub(crate) fn load(path: &Path, user: u64) -> Result<State, Error> {
    let bad = |reason: String| Error::State {
        path: path.to_owned(),
        reason,
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(bad(error.to_string())),
    };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if file.format != FORMAT {
        return Err(bad(format!(
            "format {} is unknown; this build reads {FORMAT}",
            file.format
        )));
    }
    if file.user.0 != user {
        let reason = format!(
            "it is of user {}, but the token is of user {user}",
            file.user.0
        );
        return Err(bad(reason));
    }
    let have = file
        .have
        .into_iter()
        .map(|have| (have.timeline, have.seq.0))
        .collect();
    Ok(State {
        key: file.key,
        have,
    })
}

/// Writes the file: beside it, synced, and renamed over it.
pub(crate) fn save(path: &Path, user: u64, state: &State) -> Result<(), Error> {
    let bad = |error: std::io::Error| Error::State {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let have = state.have.iter();
    let have = have
        .map(|(timeline, seq)| Have {
            timeline: *timeline,
            seq: U64(*seq),
        })
        .collect();
    let file = File {
        format: FORMAT,
        user: U64(user),
        key: state.key.clone(),
        have,
    };
    let bytes = serde_json::to_vec(&file).map_err(|error| bad(error.into()))?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut out = std::fs::File::create(&beside).map_err(bad)?;
    out.write_all(&bytes)
        .and_then(|()| out.sync_all())
        .map_err(bad)?;
    std::fs::rename(&beside, path).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_file_and_is_refused_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(load(&path, 17).unwrap(), State::default());
        let have = BTreeMap::from([(Timeline::Mailbox(17), 5), (Timeline::Group(65), 9)]);
        let state = State {
            key: "AQ".into(),
            have,
        };
        save(&path, 17, &state).unwrap();
        assert_eq!(load(&path, 17).unwrap(), state);
        assert!(load(&path, 18).unwrap_err().to_string().contains("user 18"));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(load(&path, 17), Err(Error::State { .. })));
    }
}
