//! A store in this process: what a gateway needs of one, in memory, over real gRPC.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mailbox_api::v1::admin_server::{Admin, AdminServer};
use mailbox_api::v1::mailbox_server::{Mailbox, MailboxServer};
use mailbox_api::v1::{self, ErrorCode};
use mailbox_client::{Auth, CallError, Client, ClientOptions};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

type Key = (i32, u64);
/// A user's groups.
type List = BTreeMap<u64, Vec<v1::MembershipSpan>>;
const MAILBOX: i32 = v1::TimelineKind::Mailbox as i32;
const GROUP: i32 = v1::TimelineKind::Group as i32;
const SLOTS: u32 = 64;
/// The shard of what is put apart; all else is in shard 1.
const APART: u32 = 2;

#[derive(Default)]
struct State {
    users: BTreeMap<String, u64>,
    timelines: HashMap<Key, Vec<v1::Message>>,
    trimmed: HashMap<Key, u64>,
    groups_of: HashMap<u64, List>,
    /// Lists of groups that are shown in their place.
    shown: HashMap<u64, List>,
    /// Heads of groups that are told in place of what they are.
    old_heads: HashMap<u64, u64>,
    sent: HashMap<(u64, String, Vec<u8>), (u32, v1::SendResponse)>,
    registered: HashMap<Vec<u8>, (String, u64)>,
    groups: u64,
    messages: u64,
    /// Sends to refuse with this code.
    refuse: Vec<ErrorCode>,
    subscribed: HashSet<Key>,
    /// A slot that is in a shard of its own, and whether nobody serves that one.
    apart: Option<u32>,
    is_apart_unserved: bool,
}

/// The store, shared with the test.
#[derive(Clone)]
pub(crate) struct FakeStore {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    address: Arc<str>,
}

impl FakeStore {
    /// Starts with these users, ids 17, 18, ….
    pub(crate) async fn start(handles: &[&str]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
        let state = Arc::new(Mutex::new(State::default()));
        for (at, handle) in (17..).zip(handles) {
            state.lock().users.insert((*handle).to_owned(), at);
        }
        let store = Self {
            state,
            changed: watch::channel(0).0,
            address,
        };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(MailboxServer::new(store.clone()))
            .add_service(AdminServer::new(store.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        store
    }

    pub(crate) async fn client(&self) -> Client {
        let auth = Auth::Secret {
            cluster_id: None,
            secret: b"0123456789abcdef".to_vec(),
        };
        Client::connect(ClientOptions::new(vec![self.address.to_string()], auth))
            .await
            .unwrap()
    }

    /// The next sends are refused with these.
    pub(crate) fn refuse(&self, codes: &[ErrorCode]) {
        self.state.lock().refuse = codes.to_vec();
    }

    pub(crate) fn seqs(&self, mailbox: u64) -> usize {
        self.state
            .lock()
            .timelines
            .get(&(MAILBOX, mailbox))
            .map_or(0, Vec::len)
    }

    /// Takes rows away up to this seq of a mailbox, or the whole history beyond `head`.
    pub(crate) fn trim(&self, mailbox: u64, trim_point: u64) {
        self.state
            .lock()
            .trimmed
            .insert((MAILBOX, mailbox), trim_point);
    }

    /// From now on a user's list of groups is shown as it is now: changes are on their way.
    pub(crate) fn freeze_list(&self, user: u64) {
        let mut state = self.state.lock();
        let list = state.groups_of.get(&user).cloned().unwrap_or_default();
        state.shown.insert(user, list);
    }

    /// The changes have come: the list is shown as it is. Returns what was shown instead.
    pub(crate) fn thaw_list(&self, user: u64) -> List {
        self.state.lock().shown.remove(&user).unwrap()
    }

    /// From now on this list is shown.
    pub(crate) fn show_list(&self, user: u64, list: List) {
        self.state.lock().shown.insert(user, list);
    }

    /// From now on a group's head is told as it is now, as if it were read before what comes.
    pub(crate) fn freeze_head(&self, group: u64) {
        let mut state = self.state.lock();
        let rows = state.timelines.get(&(GROUP, group)).map_or(0, Vec::len);
        state.old_heads.insert(group, rows as u64);
    }

    /// The head is told as it is.
    pub(crate) fn thaw_head(&self, group: u64) {
        self.state.lock().old_heads.remove(&group);
    }

    /// A user's list of groups names one that is not there yet.
    pub(crate) fn list_early(&self, user: u64, group: u64) {
        let span = v1::MembershipSpan {
            join_seq: 1,
            left_seq: 0,
        };
        let mut state = self.state.lock();
        let list = state.groups_of.entry(user).or_default();
        list.insert(group, vec![span]);
    }

    /// Puts an owner's slot into a shard of its own, for clients that connect later.
    pub(crate) async fn put_apart(&self, owner: u64) {
        let slot = self.client().await.slot_of_owner(owner);
        self.state.lock().apart = Some(slot);
    }

    /// From now on that shard answers, or not.
    pub(crate) fn serve_apart(&self, served: bool) {
        self.state.lock().is_apart_unserved = !served;
    }

    /// Of the times that a user was in a group only so many are kept, the newest.
    pub(crate) fn keep_spans(&self, user: u64, group: u64, newest: usize) {
        let mut state = self.state.lock();
        let list = state.groups_of.get_mut(&user).unwrap();
        let spans = list.get_mut(&group).unwrap();
        let oldest = spans.len() - newest;
        *spans = spans.split_off(oldest);
    }

    /// What a reader may read of a group, by the group's own row; `None` = the timeline is no group.
    fn spans(
        &self,
        timeline: Option<v1::Timeline>,
        reader: Option<&v1::UserRef>,
    ) -> Result<Option<Vec<v1::MembershipSpan>>, CallError> {
        let Some(timeline) = timeline.filter(|it| it.kind == GROUP) else {
            return Ok(None);
        };
        let state = self.state.lock();
        let groups = state.groups_of.get(&state.user(reader)?);
        let spans = groups.and_then(|groups| groups.get(&timeline.owner));
        let there = state.timelines.contains_key(&(GROUP, timeline.owner));
        match spans.filter(|_| there) {
            Some(spans) => Ok(Some(spans.clone())),
            None => Err(CallError::new(ErrorCode::NotAMember, "not a member")),
        }
    }

    fn check_served(&self, shard: u32) -> Result<(), CallError> {
        if shard == APART && self.state.lock().is_apart_unserved {
            return Err(CallError::new(ErrorCode::Unavailable, "nobody serves it"));
        }
        Ok(())
    }

    /// Whether a timeline is subscribed to by anyone.
    pub(crate) fn is_subscribed(&self, timeline: &str) -> bool {
        let key = match timeline.split_once(':').unwrap() {
            ("mailbox", id) => (MAILBOX, id.parse().unwrap()),
            (_, id) => (GROUP, id.parse().unwrap()),
        };
        self.state.lock().subscribed.contains(&key)
    }

    /// A 1:1 text from one user to another, not through any gateway.
    pub(crate) fn send_text(&self, sender: u64, recipient: u64, text: &str) {
        let id = uuid::Uuid::now_v7().as_bytes().to_vec();
        let to = v1::send_request::Destination::User(user_ref(recipient));
        let request = v1::SendRequest {
            sender: Some(user_ref(sender)),
            destination: Some(to),
            client_msg_id: id.into(),
            r#type: 1,
            body: text.to_owned().into(),
            ..v1::SendRequest::default()
        };
        self.append(&request).unwrap();
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn append(&self, request: &v1::SendRequest) -> Result<v1::SendResponse, CallError> {
        let mut state = self.state.lock();
        if !state.refuse.is_empty() {
            return Err(CallError::new(state.refuse.remove(0), "as the test wished"));
        }
        let sender = state.user(request.sender.as_ref())?;
        let destination = request.destination.clone().unwrap();
        let identity = (
            sender,
            format!("{destination:?}"),
            request.client_msg_id.to_vec(),
        );
        if let Some((crc, first)) = state.sent.get(&identity) {
            let same = *crc == request.content_crc;
            let reused = CallError::new(ErrorCode::IdReused, "the same id with other content");
            return if same { Ok(*first) } else { Err(reused) };
        }
        let message_id = state.next_message_id();
        let mut message = v1::Message {
            message_id,
            sender,
            sent_at_ms: 1_700_000_000_000,
            r#type: request.r#type,
            client_msg_id: request.client_msg_id.clone(),
            body: request.body.clone(),
            ..v1::Message::default()
        };
        let home = match destination {
            v1::send_request::Destination::User(user) => {
                let recipient = state.user(Some(&user))?;
                message.recipient = recipient;
                if recipient != sender {
                    state.put((MAILBOX, recipient), message.clone());
                }
                (MAILBOX, sender)
            }
            v1::send_request::Destination::Group(group) => {
                if !state.is_member(sender, group) {
                    return Err(CallError::new(ErrorCode::NotAMember, "not a member"));
                }
                (GROUP, group)
            }
        };
        let seq = state.put(home, message);
        let timeline = Some(v1::Timeline {
            kind: home.0,
            owner: home.1,
        });
        let sent = v1::SendResponse {
            timeline,
            seq,
            message_id,
        };
        state.sent.insert(identity, (request.content_crc, sent));
        drop(state);
        self.tell();
        Ok(sent)
    }

    fn read(&self, range: &v1::SyncRange, limit: u32, bytes: u64) -> v1::SyncPage {
        self.read_spans(range, limit, bytes, None)
    }

    /// With spans, what a member may read.
    fn read_spans(
        &self,
        range: &v1::SyncRange,
        limit: u32,
        bytes: u64,
        spans: Option<&[v1::MembershipSpan]>,
    ) -> v1::SyncPage {
        let covers = |span: &v1::MembershipSpan, seq: u64| {
            span.join_seq <= seq && (span.left_seq == 0 || seq <= span.left_seq)
        };
        let may = |seq: u64| spans.is_none_or(|spans| spans.iter().any(|span| covers(span, seq)));
        let state = self.state.lock();
        let timeline = range.timeline.unwrap();
        let key = (timeline.kind, timeline.owner);
        let rows = state.timelines.get(&key).map_or(&[][..], Vec::as_slice);
        let trim_point = state.trimmed.get(&key).copied().unwrap_or(0);
        let mut left = bytes;
        let wanted = rows
            .iter()
            .filter(|row| row.seq > range.after_seq.max(trim_point) && may(row.seq));
        let messages: Vec<_> = wanted
            .take(limit as usize)
            .take_while(|row| {
                let fits = left > 0;
                left = left.saturating_sub(row.body.len() as u64);
                fits
            })
            .cloned()
            .collect();
        let mut seqs = rows.iter().map(|row| row.seq);
        let head = seqs.rfind(|seq| may(*seq)).unwrap_or(0);
        let last = messages
            .last()
            .map_or(range.after_seq.max(trim_point), |row| row.seq);
        v1::SyncPage {
            timeline: Some(timeline),
            messages,
            head,
            trim_point,
            more: last < head,
        }
    }
}

fn user_ref(id: u64) -> v1::UserRef {
    v1::UserRef {
        user: Some(v1::user_ref::User::Id(id)),
    }
}

impl State {
    fn next_message_id(&mut self) -> u64 {
        self.messages += 1;
        (1_700_000_000_000 << 16) | self.messages
    }

    fn user(&self, user: Option<&v1::UserRef>) -> Result<u64, CallError> {
        let found = match user.and_then(|user| user.user.as_ref()).unwrap() {
            v1::user_ref::User::Id(id) => self.users.values().find(|known| *known == id),
            v1::user_ref::User::Handle(handle) => self.users.get(handle),
        };
        found
            .copied()
            .ok_or_else(|| CallError::new(ErrorCode::UnknownUser, "no such user"))
    }

    fn put(&mut self, key: Key, message: v1::Message) -> u64 {
        let rows = self.timelines.entry(key).or_default();
        let seq = rows.len() as u64 + 1;
        rows.push(v1::Message { seq, ..message });
        seq
    }

    fn is_member(&self, user: u64, group: u64) -> bool {
        let spans = self
            .groups_of
            .get(&user)
            .and_then(|groups| groups.get(&group));
        spans
            .and_then(|spans| spans.last())
            .is_some_and(|span| span.left_seq == 0)
    }

    fn tell_group(&mut self, group: u64, user: u64, kind: v1::MessageType) -> u64 {
        let message_id = self.next_message_id();
        let message = v1::Message {
            message_id,
            sender: user,
            sent_at_ms: 1_700_000_000_000,
            r#type: kind as i32,
            ..v1::Message::default()
        };
        self.put((GROUP, group), message)
    }

    fn memberships(&self, user: u64) -> Vec<v1::GroupMembership> {
        let shown = self.shown.get(&user).or(self.groups_of.get(&user));
        let groups = shown.into_iter().flatten();
        groups
            .map(|(group, spans)| v1::GroupMembership {
                group: *group,
                spans: spans.clone(),
                // As if every other group were in another shard.
                head: match self.timelines.get(&(GROUP, *group)) {
                    Some(rows) if group % 2 == 0 => rows.len() as u64,
                    _ => 0,
                },
                read_mark: 0,
            })
            .collect()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Mailbox for FakeStore {
    type SubmitStream = Answers<v1::SubmitResponse>;
    type SubscribeStream = Answers<v1::SubscribeResponse>;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        let store = self.clone();
        let answers = request.into_inner().map(move |batch| {
            let results = batch?.calls.into_iter().map(|call| {
                let result = match store.append(&call.send.unwrap()) {
                    Ok(sent) => v1::submit_result::Result::Sent(sent),
                    Err(error) => v1::submit_result::Result::Error(error.0),
                };
                v1::SubmitResult {
                    tag: call.tag,
                    result: Some(result),
                }
            });
            Ok(v1::SubmitResponse {
                results: results.collect(),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(follow(self.clone(), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn send(
        &self,
        request: Request<v1::SendRequest>,
    ) -> Result<Response<v1::SendResponse>, Status> {
        Ok(Response::new(self.append(request.get_ref())?))
    }

    async fn sync(
        &self,
        request: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        let request = request.into_inner();
        self.check_served(request.shard)?;
        let (mut limit, mut bytes) = (request.limit, request.limit_bytes);
        let mut pages = Vec::new();
        for range in &request.ranges {
            let spans = self.spans(range.timeline, request.reader.as_ref())?;
            let page = self.read_spans(range, limit, bytes, spans.as_deref());
            limit -= page.messages.len() as u32;
            let read: usize = page.messages.iter().map(|row| row.body.len()).sum();
            bytes = bytes.saturating_sub(read as u64);
            pages.push(page);
        }
        let state = self.state.lock();
        let groups = match &request.groups_of {
            Some(user) => state.memberships(state.user(Some(user))?),
            None => Vec::new(),
        };
        Ok(Response::new(v1::SyncResponse {
            pages,
            groups,
            staleness_ms: None,
        }))
    }

    async fn heads(
        &self,
        request: Request<v1::HeadsRequest>,
    ) -> Result<Response<v1::HeadsResponse>, Status> {
        let request = request.into_inner();
        self.check_served(request.shard)?;
        let heads = request.timelines.into_iter().map(|timeline| {
            let range = v1::SyncRange {
                timeline: Some(timeline),
                after_seq: 0,
            };
            let head = self.read(&range, 0, 0).head;
            let old_head = self.state.lock().old_heads.get(&timeline.owner).copied();
            v1::TimelineHead {
                timeline: Some(timeline),
                head: old_head.unwrap_or(head),
            }
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
        let request = request.into_inner();
        let mut state = self.state.lock();
        if let Some((handle, user)) = state.registered.get(&request.request_id[..]) {
            assert_eq!(*handle, request.handle);
            return Ok(Response::new(v1::RegisterUserResponse { user: *user }));
        }
        if state.users.contains_key(&request.handle) {
            return Err(CallError::new(ErrorCode::HandleTaken, "taken").into());
        }
        let user = 17 + state.users.len() as u64;
        state.users.insert(request.handle.clone(), user);
        let made = (request.handle, user);
        state.registered.insert(request.request_id.to_vec(), made);
        Ok(Response::new(v1::RegisterUserResponse { user }))
    }

    async fn resolve_user(
        &self,
        request: Request<v1::ResolveUserRequest>,
    ) -> Result<Response<v1::ResolveUserResponse>, Status> {
        let state = self.state.lock();
        let user = state.user(request.get_ref().user.as_ref())?;
        let handle = state
            .users
            .iter()
            .find(|(_, id)| **id == user)
            .unwrap()
            .0
            .clone();
        Ok(Response::new(v1::ResolveUserResponse { user, handle }))
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        let mut state = self.state.lock();
        let user = state.user(request.get_ref().creator.as_ref())?;
        state.groups += 1;
        let group = 64 + state.groups;
        let seq = state.tell_group(group, user, v1::MessageType::GroupCreated);
        let rows = state.timelines.get_mut(&(GROUP, group)).unwrap();
        rows[0].body = request.get_ref().name.clone().into();
        let span = v1::MembershipSpan {
            join_seq: seq,
            left_seq: 0,
        };
        state
            .groups_of
            .entry(user)
            .or_default()
            .insert(group, vec![span]);
        drop(state);
        self.tell();
        Ok(Response::new(v1::CreateGroupResponse { group, seq }))
    }

    async fn join_group(
        &self,
        request: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        let mut state = self.state.lock();
        let user = state.user(request.get_ref().user.as_ref())?;
        let group = request.get_ref().group;
        if !state.timelines.contains_key(&(GROUP, group)) {
            return Err(CallError::new(ErrorCode::UnknownGroup, "no such group").into());
        }
        let join_seq = state.tell_group(group, user, v1::MessageType::MemberJoined);
        let spans = state
            .groups_of
            .entry(user)
            .or_default()
            .entry(group)
            .or_default();
        spans.push(v1::MembershipSpan {
            join_seq,
            left_seq: 0,
        });
        drop(state);
        self.tell();
        Ok(Response::new(v1::JoinGroupResponse { join_seq }))
    }

    async fn leave_group(
        &self,
        request: Request<v1::LeaveGroupRequest>,
    ) -> Result<Response<v1::LeaveGroupResponse>, Status> {
        let mut state = self.state.lock();
        let user = state.user(request.get_ref().user.as_ref())?;
        let group = request.get_ref().group;
        if !state.is_member(user, group) {
            return Err(CallError::new(ErrorCode::NotAMember, "not a member").into());
        }
        let left_seq = state.tell_group(group, user, v1::MessageType::MemberLeft);
        let spans = state
            .groups_of
            .get_mut(&user)
            .unwrap()
            .get_mut(&group)
            .unwrap();
        spans.last_mut().unwrap().left_seq = left_seq;
        drop(state);
        self.tell();
        Ok(Response::new(v1::LeaveGroupResponse { left_seq }))
    }

    async fn mark_read(
        &self,
        request: Request<v1::MarkReadRequest>,
    ) -> Result<Response<v1::MarkReadResponse>, Status> {
        Ok(Response::new(v1::MarkReadResponse {
            read_mark: request.get_ref().seq,
        }))
    }

    async fn ack_cursor(
        &self,
        request: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        Ok(Response::new(v1::AckCursorResponse {
            cursor: request.get_ref().seq,
        }))
    }
}

/// One subscription stream.
async fn follow(
    store: FakeStore,
    mut requests: Streaming<v1::SubscribeRequest>,
    sender: mpsc::Sender<Result<v1::SubscribeResponse, Status>>,
) {
    let mut next: HashMap<Key, u64> = HashMap::new();
    let mut changed = store.changed.subscribe();
    loop {
        let mut response = v1::SubscribeResponse {
            term: 1,
            ..v1::SubscribeResponse::default()
        };
        for (key, next_seq) in &mut next {
            let timeline = Some(v1::Timeline {
                kind: key.0,
                owner: key.1,
            });
            let page = store.read(
                &v1::SyncRange {
                    timeline,
                    after_seq: *next_seq - 1,
                },
                100,
                u64::MAX,
            );
            if let Some(last) = page.messages.last() {
                *next_seq = last.seq + 1;
                let messages = page.messages;
                response
                    .batches
                    .push(v1::TimelineBatch { timeline, messages });
            }
        }
        if sender.send(Ok(response)).await.is_err() {
            return;
        }
        tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                let mut state = store.state.lock();
                for from in request.subscribe {
                    let timeline = from.timeline.unwrap();
                    let key = (timeline.kind, timeline.owner);
                    let head = state.timelines.get(&key).map_or(0, Vec::len) as u64;
                    next.insert(key, if from.from_seq == 0 { head + 1 } else { from.from_seq });
                    state.subscribed.insert(key);
                }
                for timeline in request.unsubscribe {
                    next.remove(&(timeline.kind, timeline.owner));
                    state.subscribed.remove(&(timeline.kind, timeline.owner));
                }
            }
            _ = changed.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

#[tonic::async_trait]
impl Admin for FakeStore {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse {
            node: 1,
            ..v1::StatusResponse::default()
        }))
    }

    async fn state_hash(
        &self,
        _: Request<v1::StateHashRequest>,
    ) -> Result<Response<v1::StateHashResponse>, Status> {
        Err(Status::unimplemented("not of use to gateways"))
    }

    async fn shard_map(
        &self,
        _: Request<v1::ShardMapRequest>,
    ) -> Result<Response<v1::ShardMapResponse>, Status> {
        let apart = self.state.lock().apart;
        let shards = [1, APART].into_iter().map(|shard| {
            let slots = (0..SLOTS).filter(|slot| (Some(*slot) == apart) == (shard == APART));
            let slots = slots.map(|slot| v1::SlotSpan {
                first: slot,
                last: slot,
            });
            v1::ShardPlacement {
                shard,
                slots: slots.collect(),
                replicas: vec![1],
                leader: 1,
            }
        });
        let time = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Ok(Response::new(v1::ShardMapResponse {
            epoch: 1,
            slot_count: SLOTS,
            shards: shards.collect(),
            nodes: vec![v1::NodeAddress {
                node: 1,
                address: self.address.to_string(),
            }],
            cluster_id: "test".into(),
            server_time_ms: time.as_millis() as u64,
            body_bytes_max: 16_383,
        }))
    }
}
