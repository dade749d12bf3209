//! Users' tokens: JWT, EdDSA or HS256, the algorithm pinned by which keys are configured.
//!
//! Claims: `sub` is a user id (`17`) or a handle (`@bob`), `exp` is required, `nbf` is kept if
//! there. A token is a password: it appears in no log, error or metric.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use mailbox_wire::UserRef;
use serde::{Deserialize, Serialize};

/// Least length of an HS256 secret, in bytes: as long as the hash (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Greatest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Clocks of issuer and gateway may differ by this much, in seconds.
const LEEWAY_S: u64 = 5;

/// The keys whose tokens are good.
#[derive(Clone, Default)]
pub struct TokenKeys {
    hs256: Option<DecodingKey>,
    eddsa: Option<DecodingKey>,
}

/// A key that cannot be used. Never shows the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An HS256 secret that could be guessed.
    #[error("the HS256 secret has {len} bytes; it needs at least {SECRET_BYTES_MIN}")]
    ShortSecret {
        /// Its length.
        len: usize,
    },
    /// Not an Ed25519 key in PEM.
    #[error("the EdDSA key is not an Ed25519 key in PEM: {reason}")]
    BadPem {
        /// What the parser says.
        reason: String,
    },
    /// A token could not be signed.
    #[error("sign the token: {reason}")]
    Sign {
        /// What the signer says.
        reason: String,
    },
}

/// A token that is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token came with the request.
    #[error("no token: send `Authorization: Bearer <token>` or `?access_token=<token>`")]
    Missing,
    /// Not a JWT, or its claims are not ours.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Signed with an algorithm for which no key is configured.
    #[error("the token's algorithm is not accepted here; accepted: {accepted}")]
    Algorithm {
        /// What is accepted.
        accepted: &'static str,
    },
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
}

impl TokenKeys {
    /// Accepts HS256 tokens made with this secret.
    pub fn with_hs256(mut self, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        self.hs256 = Some(DecodingKey::from_secret(secret));
        Ok(self)
    }

    /// Accepts EdDSA tokens made with the private half of this Ed25519 public key (PEM).
    pub fn with_eddsa(mut self, public_pem: &[u8]) -> Result<Self, KeyError> {
        let key = DecodingKey::from_ed_pem(public_pem).map_err(bad_pem)?;
        self.eddsa = Some(key);
        Ok(self)
    }

    /// Whether no token at all would be good.
    pub fn is_empty(&self) -> bool {
        self.hs256.is_none() && self.eddsa.is_none()
    }

    /// Who the token says its bearer is.
    pub fn verify(&self, token: &str) -> Result<UserRef, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed("it is too long"));
        }
        let refused = TokenError::Algorithm {
            accepted: self.accepted(),
        };
        let header = match jsonwebtoken::decode_header(token) {
            Ok(header) => header,
            Err(error) if names_unknown_algorithm(token, &error) => return Err(refused),
            Err(_) => return Err(TokenError::Malformed("it is not a JWT")),
        };
        // The key decides which algorithm it is used with, never the token.
        let key = match header.alg {
            Algorithm::HS256 => self.hs256.as_ref(),
            Algorithm::EdDSA => self.eddsa.as_ref(),
            _ => None,
        };
        let Some(key) = key else { return Err(refused) };
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
            .map_err(|error| token_error(error.kind()))?
            .claims;
        claims
            .sub
            .parse()
            .map_err(|_| TokenError::Malformed("sub is not a user id or an @handle"))
    }

    fn accepted(&self) -> &'static str {
        match (&self.hs256, &self.eddsa) {
            (Some(_), Some(_)) => "HS256, EdDSA",
            (Some(_), None) => "HS256",
            (None, Some(_)) => "EdDSA",
            (None, None) => "none",
        }
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKeys({})", self.accepted())
    }
}

/// Makes tokens: for tests, development and tools. In production the app's own login does that.
#[derive(Clone)]
pub struct TokenSigner {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl TokenSigner {
    /// Signs with HS256.
    pub fn hs256(secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self {
            key: EncodingKey::from_secret(secret),
            algorithm: Algorithm::HS256,
        })
    }

    /// Signs with EdDSA, with this Ed25519 private key (PKCS#8 PEM).
    pub fn eddsa(private_pem: &[u8]) -> Result<Self, KeyError> {
        let key = EncodingKey::from_ed_pem(private_pem).map_err(bad_pem)?;
        Ok(Self {
            key,
            algorithm: Algorithm::EdDSA,
        })
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({:?})", self.algorithm)
    }
}

/// Makes a token for this user that is good for this long.
pub fn issue(signer: &TokenSigner, sub: &UserRef, valid_for: Duration) -> Result<String, KeyError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let claims = Claims {
        sub: sub.to_string(),
        exp: now + valid_for.as_secs(),
        iat: Some(now),
    };
    jsonwebtoken::encode(&Header::new(signer.algorithm), &claims, &signer.key).map_err(|error| {
        KeyError::Sign {
            reason: error.to_string(),
        }
    })
}

fn check_secret(secret: &[u8]) -> Result<(), KeyError> {
    if secret.len() < SECRET_BYTES_MIN {
        return Err(KeyError::ShortSecret { len: secret.len() });
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
fn bad_pem(error: jsonwebtoken::errors::Error) -> KeyError {
    KeyError::BadPem {
        reason: error.to_string(),
    }
}

/// `none` and made-up algorithms do not even parse; say that it is the algorithm all the same.
fn names_unknown_algorithm(token: &str, error: &jsonwebtoken::errors::Error) -> bool {
    let parts = token.split('.').count() == 3;
    parts
        && matches!(
            error.kind(),
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName
        )
}

fn token_error(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) => {
            TokenError::Malformed("it needs `sub` (text) and `exp` (seconds since 1970)")
        }
        _ => TokenError::Malformed("it is not a JWT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a secret of at least 32 bytes....";

    fn keys() -> TokenKeys {
        TokenKeys::default().with_hs256(SECRET).unwrap()
    }

    /// A token with these claims, signed with this algorithm and key.
    fn made(algorithm: Algorithm, key: &EncodingKey, claims: &serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn hs256(claims: &serde_json::Value) -> String {
        made(Algorithm::HS256, &EncodingKey::from_secret(SECRET), claims)
    }

    fn in_seconds(seconds: i64) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64
            + seconds
    }

    #[test]
    fn subs_are_ids_or_handles() {
        for (sub, user) in [
            ("17", UserRef::Id(17)),
            ("@bob", UserRef::Handle("bob".into())),
        ] {
            let token = hs256(&serde_json::json!({"sub": sub, "exp": in_seconds(60)}));
            assert_eq!(keys().verify(&token), Ok(user));
        }
        let token = hs256(&serde_json::json!({"sub": "bob", "exp": in_seconds(60)}));
        assert!(matches!(
            keys().verify(&token),
            Err(TokenError::Malformed(_))
        ));
    }

    #[test]
    fn time_is_kept_and_expiry_is_required() {
        let claims = serde_json::json!({"sub": "17", "exp": in_seconds(-60)});
        assert_eq!(keys().verify(&hs256(&claims)), Err(TokenError::Expired));
        let claims = serde_json::json!({"sub": "17", "exp": in_seconds(60), "nbf": in_seconds(30)});
        assert_eq!(keys().verify(&hs256(&claims)), Err(TokenError::NotYetValid));
        let claims = serde_json::json!({"sub": "17"});
        assert!(matches!(
            keys().verify(&hs256(&claims)),
            Err(TokenError::Malformed(_))
        ));
    }

    #[test]
    fn the_algorithm_is_the_keys_not_the_tokens() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let signer = TokenSigner::eddsa(pair.serialize_pem().as_bytes()).unwrap();
        let public_pem = pair.public_key_pem();
        let ed = TokenKeys::default()
            .with_eddsa(public_pem.as_bytes())
            .unwrap();
        let token = issue(&signer, &UserRef::Id(17), Duration::from_secs(60)).unwrap();
        assert_eq!(ed.verify(&token), Ok(UserRef::Id(17)));
        assert!(matches!(
            keys().verify(&token),
            Err(TokenError::Algorithm { .. })
        ));
        // The old trick: HS256 with the public key as the secret.
        let claims = serde_json::json!({"sub": "17", "exp": in_seconds(60)});
        let forged = EncodingKey::from_secret(public_pem.as_bytes());
        let forged = made(Algorithm::HS256, &forged, &claims);
        assert!(matches!(
            ed.verify(&forged),
            Err(TokenError::Algorithm { .. })
        ));
        assert_eq!(keys().verify(&forged), Err(TokenError::Signature));
        let other = made(Algorithm::HS512, &EncodingKey::from_secret(SECRET), &claims);
        assert!(matches!(
            keys().verify(&other),
            Err(TokenError::Algorithm { .. })
        ));
    }

    #[test]
    fn keys_are_checked_and_never_shown() {
        let short = TokenKeys::default().with_hs256(b"short").unwrap_err();
        assert_eq!(short, KeyError::ShortSecret { len: 5 });
        assert!(TokenKeys::default().with_eddsa(b"no pem").is_err());
        assert!(!format!("{:?}", keys()).contains("secret"));
        assert!(TokenKeys::default().is_empty());
    }
}
