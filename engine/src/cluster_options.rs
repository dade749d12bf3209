//! Limits by which apply refuses. They are replicated: were they options of a node, two nodes that
//! are configured differently would judge the same entry differently, and diverge unnoticed.
//!
//! They lie in the shard's applied row, beside replicated time, and not in a row of a slot. Apply
//! reads them for nearly every command, whatever its slot, so they are in memory whenever a shard
//! is open; and the applied row already goes wherever they must go: into each flush, each snapshot
//! and each checkpoint, in the same ingest as the rows that were judged by them. A slot that moves
//! to another shard needs no copy: it is judged by the options of the shard that it is in, and
//! every shard has its own from its first entry on. What a slot itself must keep, the floor that
//! its window has raised, is a row of the slot.
//!
//! A shard that has none yet refuses every client's command ([`crate::Refusal::NotReady`]).

use crate::decode::{Malformed, Reader};
use crate::key::HOUR_MS;

const FORMAT: u8 = 1;

/// What all replicas of a shard judge by. Set by [`crate::Command::SetClusterOptions`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// Members of one group.
    pub group_members_max: u32,
    /// Length of a message's body or a group's name, in bytes; longer ones are refused.
    pub body_bytes_max: u32,
    /// How long a command's id is recognised, in milliseconds of replicated time.
    pub dedup_window_ms: u64,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            group_members_max: 500,
            body_bytes_max: 16 * 1024 - 1,
            dedup_window_ms: 7 * 24 * HOUR_MS,
        }
    }
}

/// A value outside the bounds of its option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} is {value}; it may be {min} to {max}")]
pub struct OptionFault {
    /// The option's name.
    pub option: &'static str,
    /// As asked.
    pub value: u64,
    /// Least value allowed.
    pub min: u64,
    /// Greatest value allowed.
    pub max: u64,
}

/// An option that has two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionDifference {
    /// The option's name.
    pub option: &'static str,
    /// The value on the left side.
    pub left: u64,
    /// The value on the right side.
    pub right: u64,
}

impl ClusterOptions {
    /// Least and greatest [`ClusterOptions::group_members_max`].
    pub const GROUP_MEMBERS_MAX: (u64, u64) = (2, 100_000);
    /// Least and greatest [`ClusterOptions::body_bytes_max`].
    pub const BODY_BYTES_MAX: (u64, u64) = (1, 1 << 20);
    /// Least and greatest [`ClusterOptions::dedup_window_ms`]. Floors are whole hours.
    pub const DEDUP_WINDOW_MS: (u64, u64) = (HOUR_MS, 31 * 24 * HOUR_MS);

    /// Each option by its name, with its value and its bounds.
    fn all(&self) -> [(&'static str, u64, (u64, u64)); 3] {
        [
            (
                "group_members_max",
                self.group_members_max.into(),
                Self::GROUP_MEMBERS_MAX,
            ),
            (
                "body_bytes_max",
                self.body_bytes_max.into(),
                Self::BODY_BYTES_MAX,
            ),
            (
                "dedup_window_ms",
                self.dedup_window_ms,
                Self::DEDUP_WINDOW_MS,
            ),
        ]
    }

    /// Refuses values outside their bounds.
    ///
    /// # Errors
    /// The first option that is.
    pub fn check(&self) -> Result<(), OptionFault> {
        for (option, value, (min, max)) in self.all() {
            if !(min..=max).contains(&value) {
                return Err(OptionFault {
                    option,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }

    /// The options whose values differ.
    pub fn differences(&self, right: &ClusterOptions) -> Vec<OptionDifference> {
        let pairs = self.all().into_iter().zip(right.all());
        pairs
            .filter(|((_, left, _), (_, right, _))| left != right)
            .map(|((option, left, _), (_, right, _))| OptionDifference {
                option,
                left,
                right,
            })
            .collect()
    }

    /// `format u8 | group_members_max u32 | body_bytes_max u32 | dedup_window_ms u64`. Whoever
    /// stores it gives the length: further options come at the end, under a new format.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.group_members_max.to_be_bytes());
        out.extend_from_slice(&self.body_bytes_max.to_be_bytes());
        out.extend_from_slice(&self.dedup_window_ms.to_be_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ClusterOptions, Malformed> {
        let mut reader = Reader::new("cluster options", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let options = ClusterOptions {
            group_members_max: reader.u32()?,
            body_bytes_max: reader.u32()?,
            dedup_window_ms: reader.u64()?,
        };
        reader.end()?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_name_the_option() {
        let default = ClusterOptions::default();
        assert_eq!(default.check(), Ok(()));
        let at = |option: &str, value: u64| {
            let mut options = default;
            match option {
                "group_members_max" => options.group_members_max = value.try_into().unwrap(),
                "body_bytes_max" => options.body_bytes_max = value.try_into().unwrap(),
                _ => options.dedup_window_ms = value,
            }
            options.check()
        };
        for (option, _, (min, max)) in default.all() {
            for good in [min, max] {
                assert_eq!(at(option, good), Ok(()), "{option} {good}");
            }
            for bad in [min - 1, max + 1] {
                let fault = at(option, bad).unwrap_err();
                let (value, named) = (fault.value, fault.option);
                assert_eq!((named, value), (option, bad));
            }
        }
    }

    #[test]
    fn every_difference_is_named() {
        let left = ClusterOptions::default();
        assert_eq!(left.differences(&left), []);
        let right = ClusterOptions {
            group_members_max: 9,
            dedup_window_ms: 10,
            ..left
        };
        let named: Vec<_> = left.differences(&right);
        let named: Vec<_> = named.iter().map(|one| (one.option, one.right)).collect();
        assert_eq!(named, [("group_members_max", 9), ("dedup_window_ms", 10)]);
    }

    #[test]
    fn an_unknown_format_and_leftovers_are_refused() {
        let mut bytes = Vec::new();
        ClusterOptions::default().encode(&mut bytes);
        assert_eq!(
            ClusterOptions::decode(&bytes),
            Ok(ClusterOptions::default())
        );
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(ClusterOptions::decode(&longer).is_err());
        bytes[0] = 2;
        assert!(ClusterOptions::decode(&bytes).is_err());
        assert!(ClusterOptions::decode(&[]).is_err());
    }
}
