//! The calls of gateways, which tell that they are there, and of those who look for them.

use mailbox_api::CallError;
use mailbox_api::v1::{
    self, ForgetGatewayRequest, ForgetGatewayResponse, ListGatewaysRequest, ListGatewaysResponse,
    RegisterGatewayRequest, RegisterGatewayResponse,
};
use mailbox_engine::{
    GatewayFacts, GatewayId, GatewayRow, GatewayStanding, MetaCommand, PutGateway, Refusal, ShardId,
};
use mailbox_raft::Shard;

use super::change;
use super::known_calls::{self, Known};
use crate::convert::invalid;
use crate::core::Core;
use crate::status;

/// Gateways of one page.
const PAGE_MAX: u32 = 512;

/// Takes in what a gateway tells, on the leader of the meta shard. What its row says already is only remembered.
///
/// # Errors
/// The refusal, or what became of the proposal.
pub(super) async fn register_here(
    core: &Core,
    call: RegisterGatewayRequest,
) -> Result<RegisterGatewayResponse, CallError> {
    let gateway = id(&call.gateway)?;
    let facts = facts_in(call.facts.unwrap_or_default());
    let fits = facts.check();
    fits.map_err(|fault| status::refusal(&Refusal::InvalidGateway { fault }))?;
    let meta = leading(core)?;
    let asked = gateway.clone();
    let known = core.read(&meta, move |meta| meta.gateway(&asked)).await?;
    let standing = match call.draining {
        true => GatewayStanding::Draining,
        false => GatewayStanding::Serving,
    };
    let (run, same) = match &known {
        // Judged here too, so that the earlier one of two processes does not fill the log.
        Some(known) if known.outlives(facts.run) => {
            let run = known.facts.run;
            return Err(status::refusal(&Refusal::GatewayTaken { gateway, run }));
        }
        Some(known) => (
            facts.run,
            known.facts == facts && known.standing == standing,
        ),
        None => (facts.run, false),
    };
    if !same {
        if known.is_none() {
            require_known(core, &meta).await?;
        }
        let put = PutGateway {
            gateway: gateway.clone(),
            facts,
            draining: call.draining,
        };
        change(core, MetaCommand::PutGateway(put)).await?;
        tracing::info!(%gateway, run, ?standing, "a gateway has told who it is");
    }
    core.gateways.heard(gateway, run, call.connections);
    Ok(RegisterGatewayResponse {})
}

/// Takes a gateway out, on the leader of the meta shard.
///
/// # Errors
/// As [`register_here`].
pub(super) async fn forget_here(
    core: &Core,
    call: ForgetGatewayRequest,
) -> Result<ForgetGatewayResponse, CallError> {
    let gateway = id(&call.gateway)?;
    let run = (call.run != 0).then_some(call.run);
    let meta = leading(core)?;
    core.barrier(&meta).await?;
    let asked = gateway.clone();
    let known = core.read(&meta, move |meta| meta.gateway(&asked)).await?;
    let forgotten = known.is_some_and(|known| run.is_none_or(|run| run == known.facts.run));
    if forgotten {
        tracing::info!(%gateway, "a gateway is forgotten");
        change(core, MetaCommand::ForgetGateway { gateway, run }).await?;
    }
    Ok(ForgetGatewayResponse { forgotten })
}

/// A page of gateways, on the leader of the meta shard.
///
/// # Errors
/// They cannot be read.
pub(super) async fn list_here(
    core: &Core,
    call: ListGatewaysRequest,
) -> Result<ListGatewaysResponse, CallError> {
    let limit = match call.limit {
        0 => PAGE_MAX,
        limit => limit.min(PAGE_MAX),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let meta = leading(core)?;
    core.barrier(&meta).await?;
    let rows = core.read(&meta, mailbox_engine::Shard::gateways).await?;
    let rows = rows.into_iter();
    let mut rows = rows.filter(|(gateway, _)| gateway.as_str() > call.after.as_str());
    let page = rows.by_ref().take(limit);
    let gateways = page.map(|(gateway, row)| gateway_out(core, &gateway, row));
    Ok(ListGatewaysResponse {
        gateways: gateways.collect(),
        more: rows.next().is_some(),
    })
}

/// The meta shard, if this node leads it and has applied all before its term: what it reads may be old, never a
/// former leader's.
fn leading(core: &Core) -> Result<Shard, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.require_leader(&meta)?;
    match meta.leadership().is_ready() {
        true => Ok(meta),
        false => Err(status::unavailable(
            "the meta shard's leader is not ready yet",
        )),
    }
}

/// Once there is a row, all members of the meta shard have taken it in.
async fn require_known(core: &Core, meta: &Shard) -> Result<(), CallError> {
    let index = meta.membership().index;
    if core.gateways.known_by_members_at(index) {
        return Ok(());
    }
    let rows = core.read(meta, mailbox_engine::Shard::gateways).await?;
    if rows.is_empty() {
        known_calls::require(core, Known::Gateways).await?;
    }
    core.gateways.note_known_by_members_at(index);
    Ok(())
}

fn id(name: &str) -> Result<GatewayId, CallError> {
    let id = GatewayId::new(name);
    id.map_err(|fault| invalid(format!("gateway {name:?}: {fault}")))
}

fn facts_in(facts: v1::GatewayFacts) -> GatewayFacts {
    GatewayFacts {
        run: facts.run,
        refresh_ms: facts.refresh_ms,
        websocket_url: facts.websocket_url,
        tcp_address: facts.tcp_address,
        http_url: facts.http_url,
        region: facts.region,
        zone: facts.zone,
        version: facts.version,
    }
}

fn gateway_out(core: &Core, gateway: &GatewayId, row: GatewayRow) -> v1::Gateway {
    let standing = match row.standing {
        GatewayStanding::Serving => v1::GatewayStanding::Serving,
        GatewayStanding::Draining => v1::GatewayStanding::Draining,
        GatewayStanding::Silent => v1::GatewayStanding::Silent,
    };
    let facts = row.facts;
    let heard = core.gateways.heard_of(gateway, facts.run);
    v1::Gateway {
        gateway: gateway.to_string(),
        standing: standing.into(),
        heard_ms_ago: heard.map(|heard| super::slot_calls::millis(heard.at.elapsed())),
        connections: heard.map(|heard| heard.connections),
        changed_ms: row.changed_ms,
        facts: Some(v1::GatewayFacts {
            run: facts.run,
            refresh_ms: facts.refresh_ms,
            websocket_url: facts.websocket_url,
            tcp_address: facts.tcp_address,
            http_url: facts.http_url,
            region: facts.region,
            zone: facts.zone,
            version: facts.version,
        }),
    }
}
