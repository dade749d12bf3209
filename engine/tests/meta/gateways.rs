//! What the registry of gateways is to be.

use std::collections::BTreeMap;

use mailbox_engine::{
    Command, GATEWAY_KEPT_PERIODS, GATEWAY_SILENT_PERIODS, GATEWAYS_MAX, GatewayFacts,
    GatewayFault, GatewayId, GatewayRow, GatewayStanding, MetaCommand, PutGateway, Refusal, Reply,
    ShardId,
};
use proptest::prelude::*;

use crate::{Replica, first};

pub(crate) type Gateways = BTreeMap<GatewayId, GatewayRow>;

/// Of each gateway here, in milliseconds: that of an entry.
pub(crate) const PERIOD_MS: u64 = 100;

fn id(name: impl std::fmt::Display) -> GatewayId {
    GatewayId::new(&format!("gw-{name}")).unwrap()
}

fn facts(run: u64, zone: &str) -> GatewayFacts {
    GatewayFacts {
        run,
        refresh_ms: u32::try_from(PERIOD_MS).unwrap(),
        websocket_url: "ws://h:1".to_owned(),
        zone: zone.to_owned(),
        ..GatewayFacts::default()
    }
}

pub(crate) fn command() -> impl Strategy<Value = MetaCommand> {
    let missed = prop::collection::vec((0..3_u8, 1..4_u64), 0..4);
    prop_oneof![
        // Now and then run 0, which no process has.
        4 => (0..3_u8, 0..4_u64, 0..2_u8, any::<bool>()).prop_map(|(name, run, zone, draining)| {
            MetaCommand::PutGateway(PutGateway {
                gateway: id(name),
                facts: facts(run, &format!("zone {zone}")),
                draining,
            })
        }),
        1 => (0..3_u8, prop::option::of(1..4_u64))
            .prop_map(|(name, run)| MetaCommand::ForgetGateway { gateway: id(name), run }),
        3 => missed.prop_map(|missed| MetaCommand::SweepGateways {
            missed: missed.into_iter().map(|(name, run)| (id(name), run)).collect(),
        }),
    ]
}

/// What becomes of them by the model, at a replicated time.
pub(crate) fn judge(
    gateways: &mut Gateways,
    command: &MetaCommand,
    time_ms: u64,
) -> Result<(), Refusal> {
    match command {
        MetaCommand::PutGateway(call) => {
            let gateway = call.gateway.clone();
            if call.facts.run == 0 {
                let fault = GatewayFault::Run;
                return Err(Refusal::InvalidGateway { fault });
            }
            let standing = match call.draining {
                true => GatewayStanding::Draining,
                false => GatewayStanding::Serving,
            };
            let mut row = GatewayRow {
                facts: call.facts.clone(),
                standing,
                changed_ms: time_ms,
            };
            if let Some(known) = gateways.get(&gateway) {
                let silent = known.standing == GatewayStanding::Silent;
                if known.facts.run > row.facts.run && !silent {
                    let run = known.facts.run;
                    return Err(Refusal::GatewayTaken { gateway, run });
                }
                if (&known.facts, known.standing) == (&row.facts, row.standing) {
                    row.changed_ms = known.changed_ms;
                }
            }
            gateways.insert(gateway, row);
        }
        MetaCommand::ForgetGateway { gateway, run } => {
            let known = gateways.get(gateway).map(|row| row.facts.run);
            if run.is_none() || *run == known {
                gateways.remove(gateway);
            }
        }
        MetaCommand::SweepGateways { missed } => {
            for (gateway, run) in missed {
                let Some(row) = gateways.get_mut(gateway) else {
                    continue;
                };
                let quiet = time_ms - row.changed_ms >= GATEWAY_SILENT_PERIODS * PERIOD_MS;
                if row.facts.run == *run && row.standing != GatewayStanding::Silent && quiet {
                    row.standing = GatewayStanding::Silent;
                    row.changed_ms = time_ms;
                }
            }
            gateways.retain(|_, row| {
                let kept = time_ms - row.changed_ms < GATEWAY_KEPT_PERIODS * PERIOD_MS;
                row.standing != GatewayStanding::Silent || kept
            });
        }
        _ => {}
    }
    Ok(())
}

fn begun() -> Replica {
    let mut replica = Replica::new();
    let begin = Command::Meta(MetaCommand::Begin(first(true)));
    assert_eq!(replica.apply(&[begin]), [Reply::Map { epoch: 1 }]);
    replica
}

impl Replica {
    fn ask(&mut self, command: MetaCommand) -> Reply {
        let mut replies = self.apply(&[Command::Meta(command)]);
        replies.pop().unwrap()
    }

    fn put(&mut self, name: impl std::fmt::Display, facts: GatewayFacts) -> Reply {
        self.ask(MetaCommand::PutGateway(PutGateway {
            gateway: id(name),
            facts,
            draining: false,
        }))
    }

    fn sweep(&mut self, missed: &[(&str, u64)]) {
        let missed = missed.iter().map(|(name, run)| (id(name), *run)).collect();
        let reply = self.ask(MetaCommand::SweepGateways { missed });
        assert_eq!(reply, Reply::Map { epoch: 1 });
    }

    /// Replicated time goes by.
    fn pass(&mut self, periods: u64) {
        for _ in 0..periods {
            self.ask(MetaCommand::ReportLogs(Vec::new()));
        }
    }

    fn standings(&self) -> Vec<(String, GatewayStanding)> {
        let rows = self.shard().gateways().unwrap();
        rows.into_iter()
            .map(|(id, row)| (id.to_string(), row.standing))
            .collect()
    }
}

const DONE: Reply = Reply::Map { epoch: 1 };

#[test]
fn a_gateway_comes_falls_silent_is_heard_again_and_is_forgotten_by_replicated_time() {
    use GatewayStanding::{Serving, Silent};
    let mut replica = begun();
    let map = replica.shard().cluster_map().unwrap();
    assert_eq!(replica.put("a", facts(7, "z")), DONE);
    assert_eq!(replica.put("b", facts(8, "z")), DONE);
    // A leader that misses it at once is too early, whatever its clock says.
    replica.sweep(&[("a", 7)]);
    let both = |a, b| vec![("gw-a".to_owned(), a), ("gw-b".to_owned(), b)];
    assert_eq!(replica.standings(), both(Serving, Serving));
    replica.pass(GATEWAY_SILENT_PERIODS);
    // Nobody falls silent by time alone, nor another run than the one that was missed.
    replica.sweep(&[("a", 6)]);
    assert_eq!(replica.standings(), both(Serving, Serving));
    replica.sweep(&[("a", 7)]);
    assert_eq!(replica.standings(), both(Silent, Serving));
    assert_eq!(replica.put("a", facts(7, "z")), DONE);
    assert_eq!(replica.standings(), both(Serving, Serving));
    replica.pass(GATEWAY_SILENT_PERIODS);
    replica.sweep(&[("a", 7), ("nobody", 1)]);
    replica.pass(GATEWAY_KEPT_PERIODS - 2);
    replica.sweep(&[]);
    assert_eq!(
        replica.standings(),
        both(Silent, Serving),
        "kept until then"
    );
    replica.sweep(&[]);
    assert_eq!(replica.standings(), both(Silent, Serving)[1..]);
    let now = replica.shard().cluster_map().unwrap();
    assert_eq!(now, map, "the map is none of it");
}

#[test]
fn the_later_process_with_an_id_has_it_and_the_earlier_one_takes_nothing_from_it() {
    let mut replica = begun();
    assert_eq!(replica.put("a", facts(7, "old")), DONE);
    assert_eq!(replica.put("a", facts(9, "new")), DONE);
    let gateway = id("a");
    let taken = Reply::Refused(Refusal::GatewayTaken {
        gateway: gateway.clone(),
        run: 9,
    });
    assert_eq!(replica.put("a", facts(7, "old")), taken);
    let forget = |run| MetaCommand::ForgetGateway {
        gateway: id("a"),
        run,
    };
    assert_eq!(replica.ask(forget(Some(7))), DONE);
    let row = replica.shard().gateway(&gateway).unwrap().unwrap();
    assert_eq!((row.facts.run, &row.facts.zone[..]), (9, "new"));
    assert_eq!(replica.ask(forget(Some(9))), DONE);
    assert_eq!(replica.shard().gateway(&gateway).unwrap(), None);
    assert_eq!(replica.put("a", facts(7, "old")), DONE);
    assert_eq!(replica.ask(forget(None)), DONE);
    assert_eq!(replica.ask(forget(None)), DONE, "a repeat");
    assert_eq!(replica.standings(), []);
}

#[test]
fn a_silent_gateway_makes_room_for_any_process_with_its_id() {
    let mut replica = begun();
    assert_eq!(replica.put("a", facts(9, "")), DONE);
    replica.pass(GATEWAY_SILENT_PERIODS);
    replica.sweep(&[("a", 9)]);
    assert_eq!(replica.put("a", facts(7, "")), DONE);
    let row = replica.shard().gateway(&id("a")).unwrap().unwrap();
    assert_eq!((row.facts.run, row.standing), (7, GatewayStanding::Serving));
}

#[test]
fn a_repeat_writes_nothing() {
    let mut replica = begun();
    let put = |replica: &mut Replica| replica.put("a", facts(7, "z"));
    assert_eq!(put(&mut replica), DONE);
    let first = replica.shard().gateway(&id("a")).unwrap().unwrap();
    let hash = replica.hash();
    replica.pass(2);
    assert_eq!(put(&mut replica), DONE);
    assert_eq!(replica.shard().gateway(&id("a")).unwrap().unwrap(), first);
    assert_eq!(replica.hash().hash, hash.hash);
}

#[test]
fn the_registry_is_bounded_and_makes_room_of_what_is_over() {
    let mut replica = begun();
    let put = |number: u32| {
        Command::Meta(MetaCommand::PutGateway(PutGateway {
            gateway: id(number),
            facts: facts(1, ""),
            draining: false,
        }))
    };
    let all: Vec<Command> = (0..GATEWAYS_MAX).map(put).collect();
    assert!(replica.apply(&all).iter().all(|reply| *reply == DONE));
    let full = Reply::Refused(Refusal::TooManyGateways { max: GATEWAYS_MAX });
    assert_eq!(replica.put("more", facts(1, "")), full);
    replica.flush();
    assert_eq!(replica.put("more", facts(1, "")), full);
    assert_eq!(replica.put(17, facts(1, "moved")), DONE, "who is in, is in");
    replica.pass(GATEWAY_SILENT_PERIODS);
    replica.sweep(&[("5", 1)]);
    assert_eq!(replica.put("more", facts(1, "")), full, "it is kept yet");
    replica.pass(GATEWAY_KEPT_PERIODS);
    assert_eq!(replica.put("more", facts(1, "")), DONE);
    let rows = replica.shard().gateways().unwrap();
    assert_eq!(rows.len(), GATEWAYS_MAX as usize);
    assert!(rows.iter().all(|(gateway, _)| *gateway != id(5)));
    replica.flush();
    assert_eq!(replica.shard().verify(&mut |_| {}).unwrap().fault_count, 0);
}

#[test]
fn no_other_shard_has_gateways_and_none_is_before_the_map() {
    let mut replica = Replica::new();
    let refused = Reply::Refused(Refusal::NoMap);
    assert_eq!(replica.put("a", facts(1, "")), refused);
    let store = replica.store.as_ref().unwrap();
    let other = store.create_shard(ShardId(1), 0..=7).unwrap();
    assert_eq!(other.gateways().unwrap(), []);
    assert_eq!(other.gateway(&id("a")).unwrap(), None);
}
