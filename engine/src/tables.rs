//! Reads of the tables: handles, groups, cursors, read marks.

use crate::command::Conversation;
use crate::decode::Malformed;
use crate::error::Error;
use crate::id::{DeviceId, GroupId, Seq, TimelineId, UserId};
use crate::key::StateKey;
use crate::shard::Shard;
use crate::table::{Membership, decode_spans, decode_u64};
use crate::view::seq_value;

impl Shard {
    /// Who has a handle, given without `@`. The shard must hold the handle's directory slot.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped; so for all reads here.
    pub fn resolve_handle(&self, handle: &str) -> Result<Option<UserId>, Error> {
        let key = StateKey::Handle {
            handle: handle.into(),
        };
        let Some(value) = self.get(&key)? else {
            return Ok(None);
        };
        decode_u64(&value)
            .map(|user| Some(UserId(user)))
            .map_err(corrupt(&key))
    }

    /// A user's handle, without `@`; `None` if there is no such user.
    ///
    /// # Errors
    /// As [`Shard::resolve_handle`].
    pub fn handle_of(&self, user: UserId) -> Result<Option<String>, Error> {
        let key = StateKey::User { user };
        let Some(value) = self.get(&key)? else {
            return Ok(None);
        };
        let not_text = |_| corrupt(&key)(Malformed::NotUtf8 { what: "handle" });
        String::from_utf8(value.to_vec())
            .map(Some)
            .map_err(not_text)
    }

    /// The groups that a user is or was in, by the user's own list, in the order of their ids.
    /// Read marks of groups in other shards are 0: they are kept with the group.
    ///
    /// # Errors
    /// As [`Shard::resolve_handle`].
    pub fn groups_of(&self, user: UserId) -> Result<Vec<Membership>, Error> {
        let slot = self.slot_of(user.mailbox());
        let rows = self.scan_prefix(slot, &StateKey::user_groups_prefix(user))?;
        let mut groups = Vec::with_capacity(rows.len());
        for (suffix, value) in rows {
            let key = StateKey::decode(suffix.as_slice());
            let key = key.map_err(|fault| Error::corrupt_row(suffix.as_slice(), fault))?;
            let StateKey::UserGroup { group, .. } = key else {
                continue;
            };
            let spans = decode_spans(&value).map_err(corrupt(&key))?;
            let read_mark = if self.serves(self.slot_of(group.timeline())) {
                self.read_mark(user, Conversation::Group(group))?
            } else {
                Seq::ZERO
            };
            groups.push(Membership {
                group,
                spans,
                read_mark,
            });
        }
        Ok(groups)
    }

    /// A user's place in a group, by the group's own row; `None` if the user was never in it.
    ///
    /// # Errors
    /// As [`Shard::resolve_handle`].
    pub fn membership(&self, group: GroupId, user: UserId) -> Result<Option<Membership>, Error> {
        let key = StateKey::Member { group, user };
        let Some(value) = self.get(&key)? else {
            return Ok(None);
        };
        let spans = decode_spans(&value).map_err(corrupt(&key))?;
        let read_mark = self.read_mark(user, Conversation::Group(group))?;
        Ok(Some(Membership {
            group,
            spans,
            read_mark,
        }))
    }

    /// The greatest seq of a timeline that a user's device has acknowledged; 0 if none.
    ///
    /// # Errors
    /// As [`Shard::resolve_handle`].
    pub fn cursor(
        &self,
        timeline: TimelineId,
        user: UserId,
        device: &DeviceId,
    ) -> Result<Seq, Error> {
        let key = StateKey::Cursor {
            timeline,
            user,
            device: device.clone(),
        };
        seq_value(self.get(&key)?, &key)
    }

    /// The greatest seq that a user has read in a conversation; 0 if none.
    ///
    /// # Errors
    /// As [`Shard::resolve_handle`].
    pub fn read_mark(&self, user: UserId, conversation: Conversation) -> Result<Seq, Error> {
        let key = match conversation {
            Conversation::Peer(peer) => StateKey::PeerReadMark { user, peer },
            Conversation::Group(group) => StateKey::GroupReadMark { group, user },
        };
        seq_value(self.get(&key)?, &key)
    }
}

fn corrupt(key: &StateKey) -> impl Fn(Malformed) -> Error {
    let encoded = key.encode();
    move |malformed| Error::corrupt_row(encoded.as_slice(), malformed)
}
