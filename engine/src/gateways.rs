//! The gateways of the cluster: rows of the meta shard. A row says who a gateway is, where clients reach it and how it
//! stands; see `procedure/meta_gateways.rs` for what changes it.
//!
//! Gateways tell that they are there every few seconds. None of that is in the log: whoever leads the meta shard keeps
//! in memory when it heard of each, and proposes something only where a row is to change. So a thousand gateways cost
//! the log nothing while they serve, and a cluster whose gateways all start at once one row each. A new leader has heard
//! of nobody, and gives each of them its whole time anew.
//!
//! What is replicated judges by replicated time, so that no leader's clock or memory can make a gateway of an hour ago
//! out of one that has just told:
//!
//! ```text
//!             told anew                              told anew
//!          ┌──────────────┐                       ┌──────────────┐
//!          ▼              │ stops                 ▼              │
//!       serving ──────▶ draining ──▶ (no row)    serving       silent ──▶ (no row)
//!          └──────────────┴────────────────────────────────────▲  after KEPT_PERIODS
//!            the leader missed it, and SILENT_PERIODS since the row's last change
//! ```
//!
//! Rows of gateways are no part of the map: its epoch stays as it is, and its watchers are not told.

use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::shard::Shard;

/// Of the row, and of what a gateway tells in a command.
const FORMAT: u8 = 1;

/// Gateways of one cluster, the silent ones included.
pub const GATEWAYS_MAX: u32 = 4096;
/// Longest address of a gateway, in bytes.
pub const GATEWAY_ADDRESS_BYTES_MAX: usize = 255;
/// Longest region, zone or version of a gateway, in bytes.
pub const GATEWAY_TEXT_BYTES_MAX: usize = 64;
/// Least and greatest time between two times that a gateway tells, in milliseconds.
pub const GATEWAY_REFRESH_MS: (u32, u32) = (100, 60_000);
/// A gateway that was not heard of for so many of its own periods is silent.
pub const GATEWAY_SILENT_PERIODS: u64 = 3;
/// A gateway that has been silent for so many of its own periods is forgotten.
pub const GATEWAY_KEPT_PERIODS: u64 = 60;
/// Gateways that one command calls silent.
pub const GATEWAYS_SWEPT_MAX: usize = 512;

/// The name of a gateway: 1 to 64 of a-z, 0-9, '-' and '.'. Configured, or chosen at random at its start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(Box<str>);

impl GatewayId {
    /// Longest id, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// [`GatewayFault::Id`].
    pub fn new(name: &str) -> Result<GatewayId, GatewayFault> {
        let fits = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let good = (1..=Self::BYTES_MAX).contains(&name.len()) && name.as_bytes().iter().all(fits);
        if good {
            Ok(GatewayId(name.into()))
        } else {
            Err(GatewayFault::Id)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for GatewayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a gateway tells of itself and what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayFacts {
    /// Tells one process from the next one with the same id: the later one has the greater number. Never 0.
    pub run: u64,
    /// About how often it tells, in milliseconds.
    pub refresh_ms: u32,
    /// Where clients open WebSockets, as `ws://…` or `wss://…`; may be empty.
    pub websocket_url: String,
    /// Where clients speak the frame protocol over TCP, as `host:port`; may be empty.
    pub tcp_address: String,
    /// Where it serves HTTP, as `http://…` or `https://…`; may be empty.
    pub http_url: String,
    /// Its region; may be empty.
    pub region: String,
    /// Its zone in the region; may be empty.
    pub zone: String,
    /// Of its build; may be empty.
    pub version: String,
}

/// How a gateway stands. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GatewayStanding {
    /// Clients may come.
    Serving = 1,
    /// It sends its clients away, and goes.
    Draining = 2,
    /// Nothing was heard of it.
    Silent = 3,
}

impl GatewayStanding {
    /// The standing with this stored number.
    pub fn from_u8(number: u8) -> Option<GatewayStanding> {
        match number {
            1 => Some(GatewayStanding::Serving),
            2 => Some(GatewayStanding::Draining),
            3 => Some(GatewayStanding::Silent),
            _ => None,
        }
    }
}

/// One gateway of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRow {
    /// As it told last.
    pub facts: GatewayFacts,
    /// How it stands.
    pub standing: GatewayStanding,
    /// Replicated time at which this row was last changed, in milliseconds.
    pub changed_ms: u64,
}

/// Why something is no gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayFault {
    /// The id.
    #[error("a gateway's id has 1 to {max} of a-z, 0-9, '-', '.'", max = GatewayId::BYTES_MAX)]
    Id,
    /// The number of its run.
    #[error("a gateway tells which run of it this is, above 0")]
    Run,
    /// There is none, or it is too long.
    #[error(
        "a gateway has a WebSocket or TCP address, and none above {GATEWAY_ADDRESS_BYTES_MAX} bytes"
    )]
    Address,
    /// The region, zone or version is too long, or a text has characters that nobody can print.
    #[error(
        "a gateway's region, zone and version have at most {GATEWAY_TEXT_BYTES_MAX} bytes, and no text has control \
         characters"
    )]
    Text,
    /// It tells too often, or not often enough.
    #[error("a gateway tells every {min} to {max} ms", min = GATEWAY_REFRESH_MS.0, max = GATEWAY_REFRESH_MS.1)]
    Refresh,
}

impl GatewayFacts {
    /// Refuses what does not fit a row.
    ///
    /// # Errors
    /// The first fault that is found.
    pub fn check(&self) -> Result<(), GatewayFault> {
        if self.run == 0 {
            return Err(GatewayFault::Run);
        }
        let addresses = [&self.websocket_url, &self.tcp_address, &self.http_url];
        let reachable = !self.websocket_url.is_empty() || !self.tcp_address.is_empty();
        if !reachable
            || addresses
                .iter()
                .any(|text| text.len() > GATEWAY_ADDRESS_BYTES_MAX)
        {
            return Err(GatewayFault::Address);
        }
        let names = [&self.region, &self.zone, &self.version];
        let odd = |text: &&String| text.chars().any(char::is_control);
        if names.iter().any(|text| text.len() > GATEWAY_TEXT_BYTES_MAX)
            || addresses.iter().chain(&names).any(odd)
        {
            return Err(GatewayFault::Text);
        }
        let (least, most) = GATEWAY_REFRESH_MS;
        if (least..=most).contains(&self.refresh_ms) {
            Ok(())
        } else {
            Err(GatewayFault::Refresh)
        }
    }

    /// How long it may not be heard of, in milliseconds.
    pub fn silent_after_ms(&self) -> u64 {
        u64::from(self.refresh_ms) * GATEWAY_SILENT_PERIODS
    }

    /// How long it is kept once it is silent, in milliseconds.
    pub fn kept_ms(&self) -> u64 {
        u64::from(self.refresh_ms) * GATEWAY_KEPT_PERIODS
    }

    /// `format u8 | run u64 | refresh ms u32 | WebSocket | TCP | HTTP | region | zone | version`, each text with its
    /// length, u32, before it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.run.to_be_bytes());
        out.extend_from_slice(&self.refresh_ms.to_be_bytes());
        for text in [
            &self.websocket_url,
            &self.tcp_address,
            &self.http_url,
            &self.region,
            &self.zone,
            &self.version,
        ] {
            let len = u32::try_from(text.len()).expect("a call's frame is far shorter");
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// About the length of [`GatewayFacts::encode`], in bytes.
    pub fn len_bytes(&self) -> usize {
        let addresses = self.websocket_url.len() + self.tcp_address.len() + self.http_url.len();
        40 + addresses + self.region.len() + self.zone.len() + self.version.len()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<GatewayFacts, Malformed> {
        let mut reader = Reader::new("gateway", bytes);
        let reader = &mut reader;
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let (run, refresh_ms) = (reader.u64()?, reader.u32()?);
        let mut text = || {
            let bytes = reader.sized()?;
            reader.text(bytes).map(str::to_owned)
        };
        let facts = GatewayFacts {
            run,
            refresh_ms,
            websocket_url: text()?,
            tcp_address: text()?,
            http_url: text()?,
            region: text()?,
            zone: text()?,
            version: text()?,
        };
        reader.end()?;
        Ok(facts)
    }
}

impl GatewayRow {
    /// Another process that has this number must not take its place.
    pub fn outlives(&self, run: u64) -> bool {
        self.facts.run > run && self.standing != GatewayStanding::Silent
    }

    /// Its time to be heard of is over, counted from the row's last change alone.
    pub fn may_be_silent(&self, time_ms: u64) -> bool {
        let due_ms = self.changed_ms.saturating_add(self.facts.silent_after_ms());
        self.standing != GatewayStanding::Silent && time_ms >= due_ms
    }

    /// It has been silent for so long that it is forgotten.
    pub fn is_over(&self, time_ms: u64) -> bool {
        let due_ms = self.changed_ms.saturating_add(self.facts.kept_ms());
        self.standing == GatewayStanding::Silent && time_ms >= due_ms
    }

    /// `standing u8 | changed ms u64`, and what it told.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.standing as u8];
        out.extend_from_slice(&self.changed_ms.to_be_bytes());
        self.facts.encode(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<GatewayRow, Malformed> {
        let mut reader = Reader::new("gateway row", bytes);
        let standing = reader.u8()?;
        let standing =
            GatewayStanding::from_u8(standing).ok_or_else(|| reader.unknown(standing))?;
        Ok(GatewayRow {
            standing,
            changed_ms: reader.u64()?,
            facts: GatewayFacts::decode(reader.rest())?,
        })
    }
}

/// Checks the value of a gateway's row, for scrubs and installs.
pub(crate) fn check_row(key: &StateKey, value: &[u8]) -> Result<(), Malformed> {
    match key {
        StateKey::MetaGateway { .. } => GatewayRow::decode(value).map(|_| ()),
        _ => Ok(()),
    }
}

impl Shard {
    /// The row of a gateway; none in every shard but the meta shard.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped; so for the others here.
    pub fn gateway(&self, gateway: &GatewayId) -> Result<Option<GatewayRow>, Error> {
        if self.id() != ShardId::META {
            return Ok(None);
        }
        let key = StateKey::MetaGateway {
            gateway: gateway.clone(),
        };
        let row = self.get(&key)?.map(|value| GatewayRow::decode(&value));
        row.transpose()
            .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
    }

    /// All gateways, in the order of their ids, of one moment; none in every shard but the meta shard. At most
    /// [`GATEWAYS_MAX`].
    ///
    /// # Errors
    /// As there.
    pub fn gateways(&self) -> Result<Vec<(GatewayId, GatewayRow)>, Error> {
        if self.id() != ShardId::META {
            return Ok(Vec::new());
        }
        let rows = self.scan_prefix(SlotId::META, &StateKey::gateways_prefix())?;
        rows.iter()
            .map(|(suffix, value)| read_row(suffix.as_slice(), value))
            .collect()
    }
}

/// One row of a scan over gateways.
pub(crate) fn read_row(suffix: &[u8], value: &[u8]) -> Result<(GatewayId, GatewayRow), Error> {
    let corrupt = |malformed| Error::corrupt_row(suffix, malformed);
    match StateKey::decode(suffix).map_err(corrupt)? {
        StateKey::MetaGateway { gateway } => {
            Ok((gateway, GatewayRow::decode(value).map_err(corrupt)?))
        }
        _ => Err(corrupt(Malformed::Unknown {
            what: "key of a gateway",
            number: u64::from(suffix.first().copied().unwrap_or(0)),
        })),
    }
}

#[cfg(test)]
pub(crate) mod tests;
