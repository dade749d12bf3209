//! Hands new messages to local sessions: one upstream subscription per timeline, however many
//! sessions want it.
//!
//! A user who is online here has their mailbox subscribed to, and the groups they are a member of.
//! Subscriptions begin right after a head that was read before the client is welcomed, and the
//! client syncs after the welcome: so whatever sync does not give, a push does. A group whose head
//! cannot be had keeps nobody waiting for long: no sync ends without that head, and with it the group
//! is subscribed to. Joins and leaves are seen as messages in the group's timeline, as answers to
//! requests made here, and in what sync reads anyway; for joins made elsewhere to groups that nobody
//! here is in, groups are looked up again now and then.
//!
//! A member is pushed rows from their join's seq on only: the stream of a group may be behind it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mailbox_api::v1::{self, ErrorCode};
use mailbox_client::{CallError, Client, SubscribeEvent, SubscribeHandle};
use mailbox_wire::{Encoding, Message, MessageType, Position, Push, ServerFrame, Timeline};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, mpsc};

use crate::Limits;
use crate::connection::Connection;
use crate::convert::{message_from_api, timeline_from_api, timeline_to_api};
use crate::memberships;
use crate::metrics::Metrics;
use crate::queue::Close;

/// Who is online here, and what is subscribed to for them.
pub(crate) struct Dispatch {
    client: Client,
    upstream: SubscribeHandle,
    metrics: Metrics,
    user_connections_max: usize,
    state: Mutex<State>,
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatch").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    users: HashMap<u64, Online>,
    groups: HashMap<u64, Group>,
}

/// A group that somebody who is online here is a member of.
struct Group {
    /// User → member.
    members: HashMap<u64, Member>,
    /// Leaves below this seq are not seen as messages any more: the group's stream began here, or has passed them.
    leaves_from: u64,
}

/// A member of a group who is online here.
#[derive(Clone, Copy)]
struct Member {
    /// Greatest seq of a join that is known: rows below it are not pushed.
    join_seq: u64,
    /// From this seq on every leave was or will be seen as a message.
    from_seq: u64,
}

#[derive(Default)]
struct Online {
    connections: Vec<Arc<Connection>>,
    groups: BTreeSet<u64>,
    /// Groups that the user has left, and at which seq: a list that was read before may not say so yet.
    left: BTreeMap<u64, u64>,
    /// Set once the user's timelines are subscribed to.
    subscribed: Arc<OnceCell<()>>,
}

/// A connection's place in the dispatch; dropping it takes the connection out.
#[derive(Debug)]
pub(crate) struct Attachment {
    dispatch: Arc<Dispatch>,
    connection: Arc<Connection>,
}

impl Dispatch {
    /// A dispatch without sessions, and the task that feeds it until the store client ends.
    pub(crate) fn start(
        client: Client,
        metrics: Metrics,
        limits: &Limits,
    ) -> (Arc<Self>, [tokio::task::JoinHandle<()>; 2]) {
        let (upstream, events) = client.subscribe();
        let state = Mutex::default();
        let dispatch = Arc::new(Self {
            client,
            upstream,
            metrics,
            user_connections_max: limits.user_connections_max,
            state,
        });
        let feed = tokio::spawn(Arc::clone(&dispatch).feed(events));
        let refresh = tokio::spawn(Arc::clone(&dispatch).refresh_groups(limits.groups_refresh));
        (dispatch, [feed, refresh])
    }

    /// Takes a connection in, and returns once what it is to be pushed is subscribed to.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        connection: Arc<Connection>,
    ) -> Result<Attachment, CallError> {
        let user = connection.user;
        let subscribed = {
            let mut state = self.state.lock();
            let online = state.users.entry(user).or_default();
            if online.connections.len() >= self.user_connections_max {
                return Err(too_many_connections(self.user_connections_max));
            }
            online.connections.push(Arc::clone(&connection));
            Arc::clone(&online.subscribed)
        };
        let attachment = Attachment {
            dispatch: Arc::clone(self),
            connection,
        };
        subscribed
            .get_or_try_init(|| self.subscribe(user, &subscribed))
            .await?;
        Ok(attachment)
    }

    /// Subscribes to a user's timelines, each from the head that is read here.
    async fn subscribe(&self, user: u64, cell: &Arc<OnceCell<()>>) -> Result<(), CallError> {
        let mailbox = timeline_to_api(Timeline::Mailbox(user));
        let heads = v1::HeadsRequest {
            timelines: vec![mailbox],
            ..v1::HeadsRequest::default()
        };
        let groups = memberships::of_user(&self.client, user, false, memberships::CONNECT_WAIT);
        let (heads, groups) = tokio::try_join!(self.client.heads(heads), groups)?;
        let head = heads.heads.first().map_or(0, |head| head.head);

        let mut state = self.state.lock();
        let still_online = state
            .users
            .get(&user)
            .is_some_and(|online| Arc::ptr_eq(&online.subscribed, cell));
        if still_online {
            self.upstream.add(mailbox, head + 1)?;
            self.metrics.subscriptions.inc();
            self.enter_groups(&mut state, user, &groups);
        }
        Ok(())
    }

    /// What a fresh look at a user's groups says. A leave is taken from it only if it came before what is subscribed
    /// to: others come as messages, which a member has to be pushed.
    pub(crate) fn update_groups(&self, user: u64, memberships: &[v1::GroupMembership]) {
        self.enter_groups(&mut self.state.lock(), user, memberships);
    }

    /// A user joined a group by a request made here.
    pub(crate) fn joined(&self, user: u64, group: u64, join_seq: u64) {
        self.enter_group(&mut self.state.lock(), user, group, join_seq, join_seq);
    }

    /// A user left a group by a request made here. The message that tells of it is yet to be pushed.
    pub(crate) fn leaves(&self, user: u64, group: u64, left_seq: u64) {
        note_left(&mut self.state.lock(), user, group, left_seq);
    }

    fn enter_groups(&self, state: &mut State, user: u64, memberships: &[v1::GroupMembership]) {
        for membership in memberships {
            let group = membership.group;
            match membership.spans.last() {
                Some(span) if span.left_seq != 0 => {
                    self.left_before(state, user, group, span.left_seq);
                }
                // Without a head nobody knows from where on: whoever looks next will.
                Some(span) if membership.head != 0 => {
                    self.enter_group(state, user, group, span.join_seq, membership.head + 1);
                }
                Some(_) | None => {}
            }
        }
    }

    /// A list says that a user has left. Who was let in by an older one, with a head from after the leave, would wait
    /// for the message that tells of it in vain.
    fn left_before(&self, state: &mut State, user: u64, group: u64, left_seq: u64) {
        note_left(state, user, group, left_seq);
        let is_unseen = |member: Member| member.join_seq < left_seq && left_seq < member.from_seq;
        if member_of(state, user, group).is_some_and(is_unseen) {
            self.leave_group(state, user, group);
        }
    }

    fn enter_group(&self, state: &mut State, user: u64, group: u64, join_seq: u64, from_seq: u64) {
        let State { users, groups } = state;
        let Some(online) = users.get_mut(&user) else {
            return;
        };
        if online
            .left
            .get(&group)
            .is_some_and(|left_seq| join_seq < *left_seq)
        {
            return;
        }
        online.left.remove(&group);
        if !groups.contains_key(&group) {
            if let Err(error) = self
                .upstream
                .add(timeline_to_api(Timeline::Group(group)), from_seq)
            {
                // Members still get everything by sync.
                tracing::warn!(group, %error, "subscribe to group");
                return;
            }
            self.metrics.subscriptions.inc();
        }
        online.groups.insert(group);
        let group = groups.entry(group).or_insert_with(|| Group {
            members: HashMap::new(),
            leaves_from: from_seq,
        });
        // The head that is known may be older than the stream.
        let from_seq = from_seq.max(group.leaves_from);
        let member = group
            .members
            .entry(user)
            .or_insert(Member { join_seq, from_seq });
        member.join_seq = join_seq.max(member.join_seq);
    }

    fn leave_group(&self, state: &mut State, user: u64, group: u64) {
        if let Some(online) = state.users.get_mut(&user) {
            online.groups.remove(&group);
        }
        if let Some(Group { members, .. }) = state.groups.get_mut(&group) {
            members.remove(&user);
            if members.is_empty() {
                state.groups.remove(&group);
                self.unsubscribe(Timeline::Group(group));
            }
        }
    }

    fn unsubscribe(&self, timeline: Timeline) {
        self.upstream.remove(timeline_to_api(timeline));
        self.metrics.subscriptions.dec();
    }

    fn detach(&self, connection: &Arc<Connection>) {
        let user = connection.user;
        let mut state = self.state.lock();
        let Some(online) = state.users.get_mut(&user) else {
            return;
        };
        online
            .connections
            .retain(|other| !Arc::ptr_eq(other, connection));
        if !online.connections.is_empty() {
            return;
        }
        let subscribed = online.subscribed.initialized();
        let groups = std::mem::take(&mut online.groups);
        state.users.remove(&user);
        for group in groups {
            self.leave_group(&mut state, user, group);
        }
        if subscribed {
            self.unsubscribe(Timeline::Mailbox(user));
        }
    }

    async fn feed(self: Arc<Self>, mut events: mpsc::Receiver<SubscribeEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                SubscribeEvent::Batch { timeline, messages } => {
                    if let Some(timeline) = timeline_from_api(Some(&timeline)) {
                        let _span = tracing::debug_span!("dispatch", %timeline).entered();
                        let messages = messages.into_iter();
                        let messages = messages.map(|message| message_from_api(message, timeline));
                        self.deliver(timeline, messages.collect());
                    }
                }
                // The store client follows heads by itself.
                SubscribeEvent::Heads(_) => {}
                SubscribeEvent::Ended { timeline, error } => {
                    if let Some(timeline) = timeline_from_api(Some(&timeline)) {
                        tracing::warn!(%timeline, %error, "subscription ended");
                        self.ended(timeline);
                    }
                }
            }
        }
    }

    /// A subscription ended for good: who relied on it connects anew and syncs.
    fn ended(&self, timeline: Timeline) {
        for (connection, _) in self.audience(timeline) {
            connection.queue.close(Close::GoingAway);
        }
    }

    /// Everyone who is to be pushed this timeline, with the first seq that each may read.
    fn audience(&self, timeline: Timeline) -> Vec<(Arc<Connection>, u64)> {
        let state = self.state.lock();
        let connections_of = |user: &u64, from: u64| {
            let online = state.users.get(user);
            let connections = online.into_iter().flat_map(|online| &online.connections);
            connections.map(move |connection| (Arc::clone(connection), from))
        };
        match timeline {
            Timeline::Mailbox(user) => connections_of(&user, 0).collect(),
            Timeline::Group(group) => {
                let group = state.groups.get(&group);
                let members = group.into_iter().flat_map(|group| &group.members);
                members
                    .flat_map(|(user, member)| connections_of(user, member.join_seq))
                    .collect()
            }
        }
    }

    fn deliver(&self, timeline: Timeline, messages: Vec<Message>) {
        let Timeline::Group(group) = timeline else {
            self.push(timeline, messages);
            return;
        };
        // Membership changes with the message that tells of it: a run ends there.
        let mut run = Vec::new();
        for message in messages {
            let (kind, user, seq) = (message.kind, message.sender, message.seq);
            if kind == MessageType::MEMBER_JOINED {
                self.push(timeline, std::mem::take(&mut run));
                self.joined(user, group, seq);
            }
            run.push(message);
            if kind == MessageType::MEMBER_LEFT {
                self.push(timeline, std::mem::take(&mut run));
                self.left(user, group, seq);
            }
        }
        self.push(timeline, run);
    }

    /// A user left a group at this seq; a later join, known by another way, stands.
    fn left(&self, user: u64, group: u64, left_seq: u64) {
        let mut state = self.state.lock();
        note_left(&mut state, user, group, left_seq);
        if let Some(group) = state.groups.get_mut(&group) {
            group.leaves_from = group.leaves_from.max(left_seq + 1);
        }
        if member_of(&state, user, group).is_some_and(|member| member.join_seq < left_seq) {
            self.leave_group(&mut state, user, group);
        }
    }

    fn push(&self, timeline: Timeline, messages: Vec<Message>) {
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
            return;
        };
        let (first_seq, head) = (
            first.seq,
            Position {
                timeline,
                seq: last.seq,
            },
        );
        let mut audience = self.audience(timeline);
        tracing::debug!(
            first_seq,
            seq = head.seq,
            connections = audience.len(),
            "push"
        );
        // The few whose join is within the batch are given the rest of it.
        audience.retain(|(connection, from)| {
            let late = *from > first_seq;
            if late && *from <= head.seq {
                let part = messages
                    .iter()
                    .filter(|message| message.seq >= *from)
                    .cloned();
                let frame = encode(connection.encoding, timeline, part.collect());
                self.offer(connection, frame, head);
            }
            !late
        });
        let mut frames: [Option<Bytes>; 2] = [None, None];
        for (connection, _) in audience {
            let slot = match connection.encoding {
                Encoding::Json => &mut frames[0],
                Encoding::Proto => &mut frames[1],
            };
            let frame = slot
                .get_or_insert_with(|| encode(connection.encoding, timeline, messages.clone()))
                .clone();
            self.offer(&connection, frame, head);
        }
    }

    fn offer(&self, connection: &Connection, frame: Bytes, head: Position) {
        if connection.queue.push(frame, head) {
            self.metrics.pushes.inc();
        } else {
            self.metrics.pushes_dropped.inc();
        }
    }

    /// Looks up the groups of everyone online, spread over each period. A stale view will do.
    async fn refresh_groups(self: Arc<Self>, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            let users: Vec<u64> = self.state.lock().users.keys().copied().collect();
            let pause = period / u32::try_from(users.len()).unwrap_or(u32::MAX).max(1);
            for user in users {
                let wait = memberships::patience(&self.client);
                match memberships::of_user(&self.client, user, true, wait).await {
                    Ok(groups) => self.update_groups(user, &groups),
                    Err(error) => tracing::debug!(user, %error, "look up groups"),
                }
                tokio::time::sleep(pause.min(Duration::from_millis(100))).await;
            }
        }
    }
}

fn encode(encoding: Encoding, timeline: Timeline, messages: Vec<Message>) -> Bytes {
    let prev_seq = messages
        .first()
        .map_or(0, |first| first.seq.saturating_sub(1));
    encoding.encode_server(&ServerFrame::Push(Push {
        timeline,
        prev_seq,
        messages,
    }))
}

/// Retryable: the gateway may not have noticed yet that older ones are gone.
fn too_many_connections(max: usize) -> CallError {
    let message = format!(
        "the user has {max} connections to this gateway, the limit (user_connections_max) is {max}"
    );
    CallError::new(ErrorCode::Busy, message)
}

fn member_of(state: &State, user: u64, group: u64) -> Option<Member> {
    state.groups.get(&group)?.members.get(&user).copied()
}

/// Whatever says that the user is in the group since before is out of date.
fn note_left(state: &mut State, user: u64, group: u64, left_seq: u64) {
    if let Some(online) = state.users.get_mut(&user) {
        let left = online.left.entry(group).or_default();
        *left = left_seq.max(*left);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.dispatch.detach(&self.connection);
    }
}
