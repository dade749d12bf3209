//! A user's groups with their heads, wherever the groups' shards are.

use std::collections::HashMap;

use mailbox_api::v1;
use mailbox_client::{CallError, Client};
use mailbox_wire::Timeline;

use crate::convert::{timeline_to_api, user_id_to_api};

/// The groups that a user is or was in. With `stale` the list and the heads may be behind.
pub(crate) async fn of_user(
    client: &Client,
    user: u64,
    stale: bool,
) -> Result<Vec<v1::GroupMembership>, CallError> {
    let request = v1::SyncRequest {
        groups_of: Some(user_id_to_api(user)),
        stale,
        ..v1::SyncRequest::default()
    };
    let mut groups = client.sync(request).await?.groups;
    fill_heads(client, &mut groups, stale).await?;
    Ok(groups)
}

/// Asks for the heads that the user's shard did not know: one call for each of the groups' shards. A former
/// member's head is where the membership ended.
pub(crate) async fn fill_heads(
    client: &Client,
    groups: &mut [v1::GroupMembership],
    stale: bool,
) -> Result<(), CallError> {
    let unknown = groups.iter().filter(|group| group.head == 0);
    let timelines: Vec<v1::Timeline> = unknown.map(|group| timeline_of(group.group)).collect();
    if timelines.is_empty() {
        return Ok(());
    }
    let request = v1::HeadsRequest {
        timelines,
        stale,
        ..v1::HeadsRequest::default()
    };
    let heads = client.heads(request).await?.heads.into_iter();
    let heads: HashMap<u64, u64> = heads
        .filter_map(|head| Some((head.timeline?.owner, head.head)))
        .collect();
    for group in groups.iter_mut().filter(|group| group.head == 0) {
        let head = heads.get(&group.group).copied().unwrap_or(0);
        let left = group.spans.last().map_or(0, |span| span.left_seq);
        group.head = if left == 0 { head } else { head.min(left) };
    }
    Ok(())
}

fn timeline_of(group: u64) -> v1::Timeline {
    timeline_to_api(Timeline::Group(group))
}
