//! A new user.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::command::{Refusal, RegisterUser, Reply};
use crate::dedup::{Ask, hash_ask};
use crate::handle::check_handle;
use crate::id::UserId;
use crate::item::Item;
use crate::key::{Destination, StateKey};
use crate::procedure::lane::emit;
use crate::procedure::{No, number};
use crate::state::Context;
use crate::table;

/// Gives the handle to a new user, if nobody has it. The user's own slot, which the id decides, is
/// told by lane.
pub(crate) fn register_user(ctx: &mut Context<'_>, call: &RegisterUser) -> Result<Reply, No> {
    let handle = call.handle.as_bytes();
    let slot = ctx.slot_of_handle(&call.handle);
    let destination = Destination::handle(xxh3_64(handle));
    let ask = Ask::new(
        slot,
        call.request_id,
        UserId(0),
        destination,
        hash_ask(3, &[], handle),
    );
    if let Some(first) = ask.judge(ctx)? {
        return Ok(first);
    }
    check_handle(&call.handle).map_err(|fault| Refusal::InvalidHandle { fault })?;
    let handle_key = StateKey::Handle {
        handle: call.handle.as_str().into(),
    };
    let owner = number(ctx, &handle_key)?;
    if owner != 0 {
        return Err(Refusal::HandleTaken {
            user: UserId(owner),
        }
        .into());
    }

    let counter_key = StateKey::UserCounter { slot };
    let counter = number(ctx, &counter_key)? + 1;
    let user = UserId::allocated(counter, slot);
    ctx.put(&counter_key, table::encode_u64(counter));
    ctx.put(&handle_key, table::encode_u64(user.0));
    let handle = Bytes::copy_from_slice(handle);
    emit(ctx, Item::UserMade { user, handle })?;
    Ok(ask.accept(ctx, Reply::UserRegistered { user }))
}
