//! Names of timelines and destinations, and their text forms.

use std::fmt;
use std::str::FromStr;

/// A timeline that a device can read: its user's mailbox or a group's timeline.
/// Text form: `mailbox:17`, `group:65`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timeline {
    /// The mailbox of this user id.
    Mailbox(u64),
    /// The timeline of this group id.
    Group(u64),
}

/// A user by id or by handle. Text form: `17`, `@bob`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UserRef {
    /// A user id.
    Id(u64),
    /// A handle, without the leading `@`. Not yet checked against the rules of handles: the store
    /// does that.
    Handle(String),
}

/// Where a message goes. Text form: `17`, `@bob`, `group:65`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A 1:1 message.
    User(UserRef),
    /// A message to the members of this group id.
    Group(u64),
}

/// A seq of a timeline: what a client holds, or a head. Inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Which timeline.
    pub timeline: Timeline,
    /// Greatest seq, inclusive; 0 = nothing.
    pub seq: u64,
}

/// Text that names no destination, user or timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct BadDestination {
    /// What was given, cut to 80 characters.
    pub text: String,
    /// What was wanted, with an example.
    pub wanted: &'static str,
}

impl BadDestination {
    fn new(text: &str, wanted: &'static str) -> Self {
        Self {
            text: text.chars().take(80).collect(),
            wanted,
        }
    }
}

/// A decimal id in its only spelling: digits, no sign, no leading zero, not 0.
fn parse_id(text: &str) -> Option<u64> {
    let canonical = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if canonical { text.parse().ok() } else { None }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mailbox(user) => write!(f, "mailbox:{user}"),
            Self::Group(group) => write!(f, "group:{group}"),
        }
    }
}

impl FromStr for Timeline {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = |rest: &str| {
            parse_id(rest).ok_or_else(|| {
                BadDestination::new(text, "a timeline, such as \"mailbox:17\" or \"group:65\"")
            })
        };
        match text.split_once(':') {
            Some(("mailbox", rest)) => id(rest).map(Self::Mailbox),
            Some(("group", rest)) => id(rest).map(Self::Group),
            Some(_) | None => id("").map(Self::Mailbox),
        }
    }
}

impl fmt::Display for UserRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(user) => write!(f, "{user}"),
            Self::Handle(handle) => write!(f, "@{handle}"),
        }
    }
}

impl FromStr for UserRef {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('@') {
            Some("") | None => parse_id(text)
                .map(Self::Id)
                .ok_or_else(|| BadDestination::new(text, "a user, such as \"@bob\" or \"17\"")),
            Some(handle) => Ok(Self::Handle(handle.to_owned())),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => user.fmt(f),
            Self::Group(group) => write!(f, "group:{group}"),
        }
    }
}

impl FromStr for Destination {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = "a destination, such as \"@bob\", \"17\" or \"group:65\"";
        match text.strip_prefix("group:") {
            Some(rest) => parse_id(rest)
                .map(Self::Group)
                .ok_or_else(|| BadDestination::new(text, wanted)),
            None => text
                .parse()
                .map(Self::User)
                .map_err(|_| BadDestination::new(text, wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_survive() {
        for text in ["mailbox:17", "group:65", "group:18446744073709551615"] {
            assert_eq!(text.parse::<Timeline>().unwrap().to_string(), text);
        }
        for text in ["17", "@bob", "group:65", "@group:65", "@ü"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_text_is_refused_with_an_example() {
        for text in [
            "",
            "17",
            "mailbox:",
            "mailbox:017",
            "mailbox:+1",
            "group:0",
            "feed:1",
        ] {
            assert!(text.parse::<Timeline>().is_err(), "{text}");
        }
        for text in [
            "",
            "@",
            "bob",
            "group:",
            "group:x",
            "-1",
            "0",
            "99999999999999999999",
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.to_string().contains("@bob"), "{error}");
        }
    }
}
