//! The registry of gateways, in the meta shard: who tells, who is missed, who goes. See `gateways.rs`.

use crate::command::{PutGateway, Refusal, Reply};
use crate::error::Error;
use crate::gateways::{GATEWAYS_MAX, GatewayId, GatewayRow, GatewayStanding, read_row};
use crate::id::SlotId;
use crate::key::StateKey;
use crate::procedure::No;
use crate::procedure::meta::require_map;
use crate::state::Context;

/// Takes a gateway in, or what it tells of itself now. Of two processes with one id the later one counts; a silent one
/// counts no more, since clocks by which they are told apart may differ.
pub(super) fn put_gateway(ctx: &mut Context<'_>, call: &PutGateway) -> Result<Reply, No> {
    let PutGateway {
        gateway,
        facts,
        draining,
    } = call;
    let map = require_map(ctx)?;
    facts
        .check()
        .map_err(|fault| Refusal::InvalidGateway { fault })?;
    let known = gateway_row(ctx, gateway)?;
    if let Some(known) = known.as_ref().filter(|known| known.outlives(facts.run)) {
        return Err(Refusal::GatewayTaken {
            gateway: gateway.clone(),
            run: known.facts.run,
        }
        .into());
    }
    if known.is_none() && !has_room(ctx)? {
        // Now and then rows that are over lie about: nobody has swept yet.
        forget_those_over(ctx)?;
        if !has_room(ctx)? {
            return Err(Refusal::TooManyGateways { max: GATEWAYS_MAX }.into());
        }
    }
    let standing = match draining {
        false => GatewayStanding::Serving,
        true => GatewayStanding::Draining,
    };
    let same = |known: &GatewayRow| known.facts == *facts && known.standing == standing;
    if !known.as_ref().is_some_and(same) {
        let (facts, changed_ms) = (facts.clone(), ctx.time_ms());
        let row = GatewayRow {
            facts,
            standing,
            changed_ms,
        };
        put_row(ctx, gateway, &row);
    }
    Ok(Reply::Map { epoch: map.epoch })
}

/// A gateway goes. With a run, only if that one has the row: a later process with the same id stays.
pub(super) fn forget_gateway(
    ctx: &mut Context<'_>,
    gateway: &GatewayId,
    run: Option<u64>,
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let known = gateway_row(ctx, gateway)?;
    if known.is_some_and(|known| run.is_none_or(|run| run == known.facts.run)) {
        ctx.delete(&key(gateway));
    }
    Ok(Reply::Map { epoch: map.epoch })
}

/// Calls gateways silent of which the leader has heard nothing, if their time is over by replicated time, too; and
/// forgets those that have been silent for long enough.
pub(super) fn sweep_gateways(
    ctx: &mut Context<'_>,
    missed: &[(GatewayId, u64)],
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let time_ms = ctx.time_ms();
    for (gateway, run) in missed {
        let Some(row) = gateway_row(ctx, gateway)? else {
            continue;
        };
        if row.facts.run == *run && row.may_be_silent(time_ms) {
            let row = GatewayRow {
                standing: GatewayStanding::Silent,
                changed_ms: time_ms,
                ..row
            };
            put_row(ctx, gateway, &row);
        }
    }
    forget_those_over(ctx)?;
    Ok(Reply::Map { epoch: map.epoch })
}

fn forget_those_over(ctx: &mut Context<'_>) -> Result<(), Error> {
    let time_ms = ctx.time_ms();
    for (suffix, value) in ctx.scan_prefix(SlotId::META, &StateKey::gateways_prefix())? {
        let (gateway, row) = read_row(suffix.as_slice(), &value)?;
        if row.is_over(time_ms) {
            ctx.delete(&key(&gateway));
        }
    }
    Ok(())
}

fn has_room(ctx: &Context<'_>) -> Result<bool, Error> {
    ctx.has_fewer_rows(SlotId::META, &StateKey::gateways_prefix(), GATEWAYS_MAX)
}

fn key(gateway: &GatewayId) -> StateKey {
    let gateway = gateway.clone();
    StateKey::MetaGateway { gateway }
}

fn gateway_row(ctx: &mut Context<'_>, gateway: &GatewayId) -> Result<Option<GatewayRow>, Error> {
    let key = key(gateway);
    let row = ctx.get(&key)?.map(|value| GatewayRow::decode(&value));
    row.transpose()
        .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

fn put_row(ctx: &mut Context<'_>, gateway: &GatewayId, row: &GatewayRow) {
    ctx.put(&key(gateway), row.encode());
}
