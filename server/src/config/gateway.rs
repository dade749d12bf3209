//! What a gateway is told.

use mailbox_engine::{GATEWAY_ADDRESS_BYTES_MAX, GATEWAY_TEXT_BYTES_MAX, GatewayId};
use serde::{Deserialize, Serialize};

use super::Error;
use super::validate::{check_address, invalid};

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "documented once, in options.rs, for the printed file"
)]
pub struct GatewayConfig {
    pub id: String,
    pub listen: String,
    pub address: String,
    pub region: String,
    pub zone: String,
    pub allow_plaintext: bool,
    pub connections_max: u32,
    pub refresh_ms: u32,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            id: String::new(),
            listen: "127.0.0.1:8080".into(),
            address: String::new(),
            region: String::new(),
            zone: String::new(),
            allow_plaintext: false,
            connections_max: 15_000,
            refresh_ms: 10_000,
        }
    }
}

impl GatewayConfig {
    /// What the cluster would refuse to register.
    pub(super) fn check_registration(&self) -> Result<(), Error> {
        if !self.id.is_empty()
            && let Err(fault) = GatewayId::new(&self.id)
        {
            return invalid("gateway.id", &self.id, &fault.to_string());
        }
        for (option, name) in [
            ("gateway.region", &self.region),
            ("gateway.zone", &self.zone),
        ] {
            if name.len() > GATEWAY_TEXT_BYTES_MAX || name.chars().any(char::is_control) {
                let limit =
                    format!("at most {GATEWAY_TEXT_BYTES_MAX} bytes, no control characters");
                return invalid(option, name, &limit);
            }
        }
        let address = &self.address;
        if address.is_empty() {
            return Ok(());
        }
        if address.len() > GATEWAY_ADDRESS_BYTES_MAX || address.chars().any(char::is_control) {
            let limit = format!("at most {GATEWAY_ADDRESS_BYTES_MAX} bytes, no control characters");
            return invalid("gateway.address", address, &limit);
        }
        let (_, bare) = split_scheme(address);
        check_address("gateway.address", bare)
    }

    /// What clients dial, as URLs: of its WebSocket and of its HTTP. `listening` is where it really listens.
    pub(crate) fn public_urls(&self, listening: &str, tls: bool) -> (String, String) {
        let (scheme, address) = match self.address.as_str() {
            "" => (None, listening),
            address => split_scheme(address),
        };
        let (socket, http) = match scheme {
            Some("wss://") => ("wss", "https"),
            None if tls => ("wss", "https"),
            Some(_) | None => ("ws", "http"),
        };
        (
            format!("{socket}://{address}"),
            format!("{http}://{address}"),
        )
    }
}

/// A scheme in front of an address, if there is one.
fn split_scheme(address: &str) -> (Option<&str>, &str) {
    for scheme in ["wss://", "ws://"] {
        if let Some(bare) = address.strip_prefix(scheme) {
            return (Some(scheme), bare);
        }
    }
    (None, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_dial_what_is_configured_or_where_it_listens() {
        let urls = |address: &str, tls| {
            let config = GatewayConfig {
                address: address.to_owned(),
                ..GatewayConfig::default()
            };
            config.check_registration().expect("it is good");
            let (socket, http) = config.public_urls("10.0.0.1:8080", tls);
            format!("{socket} {http}")
        };
        for (address, tls, expected) in [
            ("", false, "ws://10.0.0.1:8080 http://10.0.0.1:8080"),
            ("", true, "wss://10.0.0.1:8080 https://10.0.0.1:8080"),
            (
                "chat.example:1",
                false,
                "ws://chat.example:1 http://chat.example:1",
            ),
            (
                "wss://chat.example:443",
                false,
                "wss://chat.example:443 https://chat.example:443",
            ),
            (
                "ws://chat.example:80",
                true,
                "ws://chat.example:80 http://chat.example:80",
            ),
        ] {
            assert_eq!(urls(address, tls), expected);
        }
    }

    #[test]
    fn what_the_cluster_would_not_register_is_refused_at_the_start() {
        type Twist = fn(&mut GatewayConfig);
        let twists: [(Twist, &str); 6] = [
            (|config| config.id = "My Gateway".into(), "gateway.id"),
            (|config| config.id = "x".repeat(65), "gateway.id"),
            (|config| config.zone = "z".repeat(65), "gateway.zone"),
            (|config| config.region = "a\nb".into(), "gateway.region"),
            (
                |config| config.address = "nowhere".into(),
                "gateway.address",
            ),
            (
                |config| config.address = "https://h:1".into(),
                "gateway.address",
            ),
        ];
        for (twist, named) in twists {
            let mut config = GatewayConfig::default();
            config.check_registration().expect("the default is good");
            twist(&mut config);
            let error = config.check_registration().expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
