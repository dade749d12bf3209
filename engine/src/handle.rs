//! Which handles are allowed: 1 to 64 bytes of UTF-8, no control characters, no white space at
//! either end, no `@`. They are compared byte for byte.

/// Longest handle, in bytes.
pub const HANDLE_BYTES_MAX: usize = 64;

/// What is wrong with a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleFault {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// Over the limit.
    #[error("it has {len} bytes, {max} at most")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A control character.
    #[error("it has a control character")]
    Control,
    /// White space at either end.
    #[error("it begins or ends with white space")]
    OuterSpace,
    /// An `@`.
    #[error("it has an @")]
    At,
}

/// Judges a handle, given without the leading `@` of a mention.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_handle(handle: &str) -> Result<(), HandleFault> {
    if handle.is_empty() {
        return Err(HandleFault::Empty);
    }
    if handle.len() > HANDLE_BYTES_MAX {
        return Err(HandleFault::TooLong {
            len: handle.len(),
            max: HANDLE_BYTES_MAX,
        });
    }
    if handle.chars().any(char::is_control) {
        return Err(HandleFault::Control);
    }
    if handle.trim() != handle {
        return Err(HandleFault::OuterSpace);
    }
    if handle.contains('@') {
        return Err(HandleFault::At);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_handles_pass() {
        for handle in ["a", "Ωμέγα", "two words", "[nick]^_`", &"x".repeat(64)] {
            assert_eq!(check_handle(handle), Ok(()), "{handle:?}");
        }
    }

    #[test]
    fn each_rule_refuses() {
        let long = "x".repeat(65);
        for (handle, fault) in [
            ("", HandleFault::Empty),
            (long.as_str(), HandleFault::TooLong { len: 65, max: 64 }),
            ("a\tb", HandleFault::Control),
            ("a\u{85}", HandleFault::Control),
            (" a", HandleFault::OuterSpace),
            ("a\u{3000}", HandleFault::OuterSpace),
            ("@a", HandleFault::At),
            ("a@b", HandleFault::At),
        ] {
            assert_eq!(check_handle(handle), Err(fault), "{handle:?}");
        }
    }
}
