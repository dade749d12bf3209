//! Who a handle is, and whether a user is there: questions whose shard another node may lead.
//!
//! ```text
//!  handle ──▶ remembered ──▶ this node's replica ──▶ the leader, behind its read barrier
//! ```
//!
//! A handle that is there is never given to anyone else and a user never goes, so a *yes* is right whoever
//! says it, however far behind. Only a *no* is asked of the shard's leader.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use mailbox_api::v1::{ErrorCode, ResolveUserRequest, UserRef, user_ref};
use mailbox_api::{CallError, metadata};
use mailbox_engine::UserId;
use mailbox_raft::{Leadership, Shard};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::MetadataValue;

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
    /// `UnknownUser` for a handle that nobody has; `Retry` while its shard cannot be asked.
    pub(crate) async fn resolve(&self, user: &user_ref::User) -> Result<UserId, CallError> {
        match user {
            user_ref::User::Id(id) => Ok(UserId(*id)),
            user_ref::User::Handle(handle) => {
                if let Some(user) = self.known(handle)? {
                    return Ok(user);
                }
                let (id, _) = self
                    .find(user)
                    .await
                    .map_err(|error| elsewhere(user, error))?;
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
        let shard = self.shard_of_handle(handle)?;
        let user = shard.engine().resolve_handle(handle);
        let user = user.map_err(|error| status::engine_fault(&error))?;
        if let Some(user) = user {
            self.handles.put(handle, user);
        }
        Ok(user)
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
        let shard = self.shard_of_ref(user)?;
        if let Some(found) = find_here(&shard, user)? {
            return Ok(found);
        }
        let leader = match shard.leadership() {
            Leadership::Leader { .. } => return self.find_as_leader(&shard, user).await,
            Leadership::Follower { leader, .. } => leader,
        };
        let Some(leader) = leader else {
            return Err(status::not_leader(shard.id().0, None));
        };
        let user = UserRef {
            user: Some(user.clone()),
        };
        let mut request = Request::new(ResolveUserRequest { user: Some(user) });
        self.authority.prove(request.metadata_mut())?;
        let once = MetadataValue::from_static("1");
        request.metadata_mut().insert(metadata::FORWARDED, once);
        let mut peer = self.peers.mailbox(&leader.address)?;
        let answer = peer.resolve_user(request).await;
        let answer = answer.map_err(|status| CallError::from_status(&status))?;
        let answer = answer.into_inner();
        Ok((UserId(answer.user), answer.handle))
    }

    /// Id and handle of a user of a shard that this node leads.
    ///
    /// # Errors
    /// `UnknownUser` behind a read barrier, or what became of the barrier.
    pub(crate) async fn find_as_leader(
        &self,
        shard: &Shard,
        user: &user_ref::User,
    ) -> Result<(UserId, String), CallError> {
        if let Some(found) = find_here(shard, user)? {
            return Ok(found);
        }
        self.barrier(shard).await?;
        find_here(shard, user)?.ok_or_else(|| unknown_user(user))
    }

    /// The shard that knows a user: the directory's for a handle, the mailbox's for an id.
    pub(crate) fn shard_of_ref(&self, user: &user_ref::User) -> Result<Shard, CallError> {
        match user {
            user_ref::User::Id(id) => self.shard_of_user(UserId(*id)),
            user_ref::User::Handle(handle) => self.shard_of_handle(handle),
        }
    }

    /// Waits until what a call made has come to another shard, as this node's replica of it sees: what is
    /// applied anywhere is there for every later leader.
    ///
    /// # Errors
    /// `Retry` if it takes too long: the same call, with the same id, waits again.
    pub(crate) async fn arrived(
        &self,
        shard: &Shard,
        what: &str,
        is_there: impl Fn(&mailbox_engine::Shard) -> Result<bool, mailbox_engine::Error>,
    ) -> Result<(), CallError> {
        let deadline = Instant::now() + ARRIVAL_WAIT;
        let mut pause = ARRIVAL_LOOK_MIN;
        loop {
            let there = is_there(shard.engine());
            if there.map_err(|error| status::engine_fault(&error))? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let waited = ARRIVAL_WAIT.as_millis();
                let message = format!(
                    "{what} is made, but did not come to shard {} within {waited} ms",
                    shard.id()
                );
                return Err(CallError::new(ErrorCode::Retry, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ARRIVAL_LOOK_MAX);
        }
    }
}

fn find_here(shard: &Shard, user: &user_ref::User) -> Result<Option<(UserId, String)>, CallError> {
    let engine = shard.engine();
    let found = match user {
        user_ref::User::Id(id) => {
            let handle = engine.handle_of(UserId(*id));
            handle.map(|handle| handle.map(|handle| (UserId(*id), handle)))
        }
        user_ref::User::Handle(handle) => {
            let id = engine.resolve_handle(handle);
            id.map(|id| id.map(|id| (id, handle.clone())))
        }
    };
    found.map_err(|error| status::engine_fault(&error))
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
pub(crate) fn unknown_user(user: &user_ref::User) -> CallError {
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
