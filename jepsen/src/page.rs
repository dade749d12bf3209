//! What a device was given when it synced, as a history keeps it.

use serde::{Deserialize, Serialize};

use crate::history::{Outcome, Row, Timeline};

/// A user may read a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Who.
    pub user: u64,
    /// Which group.
    pub group: u64,
    /// The first seq of the group's timeline that the user may read; 0: it was asked for, and how that ended comes later,
    /// if it is known.
    pub first: u64,
    /// When that was said.
    #[serde(default)]
    pub completed_ns: u64,
}

/// A user may read no more of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// Who.
    pub user: u64,
    /// Which group.
    pub group: u64,
    /// The last seq of the group's timeline that the user may read; 0: it was asked for.
    pub last: u64,
}

/// One sync of a device through a gateway. The pages of a device follow each other: each goes on
/// from the key that the last answered one gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Who did it.
    pub process: u64,
    /// When it was handed over.
    pub invoked_ns: u64,
    /// When its answer came, or it was given up.
    pub completed_ns: u64,
    /// Whose device.
    pub user: u64,
    /// Which of the user's devices.
    pub device: String,
    /// The node whose gateway was asked.
    pub gateway: u64,
    /// Whether it is one of those at the end, after all faults had been healed and everything sent
    /// had arrived.
    pub last: bool,
    /// What came. A page that failed changes nothing, and is asked for again.
    pub outcome: Outcome<Synced>,
}

/// What a page holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// In the order in which they came.
    pub rows: Vec<(Timeline, Row)>,
    /// Whether the gateway says that there is more.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Op};

    #[test]
    fn what_devices_were_given_survives_its_file() {
        let row = Row {
            seq: 2,
            message_id: 1 << 20,
            sender: 16,
            recipient: 17,
            id: None,
            content: 4,
            refused: Some(1),
        };
        let page = |outcome| Page {
            process: 4,
            invoked_ns: 7,
            completed_ns: 8,
            user: 17,
            device: "phone".into(),
            gateway: 3,
            last: false,
            outcome,
        };
        let join = Join {
            user: 17,
            group: 65,
            first: 2,
            completed_ns: 9,
        };
        let synced = Synced {
            rows: vec![(Timeline::Mailbox(17), row)],
            more: true,
        };
        let history = History {
            ops: vec![
                Op::Join(join.clone()),
                Op::Page(page(Outcome::Ok(synced))),
                Op::Page(page(Outcome::Fail("Resync".into()))),
            ],
        };
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        let read = History::read(&bytes[..]).unwrap();
        assert_eq!(read, history);
        assert_eq!(read.pages().count(), 2);
        assert_eq!(read.joins().collect::<Vec<_>>(), [&join]);
    }
}
