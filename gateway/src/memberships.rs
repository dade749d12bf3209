//! A user's groups with their heads, wherever the groups' shards are.
//!
//! Heads are had as far as they are: a shard that nobody serves just now leaves those of its own groups unknown, and
//! takes nothing else from the user. Whoever needs one that is unknown asks again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use mailbox_api::v1::{self, ErrorCode};
use mailbox_client::{CallError, Client};
use mailbox_wire::Timeline;

use crate::convert::{timeline_to_api, user_id_to_api};

/// How long a connect waits for heads: a sync comes after it, and asks anew.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_millis(1500);

/// What others wait beyond one attempt. If they never waited for the end of one, a node that takes calls and answers
/// none would be asked for ever.
const BEYOND_ATTEMPT: Duration = Duration::from_millis(500);

/// Groups whose heads nobody told.
pub(crate) struct Unknown {
    pub(crate) groups: BTreeSet<u64>,
    /// Why not: of one of them.
    pub(crate) error: CallError,
}

/// How long the shards of groups are waited for, unless somebody waits to be let in.
pub(crate) fn patience(client: &Client) -> Duration {
    client.options().timeouts.attempt + BEYOND_ATTEMPT
}

/// The groups that a user is or was in; a head that is unknown is 0. With `stale` the list and the heads may be behind.
pub(crate) async fn of_user(
    client: &Client,
    user: u64,
    stale: bool,
    wait: Duration,
) -> Result<Vec<v1::GroupMembership>, CallError> {
    let request = v1::SyncRequest {
        groups_of: Some(user_id_to_api(user)),
        stale,
        ..v1::SyncRequest::default()
    };
    let mut groups = client.sync(request).await?.groups;
    if let Some(unknown) = fill_heads(client, &mut groups, stale, wait).await {
        let (count, error) = (unknown.groups.len(), unknown.error);
        tracing::debug!(user, groups = count, %error, "heads are not known");
    }
    Ok(groups)
}

/// Asks for the heads that the user's shard did not know: one call for each of the groups' shards. A former
/// member's head is where the membership ended. A group that is not there yet has the head 0, too.
pub(crate) async fn fill_heads(
    client: &Client,
    groups: &mut [v1::GroupMembership],
    stale: bool,
    wait: Duration,
) -> Option<Unknown> {
    let asked = groups.iter().filter(|group| group.head == 0);
    let timelines: Vec<v1::Timeline> = asked.map(|group| timeline_of(group.group)).collect();
    if timelines.is_empty() {
        return None;
    }
    let request = v1::HeadsRequest {
        timelines,
        stale,
        ..v1::HeadsRequest::default()
    };
    let (answer, error) = client.heads_where_served(request, wait).await;
    let heads = answer.heads.into_iter();
    let heads: HashMap<u64, u64> = heads
        .filter_map(|head| Some((head.timeline?.owner, head.head)))
        .collect();
    let mut untold = BTreeSet::new();
    for group in groups.iter_mut().filter(|group| group.head == 0) {
        let Some(head) = heads.get(&group.group).copied() else {
            untold.insert(group.group);
            continue;
        };
        let left = group.spans.last().map_or(0, |span| span.left_seq);
        group.head = if left == 0 { head } else { head.min(left) };
    }
    (!untold.is_empty()).then(|| Unknown {
        groups: untold,
        error: error.unwrap_or_else(left_out),
    })
}

/// For a shard that answers, but not for all that it was asked.
fn left_out() -> CallError {
    CallError::new(ErrorCode::Unavailable, "a shard left out heads")
}

fn timeline_of(group: u64) -> v1::Timeline {
    timeline_to_api(Timeline::Group(group))
}
