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
//!
//! An option that is younger than a cluster is absent from its options, which is their older
//! format, and limits nothing: what was accepted without it is accepted again when the log is
//! read again. The next leader that is configured with the option proposes it, and all replicas
//! judge by it from the same entry on. A node whose build does not know the option cannot read that
//! entry, and stops. So an option of which the operator says nothing gets its default in a new
//! cluster only ([`ClusterOptions::for_a_new_cluster`]), and an older cluster gets it when the
//! operator names it, which is when all nodes run a build that knows it.

use crate::decode::{Malformed, Reader};
use crate::key::HOUR_MS;

/// Without the limits of users.
const FORMAT_1: u8 = 1;
/// With them, and nothing younger.
const FORMAT_2: u8 = 2;
/// Says which of the younger ones there are.
const FORMAT: u8 = 3;

/// Bits of format 3.
const HAS_USER_LIMITS: u8 = 1;
const HAS_DEAD_LETTERS: u8 = 2;

/// What all replicas of a shard judge by. Set by [`crate::Command::SetClusterOptions`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// Members of one group.
    pub group_members_max: u32,
    /// Length of a message's body or a group's name, in bytes; longer ones are refused.
    pub body_bytes_max: u32,
    /// How long a command's id is recognised, in milliseconds of replicated time.
    pub dedup_window_ms: u64,
    /// What one user may have. `None`: no limit yet, in a cluster that is older than these limits.
    pub user_limits: Option<UserLimits>,
    /// Dead letters that a slot keeps; each further one trims the oldest. With bodies as long as they may
    /// be, this is what a slot's dead letters can take: `dead_letters_max * body_bytes_max`. `None`: none are
    /// kept yet, in a cluster that is older than they are.
    pub dead_letters_max: Option<u32>,
}

/// What one user may have.
///
/// Both are held by counting the user's rows when a further one is about to be made, up to the
/// limit at most. A counter would be one more row to keep true through every change of the rows
/// that it counts, and would be wrong in every store that is older than it; and a device or a
/// group that is new to a user is rare beside sends and acks, which count nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLimits {
    /// Devices of one user with a cursor in one timeline.
    pub devices_max: u32,
    /// Groups in one user's own list: those that the user has left are in it too, since their
    /// messages up to there stay readable. A join is judged by it where it is applied if the
    /// user's list is in the same shard. Otherwise whoever proposes it has looked there before; so
    /// joins that are on their way at once may exceed it by their number.
    pub groups_max: u32,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            group_members_max: 500,
            body_bytes_max: 16 * 1024 - 1,
            dedup_window_ms: 7 * 24 * HOUR_MS,
            user_limits: Some(UserLimits::default()),
            dead_letters_max: Some(1000),
        }
    }
}

impl Default for UserLimits {
    fn default() -> Self {
        Self {
            devices_max: 100,
            groups_max: 1000,
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
    /// Least and greatest [`UserLimits::devices_max`].
    pub const USER_DEVICES_MAX: (u64, u64) = (1, 1000);
    /// Least and greatest [`UserLimits::groups_max`]. A sync key has no place for more groups.
    pub const USER_GROUPS_MAX: (u64, u64) = (1, 2000);
    /// Least and greatest [`ClusterOptions::dead_letters_max`].
    pub const DEAD_LETTERS_MAX: (u64, u64) = (1, 100_000);

    /// Each option by its name, with its value, if it has one, and its bounds.
    fn all(&self) -> [(&'static str, Option<u64>, (u64, u64)); 6] {
        let limits = self.user_limits;
        [
            (
                "group_members_max",
                Some(self.group_members_max.into()),
                Self::GROUP_MEMBERS_MAX,
            ),
            (
                "body_bytes_max",
                Some(self.body_bytes_max.into()),
                Self::BODY_BYTES_MAX,
            ),
            (
                "dedup_window_ms",
                Some(self.dedup_window_ms),
                Self::DEDUP_WINDOW_MS,
            ),
            (
                "user_devices_max",
                limits.map(|limits| limits.devices_max.into()),
                Self::USER_DEVICES_MAX,
            ),
            (
                "user_groups_max",
                limits.map(|limits| limits.groups_max.into()),
                Self::USER_GROUPS_MAX,
            ),
            (
                "dead_letters_max",
                self.dead_letters_max.map(u64::from),
                Self::DEAD_LETTERS_MAX,
            ),
        ]
    }

    /// `other` has options that are absent here.
    pub fn lacks_some_of(&self, other: &ClusterOptions) -> bool {
        self.completed_by(other) != *self
    }

    /// These options, and of `other` those that are absent here.
    pub(crate) fn completed_by(&self, other: &ClusterOptions) -> ClusterOptions {
        ClusterOptions {
            user_limits: self.user_limits.or(other.user_limits),
            dead_letters_max: self.dead_letters_max.or(other.dead_letters_max),
            ..*self
        }
    }

    /// These options, and where one is absent its default.
    pub fn for_a_new_cluster(&self) -> ClusterOptions {
        self.completed_by(&ClusterOptions::default())
    }

    /// Refuses values outside their bounds.
    ///
    /// # Errors
    /// The first option that is.
    pub fn check(&self) -> Result<(), OptionFault> {
        for (option, value, (min, max)) in self.all() {
            if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
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

    /// The options whose values differ. One that is absent on a side agrees with any.
    pub fn differences(&self, right: &ClusterOptions) -> Vec<OptionDifference> {
        let pairs = self.all().into_iter().zip(right.all());
        pairs
            .filter_map(|((option, left, _), (_, right, _))| {
                let (left, right) = (left?, right?);
                let difference = OptionDifference {
                    option,
                    left,
                    right,
                };
                (left != right).then_some(difference)
            })
            .collect()
    }

    /// `format u8 | group_members_max u32 | body_bytes_max u32 | dedup_window_ms u64`; in format 2 then
    /// `| user_devices_max u32 | user_groups_max u32`; in format 3 `| bits u8` and those for which a bit is
    /// set, of these two (1) and `dead_letters_max u32` (2). Whoever stores it gives the length: further
    /// options come at the end, each with a bit. Without younger options the older format is written, which
    /// is read everywhere.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let format = match (self.user_limits, self.dead_letters_max) {
            (None, None) => FORMAT_1,
            (Some(_), None) => FORMAT_2,
            (_, Some(_)) => FORMAT,
        };
        out.push(format);
        out.extend_from_slice(&self.group_members_max.to_be_bytes());
        out.extend_from_slice(&self.body_bytes_max.to_be_bytes());
        out.extend_from_slice(&self.dedup_window_ms.to_be_bytes());
        if format == FORMAT {
            let limits = self.user_limits.map_or(0, |_| HAS_USER_LIMITS);
            let letters = self.dead_letters_max.map_or(0, |_| HAS_DEAD_LETTERS);
            out.push(limits | letters);
        }
        if let Some(limits) = self.user_limits {
            out.extend_from_slice(&limits.devices_max.to_be_bytes());
            out.extend_from_slice(&limits.groups_max.to_be_bytes());
        }
        if let Some(max) = self.dead_letters_max {
            out.extend_from_slice(&max.to_be_bytes());
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ClusterOptions, Malformed> {
        let mut reader = Reader::new("cluster options", bytes);
        let format = reader.u8()?;
        if ![FORMAT_1, FORMAT_2, FORMAT].contains(&format) {
            return Err(reader.unknown(format));
        }
        let mut options = ClusterOptions {
            group_members_max: reader.u32()?,
            body_bytes_max: reader.u32()?,
            dedup_window_ms: reader.u64()?,
            user_limits: None,
            dead_letters_max: None,
        };
        let bits = match format {
            FORMAT_1 => 0,
            FORMAT_2 => HAS_USER_LIMITS,
            _ => reader.u8()?,
        };
        if bits & !(HAS_USER_LIMITS | HAS_DEAD_LETTERS) != 0 {
            return Err(reader.unknown(bits));
        }
        if bits & HAS_USER_LIMITS != 0 {
            options.user_limits = Some(UserLimits {
                devices_max: reader.u32()?,
                groups_max: reader.u32()?,
            });
        }
        if bits & HAS_DEAD_LETTERS != 0 {
            options.dead_letters_max = Some(reader.u32()?);
        }
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
            let limits = options.user_limits.as_mut().unwrap();
            let number = value.try_into().unwrap();
            match option {
                "group_members_max" => options.group_members_max = number,
                "body_bytes_max" => options.body_bytes_max = number,
                "dedup_window_ms" => options.dedup_window_ms = value,
                "user_devices_max" => limits.devices_max = number,
                "user_groups_max" => limits.groups_max = number,
                "dead_letters_max" => options.dead_letters_max = Some(number),
                other => panic!("{other} is not tried"),
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
        let limits = UserLimits {
            devices_max: 11,
            groups_max: 12,
        };
        let right = ClusterOptions {
            user_limits: Some(limits),
            ..left
        };
        let named = left.differences(&right);
        let named: Vec<_> = named.iter().map(|one| (one.option, one.right)).collect();
        assert_eq!(named, [("user_devices_max", 11), ("user_groups_max", 12)]);
        let right = ClusterOptions {
            dead_letters_max: Some(13),
            ..left
        };
        let named = left.differences(&right);
        let named: Vec<_> = named.iter().map(|one| (one.option, one.right)).collect();
        assert_eq!(named, [("dead_letters_max", 13)]);
    }

    #[test]
    fn an_absent_option_agrees_with_any_and_can_be_filled_in() {
        let full = ClusterOptions::default();
        let old = ClusterOptions {
            body_bytes_max: 9,
            user_limits: None,
            dead_letters_max: None,
            ..full
        };
        assert!(old.lacks_some_of(&full) && !full.lacks_some_of(&old));
        let named = old.differences(&full);
        assert_eq!(named.len(), 1, "{named:?}");
        let filled = ClusterOptions {
            body_bytes_max: 9,
            ..full
        };
        assert_eq!(old.completed_by(&full), filled);
        assert_eq!(full.completed_by(&old), full);
    }

    #[test]
    fn each_format_is_read_and_written_as_it_was() {
        let base = [0, 0, 0, 12, 0, 0, 1, 89, 0, 0, 0, 0, 0, 103, 151, 136];
        let options = ClusterOptions {
            group_members_max: 12,
            body_bytes_max: 345,
            dedup_window_ms: 6_789_000,
            user_limits: None,
            dead_letters_max: None,
        };
        let user_limits = Some(UserLimits {
            devices_max: 4,
            groups_max: 5,
        });
        let limited = ClusterOptions {
            user_limits,
            ..options
        };
        let with_letters = |options| ClusterOptions {
            dead_letters_max: Some(6),
            ..options
        };
        let (limits, letters) = ([0, 0, 0, 4, 0, 0, 0, 5], [0, 0, 0, 6]);
        for (format, options, rest) in [
            (1, options, Vec::new()),
            (2, limited, limits.to_vec()),
            (3, with_letters(options), [&[2][..], &letters].concat()),
            (
                3,
                with_letters(limited),
                [&[3][..], &limits, &letters].concat(),
            ),
        ] {
            let bytes = [&[format][..], &base, &rest].concat();
            assert_eq!(ClusterOptions::decode(&bytes), Ok(options));
            let mut again = Vec::new();
            options.encode(&mut again);
            assert_eq!(again, bytes);
        }
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
        let mut other = bytes.clone();
        other[17] |= 4;
        assert!(ClusterOptions::decode(&other).is_err());
        bytes[0] = 4;
        assert!(ClusterOptions::decode(&bytes).is_err());
        assert!(ClusterOptions::decode(&[]).is_err());
    }
}
