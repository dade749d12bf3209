//! The unary calls: filled in, routed to their shard's leader, repeated with the same id.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use mailbox_api::CallError;
use mailbox_api::v1::{
    self, ErrorCode, HeadsRequest, HeadsResponse, SyncRequest, SyncResponse, Timeline,
    mark_read_request, user_ref,
};
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::map::ShardMap;
use crate::pending::Failure;

/// Shards that one call asks at a time.
const SHARDS_AT_ONCE: usize = 8;

/// The same where those that nobody serves keep their places until the end: the others must still get one.
const SHARDS_AT_ONCE_UNSURE: usize = 64;

impl Client {
    /// Pages of timelines behind a read barrier (unless `stale`). Shards are filled in; timelines of
    /// several shards are asked for shard by shard, some at a time, each with the whole limit.
    ///
    /// With `max_staleness_ms` any replica is asked, each in turn, and the leader only if that one cannot answer;
    /// `staleness_ms` of the answer is that of its stalest part.
    pub async fn sync(&self, request: SyncRequest) -> Result<SyncResponse, CallError> {
        let mut left = vec![self.with_ids(request).await?];
        let mut whole = SyncResponse::default();
        // More than one round only if slots moved meanwhile.
        while !left.is_empty() {
            let parts = left.drain(..).flat_map(|part| self.split_sync(part));
            let parts = parts.collect::<Vec<_>>().into_iter();
            let parts = parts.map(|(owners, part)| self.sync_part(owners, part));
            let mut answers = futures_util::stream::iter(parts).buffered(SHARDS_AT_ONCE);
            while let Some(answer) = answers.next().await {
                match answer? {
                    Ok(answer) => add_pages(&mut whole, answer),
                    Err(apart) => left.push(apart),
                }
            }
        }
        Ok(whole)
    }

    /// As [`Client::sync`], but a shard that does not answer within `wait`, or says no, keeps back nothing except its
    /// own part. The second value says why a part is missing, if one is.
    pub async fn sync_where_served(
        &self,
        request: SyncRequest,
        wait: Duration,
    ) -> (SyncResponse, Option<CallError>) {
        let until = Instant::now() + wait;
        let (mut whole, mut missing) = (SyncResponse::default(), None);
        let mut left = match in_time(until, self.with_ids(request)).await {
            Ok(request) => vec![request],
            Err(error) => return (whole, Some(error)),
        };
        while !left.is_empty() {
            let parts = left.drain(..).flat_map(|part| self.split_sync(part));
            let parts = parts.collect::<Vec<_>>().into_iter();
            let parts = parts.map(|(owners, part)| in_time(until, self.sync_part(owners, part)));
            let parts = futures_util::stream::iter(parts);
            let mut answers = parts.buffer_unordered(SHARDS_AT_ONCE_UNSURE);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(Ok(answer)) => add_pages(&mut whole, answer),
                    Ok(Err(apart)) => left.push(apart),
                    Err(error) => missing = Some(error),
                }
            }
        }
        (whole, missing)
    }

    /// One shard's part of a Sync call; the part itself once the map has put its owners into several shards.
    async fn sync_part(
        &self,
        owners: Vec<u64>,
        part: SyncRequest,
    ) -> Result<Result<SyncResponse, SyncRequest>, CallError> {
        let call = self.call_anywhere(
            part.max_staleness_ms.is_some(),
            |map| map.shard_of_all(owners.iter().copied()),
            |node, shard| {
                let part = SyncRequest {
                    shard,
                    ..part.clone()
                };
                async move { node.mailbox().sync(part).await }
            },
        );
        call.await.map(|answer| answer.ok_or(part))
    }

    /// Users by id: their shards follow from it.
    async fn with_ids(&self, mut request: SyncRequest) -> Result<SyncRequest, CallError> {
        if let Some(user) = request.groups_of {
            request.groups_of = Some(self.by_id(user).await?);
        }
        Ok(request)
    }

    /// The parts of a request, one for each shard, each with all owners that it asks about.
    fn split_sync(&self, request: SyncRequest) -> Vec<(Vec<u64>, SyncRequest)> {
        let shell = SyncRequest {
            ranges: Vec::new(),
            groups_of: None,
            ..request.clone()
        };
        let mut by_shard: BTreeMap<u32, (Vec<u64>, SyncRequest)> = BTreeMap::new();
        if let Some(user) = request.groups_of {
            let owner = match user.user {
                Some(user_ref::User::Id(id)) => id,
                Some(user_ref::User::Handle(_)) | None => 0,
            };
            let part = by_shard.entry(self.shard_of_owner(owner));
            let part = part.or_insert_with(|| (Vec::new(), shell.clone()));
            part.0.push(owner);
            part.1.groups_of = Some(user);
        }
        for range in request.ranges {
            let owner = range.timeline.map_or(0, |timeline| timeline.owner);
            let part = by_shard.entry(self.shard_of_owner(owner));
            let part = part.or_insert_with(|| (Vec::new(), shell.clone()));
            part.0.push(owner);
            part.1.ranges.push(range);
        }
        by_shard.into_values().collect()
    }

    /// The same on the node at `address` only, without repeats: for tools that compare nodes.
    pub async fn sync_at(
        &self,
        address: &str,
        request: SyncRequest,
    ) -> Result<SyncResponse, CallError> {
        let mut mailbox = self.inner().router.node_at(address)?.mailbox();
        let mut whole = SyncResponse::default();
        let request = self.with_ids(request).await?;
        for (owners, part) in self.split_sync(request) {
            let shard = self.shard_of_owner(owners.first().copied().unwrap_or(0));
            let part = SyncRequest { shard, ..part };
            let answer = self.inner().once(mailbox.sync(part)).await;
            let answer = answer.map_err(|failure| failure.error)?;
            add_pages(&mut whole, answer);
        }
        Ok(whole)
    }

    /// Heads of timelines behind a read barrier (unless `stale`, or with `max_staleness_ms`: see
    /// [`Client::sync`]). Shards are filled in, and asked some at a time.
    pub async fn heads(&self, request: HeadsRequest) -> Result<HeadsResponse, CallError> {
        let mut left = vec![request];
        let mut whole = HeadsResponse::default();
        // More than one round only if slots moved meanwhile.
        while !left.is_empty() {
            let parts = left.drain(..).flat_map(|part| self.split_heads(part));
            let parts = parts.collect::<Vec<_>>().into_iter();
            let parts = parts.map(|part| self.heads_part(part));
            let mut answers = futures_util::stream::iter(parts).buffered(SHARDS_AT_ONCE);
            while let Some(answer) = answers.next().await {
                match answer? {
                    Ok(answer) => add_heads(&mut whole, answer),
                    Err(apart) => left.push(apart),
                }
            }
        }
        Ok(whole)
    }

    /// As [`Client::heads`], but a shard that does not answer within `wait`, or says no, keeps back nothing except its
    /// own heads. The second value says why heads are missing, if some are.
    pub async fn heads_where_served(
        &self,
        request: HeadsRequest,
        wait: Duration,
    ) -> (HeadsResponse, Option<CallError>) {
        let until = Instant::now() + wait;
        let (mut whole, mut missing) = (HeadsResponse::default(), None);
        let mut left = vec![request];
        while !left.is_empty() {
            let parts = left.drain(..).flat_map(|part| self.split_heads(part));
            let parts = parts.collect::<Vec<_>>().into_iter();
            let parts = parts.map(|part| in_time(until, self.heads_part(part)));
            let parts = futures_util::stream::iter(parts);
            let mut answers = parts.buffer_unordered(SHARDS_AT_ONCE_UNSURE);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(Ok(answer)) => add_heads(&mut whole, answer),
                    Ok(Err(apart)) => left.push(apart),
                    Err(error) => missing = Some(error),
                }
            }
        }
        (whole, missing)
    }

    /// The parts of a request, one for each shard.
    fn split_heads(&self, request: HeadsRequest) -> Vec<HeadsRequest> {
        let mut by_shard: BTreeMap<u32, Vec<Timeline>> = BTreeMap::new();
        for timeline in request.timelines {
            let shard = self.shard_of_owner(timeline.owner);
            by_shard.entry(shard).or_default().push(timeline);
        }
        let (stale, max_staleness_ms) = (request.stale, request.max_staleness_ms);
        let parts = by_shard.into_iter();
        let parts = parts.map(|(shard, timelines)| HeadsRequest {
            shard,
            timelines,
            stale,
            max_staleness_ms,
        });
        parts.collect()
    }

    /// One shard's part of a Heads call; the part itself once the map has put its timelines into several shards.
    async fn heads_part(
        &self,
        part: HeadsRequest,
    ) -> Result<Result<HeadsResponse, HeadsRequest>, CallError> {
        let call = self.call_anywhere(
            part.max_staleness_ms.is_some(),
            |map| map.shard_of_all(part.timelines.iter().map(|timeline| timeline.owner)),
            |node, shard| {
                let part = HeadsRequest {
                    shard,
                    ..part.clone()
                };
                async move { node.mailbox().heads(part).await }
            },
        );
        call.await.map(|answer| answer.ok_or(part))
    }

    /// Registers a handle. An empty `request_id` is filled in.
    pub async fn register_user(
        &self,
        mut request: v1::RegisterUserRequest,
    ) -> Result<v1::RegisterUserResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| map.shard_of_handle(&request.handle);
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().register_user(request).await }
        });
        call.await
    }

    /// The id and handle of a user known by either.
    pub async fn resolve_user(
        &self,
        request: v1::ResolveUserRequest,
    ) -> Result<v1::ResolveUserResponse, CallError> {
        let place = |map: &ShardMap| map.shard_of_user(request.user.as_ref());
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().resolve_user(request).await }
        });
        call.await
    }

    /// Creates a group. An empty `request_id` is filled in.
    pub async fn create_group(
        &self,
        mut request: v1::CreateGroupRequest,
    ) -> Result<v1::CreateGroupResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| map.shard_of_user(request.creator.as_ref());
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().create_group(request).await }
        });
        call.await
    }

    /// Joins a group. An empty `request_id` is filled in.
    pub async fn join_group(
        &self,
        mut request: v1::JoinGroupRequest,
    ) -> Result<v1::JoinGroupResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| map.shard_of_owner(request.group);
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().join_group(request).await }
        });
        call.await
    }

    /// Leaves a group. An empty `request_id` is filled in.
    pub async fn leave_group(
        &self,
        mut request: v1::LeaveGroupRequest,
    ) -> Result<v1::LeaveGroupResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| map.shard_of_owner(request.group);
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().leave_group(request).await }
        });
        call.await
    }

    /// Raises a read mark. An empty `request_id` is filled in.
    pub async fn mark_read(
        &self,
        mut request: v1::MarkReadRequest,
    ) -> Result<v1::MarkReadResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| match request.conversation {
            Some(mark_read_request::Conversation::Group(group)) => map.shard_of_owner(group),
            Some(mark_read_request::Conversation::Peer(_)) | None => {
                map.shard_of_user(request.user.as_ref())
            }
        };
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().mark_read(request).await }
        });
        call.await
    }

    /// Raises a device's cursor. An empty `request_id` is filled in.
    pub async fn ack_cursor(
        &self,
        mut request: v1::AckCursorRequest,
    ) -> Result<v1::AckCursorResponse, CallError> {
        self.fill_id(&mut request.request_id);
        let place = |map: &ShardMap| {
            map.shard_of_owner(request.timeline.map_or(0, |timeline| timeline.owner))
        };
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().ack_cursor(request).await }
        });
        call.await
    }

    /// What the node at `address` (`host:port`) knows of itself and its cluster, asked once; `None`:
    /// whichever node answers.
    pub async fn status(&self, address: Option<&str>) -> Result<v1::StatusResponse, CallError> {
        self.status_with(address, v1::StatusRequest::default())
            .await
    }

    /// As [`Client::status`], with more than what is told by default.
    pub async fn status_with(
        &self,
        address: Option<&str>,
        request: v1::StatusRequest,
    ) -> Result<v1::StatusResponse, CallError> {
        let nodes = match address {
            Some(address) => vec![self.inner().router.node_at(address)?],
            None => self.inner().router.nodes(),
        };
        let mut last = CallError::new(ErrorCode::Unavailable, "no node is known");
        for node in nodes {
            let mut admin = node.admin();
            match self.inner().once(admin.status(request)).await {
                Ok(status) => return Ok(status),
                Err(failure) => last = failure.error,
            }
        }
        Err(last)
    }

    /// The state hash of a shard on the node at `address`, at the cut `cut_index`, which is awaited
    /// there; without an address the shard's leader is asked, and with `cut_index` 0 it makes a new
    /// cut. Waits up to the call's deadline.
    pub async fn state_hash(
        &self,
        address: Option<&str>,
        request: v1::StateHashRequest,
    ) -> Result<v1::StateHashResponse, CallError> {
        let router = &self.inner().router;
        let node = match address {
            Some(address) => router.node_at(address)?,
            None => router.leader(request.shard),
        };
        let mut admin = node.admin();
        let deadline = self.options().timeouts.deadline;
        match tokio::time::timeout(deadline, admin.state_hash(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // A connection of its last life is no refusal.
            Ok(Err(status)) => Err(Failure::from_status(&status).error),
            Err(_) => Err(CallError::new(
                ErrorCode::Unavailable,
                format!("no state hash within {} ms", deadline.as_millis()),
            )),
        }
    }

    pub(crate) fn fill_id(&self, request_id: &mut Bytes) {
        if request_id.is_empty() {
            *request_id = Bytes::copy_from_slice(self.new_message_id().as_bytes());
        }
    }

    /// The slot of an owner's timeline (a user's or a group's id).
    pub fn slot_of_owner(&self, owner: u64) -> u32 {
        self.inner().router.with_map(|map| map.slot_of_owner(owner))
    }

    /// The shard of an owner's timeline (a user's or a group's id), by the map as it is known now.
    pub fn shard_of_owner(&self, owner: u64) -> u32 {
        self.inner()
            .router
            .with_map(|map| map.shard_of_owner(owner))
    }
}

/// What comes of a part of a call, unless it takes longer.
async fn in_time<T>(
    until: Instant,
    part: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    timeout_at(until, part).await.unwrap_or_else(|_| {
        let message = "the shard did not answer in time";
        Err(CallError::new(ErrorCode::Unavailable, message))
    })
}

/// Adds what another shard answered.
fn add_pages(whole: &mut SyncResponse, answer: SyncResponse) {
    whole.pages.extend(answer.pages);
    whole.groups.extend(answer.groups);
    whole.staleness_ms = whole.staleness_ms.max(answer.staleness_ms);
}

/// The same of heads.
fn add_heads(whole: &mut HeadsResponse, answer: HeadsResponse) {
    whole.heads.extend(answer.heads);
    whole.staleness_ms = whole.staleness_ms.max(answer.staleness_ms);
}
