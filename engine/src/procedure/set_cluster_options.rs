//! The limits that all replicas judge by.

use crate::command::{Refusal, Reply, SetClusterOptions};
use crate::dedup::raise_floors;
use crate::procedure::No;
use crate::state::Context;

/// Sets the cluster's options, or with `if_absent` leaves those that are there and adds those that
/// are not: a new leader cannot know whether the one before it got as far, and repeats it. The
/// command after this one, in the same entry too, is judged by the new options. A wider dedup window
/// does not lower a floor, see `dedup.rs`.
pub(crate) fn set_cluster_options(
    ctx: &mut Context<'_>,
    call: &SetClusterOptions,
) -> Result<Reply, No> {
    let options = match (call.if_absent, ctx.cluster_options()) {
        (true, Ok(present)) if !present.lacks_some_of(&call.options) => {
            return Ok(Reply::ClusterOptions { options: present });
        }
        (true, Ok(present)) => present.completed_by(&call.options),
        (_, _) => call.options,
    };
    options
        .check()
        .map_err(|fault| Refusal::OptionOutOfBounds { fault })?;
    ctx.set_cluster_options(options);
    raise_floors(ctx)?;
    Ok(Reply::ClusterOptions { options })
}
