//! The calls of a fake node.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use mailbox_client::CallError;
use mailbox_client::v1::admin_server::Admin;
use mailbox_client::v1::mailbox_server::Mailbox;
use mailbox_client::v1::{
    self, Error, ErrorCode, SubmitRequest, SubmitResponse, SubmitResult, SubscribeRequest,
    SubscribeResponse, Timeline, TimelineBatch, TimelineHead, TimelineKind, send_request,
    submit_result, user_ref,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{HEARTBEAT, SLOTS, Store};

/// `secret` in base64.
const SECRET: &str = "c2VjcmV0";

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) number: usize,
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) addresses: Arc<Vec<SocketAddr>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let secret = request.metadata().get("mailbox-cluster-secret");
        if secret.is_none_or(|secret| secret != SECRET) {
            let error = CallError::new(ErrorCode::Unauthenticated, "the cluster secret is wrong");
            return Err(error.to_status());
        }
        Ok(())
    }

    fn is_silent(&self) -> bool {
        self.store.lock().silent.contains(&self.number)
    }

    async fn lead(&self) -> Result<(), Error> {
        if self.is_silent() {
            std::future::pending::<()>().await;
        }
        let (leader, map_epoch) = {
            let store = self.store.lock();
            (store.leader, store.epoch())
        };
        if leader == self.number {
            return Ok(());
        }
        Err(Error {
            code: ErrorCode::NotLeader as i32,
            message: format!("node {leader} leads"),
            leader_node: leader as u64 + 1,
            leader_address: self.addresses[leader].to_string(),
            map_epoch,
            ..Error::default()
        })
    }

    async fn submit_frame(&self, frame: SubmitRequest) -> Option<SubmitResponse> {
        self.store.lock().attempts += frame.calls.len();
        let led = self.lead().await;
        let mut store = self.store.lock();
        store.frames += 1;
        let mut results = Vec::new();
        for call in frame.calls {
            let send = call.send.expect("a send");
            let result = match (&led, store.refusal) {
                (Err(error), _) => submit_result::Result::Error(error.clone()),
                (Ok(()), Some(code)) => {
                    submit_result::Result::Error(CallError::new(code, "refused").0)
                }
                (Ok(()), None) => match store.check_shard(frame.shard, home(&send).owner) {
                    Ok(()) => submit_result::Result::Sent(store.accept(send)),
                    Err(error) => submit_result::Result::Error(error),
                },
            };
            results.push(SubmitResult {
                tag: call.tag,
                result: Some(result),
            });
        }
        if led.is_ok() && store.swallow > 0 {
            store.swallow -= 1;
            return None;
        }
        Some(SubmitResponse { results })
    }

    /// What is new for the subscriptions, as (timeline, next seq).
    fn news(&self, shard: u32, wanted: &mut Vec<(Timeline, u64)>) -> SubscribeResponse {
        let mut store = self.store.lock();
        let mut response = SubscribeResponse {
            term: store.term,
            ..SubscribeResponse::default()
        };
        wanted.retain(|(timeline, _)| {
            let held = store.check_shard(shard, timeline.owner);
            if let Err(error) = held {
                response.ended.push(v1::SubscriptionEnd {
                    timeline: Some(*timeline),
                    error: Some(error),
                });
                return false;
            }
            true
        });
        for (timeline, next) in wanted {
            let rows = store.rows.get(timeline).cloned().unwrap_or_default();
            let head = rows.len() as u64;
            let mut messages: Vec<_> = rows.into_iter().filter(|row| row.seq >= *next).collect();
            if let Some(seq) = store.leave_out
                && messages.iter().any(|row| row.seq > seq)
            {
                messages.retain(|row| row.seq != seq);
                store.leave_out = None;
            }
            *next = head + 1;
            let timeline = Some(*timeline);
            response.heads.push(TimelineHead { timeline, head });
            if !messages.is_empty() {
                response.batches.push(TimelineBatch { timeline, messages });
            }
        }
        response
    }
}

/// Subscribes and unsubscribes as a request asks.
fn change(wanted: &mut Vec<(Timeline, u64)>, request: SubscribeRequest) {
    wanted.retain(|(timeline, _)| !request.unsubscribe.contains(timeline));
    let from = request.subscribe.into_iter();
    wanted.extend(from.map(|from| (from.timeline.unwrap(), from.from_seq)));
}

/// Where a send's ack says that it is.
fn home(send: &v1::SendRequest) -> Timeline {
    let sender = send.sender.as_ref().and_then(|sender| sender.user.as_ref());
    match (&send.destination, sender) {
        (Some(send_request::Destination::Group(group)), _) => Timeline {
            kind: TimelineKind::Group as i32,
            owner: *group,
        },
        (_, Some(user_ref::User::Id(user))) => Timeline {
            kind: TimelineKind::Mailbox as i32,
            owner: *user,
        },
        (_, Some(user_ref::User::Handle(_)) | None) => panic!("no sender's id"),
    }
}

impl Store {
    /// Once per id, as the store does.
    fn accept(&mut self, send: v1::SendRequest) -> v1::SendResponse {
        if let Some(first) = self.acked.get(&send.client_msg_id) {
            return *first;
        }
        let timeline = home(&send);
        let rows = self.rows.entry(timeline).or_default();
        let seq = rows.len() as u64 + 1;
        rows.push(v1::Message {
            seq,
            client_msg_id: send.client_msg_id.clone(),
            body: send.body,
            ..v1::Message::default()
        });
        let sent = v1::SendResponse {
            timeline: Some(timeline),
            seq,
            message_id: seq << 16,
        };
        self.acked.insert(send.client_msg_id, sent);
        sent
    }
}

#[tonic::async_trait]
impl Mailbox for Service {
    type SubmitStream = Answers<SubmitResponse>;
    type SubscribeStream = Answers<SubscribeResponse>;

    async fn submit(
        &self,
        request: Request<Streaming<SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        self.admit(&request)?;
        let mut frames = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let answer = service.submit_frame(frame).await;
                let Some(answer) = answer else {
                    let _ = answers.send(Err(Status::internal("broken off"))).await;
                    return;
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.admit(&request)?;
        self.store.lock().streams += 1;
        let mut requests = request.into_inner();
        // As a node does: no stream is opened before its shard is known.
        let Some(first) = requests.message().await? else {
            let error = CallError::new(ErrorCode::InvalidArgument, "no request");
            return Err(error.to_status());
        };
        let (answers, stream) = mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            let shard = first.shard;
            let mut wanted: Vec<(Timeline, u64)> = Vec::new();
            change(&mut wanted, first);
            let mut heartbeat = tokio::time::interval(HEARTBEAT / 4);
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        change(&mut wanted, request);
                    }
                    _ = heartbeat.tick() => {
                        let there = service.store.lock().check_there(shard);
                        let led = match there {
                            Ok(()) => service.lead().await,
                            gone => gone,
                        };
                        let news = match led {
                            Ok(()) => Ok(service.news(shard, &mut wanted)),
                            Err(error) => Err(CallError(error).to_status()),
                        };
                        if answers.send(news).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn send(
        &self,
        _: Request<v1::SendRequest>,
    ) -> Result<Response<v1::SendResponse>, Status> {
        Err(Status::unimplemented("send"))
    }

    async fn sync(
        &self,
        _: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        Err(Status::unimplemented("sync"))
    }

    async fn heads(
        &self,
        request: Request<v1::HeadsRequest>,
    ) -> Result<Response<v1::HeadsResponse>, Status> {
        self.admit(&request)?;
        self.lead()
            .await
            .map_err(|error| CallError(error).to_status())?;
        let store = self.store.lock();
        let request = request.into_inner();
        for timeline in &request.timelines {
            let held = store.check_shard(request.shard, timeline.owner);
            held.map_err(|error| CallError(error).to_status())?;
        }
        let timelines = request.timelines.into_iter();
        let heads = timelines.map(|timeline| TimelineHead {
            timeline: Some(timeline),
            head: store
                .rows
                .get(&timeline)
                .map_or(0, |rows| rows.len() as u64),
        });
        Ok(Response::new(v1::HeadsResponse {
            heads: heads.collect(),
            staleness_ms: None,
        }))
    }

    async fn register_user(
        &self,
        request: Request<v1::RegisterUserRequest>,
    ) -> Result<Response<v1::RegisterUserResponse>, Status> {
        self.lead()
            .await
            .map_err(|error| CallError(error).to_status())?;
        assert_eq!(
            request.get_ref().request_id.len(),
            16,
            "an id was filled in"
        );
        Ok(Response::new(v1::RegisterUserResponse { user: 7 }))
    }

    async fn resolve_user(
        &self,
        _: Request<v1::ResolveUserRequest>,
    ) -> Result<Response<v1::ResolveUserResponse>, Status> {
        Err(Status::unimplemented("resolve_user"))
    }

    async fn create_group(
        &self,
        _: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        Err(Status::unimplemented("create_group"))
    }

    async fn join_group(
        &self,
        _: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        Err(Status::unimplemented("join_group"))
    }

    async fn leave_group(
        &self,
        _: Request<v1::LeaveGroupRequest>,
    ) -> Result<Response<v1::LeaveGroupResponse>, Status> {
        Err(Status::unimplemented("leave_group"))
    }

    async fn mark_read(
        &self,
        _: Request<v1::MarkReadRequest>,
    ) -> Result<Response<v1::MarkReadResponse>, Status> {
        Err(Status::unimplemented("mark_read"))
    }

    async fn ack_cursor(
        &self,
        _: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        Err(Status::unimplemented("ack_cursor"))
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.admit(&request)?;
        let node = self.number as u64 + 1;
        Ok(Response::new(v1::StatusResponse {
            node,
            ..v1::StatusResponse::default()
        }))
    }

    async fn state_hash(
        &self,
        _: Request<v1::StateHashRequest>,
    ) -> Result<Response<v1::StateHashResponse>, Status> {
        Err(Status::unimplemented("state_hash"))
    }

    async fn shard_map(
        &self,
        request: Request<v1::ShardMapRequest>,
    ) -> Result<Response<v1::ShardMapResponse>, Status> {
        self.admit(&request)?;
        if self.is_silent() || self.store.lock().mapless.contains(&self.number) {
            std::future::pending::<()>().await;
        }
        let (epoch, split, named) = {
            let store = self.store.lock();
            let named = match store.named {
                0 => self.addresses.len(),
                named => named,
            };
            (store.epoch(), store.split.unwrap_or(SLOTS), named)
        };
        let nodes = (1..).zip(&self.addresses[..named]);
        let shards = [(1, 0, split), (2, split, SLOTS)].into_iter();
        let shards = shards.filter(|(_, first, end)| first < end);
        let shards = shards.map(|(shard, first, end)| v1::ShardPlacement {
            shard,
            slots: vec![v1::SlotSpan {
                first,
                last: end - 1,
            }],
            replicas: Vec::new(),
            leader: 1,
        });
        Ok(Response::new(v1::ShardMapResponse {
            epoch,
            slot_count: SLOTS,
            shards: shards.collect(),
            nodes: nodes
                .map(|(node, address)| v1::NodeAddress {
                    node,
                    address: address.to_string(),
                })
                .collect(),
            server_time_ms: 4_000_000_000_000,
            ..v1::ShardMapResponse::default()
        }))
    }
}
