//! The flags with which a user's device connects to a gateway.

use std::path::PathBuf;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mailbox_sdk::{Client, ConnectOptions};

/// Where the gateway is and who connects.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct DeviceArgs {
    /// The gateway
    #[arg(
        long,
        value_name = "URL",
        env = "MAILBOX_URL",
        default_value = "ws://127.0.0.1:8080"
    )]
    pub(crate) url: String,
    /// Your token: `mailboxd dev` prints some, `mailboxctl token issue` makes one
    #[arg(
        long,
        value_name = "JWT",
        env = "MAILBOX_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: String,
    /// Which of your devices this is; each has a sync key of its own
    #[arg(long, value_name = "NAME", default_value = "mailboxctl")]
    pub(crate) device: String,
    /// PEM of the authority behind the gateway's certificate, instead of the web's (wss only)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Where a device keeps how far it has got.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StateArgs {
    /// File for the sync key, so that the next start goes on from here; default: one per gateway,
    /// user and device under $XDG_STATE_HOME (~/.local/state)
    #[arg(long, value_name = "FILE", conflicts_with = "no_state")]
    state: Option<PathBuf>,
    /// Begin with the whole mailbox and remember nothing
    #[arg(long)]
    no_state: bool,
}

impl DeviceArgs {
    /// Options for the SDK, without a state file.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        let mut options = ConnectOptions::new(&self.url, &self.token);
        options.device.clone_from(&self.device);
        if let Some(file) = &self.ca_file {
            let pem = std::fs::read(file)
                .with_context(|| format!("read the authority {}", file.display()))?;
            options.ca_pem = Some(pem);
        }
        Ok(options)
    }

    /// Connects a device that only sends.
    pub(crate) async fn connect_to_send(&self) -> anyhow::Result<Client> {
        let options = ConnectOptions {
            receive: false,
            ..self.options()?
        };
        Ok(Client::connect(options).await?)
    }

    /// Connects a device that receives, from where its state file says.
    pub(crate) async fn connect(&self, state: &StateArgs) -> anyhow::Result<Client> {
        let state_path = match (&state.state, state.no_state) {
            (Some(file), _) => Some(file.clone()),
            (None, true) => None,
            (None, false) => self.default_state()?,
        };
        Ok(Client::connect(ConnectOptions {
            state_path,
            ..self.options()?
        })
        .await?)
    }

    /// One file per gateway, user and device; `None` where there is no home to keep it in.
    fn default_state(&self) -> anyhow::Result<Option<PathBuf>> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let base = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local").join("state")));
        let Some(base) = base else { return Ok(None) };
        let folder = base.join("mailboxctl");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Some(folder.join(state_name(
            &self.url,
            &self.token,
            &self.device,
        ))))
    }
}

/// A file name that differs with gateway, user and device, and stays when a new token comes.
fn state_name(url: &str, token: &str, device: &str) -> String {
    let place = url.split_once("://").map_or(url, |(_, place)| place);
    let place = place
        .split(['/', '?'])
        .next()
        .unwrap_or(place)
        .replace([':', '[', ']'], "_");
    // Longest: a handle of 64 bytes and a device of 64, 172 characters in base64.
    let who = format!("{}\n{device}", subject(token).unwrap_or_default());
    format!("{place}-{}.sync-key", URL_SAFE_NO_PAD.encode(who))
}

/// The `sub` that a token claims; whether it is true only the gateway can tell.
fn subject(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("sub")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(sub: &str, iat: u64) -> String {
        let claims = serde_json::json!({ "sub": sub, "iat": iat }).to_string();
        format!("head.{}.signature", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_state_file_belongs_to_a_gateway_a_user_and_a_device() {
        let name = |url, sub, iat, device| state_name(url, &token(sub, iat), device);
        let first = name("ws://127.0.0.1:8080", "@alice", 1, "phone");
        assert_eq!(
            first,
            name("ws://127.0.0.1:8080/v1/ws", "@alice", 2, "phone")
        );
        assert_ne!(first, name("ws://127.0.0.1:8081", "@alice", 1, "phone"));
        assert_ne!(first, name("ws://127.0.0.1:8080", "@bob", 1, "phone"));
        assert_ne!(first, name("ws://127.0.0.1:8080", "@alice", 1, "desk"));
        assert!(!first.contains(['/', ':']), "{first}");
    }

    #[test]
    fn a_garbled_token_claims_nobody() {
        assert_eq!(subject(&token("@alice", 1)).as_deref(), Some("@alice"));
        assert_eq!(subject("garbled"), None);
        assert_eq!(subject("a.!.c"), None);
    }
}
