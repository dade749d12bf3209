//! Gateways, and what is none.

use proptest::prelude::*;

use super::*;

pub(crate) fn gateway_id() -> impl Strategy<Value = GatewayId> {
    "[a-z0-9.-]{1,64}".prop_map(|name| GatewayId::new(&name).unwrap())
}

pub(crate) fn gateway_facts() -> impl Strategy<Value = GatewayFacts> {
    let addresses = ("\\PC{0,20}", "\\PC{0,10}", "\\PC{0,10}");
    let names = ("\\PC{0,10}", "\\PC{0,10}", "\\PC{0,10}");
    (any::<(u64, u32)>(), addresses, names).prop_map(
        |((run, refresh_ms), (websocket_url, tcp_address, http_url), (region, zone, version))| {
            GatewayFacts {
                run,
                refresh_ms,
                websocket_url,
                tcp_address,
                http_url,
                region,
                zone,
                version,
            }
        },
    )
}

proptest! {
    #[test]
    fn rows_are_read_as_written(facts in gateway_facts(), standing in 1..=3_u8, changed_ms: u64) {
        let standing = GatewayStanding::from_u8(standing).unwrap();
        let row = GatewayRow { facts, standing, changed_ms };
        let bytes = row.encode();
        prop_assert_eq!(GatewayRow::decode(&bytes), Ok(row));
        prop_assert!(GatewayRow::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn any_bytes_are_a_row_or_refused(bytes: Vec<u8>) {
        let _ = GatewayRow::decode(&bytes);
    }
}

pub(crate) fn small_facts(run: u64) -> GatewayFacts {
    GatewayFacts {
        run,
        refresh_ms: 1000,
        websocket_url: "ws://h:1".to_owned(),
        ..GatewayFacts::default()
    }
}

#[test]
fn stored_bytes_never_change() {
    let row = GatewayRow {
        facts: GatewayFacts {
            zone: "z".to_owned(),
            ..small_facts(7)
        },
        standing: GatewayStanding::Draining,
        changed_ms: 9,
    };
    let hex: String = row
        .encode()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = "02 0000000000000009 01 0000000000000007 000003e8 00000008 77733a2f2f683a31 00000000 00000000 \
                    00000000 00000001 7a 00000000";
    assert_eq!(hex, expected.replace(' ', ""));
}

#[test]
fn what_no_gateway_can_be_is_refused() {
    assert_eq!(small_facts(1).check(), Ok(()));
    type Twist = fn(&mut GatewayFacts);
    let twists: [(Twist, GatewayFault); 9] = [
        (|facts| facts.run = 0, GatewayFault::Run),
        (|facts| facts.websocket_url.clear(), GatewayFault::Address),
        (
            |facts| facts.http_url = "h".repeat(256),
            GatewayFault::Address,
        ),
        (|facts| facts.zone = "z".repeat(65), GatewayFault::Text),
        (|facts| facts.region = "r".repeat(65), GatewayFault::Text),
        (
            |facts| facts.version = "\u{1b}[2J".to_owned(),
            GatewayFault::Text,
        ),
        (
            |facts| facts.tcp_address = "h:1\n".to_owned(),
            GatewayFault::Text,
        ),
        (|facts| facts.refresh_ms = 99, GatewayFault::Refresh),
        (|facts| facts.refresh_ms = 60_001, GatewayFault::Refresh),
    ];
    for (twist, fault) in twists {
        let mut facts = small_facts(1);
        twist(&mut facts);
        assert_eq!(facts.check(), Err(fault), "{facts:?}");
    }
    for good in ["a", "gw-1.eu", &"x".repeat(64)] {
        assert!(GatewayId::new(good).is_ok(), "{good}");
    }
    for bad in ["", "A", "a b", "a/b", "ü", &"x".repeat(65)] {
        assert_eq!(GatewayId::new(bad), Err(GatewayFault::Id), "{bad}");
    }
}

#[test]
fn a_row_falls_silent_and_is_over_at_once_at_its_time() {
    let mut row = GatewayRow {
        facts: small_facts(1),
        standing: GatewayStanding::Serving,
        changed_ms: 50,
    };
    assert!(!row.may_be_silent(3049) && row.may_be_silent(3050));
    assert!(!row.is_over(u64::MAX));
    row.standing = GatewayStanding::Silent;
    assert!(!row.may_be_silent(u64::MAX));
    assert!(!row.is_over(60_049) && row.is_over(60_050));
    row.changed_ms = u64::MAX;
    assert!(
        row.is_over(u64::MAX) && !row.is_over(u64::MAX - 1),
        "no overflow"
    );
}
