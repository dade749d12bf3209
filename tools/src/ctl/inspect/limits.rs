//! The cluster's own limits: apply refuses by them, so replay must know them.

use std::path::Path;

use anyhow::{Context as _, bail};
use mailbox_engine::EngineOptions;
use toml::{Table, Value};

/// Limits that decide what apply accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterLimits {
    /// `cluster.group_members_max`.
    pub(crate) members_max: u32,
    /// `cluster.body_bytes_max`.
    pub(crate) body_bytes_max: u32,
    /// `cluster.dedup_window_ms`.
    pub(crate) dedup_window_ms: u64,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        let options = EngineOptions::default();
        Self {
            members_max: options.members_max,
            body_bytes_max: options.body_bytes_max,
            dedup_window_ms: options.dedup_window_ms,
        }
    }
}

impl ClusterLimits {
    /// Reads the `[cluster]` section of a node's config; what it lacks keeps its default.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file);
        let text = text.with_context(|| format!("read the config {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("read the config {}", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Table = text.parse()?;
        let mut limits = Self::default();
        let Some(cluster) = config.get("cluster").and_then(Value::as_table) else {
            return Ok(limits);
        };
        if let Some(value) = cluster.get("group_members_max") {
            limits.members_max = number(value)?.try_into()?;
        }
        if let Some(value) = cluster.get("body_bytes_max") {
            limits.body_bytes_max = bytes(value)?.try_into()?;
        }
        if let Some(value) = cluster.get("dedup_window_ms") {
            limits.dedup_window_ms = number(value)?;
        }
        Ok(limits)
    }
}

fn number(value: &Value) -> anyhow::Result<u64> {
    match value.as_integer() {
        Some(number) => Ok(number.try_into()?),
        None => bail!("`{value}` is not a number"),
    }
}

/// A size as a number of bytes or as text with a unit: `"16383 B"`, `"16 KiB"`.
fn bytes(value: &Value) -> anyhow::Result<u64> {
    let Some(text) = value.as_str() else {
        return number(value);
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => bail!("`{text}` is not a size: write a number and B, KiB, MiB or GiB"),
    };
    let count: u64 = count
        .parse()
        .with_context(|| format!("`{text}` is not a size"))?;
    count
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == count)
        .context("too large a size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_overrides_what_it_names() {
        let config = "[cluster]\ngroup_members_max = 6000\nbody_bytes_max = \"16 KiB\"\n";
        let limits = ClusterLimits::parse(config).unwrap();
        let expected = ClusterLimits {
            members_max: 6000,
            body_bytes_max: 16384,
            ..ClusterLimits::default()
        };
        assert_eq!(limits, expected);
        assert_eq!(
            ClusterLimits::parse("[node]\nid = 1").unwrap(),
            ClusterLimits::default()
        );
        assert!(ClusterLimits::parse("[cluster]\nbody_bytes_max = \"16 parsecs\"").is_err());
        assert!(ClusterLimits::parse("[cluster]\ngroup_members_max = -1").is_err());
    }
}
