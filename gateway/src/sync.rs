//! Composes a page of sync: the mailbox first, then the user's groups, from a sync key.
//!
//! Each part of the key advances only to rows that are on the page, so whatever the page's bounds
//! cut off is on the next one. A user reads a group in the spans of the membership only: from the
//! message that tells of the join to the one that tells of the leave, both inclusive.
//!
//! A shard that nobody serves keeps back its own groups only: what the others have is given, and there is more. The
//! shard's error is the answer once nothing else is left to give.

use std::collections::BTreeSet;

use mailbox_api::v1::{self, ErrorCode};
use mailbox_client::{CallError, Client};
use mailbox_wire::{Fault, Message, Position, SYNC_KEY_GROUPS_MAX, SyncKey, Synced, Timeline};

use crate::convert::{
    fault, fault_from_call, message_from_api, timeline_from_api, timeline_to_api, user_id_to_api,
};
use crate::memberships::{Unknown, fill_heads, patience};

/// Groups read in one call.
const RANGES_MAX: usize = 100;

/// Calls for one page, so that a page with very many groups ends.
const ROUNDS_MAX: usize = 20;

/// A page, and the memberships as they were when it was read.
pub(crate) struct Page {
    pub(crate) synced: Synced,
    pub(crate) memberships: Vec<v1::GroupMembership>,
}

/// The bounds of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) messages_max: u32,
    pub(crate) bytes_max: u64,
}

/// Where a sync begins.
#[derive(Debug)]
pub(crate) struct Start {
    key: SyncKey,
    /// (group, seq) that the client has got by push and that the key has no room for: it may hold groups that the user
    /// is not in any more.
    beyond: Vec<(u64, u64)>,
}

/// Reads the key text and adds what the client has got by push since.
pub(crate) fn starting_key(user: u64, key: &str, have: &[Position]) -> Result<Start, Fault> {
    let mut beyond = Vec::new();
    let mut key = SyncKey::parse(key).map_err(|error| resync(error.to_string()))?;
    if have.len() > SYNC_KEY_GROUPS_MAX + 1 {
        let message = format!(
            "`have` names {} timelines, the limit is {}",
            have.len(),
            SYNC_KEY_GROUPS_MAX + 1
        );
        return Err(fault(ErrorCode::LimitExceeded, message));
    }
    for position in have {
        match position.timeline {
            Timeline::Mailbox(owner) if owner == user => {
                key.mailbox_seq = key.mailbox_seq.max(position.seq);
            }
            Timeline::Mailbox(owner) => {
                let message = format!("`have` names mailbox:{owner}, but yours is mailbox:{user}");
                return Err(fault(ErrorCode::InvalidArgument, message));
            }
            Timeline::Group(group) => {
                if position.seq != 0 && !key.raise_group(group, position.seq) {
                    beyond.push((group, position.seq));
                }
            }
        }
    }
    Ok(Start { key, beyond })
}

/// Reads a page.
pub(crate) async fn compose(
    client: &Client,
    user: u64,
    start: Start,
    bounds: Bounds,
) -> Result<Page, Fault> {
    let mailbox = Timeline::Mailbox(user);
    let request = v1::SyncRequest {
        ranges: vec![range(mailbox, start.key.mailbox_seq)],
        limit: bounds.messages_max,
        limit_bytes: bounds.bytes_max,
        groups_of: Some(user_id_to_api(user)),
        ..v1::SyncRequest::default()
    };
    let response = client.sync(request).await.map_err(fault_from_call)?;
    let mut memberships = response.groups;
    let more = response.pages.iter().any(|page| page.more);
    let unknown = if more {
        None
    } else {
        // Which groups have news: their shards are asked for heads, not one group after the other for rows.
        fill_heads(client, &mut memberships, false, patience(client)).await
    };
    let mut composer = Composer::new(start, bounds, &memberships, unknown)?;
    for page in response.pages {
        if timeline_from_api(page.timeline.as_ref()) == Some(mailbox) {
            composer.take_mailbox(user, page)?;
        }
    }
    let mut more = more;
    if !more {
        more = composer.read_groups(client, user).await?;
    }
    let synced = composer.finish(user, more)?;
    Ok(Page {
        synced,
        memberships,
    })
}

struct Composer {
    key: SyncKey,
    left: Bounds,
    messages: Vec<Message>,
    groups: Vec<Group>,
    /// Why some group's part is missing, if one is.
    missing: Option<CallError>,
}

/// A group of the user, and how far it is known to go.
struct Group {
    id: u64,
    spans: Vec<v1::MembershipSpan>,
    /// Greatest seq that is there, 0 before the group itself is; `None` = nobody told: its shard is not asked for rows.
    head: Option<u64>,
}

/// What to read next of a group.
struct Wanted {
    after: u64,
    /// Last seq that the user may read of this span.
    until: u64,
}

impl Group {
    fn wanted(&self, held: u64) -> Option<Wanted> {
        let head = self.head?;
        let span = self
            .spans
            .iter()
            .find(|span| span.left_seq == 0 || span.left_seq > held)?;
        let after = held.max(span.join_seq.saturating_sub(1));
        let until = if span.left_seq == 0 {
            u64::MAX
        } else {
            span.left_seq
        };
        (after < head.min(until)).then_some(Wanted { after, until })
    }

    /// The list ends with a leave, and the key holds more than that: the list is older than a join since, or the key is
    /// of another history.
    fn is_outrun(&self, held: u64) -> bool {
        let left = self.spans.last().map_or(0, |span| span.left_seq);
        // A head below the leave is the group's own, and will do to tell.
        left != 0 && held > left && self.head.is_none_or(|head| head >= left)
    }

    /// Has the group itself asked for what comes next: its own row knows whether the key can be.
    fn ask_beyond(&mut self, held: u64) {
        let next = held.saturating_add(1);
        self.spans.push(v1::MembershipSpan {
            join_seq: next,
            left_seq: 0,
        });
        self.head = self.head.map(|_| next);
    }
}

impl Composer {
    /// A group whose head is 0 and not `unknown` is not there yet: its founder's list says so first. Heads need not be
    /// there for a page that the mailbox fills.
    ///
    /// What the key holds of a group that is not listed stays there as long as there is room: the list may not know yet
    /// of a join.
    fn new(
        start: Start,
        left: Bounds,
        memberships: &[v1::GroupMembership],
        unknown: Option<Unknown>,
    ) -> Result<Self, Fault> {
        let is_unknown = |group: u64| {
            let groups = unknown.as_ref().map(|unknown| &unknown.groups);
            groups.is_some_and(|groups| groups.contains(&group))
        };
        let mut groups: Vec<Group> = memberships
            .iter()
            .map(|membership| Group {
                id: membership.group,
                spans: membership.spans.clone(),
                head: (!is_unknown(membership.group)).then_some(membership.head),
            })
            .collect();
        groups.sort_unstable_by_key(|group| group.id);
        let mut composer = Self {
            key: start.key,
            left,
            messages: Vec::new(),
            groups,
            missing: unknown.map(|unknown| unknown.error),
        };
        if start.beyond.is_empty() {
            return Ok(composer);
        }
        let (key, groups) = (&mut composer.key, &composer.groups);
        // Once for all of them: a client names thousands.
        key.retain_groups(|id| is_listed(groups, id));
        let (listed, others): (Vec<_>, Vec<_>) =
            (start.beyond.into_iter()).partition(|(group, _)| is_listed(groups, *group));
        for (group, seq) in listed {
            if !key.raise_group(group, seq) {
                return Err(too_many_groups());
            }
        }
        for (group, seq) in others {
            // Of one that has no room some rows will be given again.
            key.raise_group(group, seq);
        }
        Ok(composer)
    }

    fn take_mailbox(&mut self, user: u64, page: v1::SyncPage) -> Result<(), Fault> {
        check_held(
            Timeline::Mailbox(user),
            self.key.mailbox_seq,
            page.head,
            page.trim_point,
        )?;
        for message in page.messages {
            self.key.mailbox_seq = message.seq;
            self.take(message, Timeline::Mailbox(user));
        }
        #[cfg(feature = "planted")]
        if page.more && mailbox_planted::is_now_and_then("sync-key-off-by-one", 20) {
            self.key.mailbox_seq += 1;
        }
        Ok(())
    }

    fn take(&mut self, message: v1::Message, timeline: Timeline) {
        self.left.messages_max = self.left.messages_max.saturating_sub(1);
        self.left.bytes_max = self
            .left
            .bytes_max
            .saturating_sub(message.body.len() as u64);
        self.messages.push(message_from_api(message, timeline));
    }

    /// Reads groups until all are read that can be, or the page is full; returns whether there is more.
    async fn read_groups(&mut self, client: &Client, user: u64) -> Result<bool, Fault> {
        for group in &mut self.groups {
            let held = self.key.group_seq(group.id);
            check_spans(group, held)?;
            if group.is_outrun(held) {
                group.ask_beyond(held);
            }
            let head = group.head.unwrap_or(u64::MAX);
            check_held(Timeline::Group(group.id), held, head, 0)?;
        }
        for _ in 0..ROUNDS_MAX {
            let ranges = self.next_ranges();
            if ranges.is_empty() {
                return Ok(self.groups.iter().any(|group| group.head.is_none()));
            }
            if self.left.messages_max == 0 || self.left.bytes_max == 0 {
                return Ok(true);
            }
            let timelines = ranges.iter().filter_map(|range| range.timeline);
            let mut silent: BTreeSet<u64> = timelines.map(|timeline| timeline.owner).collect();
            let request = v1::SyncRequest {
                ranges,
                limit: self.left.messages_max,
                limit_bytes: self.left.bytes_max,
                // The list of groups may not know yet of a leave, the group does.
                reader: Some(user_id_to_api(user)),
                ..v1::SyncRequest::default()
            };
            let (response, missing) = client.sync_where_served(request, patience(client)).await;
            for page in response.pages {
                if let Some(Timeline::Group(id)) = timeline_from_api(page.timeline.as_ref()) {
                    silent.remove(&id);
                    self.take_group(id, page)?;
                }
            }
            for group in &mut self.groups {
                // For this page they are not asked again.
                if silent.contains(&group.id) {
                    group.head = None;
                }
            }
            self.missing = self.missing.take().or(missing);
        }
        Ok(true)
    }

    /// As many groups as may fill the page: each shard answers with as much as the whole page takes.
    fn next_ranges(&self) -> Vec<v1::SyncRange> {
        let mut room = u64::from(self.left.messages_max);
        let mut ranges = Vec::new();
        for group in &self.groups {
            let Some(wanted) = group.wanted(self.key.group_seq(group.id)) else {
                continue;
            };
            ranges.push(range(Timeline::Group(group.id), wanted.after));
            let until = wanted.until.min(group.head.unwrap_or(u64::MAX));
            room = room.saturating_sub(until.saturating_sub(wanted.after));
            if room == 0 || ranges.len() == RANGES_MAX {
                break;
            }
        }
        ranges
    }

    fn take_group(&mut self, id: u64, page: v1::SyncPage) -> Result<(), Fault> {
        let held = self.key.group_seq(id);
        let Ok(at) = self.groups.binary_search_by_key(&id, |group| group.id) else {
            return Ok(());
        };
        check_held(Timeline::Group(id), held, page.head, page.trim_point)?;
        self.groups[at].head = Some(page.head);
        let Some(wanted) = self.groups[at].wanted(held) else {
            return Ok(());
        };
        // No rows and no more of them: what lies between is trimmed. Do not ask again.
        if page.messages.is_empty() && !page.more && page.trim_point >= page.head {
            self.groups[at].spans.clear();
        }
        if let Some(first) = page.messages.first().map(|message| message.seq)
            && first > wanted.until
        {
            // The group itself has forgotten a span that the list still has.
            if held != 0 {
                return Err(forgotten(id, held, first));
            }
            let spans = &mut self.groups[at].spans;
            spans.retain(|span| span.left_seq == 0 || span.left_seq >= first);
            return Ok(());
        }
        for message in page.messages {
            // What the page has no room for is read again for the next one.
            let full = self.left.messages_max == 0 || self.left.bytes_max == 0;
            if full || message.seq > wanted.until {
                break;
            }
            self.raise(id, message.seq)?;
            self.take(message, Timeline::Group(id));
        }
        Ok(())
    }

    /// Raises what the key holds of a group. One that is full forgets the groups that are not listed.
    fn raise(&mut self, id: u64, seq: u64) -> Result<(), Fault> {
        if self.key.raise_group(id, seq) {
            return Ok(());
        }
        self.key.retain_groups(|id| is_listed(&self.groups, id));
        if self.key.raise_group(id, seq) {
            Ok(())
        } else {
            Err(too_many_groups())
        }
    }

    /// The page; with nothing on it for want of a group's part, the reason.
    fn finish(self, user: u64, more: bool) -> Result<Synced, Fault> {
        if let Some(error) = self.missing
            && self.messages.is_empty()
        {
            return Err(fault_from_call(error));
        }
        let mailbox = Position {
            timeline: Timeline::Mailbox(user),
            seq: self.key.mailbox_seq,
        };
        let groups = self.key.groups().iter();
        let groups = groups.map(|(id, seq)| Position {
            timeline: Timeline::Group(*id),
            seq: *seq,
        });
        // While there is more the messages themselves say where the client stands.
        let positions = if more {
            Vec::new()
        } else {
            std::iter::once(mailbox).chain(groups).collect()
        };
        Ok(Synced {
            messages: self.messages,
            key: self.key.to_text(),
            more,
            positions,
        })
    }
}

fn is_listed(groups: &[Group], id: u64) -> bool {
    groups.binary_search_by_key(&id, |group| group.id).is_ok()
}

fn range(timeline: Timeline, after_seq: u64) -> v1::SyncRange {
    v1::SyncRange {
        timeline: Some(timeline_to_api(timeline)),
        after_seq,
    }
}

/// A key from another history, or from before what is kept, must not pass.
fn check_held(timeline: Timeline, held: u64, head: u64, trim_point: u64) -> Result<(), Fault> {
    if held > head {
        return Err(resync(format!(
            "the sync key holds seq {held} of {timeline}, its head is {head}"
        )));
    }
    if held != 0 && held < trim_point {
        let message = format!(
            "the sync key holds seq {held} of {timeline}, which is trimmed to {trim_point}"
        );
        return Err(resync(message));
    }
    Ok(())
}

/// Of the times that a user was in a group only the newest are kept. Who holds something of an earlier one may lack the
/// rest of it, and what lies between; who holds nothing has lost nothing that was kept.
fn check_spans(group: &Group, held: u64) -> Result<(), Fault> {
    match group.spans.first() {
        Some(oldest) if held != 0 && held < oldest.join_seq.saturating_sub(1) => {
            Err(forgotten(group.id, held, oldest.join_seq))
        }
        Some(_) | None => Ok(()),
    }
}

fn forgotten(group: u64, held: u64, next: u64) -> Fault {
    let timeline = Timeline::Group(group);
    resync(format!(
        "the sync key holds seq {held} of {timeline}, what is left to read of it begins at {next}"
    ))
}

fn resync(message: String) -> Fault {
    fault(
        ErrorCode::Resync,
        format!("{message}; sync again from an empty key"),
    )
}

fn too_many_groups() -> Fault {
    let message = format!("a user's sync serves at most {SYNC_KEY_GROUPS_MAX} groups");
    fault(ErrorCode::LimitExceeded, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u64 = SYNC_KEY_GROUPS_MAX as u64;
    const BOUNDS: Bounds = Bounds {
        messages_max: 10,
        bytes_max: 1000,
    };

    /// Of a key that is full, by somebody who has got something of one more group.
    fn start() -> Start {
        let mut key = SyncKey::default();
        assert!((1..=FULL).all(|group| key.raise_group(group, 1)));
        let have = [(1, 2), (FULL + 1, 5)].map(|(group, seq)| Position {
            timeline: Timeline::Group(group),
            seq,
        });
        starting_key(18, &key.to_text(), &have).unwrap()
    }

    fn listed(groups: impl IntoIterator<Item = u64>) -> Vec<v1::GroupMembership> {
        let groups = groups.into_iter().map(|group| v1::GroupMembership {
            group,
            ..v1::GroupMembership::default()
        });
        groups.collect()
    }

    #[test]
    fn what_was_pushed_of_a_new_group_takes_the_place_of_groups_that_are_not_listed() {
        let composer = Composer::new(start(), BOUNDS, &listed([FULL + 1, 1]), None).unwrap();
        assert_eq!(composer.key.groups(), [(1, 2), (FULL + 1, 5)]);
    }

    #[test]
    fn a_key_that_is_full_of_listed_groups_takes_no_other() {
        let refused = Composer::new(start(), BOUNDS, &listed(1..=FULL + 1), None).err();
        assert_eq!(refused, Some(too_many_groups()));
        // What is not listed is no reason to give nothing.
        let composer = Composer::new(start(), BOUNDS, &listed(1..=FULL), None).unwrap();
        assert_eq!(composer.key.group_seq(1), 2);
        assert_eq!(composer.key.group_seq(FULL + 1), 0);
    }
}
