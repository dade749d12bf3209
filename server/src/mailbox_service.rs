//! The `Mailbox` service: its two streams are in `submit.rs` and `feed.rs`, its unary calls in `unary.rs`.

use std::sync::Arc;

use mailbox_api::v1;
use mailbox_api::v1::mailbox_server::Mailbox;
use tonic::{Request, Response, Status, Streaming};

use crate::core::Core;
use crate::feed::{self, FeedStream};
use crate::submit::{self, SubmitStream};
use crate::unary::serve;

/// Answers clients, gateways and tools.
pub(crate) struct MailboxService {
    core: Arc<Core>,
}

impl MailboxService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Mailbox for MailboxService {
    type SubmitStream = SubmitStream;
    type SubscribeStream = FeedStream;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<SubmitStream>, Status> {
        let done = submit::open(Arc::clone(&self.core), request).await;
        self.core.metrics.count_call("submit", done.as_ref().err());
        done
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<FeedStream>, Status> {
        let done = feed::open(Arc::clone(&self.core), request).await;
        self.core
            .metrics
            .count_call("subscribe", done.as_ref().err());
        done
    }

    async fn send(
        &self,
        request: Request<v1::SendRequest>,
    ) -> Result<Response<v1::SendResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.send(call).await
        })
        .await
    }

    async fn sync(
        &self,
        request: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.sync(call).await
        })
        .await
    }

    async fn heads(
        &self,
        request: Request<v1::HeadsRequest>,
    ) -> Result<Response<v1::HeadsResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.heads(call).await
        })
        .await
    }

    async fn register_user(
        &self,
        request: Request<v1::RegisterUserRequest>,
    ) -> Result<Response<v1::RegisterUserResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.register_user(call).await
        })
        .await
    }

    async fn resolve_user(
        &self,
        request: Request<v1::ResolveUserRequest>,
    ) -> Result<Response<v1::ResolveUserResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.resolve_user(call).await
        })
        .await
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.create_group(call).await
        })
        .await
    }

    async fn join_group(
        &self,
        request: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.join_group(call).await
        })
        .await
    }

    async fn leave_group(
        &self,
        request: Request<v1::LeaveGroupRequest>,
    ) -> Result<Response<v1::LeaveGroupResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.leave_group(call).await
        })
        .await
    }

    async fn mark_read(
        &self,
        request: Request<v1::MarkReadRequest>,
    ) -> Result<Response<v1::MarkReadResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.mark_read(call).await
        })
        .await
    }

    async fn ack_cursor(
        &self,
        request: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        serve(&self.core, request, |mut leader, call| async move {
            leader.ack_cursor(call).await
        })
        .await
    }
}
