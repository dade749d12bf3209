//! Why a call of the SDK fails.

use std::path::PathBuf;
use std::time::Duration;

use crate::Fault;
use mailbox_wire::BadDestination;

/// Why a call of the SDK fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request was refused; [`Fault::code`] says by what.
    #[error("{0}")]
    Refused(Fault),
    /// The gateway does not let this client in (a bad or expired token, an unknown user, …); trying
    /// again with the same options does not help.
    #[error("the gateway refused the connection with HTTP status {status}: {fault}")]
    NotAdmitted {
        /// The HTTP status.
        status: u16,
        /// Why.
        fault: Fault,
    },
    /// No connection came about.
    #[error("connect to {url}: {reason}")]
    Connect {
        /// Where to, without its query.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The options are wrong.
    #[error("{option}: {reason}")]
    Options {
        /// Which option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer in time. The outcome is unknown; the request may be repeated with the same id.
    #[error("no answer within {waited:?}; the request may be repeated with the same id")]
    Timeout {
        /// How long it was tried.
        waited: Duration,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// The state file cannot be used.
    #[error("state file {path}: {reason}", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Text that names no destination.
    #[error(transparent)]
    Destination(#[from] BadDestination),
}

impl Error {
    /// Whether the same call, with the same id, may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(fault) | Self::NotAdmitted { fault, .. } => fault.retryable,
            Self::Connect { .. } | Self::Timeout { .. } => true,
            Self::Options { .. } | Self::Closed | Self::State { .. } | Self::Destination(_) => {
                false
            }
        }
    }
}
