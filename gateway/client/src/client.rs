//! The client's calls.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::{self, ErrorCode, SendRequest, SendResponse};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::options::ClientOptions;
use crate::subscribe::{SubscribeEvent, SubscribeHandle};

fn unserved() -> CallError {
    CallError::new(ErrorCode::Unavailable, "not served yet")
}

/// A connection to a cluster; cheap to clone.
#[derive(Clone)]
pub struct Client {
    options: Arc<ClientOptions>,
}

impl Client {
    /// Finds a node that answers and learns the shard map and the server's time from it.
    ///
    /// # Errors
    /// The last node's error when none answered within `timeouts.deadline`; at once when a node
    /// refused the caller.
    pub async fn connect(options: ClientOptions) -> Result<Self, CallError> {
        Ok(Self {
            options: Arc::new(options),
        })
    }

    /// The options it was started with.
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Sends one message over the Submit stream of its shard's leader. `client_msg_id` must be set;
    /// `content_crc` is taken as it is.
    ///
    /// # Errors
    /// A refusal, or the last retryable error at the deadline: the outcome is then unknown, and the
    /// same request may be sent again.
    pub async fn send(&self, request: SendRequest) -> Result<SendResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Sends many messages, handed over in order before the first answer is awaited; one result per
    /// request, in the order of the requests.
    pub async fn send_batch(
        &self,
        requests: Vec<SendRequest>,
    ) -> Vec<Result<SendResponse, CallError>> {
        requests.iter().map(|_| Err(unserved())).collect()
    }

    /// Pages of timelines behind a read barrier (unless `stale`). The shard is filled in.
    pub async fn sync(&self, request: v1::SyncRequest) -> Result<v1::SyncResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Heads of timelines behind a read barrier (unless `stale`). The shard is filled in.
    pub async fn heads(&self, request: v1::HeadsRequest) -> Result<v1::HeadsResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Registers a handle. An empty `request_id` is filled in.
    pub async fn register_user(
        &self,
        request: v1::RegisterUserRequest,
    ) -> Result<v1::RegisterUserResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// The id and handle of a user known by either.
    pub async fn resolve_user(
        &self,
        request: v1::ResolveUserRequest,
    ) -> Result<v1::ResolveUserResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Creates a group. An empty `request_id` is filled in.
    pub async fn create_group(
        &self,
        request: v1::CreateGroupRequest,
    ) -> Result<v1::CreateGroupResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Joins a group. An empty `request_id` is filled in.
    pub async fn join_group(
        &self,
        request: v1::JoinGroupRequest,
    ) -> Result<v1::JoinGroupResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Leaves a group. An empty `request_id` is filled in.
    pub async fn leave_group(
        &self,
        request: v1::LeaveGroupRequest,
    ) -> Result<v1::LeaveGroupResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Raises a read mark. An empty `request_id` is filled in.
    pub async fn mark_read(
        &self,
        request: v1::MarkReadRequest,
    ) -> Result<v1::MarkReadResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// Raises a device's cursor. An empty `request_id` is filled in.
    pub async fn ack_cursor(
        &self,
        request: v1::AckCursorRequest,
    ) -> Result<v1::AckCursorResponse, CallError> {
        let _ = request;
        Err(unserved())
    }

    /// What the node at `address` (`host:port`, one of the shard map's) knows of itself and its
    /// cluster; `None`: any node. Not repeated elsewhere when an address is given.
    pub async fn status(&self, address: Option<&str>) -> Result<v1::StatusResponse, CallError> {
        let _ = address;
        Err(unserved())
    }

    /// The state hash of a shard on the node at `address`, at `cut_index`; with 0 the shard's leader
    /// makes a new cut, and `address` is ignored.
    pub async fn state_hash(
        &self,
        address: Option<&str>,
        request: v1::StateHashRequest,
    ) -> Result<v1::StateHashResponse, CallError> {
        let _ = (address, request);
        Err(unserved())
    }

    /// Reads the shard map anew and routes by it from now on.
    pub async fn shard_map(&self) -> Result<v1::ShardMapResponse, CallError> {
        Err(unserved())
    }

    /// The same call on the node at `address` only, without repeats: for tools that compare nodes.
    pub async fn sync_at(
        &self,
        address: &str,
        request: v1::SyncRequest,
    ) -> Result<v1::SyncResponse, CallError> {
        let _ = (address, request);
        Err(unserved())
    }

    /// A subscription without timelines; they are added through the handle.
    pub fn subscribe(&self) -> (SubscribeHandle, mpsc::Receiver<SubscribeEvent>) {
        let (_sender, events) = mpsc::channel(1);
        (SubscribeHandle {}, events)
    }

    /// Milliseconds since the Unix epoch by the cluster's clock, learnt at connect and refreshed
    /// with the shard map.
    pub fn server_time_ms(&self) -> u64 {
        0
    }

    /// A UUIDv7 on the cluster's time: a phone's or gateway's own clock may be wrong.
    pub fn new_message_id(&self) -> Uuid {
        Uuid::nil()
    }
}
