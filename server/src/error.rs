//! Why a role cannot start or go on.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Ends the process with a status other than 0; the words are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value in the configuration.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The log filter.
    #[error("{0}")]
    LogFilter(String),
    /// File descriptors.
    #[error(transparent)]
    Limits(#[from] crate::limits::Error),
    /// A file that the configuration names.
    #[error("read {what} {path}: {source}")]
    Read {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{what} {path}: {reason}")]
    Content {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of `mailboxd dev` that cannot be made.
    #[error("write {path}: {source}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address in use, or not of this machine.
    #[error("listen on {address} ({option}): {source}{hint}")]
    Listen {
        /// The option that named it.
        option: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The certificate and key do not work.
    #[error("set up TLS: {0}")]
    Tls(String),
    /// The node did not start.
    #[error("store node: {0}")]
    Node(String),
    /// A write, an fsync or a read of a running node's own files failed.
    #[error("storage fault: {0}")]
    StorageFault(String),
    /// A listener ended by itself.
    #[error("serve gRPC on {address}: {reason}")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The gateway did not start.
    #[error("gateway: {0}")]
    Gateway(String),
    /// A call to our own cluster failed.
    #[error("{what}: {error}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The answer.
        error: mailbox_api::CallError,
    },
    /// The async runtime or a signal handler.
    #[error("start: {0}")]
    Start(std::io::Error),
    /// Stopping took longer than it may.
    #[error("did not stop within {seconds} s")]
    Slow {
        /// The limit.
        seconds: u64,
    },
}

impl Error {
    /// The exit status of a process that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::StorageFault(_) => crate::exit::STORAGE_FAULT,
            Error::Config(_)
            | Error::LogFilter(_)
            | Error::Limits(_)
            | Error::Read { .. }
            | Error::Content { .. }
            | Error::Write { .. }
            | Error::Listen { .. }
            | Error::Tls(_)
            | Error::Node(_)
            | Error::Serve { .. }
            | Error::Gateway(_)
            | Error::Call { .. }
            | Error::Start(_)
            | Error::Slow { .. } => crate::exit::ERROR,
        }
    }
}
