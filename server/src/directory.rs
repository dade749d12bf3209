//! Who a handle is, and whether a user is there: questions whose shard another node may lead.
//!
//! ```text
//!  handle ──▶ remembered ──▶ this node's replica ──▶ the leader, behind its read barrier
//! ```
//!
//! A handle that is there is never given to anyone else and a user never goes, so a *yes* is right whoever
//! says it, however far behind. Only a *no* is asked of the shard's leader.
//!
//! A handle is there before its user is, who comes to another shard by lane. It is answered only when both are: what is
//! sent to a user who is not there yet would be refused.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use mailbox_api::v1::{
    ErrorCode, GroupMembership, HeadsRequest, ResolveUserRequest, SyncRequest, UserRef, user_ref,
};
use mailbox_api::{CallError, metadata};
use mailbox_engine::{GroupId, Seq, ShardId, UserId};
use mailbox_raft::{Leadership, Shard};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::convert;
use crate::core::Core;
use crate::status;

/// Handles remembered, at most.
const HANDLES_MAX: usize = 1 << 16;
/// Handles of one frame that are asked of other nodes at a time.
const ASKED_AT_ONCE: usize = 32;
/// How long a call waits for what it made in another shard, before it is to be repeated.
const ARRIVAL_WAIT: Duration = Duration::from_millis(1500);
const ARRIVAL_LOOK_MIN: Duration = Duration::from_millis(1);
const ARRIVAL_LOOK_MAX: Duration = Duration::from_millis(16);

/// Handles that were looked up, with whose they are.
///
/// Two generations: when the young one is full it becomes the old one, whose handles come back into the young
/// one as they are used.
#[derive(Debug, Default)]
pub(crate) struct HandleCache {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, UserId>,
    old: HashMap<String, UserId>,
}

impl HandleCache {
    fn get(&self, handle: &str) -> Option<UserId> {
        let mut generations = self.generations.lock();
        if let Some(user) = generations.young.get(handle) {
            return Some(*user);
        }
        let (handle, user) = generations.old.remove_entry(handle)?;
        generations.put(handle, user);
        Some(user)
    }

    fn put(&self, handle: &str, user: UserId) {
        self.generations.lock().put(handle.to_owned(), user);
    }
}

impl Generations {
    fn put(&mut self, handle: String, user: UserId) {
        if self.young.len() >= HANDLES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(handle, user);
    }
}

impl Core {
    /// The id of a user: an id stands for itself, a handle is looked up.
    ///
    /// # Errors
    /// `UnknownUser` for a handle that nobody has; `Retry` while its shard cannot be asked, or the user is on the way.
    pub(crate) async fn resolve(&self, user: &user_ref::User) -> Result<UserId, CallError> {
        match user {
            user_ref::User::Id(id) => Ok(UserId(*id)),
            user_ref::User::Handle(handle) => {
                if let Some(user) = self.known(handle).unwrap_or_else(unreadable) {
                    return Ok(user);
                }
                let (id, _) = self
                    .find(user)
                    .await
                    .map_err(|error| elsewhere(user, error))?;
                self.arrived(Made::User(id)).await?;
                self.handles.put(handle, id);
                Ok(id)
            }
        }
    }

    /// The id of a handle, if this node knows it without asking anybody.
    pub(crate) fn known(&self, handle: &str) -> Result<Option<UserId>, CallError> {
        if let Some(user) = self.handles.get(handle) {
            return Ok(Some(user));
        }
        let Some(shard) = self.node.shard(self.shard_of_handle(handle)) else {
            return Ok(None);
        };
        let Some(user) = held_here(shard.engine().resolve_handle(handle))?.flatten() else {
            return Ok(None);
        };
        let Some(replica) = self.node.shard(self.shard_of_user(user)) else {
            return Ok(None);
        };
        let made = Made::User(user);
        if held_here(made.is_in(replica.engine()))? != Some(true) {
            return Ok(None);
        }
        self.handles.put(handle, user);
        Ok(Some(user))
    }

    /// Many handles at once, each with its user or why there is none.
    pub(crate) async fn resolve_all(
        &self,
        handles: HashSet<String>,
    ) -> HashMap<String, Result<UserId, CallError>> {
        let asked = handles.into_iter().map(async |handle| {
            let user = user_ref::User::Handle(handle.clone());
            (handle, self.resolve(&user).await)
        });
        let asked = futures_util::stream::iter(asked);
        asked.buffer_unordered(ASKED_AT_ONCE).collect().await
    }

    /// Refuses a user who is not there.
    ///
    /// # Errors
    /// As [`Core::resolve`].
    pub(crate) async fn require_user(&self, user: UserId) -> Result<(), CallError> {
        let user = user_ref::User::Id(user.0);
        let found = self.find(&user).await;
        found.map(|_| ()).map_err(|error| elsewhere(&user, error))
    }

    /// Id and handle of a user: from the replica here, else from the leader.
    async fn find(&self, user: &user_ref::User) -> Result<(UserId, String), CallError> {
        let shard = self.shard_of_ref(user);
        if let Some(replica) = self.node.shard(shard) {
            if let Some(found) = find_here(&replica, user).unwrap_or_else(unreadable) {
                return Ok(found);
            }
            if let Leadership::Leader { .. } = replica.leadership() {
                return self.find_as_leader(&replica, user).await;
            }
        }
        let asked = self.ask(shard, async |address| {
            let user = UserRef {
                user: Some(user.clone()),
            };
            let request = self.own_call(ResolveUserRequest { user: Some(user) })?;
            self.peers.mailbox(&address)?.resolve_user(request).await
        });
        let answer = asked
            .await
            .map_err(|status| CallError::from_status(&status))?;
        let answer = answer.into_inner();
        Ok((UserId(answer.user), answer.handle))
    }

    /// A call of this node's own to another one, which is not to pass it on.
    pub(crate) fn own_call<T>(&self, call: T) -> Result<Request<T>, CallError> {
        let mut request = Request::new(call);
        self.authority.prove(request.metadata_mut())?;
        let once = MetadataValue::from_static("1");
        request.metadata_mut().insert(metadata::FORWARDED, once);
        Ok(request)
    }

    /// Id and handle of a user of a shard that this node leads.
    ///
    /// # Errors
    /// `UnknownUser` behind a read barrier, or what became of the barrier; `WrongShard` if the slot is not served here,
    /// which says nothing of the user.
    pub(crate) async fn find_as_leader(
        &self,
        shard: &Shard,
        user: &user_ref::User,
    ) -> Result<(UserId, String), CallError> {
        if let Some(found) = find_here(shard, user)? {
            return Ok(found);
        }
        self.barrier(shard).await?;
        let said = self.elsewhere(look_up(shard, user));
        let found = said.map_err(|error| status::engine_fault(&error))??;
        found.ok_or_else(|| unknown_user(user))
    }

    /// The shard that knows a user: the directory's for a handle, the mailbox's for an id.
    pub(crate) fn shard_of_ref(&self, user: &user_ref::User) -> ShardId {
        match user {
            user_ref::User::Id(id) => self.shard_of_user(UserId(*id)),
            user_ref::User::Handle(handle) => self.shard_of_handle(handle),
        }
    }

    /// The groups in a user's own list: in that of the replica here, or of the leader if there is none here.
    ///
    /// # Errors
    /// `Retry` while the leader cannot be asked.
    pub(crate) async fn groups_of(&self, user: UserId) -> Result<Vec<GroupId>, CallError> {
        let shard = self.shard_of_user(user);
        if let Some(replica) = self.node.shard(shard) {
            let groups = held_here(replica.engine().groups_of(user));
            if let Some(groups) = groups.unwrap_or_else(unreadable) {
                return Ok(groups.into_iter().map(|listed| listed.group).collect());
            }
        }
        let groups = self.groups_at_leader(shard, user).await.map_err(|status| {
            let user = user_ref::User::Id(user.0);
            elsewhere(&user, CallError::from_status(&status))
        })?;
        let groups = groups.into_iter();
        Ok(groups.map(|listed| GroupId(listed.group)).collect())
    }

    async fn groups_at_leader(
        &self,
        shard: ShardId,
        user: UserId,
    ) -> Result<Vec<GroupMembership>, Status> {
        let groups_of = Some(UserRef {
            user: Some(user_ref::User::Id(user.0)),
        });
        let call = SyncRequest {
            shard: shard.0,
            groups_of,
            ..SyncRequest::default()
        };
        let asked = self.ask(shard, async |address| {
            let request = self.own_call(call.clone())?;
            self.peers.mailbox(&address)?.sync(request).await
        });
        asked.await.map(|answer| answer.into_inner().groups)
    }

    /// Waits until what a call made has come to another shard, as this node's replica of it sees, or its leader if
    /// there is none here, or one that does not see it for long: what is applied anywhere is there for every later leader.
    ///
    /// # Errors
    /// `Retry` if it takes too long: the same call, with the same id, waits again.
    pub(crate) async fn arrived(&self, made: Made) -> Result<(), CallError> {
        let deadline = Instant::now() + ARRIVAL_WAIT;
        let mut pause = ARRIVAL_LOOK_MIN;
        loop {
            let shard = made.shard(self);
            let replica = self.node.shard(shard);
            let here = replica.map(|replica| held_here(made.is_in(replica.engine())));
            let there = match here {
                Some(Ok(Some(true))) => true,
                // It may be far behind, or hold nothing yet.
                Some(Ok(_)) if pause < ARRIVAL_LOOK_MAX => false,
                Some(Ok(_) | Err(_)) | None => self.is_at_leader(shard, made).await,
            };
            if there {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let waited = ARRIVAL_WAIT.as_millis();
                let message =
                    format!("{made} is made, but did not come to shard {shard} within {waited} ms");
                return Err(CallError::new(ErrorCode::Retry, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ARRIVAL_LOOK_MAX);
        }
    }

    /// False too if nobody could say: it is asked again.
    async fn is_at_leader(&self, shard: ShardId, made: Made) -> bool {
        match made {
            Made::User(user) => {
                let user = user_ref::User::Id(user.0);
                self.find(&user).await.is_ok()
            }
            Made::Group { group, .. } => {
                let timelines = vec![convert::timeline_out(group.timeline())];
                let call = HeadsRequest {
                    shard: shard.0,
                    timelines,
                    ..HeadsRequest::default()
                };
                let asked = self.ask(shard, async |address| {
                    let request = self.own_call(call.clone())?;
                    self.peers.mailbox(&address)?.heads(request).await
                });
                let heads = asked.await.map(|answer| answer.into_inner().heads);
                // A group's first message is that it was made.
                heads.is_ok_and(|heads| heads.iter().any(|head| head.head > 0))
            }
            Made::Listed { user, group, seq } => {
                let groups = self.groups_at_leader(shard, user).await;
                groups.is_ok_and(|groups| {
                    let listed = groups.iter().find(|listed| listed.group == group.0);
                    let newest = listed.and_then(|listed| listed.spans.last());
                    newest.is_some_and(|span| span.join_seq.max(span.left_seq) >= seq.0)
                })
            }
        }
    }
}

/// What a call has made that travels to another shard.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made {
    /// A user, in its own shard.
    User(UserId),
    /// A group with its first member.
    Group {
        /// The group.
        group: GroupId,
        /// The member.
        creator: UserId,
    },
    /// A join or leave at a seq of the group, in the user's own list of groups.
    Listed {
        /// Whose list.
        user: UserId,
        /// The group.
        group: GroupId,
        /// Where the user joined or left.
        seq: Seq,
    },
}

impl Made {
    fn shard(self, core: &Core) -> ShardId {
        match self {
            Made::User(user) | Made::Listed { user, .. } => core.shard_of_user(user),
            Made::Group { group, .. } => core.shard_of_timeline(group.timeline()),
        }
    }

    fn is_in(self, engine: &mailbox_engine::Shard) -> Result<bool, mailbox_engine::Error> {
        match self {
            Made::User(user) => Ok(engine.handle_of(user)?.is_some()),
            Made::Group { group, creator } => Ok(engine.membership(group, creator)?.is_some()),
            Made::Listed { user, group, seq } => {
                let groups = engine.groups_of(user)?;
                let listed = groups.iter().find(|listed| listed.group == group);
                let newest = listed.and_then(|listed| listed.spans.last());
                Ok(newest.is_some_and(|span| span.join.max(span.left) >= seq))
            }
        }
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Made::User(user) => write!(f, "user {user}"),
            Made::Group { group, .. } => group.timeline().fmt(f),
            Made::Listed { user, group, .. } => {
                write!(f, "the change of {} for user {user}", group.timeline())
            }
        }
    }
}

fn find_here(shard: &Shard, user: &user_ref::User) -> Result<Option<(UserId, String)>, CallError> {
    Ok(held_here(look_up(shard, user))?.flatten())
}

/// What the rows here say.
fn look_up(
    shard: &Shard,
    user: &user_ref::User,
) -> Result<Option<(UserId, String)>, mailbox_engine::Error> {
    let engine = shard.engine();
    Ok(match user {
        user_ref::User::Id(id) => {
            let handle = engine.handle_of(UserId(*id))?;
            handle.map(|handle| (UserId(*id), handle))
        }
        user_ref::User::Handle(handle) => {
            let id = engine.resolve_handle(handle)?;
            id.map(|id| (id, handle.clone()))
        }
    })
}

/// What a replica here says; nothing if it does not hold the slot. It may not have got it yet, or have given it away:
/// the leader knows.
fn held_here<T>(said: Result<T, mailbox_engine::Error>) -> Result<Option<T>, CallError> {
    match said {
        Ok(said) => Ok(Some(said)),
        Err(error) if status::is_elsewhere(&error) => Ok(None),
        Err(error) => Err(status::engine_fault(&error)),
    }
}

/// A row that cannot be read here is whole on other nodes: the leader is asked. If this node leads, it refuses then.
fn unreadable<T>(error: CallError) -> Option<T> {
    tracing::warn!(%error, "a user cannot be looked up here");
    None
}

/// A shard that could not be asked is not the one that the caller called: its leader is no hint for the call.
fn elsewhere(user: &user_ref::User, error: CallError) -> CallError {
    if !error.is_retryable() {
        return error;
    }
    let who = name(user);
    let message = format!("{who} cannot be looked up now: {}", error.0.message);
    let mut retry = CallError::new(ErrorCode::Retry, message);
    retry.0.retry_after_ms = error.0.retry_after_ms;
    retry
}

/// An unknown handle or id, in words.
fn unknown_user(user: &user_ref::User) -> CallError {
    let message = format!("there is no {}", name(user));
    CallError::new(ErrorCode::UnknownUser, message)
}

fn name(user: &user_ref::User) -> String {
    match user {
        user_ref::User::Id(id) => format!("user {id}"),
        user_ref::User::Handle(handle) => format!("user @{handle}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_keeps_what_is_used() {
        let cache = HandleCache::default();
        cache.put("used", UserId(1));
        cache.put("not used", UserId(2));
        for number in 0..3 * HANDLES_MAX as u64 {
            cache.put(&number.to_string(), UserId(number));
            assert_eq!(cache.get("used"), Some(UserId(1)), "after {number}");
        }
        assert_eq!(cache.get("not used"), None);
        let generations = cache.generations.lock();
        assert!(generations.young.len() + generations.old.len() <= HANDLES_MAX);
    }

    #[test]
    fn a_shard_that_cannot_be_asked_gives_no_hint_for_another() {
        let user = user_ref::User::Handle("alice".into());
        let hint = mailbox_raft::LeaderHint {
            node: 2,
            address: "h:2".into(),
        };
        let error = elsewhere(&user, status::not_leader(4, Some(hint)));
        assert_eq!(error.code(), ErrorCode::Retry);
        assert_eq!(
            (error.0.leader_node, error.0.leader_address.as_str()),
            (0, "")
        );
        assert!(error.0.message.contains("@alice"), "{error}");
        let unknown = elsewhere(&user, unknown_user(&user));
        assert_eq!(unknown.code(), ErrorCode::UnknownUser);
    }
}
