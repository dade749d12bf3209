//! Small pieces of state that no seq orders: whose a handle is, how far a user has read, what a device holds.
//!
//! Each is a register of its own: a call changes it or looks at it, and says what it holds then.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::history::Outcome;

/// Which one: `handle:tom`, `read-mark:17:18`, `cursor:17:phone`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Register {
    /// Whose it is. Nobody's at first, then one user's for ever.
    Handle(String),
    /// How far a user has read in the conversation with another. It only rises.
    ReadMark {
        /// Who reads.
        user: u64,
        /// Whom.
        peer: u64,
    },
    /// Up to where a device holds its user's mailbox. It only rises.
    Cursor {
        /// Whose mailbox.
        user: u64,
        /// The device.
        device: String,
    },
}

/// What is asked of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// Of a handle: it is to be that of a new user.
    Claim,
    /// Whose it is, or where it stands.
    Look,
    /// Of a mark or a cursor: it is to be that seq, unless it is greater.
    Raise(u64),
}

impl Call {
    /// What a mark is to be at least: one that is only looked at is raised to 0.
    pub(crate) fn seq(self) -> u64 {
        match self {
            Self::Raise(seq) => seq,
            Self::Claim | Self::Look => 0,
        }
    }
}

/// One call, with all its repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Who did it.
    pub process: u64,
    /// When it was handed over.
    pub invoked_ns: u64,
    /// When its answer came, or it was given up.
    pub completed_ns: u64,
    /// What was asked.
    pub register: Register,
    /// How.
    pub call: Call,
    /// Of a claim: the new user, or 0 if the handle was another's. Else what the register holds: a user, 0 for none, or
    /// a seq.
    pub outcome: Outcome<u64>,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handle(handle) => write!(f, "handle:{handle}"),
            Self::ReadMark { user, peer } => write!(f, "read-mark:{user}:{peer}"),
            Self::Cursor { user, device } => write!(f, "cursor:{user}:{device}"),
        }
    }
}

impl FromStr for Register {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parsed = || {
            let (kind, rest) = text.split_once(':')?;
            if kind == "handle" {
                return Some(Self::Handle(rest.to_owned()));
            }
            let (user, rest) = rest.split_once(':')?;
            let user = user.parse().ok()?;
            match kind {
                "read-mark" => Some(Self::ReadMark {
                    user,
                    peer: rest.parse().ok()?,
                }),
                "cursor" => Some(Self::Cursor {
                    user,
                    device: rest.to_owned(),
                }),
                _ => None,
            }
        };
        parsed().with_context(|| format!("{text:?} is no register"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_read_as_it_is_written() {
        let device = "phone".to_owned();
        for register in [
            Register::Handle("tom:2".to_owned()),
            Register::ReadMark { user: 1, peer: 2 },
            Register::Cursor { user: 1, device },
        ] {
            assert_eq!(register.to_string().parse::<Register>().unwrap(), register);
        }
        for text in [
            "handle",
            "read-mark:1",
            "read-mark:1:x",
            "cursor:x:phone",
            "x:1:2",
        ] {
            assert!(text.parse::<Register>().is_err(), "{text}");
        }
    }
}
