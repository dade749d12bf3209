//! The key with which users' tokens are signed.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// Least size of an HS256 key, in bytes: below it a token's key can be guessed.
const HS256_KEY_BYTES_MIN: usize = 32;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}

/// A key that signs users' tokens. It shows nothing of itself.
pub struct AuthKey {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl std::fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl AuthKey {
    /// Reads a key file: PEM of an Ed25519 private key signs EdDSA, anything else is an HS256 key,
    /// of which trailing white space is no part.
    ///
    /// # Errors
    /// When the file cannot be read, is no such PEM, or an HS256 key is shorter than 32 bytes.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
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
    ///
    /// # Errors
    /// When the clock is before 1970, or the key cannot sign.
    pub fn issue(&self, sub: &str, ttl: Duration) -> anyhow::Result<(String, u64)> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let (iat, exp) = (now.as_secs(), (now + ttl).as_secs());
        let claims = Claims { sub, iat, exp };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)?;
        Ok((token, exp))
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
