//! Protobuf messages, services and error codes of the mailbox database; no logic.
//!
//! `v1` is what clients of a node see, `peer` what nodes say to each other. Tags are for ever.

mod error;

/// Messages and services for gateways and tools.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("mailbox.v1");
}

/// Messages and services between nodes.
pub mod peer {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("mailbox.peer.v1");
}

pub use error::{CallError, ERROR_DETAILS_BYTES_MAX};

/// Every file descriptor of this crate, encoded, for gRPC reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Names of the metadata that calls carry.
pub mod metadata {
    /// `Bearer <token>`: the caller acts for the token's user only.
    pub const AUTHORIZATION: &str = "authorization";
    /// The cluster that the caller means; a node of another one refuses.
    pub const CLUSTER_ID: &str = "mailbox-cluster-id";
    /// The cluster secret, base64 without padding: the caller may act for any user.
    pub const CLUSTER_SECRET: &str = "mailbox-cluster-secret";
    /// The calling node, on calls between nodes.
    pub const NODE_ID: &str = "mailbox-node-id";
    /// Set on a call that a node has forwarded once already.
    pub const FORWARDED: &str = "mailbox-forwarded";
}
