//! What ails the connection tier, as far as it is registered.

use mailbox_client::CallError;
use mailbox_client::v1::{Gateway, GatewayStanding};

use super::{Finding, finding};
use crate::output::printable;

/// Gateways that are missed, and too few that serve.
pub(super) fn ail(
    gateways: &Result<Vec<Gateway>, CallError>,
    serving_min: usize,
    found: &mut Vec<Finding>,
) {
    let gateways = match gateways {
        Ok(gateways) => gateways,
        Err(error) => {
            found.push(finding(
                "gateways-unknown",
                "cluster".to_owned(),
                format!("the leader of the meta shard does not say which gateways there are: {error}"),
                "if it runs an older version, install the newer mailboxd on it; else ask again: `mailboxctl gateway list`"
                    .to_owned(),
            ));
            return;
        }
    };
    for gateway in gateways {
        if gateway.standing() == GatewayStanding::Silent {
            found.push(silent(gateway));
        }
    }
    let serving = gateways
        .iter()
        .filter(|gateway| gateway.standing() == GatewayStanding::Serving)
        .count();
    if serving < serving_min {
        let cause = match (serving, serving_min) {
            (0, 1) => "no gateway is registered as serving: no phone can connect".to_owned(),
            (serving, min) => {
                format!("{serving} gateways are registered as serving, {min} are wanted")
            }
        };
        found.push(finding(
            "no-gateway",
            "cluster".to_owned(),
            cause,
            "start `mailboxd gateway` with this cluster's id, secret_file and nodes. If one runs, its log says why the \
             cluster does not know it, and its clocks and addresses are to be looked at: `mailboxctl gateway list`. A \
             cluster that is to have none: `mailboxctl doctor --gateways-min 0`"
                .to_owned(),
        ));
    }
}

fn silent(gateway: &Gateway) -> Finding {
    let facts = gateway.facts.clone().unwrap_or_default();
    let id = printable(&gateway.gateway);
    let address = match facts.websocket_url.as_str() {
        "" => &facts.tcp_address,
        url => url,
    };
    finding(
        "gateway-silent",
        format!("gateway {id}"),
        format!(
            "it was at {}, told every {} ms that it is there, and does not any more: it has died, or reaches no node",
            printable(address),
            facts.refresh_ms
        ),
        format!(
            "start `mailboxd gateway` there again, or see in its log why it reaches no node. If it is gone for good: \
             `mailboxctl gateway forget {id}`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::ErrorCode;

    use super::*;

    fn gateway(name: &str, standing: GatewayStanding) -> Gateway {
        Gateway {
            gateway: name.to_owned(),
            standing: standing as i32,
            ..Gateway::default()
        }
    }

    fn found(gateways: &[Gateway], serving_min: usize) -> Vec<Finding> {
        let mut found = Vec::new();
        ail(&Ok(gateways.to_vec()), serving_min, &mut found);
        found
    }

    fn codes(found: &[Finding]) -> Vec<&str> {
        found.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_gateway_that_serves_is_enough() {
        use GatewayStanding::{Draining, Serving, Silent};
        let one = gateway("a", Serving);
        assert_eq!(found(std::slice::from_ref(&one), 1), []);
        assert_eq!(found(&[], 0), []);
        assert_eq!(codes(&found(&[], 1)), ["no-gateway"]);
        assert_eq!(codes(&found(&[gateway("a", Draining)], 1)), ["no-gateway"]);
        let few = found(std::slice::from_ref(&one), 2);
        assert_eq!(codes(&few), ["no-gateway"]);
        assert!(few[0].cause.starts_with("1 gateways"), "{few:?}");
        let missed = found(&[one, gateway("b", Silent)], 1);
        assert_eq!(codes(&missed), ["gateway-silent"]);
        assert_eq!(missed[0].place, "gateway b");
        assert!(missed[0].fix.contains("gateway forget b"), "{missed:?}");
        let alone = found(&[gateway("b", Silent)], 1);
        assert_eq!(codes(&alone), ["gateway-silent", "no-gateway"]);
    }

    #[test]
    fn a_leader_that_does_not_say_is_told() {
        let error = CallError::new(ErrorCode::Internal, "unknown method");
        let mut found = Vec::new();
        ail(&Err(error), 1, &mut found);
        assert_eq!(codes(&found), ["gateways-unknown"]);
    }
}
