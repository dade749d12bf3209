//! How single values are written: numbers, names, bytes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 64-bit integer, written as a decimal string: numbers of JavaScript are exact to 2^53 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct U64(pub u64);

impl U64 {
    /// For fields that are left out when 0.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's `skip_serializing_if` passes a reference
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Serialize for U64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for U64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Decimal;
        impl Visitor<'_> for Decimal {
            type Value = U64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit number as a decimal string, such as \"17\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<U64, E> {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                let canonical = digits && (text == "0" || !text.starts_with('0'));
                match text.parse() {
                    Ok(value) if canonical => Ok(U64(value)),
                    Ok(_) | Err(_) => {
                        Err(E::invalid_value(serde::de::Unexpected::Str(text), &self))
                    }
                }
            }
        }
        deserializer.deserialize_str(Decimal)
    }
}

/// A value in its text form: `#[serde(with = "quoted")]`.
pub mod quoted {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};
    use serde::de::Error as _;

    /// Writes the text form.
    pub fn serialize<T: fmt::Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads the text form.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Bytes in standard base64 with padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Base64(pub(super) Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        match STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Self(bytes.into())),
            Err(error) => Err(D::Error::custom(format_args!("not base64: {error}"))),
        }
    }
}

/// Writes a value whose serialisation cannot fail.
pub(super) fn to_bytes<T: Serialize>(value: &T) -> Bytes {
    // Only a map with keys that are no strings, or a failing `Serialize`, makes it fail.
    serde_json::to_vec(value)
        .expect("frames are plain structs with string keys")
        .into()
}
