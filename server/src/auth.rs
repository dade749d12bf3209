//! Who calls: another part of the cluster (with its secret) or one user (with a token).
//!
//! The secret is compared in constant time and is never logged, nor are tokens. A caller with the
//! secret may act for any user, one with a token for the token's `sub` only.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use mailbox_api::v1::{ErrorCode, user_ref};
use mailbox_api::{CallError, metadata as names};
use mailbox_gateway::token::TokenKeys;
use subtle::ConstantTimeEq as _;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::config::{AuthConfig, is_set};
use crate::error::Error;

const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: usize = 1024;

/// Who a call comes from, as its metadata proves it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Caller {
    /// Knows the cluster secret.
    Cluster,
    /// Has a token for this user, who may not exist.
    User(user_ref::User),
}

/// What this process checks callers against.
pub(crate) struct Authority {
    cluster_id: String,
    secret: Arc<[u8]>,
    tokens: Option<TokenKeys>,
}

impl Authority {
    /// `tokens` is `None` where no key for tokens is configured: then only the secret opens.
    pub(crate) fn new(cluster_id: String, secret: Arc<[u8]>, tokens: Option<TokenKeys>) -> Self {
        Self {
            cluster_id,
            secret,
            tokens,
        }
    }

    /// Reads who calls from a call's metadata.
    ///
    /// # Errors
    /// `WrongCluster`, or `Unauthenticated` with the reason.
    pub(crate) fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, CallError> {
        if let Some(named) = metadata.get(names::CLUSTER_ID) {
            let named = named.to_str().unwrap_or("(not text)");
            if named != self.cluster_id {
                return Err(CallError::new(
                    ErrorCode::WrongCluster,
                    format!(
                        "this is cluster `{}`, the call is for `{named}`",
                        self.cluster_id
                    ),
                ));
            }
        }
        if let Some(secret) = metadata.get(names::CLUSTER_SECRET) {
            let secret = STANDARD_NO_PAD
                .decode(secret.as_bytes())
                .map_err(|_| unauthenticated("the cluster secret is not base64"))?;
            if !bool::from(secret.as_slice().ct_eq(&self.secret)) {
                return Err(unauthenticated("wrong cluster secret"));
            }
            return Ok(Caller::Cluster);
        }
        let Some(authorization) = metadata.get(names::AUTHORIZATION) else {
            return Err(unauthenticated(
                "the call carries neither cluster secret nor token",
            ));
        };
        let token = authorization
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or_else(|| unauthenticated("authorization is not `Bearer <token>`"))?;
        let Some(keys) = &self.tokens else {
            return Err(unauthenticated("this node has no key to check tokens with"));
        };
        let subject = keys
            .verify(token)
            .map_err(|error| unauthenticated(error.to_string()))?;
        // Its text form is what `sub` says: an id or an `@handle`.
        let subject = subject.to_string();
        if let Some(handle) = subject.strip_prefix('@') {
            return Ok(Caller::User(user_ref::User::Handle(handle.to_owned())));
        }
        let id = subject
            .parse()
            .map_err(|_| unauthenticated("the token's sub is not a user"))?;
        Ok(Caller::User(user_ref::User::Id(id)))
    }

    /// Proves to another node that a call comes from this cluster.
    pub(crate) fn prove(&self, metadata: &mut MetadataMap) -> Result<(), CallError> {
        let secret = STANDARD_NO_PAD.encode(&self.secret);
        for (name, text) in [
            (names::CLUSTER_ID, &self.cluster_id),
            (names::CLUSTER_SECRET, &secret),
        ] {
            let value = MetadataValue::try_from(text.as_str());
            let mut value = value
                .map_err(|_| CallError::new(ErrorCode::Internal, format!("{name} is no header")))?;
            value.set_sensitive(true);
            metadata.insert(name, value);
        }
        Ok(())
    }

    /// Lets another part of the cluster pass, and no user.
    ///
    /// # Errors
    /// As [`Authority::authenticate`], and `Forbidden` for a user's token.
    pub(crate) fn require_cluster(&self, metadata: &MetadataMap) -> Result<(), CallError> {
        match self.authenticate(metadata)? {
            Caller::Cluster => Ok(()),
            Caller::User(_) => Err(forbidden("this call needs the cluster secret, not a token")),
        }
    }
}

/// Not allowed, with the reason.
pub(crate) fn forbidden(message: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::Forbidden, message)
}

fn unauthenticated(message: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::Unauthenticated, message)
}

/// Reads the cluster secret; white space at its end is not part of it.
pub(crate) fn read_secret(path: &Path) -> Result<Arc<[u8]>, Error> {
    const WHAT: &str = "cluster secret (cluster.secret_file)";
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        what: WHAT,
        path: path.to_owned(),
        source,
    })?;
    let secret = bytes.trim_ascii_end();
    if (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
        return Ok(secret.into());
    }
    Err(Error::Content {
        what: WHAT,
        path: path.to_owned(),
        reason: format!(
            "has {} bytes, must be {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}",
            secret.len()
        ),
    })
}

/// Reads the keys that tokens are checked with; `None` if none is configured.
pub(crate) fn read_token_keys(config: &AuthConfig) -> Result<Option<TokenKeys>, Error> {
    const HS256: &str = "token secret (auth.hs256_secret_file)";
    const EDDSA: &str = "token key (auth.ed25519_public_key_file)";
    let mut keys = TokenKeys::default();
    let mut any = false;
    if is_set(&config.hs256_secret_file) {
        let path = &config.hs256_secret_file;
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            what: HS256,
            path: path.clone(),
            source,
        })?;
        keys = keys
            .with_hs256(bytes.trim_ascii_end())
            .map_err(|error| Error::Content {
                what: HS256,
                path: path.clone(),
                reason: error.to_string(),
            })?;
        any = true;
    }
    if is_set(&config.ed25519_public_key_file) {
        let path = &config.ed25519_public_key_file;
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            what: EDDSA,
            path: path.clone(),
            source,
        })?;
        keys = keys.with_eddsa(&bytes).map_err(|error| Error::Content {
            what: EDDSA,
            path: path.clone(),
            reason: error.to_string(),
        })?;
        any = true;
    }
    Ok(any.then_some(keys))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mailbox_gateway::token::{TokenSigner, issue};

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef";
    const KEY: &[u8] = b"an HS256 key with thirty-two bytes or more";

    fn authority() -> Authority {
        let tokens = TokenKeys::default().with_hs256(KEY).unwrap();
        Authority::new("blue".into(), SECRET.into(), Some(tokens))
    }

    fn call(pairs: &[(&'static str, &str)]) -> Result<Caller, CallError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in pairs {
            metadata.insert(*name, value.parse().unwrap());
        }
        authority().authenticate(&metadata)
    }

    fn refusal(pairs: &[(&'static str, &str)]) -> (ErrorCode, String) {
        let error = call(pairs).expect_err("must be refused");
        (error.code(), error.0.message)
    }

    #[test]
    fn the_secret_opens_and_a_wrong_one_is_refused_without_showing_either() {
        let secret = STANDARD_NO_PAD.encode(SECRET);
        assert_eq!(
            call(&[(names::CLUSTER_SECRET, &secret)]),
            Ok(Caller::Cluster)
        );
        let pairs = [
            (names::CLUSTER_SECRET, secret.as_str()),
            (names::CLUSTER_ID, "blue"),
        ];
        assert_eq!(call(&pairs), Ok(Caller::Cluster));
        let wrong = STANDARD_NO_PAD.encode(b"0123456789abcdeX");
        let (code, message) = refusal(&[(names::CLUSTER_SECRET, &wrong)]);
        assert_eq!(
            (code, message.as_str()),
            (ErrorCode::Unauthenticated, "wrong cluster secret")
        );
        assert_eq!(refusal(&[]).0, ErrorCode::Unauthenticated);
        assert_eq!(
            refusal(&[(names::CLUSTER_SECRET, "%%")]).0,
            ErrorCode::Unauthenticated
        );
    }

    #[test]
    fn another_cluster_is_refused_by_name() {
        let secret = STANDARD_NO_PAD.encode(SECRET);
        let pairs = [
            (names::CLUSTER_SECRET, secret.as_str()),
            (names::CLUSTER_ID, "green"),
        ];
        let (code, message) = refusal(&pairs);
        assert_eq!(code, ErrorCode::WrongCluster);
        assert!(
            message.contains("blue") && message.contains("green"),
            "{message}"
        );
    }

    #[test]
    fn a_token_acts_for_its_subject() {
        let signer = TokenSigner::hs256(KEY).unwrap();
        for (sub, user) in [
            ("@alice", user_ref::User::Handle("alice".into())),
            ("65536", user_ref::User::Id(65536)),
        ] {
            let token = issue(&signer, &sub.parse().unwrap(), Duration::from_secs(60)).unwrap();
            let bearer = format!("Bearer {token}");
            assert_eq!(
                call(&[(names::AUTHORIZATION, &bearer)]),
                Ok(Caller::User(user))
            );
        }
        let other = TokenSigner::hs256(b"another key with thirty-two bytes or more").unwrap();
        let token = issue(&other, &"1".parse().unwrap(), Duration::from_secs(60)).unwrap();
        let (code, message) = refusal(&[(names::AUTHORIZATION, &format!("Bearer {token}"))]);
        assert_eq!(code, ErrorCode::Unauthenticated);
        assert!(message.contains("signature"), "{message}");
        assert_eq!(
            refusal(&[(names::AUTHORIZATION, "Basic x")]).0,
            ErrorCode::Unauthenticated
        );
    }

    #[test]
    fn a_short_secret_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "short\n").unwrap();
        let text = read_secret(&file).expect_err("too short").to_string();
        assert!(text.contains("5 bytes") && text.contains("16"), "{text}");
        std::fs::write(&file, [SECRET, b"\n"].concat()).unwrap();
        assert_eq!(&*read_secret(&file).unwrap(), SECRET);
    }
}
