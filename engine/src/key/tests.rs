//! The schema: keys read back as written, sort as their fields, and never change.

use proptest::prelude::*;
use uuid::Uuid;

use super::dedup::id_time_ms;
use super::*;
use crate::id::RangeId;

fn timeline() -> impl Strategy<Value = TimelineId> {
    const KINDS: &[TimelineKind] = &[
        TimelineKind::Mailbox,
        TimelineKind::Group,
        TimelineKind::DeadLetters,
    ];
    (prop::sample::select(KINDS), any::<u64>()).prop_map(|(kind, owner)| TimelineId { kind, owner })
}

fn state_key() -> impl Strategy<Value = StateKey> {
    let device = "\\PC{1,16}".prop_map(|name| DeviceId::new(&name).unwrap());
    let user = any::<u64>().prop_map(UserId);
    let group = any::<u64>().prop_map(GroupId);
    let slot = any::<u16>().prop_map(SlotId);
    prop_oneof![
        (timeline(), any::<u64>()).prop_map(|(timeline, seq)| StateKey::Message {
            timeline,
            seq: Seq(seq)
        }),
        timeline().prop_map(|timeline| StateKey::TrimPoint { timeline }),
        (timeline(), user.clone(), device).prop_map(|(timeline, user, device)| {
            StateKey::Cursor {
                timeline,
                user,
                device,
            }
        }),
        (user.clone(), user.clone()).prop_map(|(user, peer)| StateKey::PeerReadMark { user, peer }),
        (group.clone(), user.clone())
            .prop_map(|(group, user)| StateKey::GroupReadMark { group, user }),
        group.clone().prop_map(|group| StateKey::Group { group }),
        (group.clone(), user.clone()).prop_map(|(group, user)| StateKey::Member { group, user }),
        (user.clone(), group).prop_map(|(user, group)| StateKey::UserGroup { user, group }),
        user.prop_map(|user| StateKey::User { user }),
        "\\PC{1,64}".prop_map(|handle| StateKey::Handle {
            handle: handle.into()
        }),
        slot.clone().prop_map(|slot| StateKey::UserCounter { slot }),
        slot.clone()
            .prop_map(|slot| StateKey::GroupCounter { slot }),
        slot.clone().prop_map(|slot| StateKey::DedupFloor { slot }),
        slot.clone().prop_map(|slot| StateKey::LaneTable { slot }),
        slot.clone().prop_map(|slot| StateKey::MarkTable { slot }),
        (slot.clone(), any::<u64>()).prop_map(|(slot, seq)| StateKey::DeadLetter {
            slot,
            seq: Seq(seq)
        }),
        slot.prop_map(|slot| StateKey::DeadLetterTotals { slot }),
        (any::<(u16, u16)>(), any::<(u32, u32, u64)>()).prop_map(
            |((source, destination), (one, two, seq))| StateKey::Outbox {
                lane: LaneId {
                    source: SlotId(source),
                    source_incarnation: one,
                    destination: SlotId(destination),
                    destination_incarnation: two,
                },
                seq,
            }
        ),
        Just(StateKey::MetaMap),
        any::<u64>().prop_map(|node| StateKey::MetaNode { node }),
        any::<u32>().prop_map(|shard| StateKey::MetaShard {
            shard: ShardId(shard)
        }),
        any::<u64>().prop_map(|node| StateKey::MetaLog { node }),
        any::<u16>().prop_map(|slot| StateKey::MetaMove { slot: SlotId(slot) }),
        any::<u32>().prop_map(|shard| StateKey::MetaSplit {
            shard: ShardId(shard)
        }),
        crate::gateways::tests::gateway_id().prop_map(|gateway| StateKey::MetaGateway { gateway }),
        any::<u32>().prop_map(|shard| StateKey::MetaMerge {
            shard: ShardId(shard)
        }),
    ]
}

proptest! {
    #[test]
    fn state_keys_are_read_as_written(key in state_key()) {
        prop_assert_eq!(StateKey::decode(key.encode().as_slice()), Ok(key));
    }

    #[test]
    fn any_bytes_are_a_key_or_refused(bytes: Vec<u8>) {
        if let Ok(key) = StateKey::decode(&bytes) {
            prop_assert!(key.encode().as_slice() == bytes);
        }
        if let Ok(key) = NodeKey::decode(&bytes) {
            prop_assert!(key.encode().as_slice() == bytes);
        }
        if let Ok(key) = DedupKey::decode(&bytes) {
            prop_assert_eq!(&key.encode()[..], &bytes[..]);
        }
        if let Ok(key) = StoredKey::split(&bytes) {
            let mut out = Vec::new();
            key.encode(&mut out);
            prop_assert_eq!(out, bytes);
        }
    }

    #[test]
    fn node_keys_are_read_as_written(number: u32) {
        let range = NodeKey::Range(RangeId(number));
        let applied = NodeKey::Applied(ShardId(number));
        for key in [NodeKey::Format, NodeKey::RangeCounter, range, applied] {
            prop_assert_eq!(NodeKey::decode(key.encode().as_slice()), Ok(key));
        }
    }

    #[test]
    fn dedup_keys_are_read_as_written(id: u128, sender: u64, to in timeline()) {
        let destination = Destination::timeline(to);
        let key = DedupKey { id: Uuid::from_u128(id), sender: UserId(sender), destination };
        prop_assert_eq!(DedupKey::decode(&key.encode()), Ok(key));
        prop_assert_eq!(destination.as_timeline(), Some(to));
    }

    #[test]
    fn dedup_keys_sort_as_their_bytes(a: (u128, u64, u64), b: (u128, u64, u64)) {
        let key = |(id, sender, handle)| DedupKey {
            id: Uuid::from_u128(id),
            sender: UserId(sender),
            destination: Destination::handle(handle),
        };
        let (a, b) = (key(a), key(b));
        prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
        prop_assert!(a > b || a.hour() <= b.hour());
    }

    #[test]
    fn messages_sort_by_seq_below_their_prefix(to in timeline(), a: u64, b: u64) {
        let key = |seq| StateKey::Message { timeline: to, seq: Seq(seq) }.encode();
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
        let prefix = StateKey::messages_prefix(to);
        prop_assert!(key(a).as_slice().starts_with(prefix.as_slice()));
    }
}

#[test]
fn encoded_keys_never_change() {
    let timeline = GroupId(0x0102).timeline();
    let device = DeviceId::new("phone").unwrap();
    let user = UserId(3);
    let slot = SlotId(0x0405);
    for (key, text) in [
        (
            StateKey::Message {
                timeline,
                seq: Seq(9),
            },
            "010200000000000001020000000000000009",
        ),
        (StateKey::TrimPoint { timeline }, "02020000000000000102"),
        (
            StateKey::Cursor {
                timeline,
                user,
                device,
            },
            "0302000000000000010200000000000000037068 6f6e65",
        ),
        (
            StateKey::PeerReadMark {
                user,
                peer: UserId(4),
            },
            "0400000000000000030000000000000004",
        ),
        (
            StateKey::GroupReadMark {
                group: GroupId(4),
                user,
            },
            "0500000000000000040000000000000003",
        ),
        (StateKey::Group { group: GroupId(4) }, "060000000000000004"),
        (
            StateKey::Member {
                group: GroupId(4),
                user,
            },
            "0700000000000000040000000000000003",
        ),
        (
            StateKey::UserGroup {
                user,
                group: GroupId(4),
            },
            "0800000000000000030000000000000004",
        ),
        (StateKey::User { user }, "090000000000000003"),
        (
            StateKey::Handle {
                handle: "bob".into(),
            },
            "0a626f62",
        ),
        (StateKey::UserCounter { slot }, "0b0405"),
        (StateKey::GroupCounter { slot }, "0c0405"),
        (StateKey::DedupFloor { slot }, "0d0405"),
    ] {
        assert_eq!(format!("{:?}", key.encode()), text.replace(' ', ""));
    }
}

#[test]
fn the_time_of_an_id_is_its_first_48_bits() {
    let id = Uuid::from_u128(0x0190_1234_5678_7000_8000_0000_0000_0000);
    assert_eq!(id_time_ms(id), 0x0190_1234_5678);
}

#[test]
fn encoded_keys_of_lanes_never_change() {
    let slot = SlotId(0x0405);
    for (key, text) in [
        (StateKey::LaneTable { slot }, "0e0405"),
        (StateKey::MarkTable { slot }, "0f0405"),
        (
            StateKey::Outbox {
                lane: LaneId::between(slot, SlotId(6)),
                seq: 9,
            },
            "1004050006 00000001 00000001 0000000000000009",
        ),
    ] {
        assert_eq!(format!("{:?}", key.encode()), text.replace(' ', ""));
    }
}

#[test]
fn encoded_keys_of_the_map_never_change() {
    let (node, shard) = (9, ShardId(0x0405));
    for (key, text) in [
        (StateKey::MetaMap, "1100"),
        (StateKey::MetaNode { node }, "1101 0000000000000009"),
        (StateKey::MetaShard { shard }, "1102 00000405"),
        (StateKey::MetaLog { node }, "1103 0000000000000009"),
        (StateKey::MetaMove { slot: SlotId(7) }, "1104 0007"),
        (StateKey::MetaSplit { shard: ShardId(9) }, "1105 00000009"),
    ] {
        assert_eq!(format!("{:?}", key.encode()), text.replace(' ', ""));
        assert!(
            key.encode()
                .as_slice()
                .starts_with(StateKey::meta_prefix().as_slice())
        );
    }
}

#[test]
fn encoded_keys_of_gateways_never_change() {
    let gateway = crate::gateways::GatewayId::new("gw-1").unwrap();
    let key = StateKey::MetaGateway { gateway }.encode();
    assert_eq!(format!("{key:?}"), "1467772d31");
    let apart = !key
        .as_slice()
        .starts_with(StateKey::meta_prefix().as_slice());
    assert!(apart, "no part of the map");
}

#[test]
fn encoded_keys_of_merges_never_change() {
    let key = StateKey::MetaMerge { shard: ShardId(9) }.encode();
    assert_eq!(format!("{key:?}"), "1500000009");
    let apart = !key
        .as_slice()
        .starts_with(StateKey::meta_prefix().as_slice());
    assert!(apart, "no part of the map");
}

#[test]
fn encoded_keys_of_dead_letters_never_change() {
    let (slot, seq) = (SlotId(0x0405), Seq(9));
    let timeline = slot.dead_letters();
    for (key, text) in [
        (
            StateKey::DeadLetter { slot, seq },
            "12 0405 0000000000000009",
        ),
        (StateKey::DeadLetterTotals { slot }, "13 0405"),
        (
            StateKey::Message { timeline, seq },
            "01 04 0000000000000405 0000000000000009",
        ),
    ] {
        assert_eq!(format!("{:?}", key.encode()), text.replace(' ', ""));
    }
}
