//! `mailboxctl token`: the tokens with which users connect.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::duration;
use crate::output::OutputArgs;

/// Least size of an HS256 key, in bytes: below it a token's key can be guessed.
const HS256_KEY_BYTES_MIN: usize = 32;

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
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}

#[derive(Serialize)]
struct Issued {
    token: String,
    sub: String,
    expires_at_ms: String,
}

/// A key that signs users' tokens.
pub(crate) struct AuthKey {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl AuthKey {
    /// Reads a key file; trailing white space is not part of an HS256 key.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("read the key {}", path.display()))?;
        Self::from_bytes(&bytes).with_context(|| format!("use the key {}", path.display()))
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            let key = EncodingKey::from_ed_pem(bytes)
                .context("not the PEM of an Ed25519 private key (PKCS#8)")?;
            return Ok(Self {
                key,
                algorithm: Algorithm::EdDSA,
            });
        }
        let secret = bytes.trim_ascii_end();
        if secret.len() < HS256_KEY_BYTES_MIN {
            bail!(
                "an HS256 key has at least {HS256_KEY_BYTES_MIN} bytes, this one {}",
                secret.len()
            );
        }
        Ok(Self {
            key: EncodingKey::from_secret(secret),
            algorithm: Algorithm::HS256,
        })
    }

    /// Signs a token for `sub` (a user id or `@handle`) that is valid from now for `ttl`. Returns
    /// it with the second since the Unix epoch at which it expires.
    pub(crate) fn issue(&self, sub: &str, ttl: Duration) -> anyhow::Result<(String, u64)> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let (iat, exp) = (now.as_secs(), (now + ttl).as_secs());
        let claims = Claims { sub, iat, exp };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)?;
        Ok((token, exp))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn an_hs256_key_signs_what_the_same_key_checks() {
        let secret = b"0123456789abcdef0123456789abcdef";
        let key = AuthKey::from_bytes(&[secret.as_slice(), b"\n"].concat()).unwrap();
        let (token, exp) = key.issue("@alice", Duration::from_secs(60)).unwrap();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        let decoding = DecodingKey::from_secret(secret);
        let claims: serde_json::Value = jsonwebtoken::decode(&token, &decoding, &validation)
            .unwrap()
            .claims;
        assert_eq!(claims["sub"], "@alice");
        assert_eq!(claims["exp"], exp);
        assert_eq!(exp, claims["iat"].as_u64().unwrap() + 60);
    }

    #[test]
    fn a_short_or_broken_key_is_refused() {
        assert!(AuthKey::from_bytes(b"short").is_err());
        let pem = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(AuthKey::from_bytes(pem).is_err());
    }
}
