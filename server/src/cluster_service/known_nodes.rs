//! What a node knows against another one that says who it is, without asking anybody.
//!
//! When the meta shard has no leader, as after all nodes were down, nobody can take a node in; but each replica of it
//! knows who was removed, which directory has which id, and how far its log had got. A node with an old disk must not
//! be one of the majority that elects that leader.

use mailbox_api::CallError;
use mailbox_api::v1::JoinClusterRequest;
use mailbox_engine::ShardId;

use crate::core::Core;
use crate::status;

/// Refuses a node by what this node's replica of the meta shard has applied, if it has one.
///
/// # Errors
/// The refusal. Whoever is not refused here may be by the leader.
pub(super) async fn refuse_by_known(
    core: &Core,
    call: &JoinClusterRequest,
) -> Result<(), CallError> {
    let Ok(meta) = core.shard(ShardId::META.0) else {
        return Ok(());
    };
    let (node, incarnation, log_batch) = (call.node, call.incarnation, call.log_batch);
    let known = core.read(&meta, move |engine| {
        engine.refusal_of_node(node, incarnation, log_batch)
    });
    // What cannot be read is not known.
    match known.await {
        Ok(Some(refusal)) => {
            tracing::warn!(node, %refusal, "a node is refused");
            Err(status::refusal(&refusal))
        }
        Ok(None) | Err(_) => Ok(()),
    }
}
