//! `mailboxctl token`: the tokens with which users connect.

use std::path::PathBuf;
use std::time::Duration;

use mailbox_cluster::AuthKey;
use serde::Serialize;

use crate::duration;
use crate::output::OutputArgs;

/// Make the tokens with which users connect.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Sign a token with a key of yours and print it
    ///
    /// The gateway must know the key: an HS256 key is the same file on both sides, an Ed25519 key
    /// is private here (PEM, PKCS#8) and public there.
    Issue {
        /// The key: PEM of an Ed25519 private key signs EdDSA; any other file is an HS256 key
        #[arg(long, value_name = "FILE", env = "MAILBOX_AUTH_KEY")]
        auth_key: PathBuf,
        /// Who connects with it: a user id or `@handle`
        #[arg(long, value_name = "USER")]
        sub: String,
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
        ttl: Duration,
    },
}

#[derive(Serialize)]
struct Issued {
    token: String,
    sub: String,
    expires_at_ms: String,
}

pub(super) fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Issue { auth_key, sub, ttl } => {
            crate::node::parse_user(&sub).map_err(anyhow::Error::msg)?;
            let (token, exp) = AuthKey::read(&auth_key)?.issue(&sub, ttl)?;
            let issued = Issued {
                token,
                sub,
                expires_at_ms: (exp * 1000).to_string(),
            };
            output.print(&issued, |issued| issued.token.clone())?;
            Ok(true)
        }
    }
}
