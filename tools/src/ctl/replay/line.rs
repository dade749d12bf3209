//! What one line of an IRC log says.

/// A line of the channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// `[hh:mm] <nick> text` with text that is not blank.
    Chat { nick: &'a str, text: &'a str },
    /// `[hh:mm] <nick>` with nothing to send: skipped, but the nick is one of the channel's.
    Silent { nick: &'a str },
    /// Joins, leaves, topics, notices: skipped.
    Other,
}

/// Reads one line, without its line end.
///
/// A nick may hold spaces (the logs have `<Cal[] John>`); blanks at its ends are dropped, since
/// no handle has them. The text is taken as it is after the one space that ends the nick.
pub(super) fn parse(line: &str) -> Line<'_> {
    let Some(rest) = after_time(line) else {
        return Line::Other;
    };
    let Some((nick, rest)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) else {
        return Line::Other;
    };
    let nick = nick.trim();
    if nick.is_empty() {
        return Line::Other;
    }
    match rest.strip_prefix(' ') {
        Some(text) if !text.trim().is_empty() => Line::Chat { nick, text },
        _ if rest.trim().is_empty() => Line::Silent { nick },
        _ => Line::Other,
    }
}

/// What follows `[hh:mm] `, if the line begins so.
fn after_time(line: &str) -> Option<&str> {
    let bytes = line.as_bytes();
    let digits = [1, 2, 4, 5]
        .iter()
        .all(|&at| bytes.get(at).is_some_and(u8::is_ascii_digit));
    let frame = [(0, b'['), (3, b':'), (6, b']'), (7, b' ')];
    let framed = frame.iter().all(|&(at, byte)| bytes.get(at) == Some(&byte));
    if digits && framed {
        line.get(8..)
    } else {
        None
    }
}

/// Whom a text is directed at: what stands before its first `:`, if that may be a nick.
pub(super) fn directed_at(text: &str) -> Option<&str> {
    text.split_once(':')
        .map(|(nick, _)| nick)
        .filter(|nick| !nick.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_line_is_time_nick_and_text() {
        assert_eq!(
            parse("[15:28] <linda> okay"),
            Line::Chat {
                nick: "linda",
                text: "okay"
            }
        );
        assert_eq!(
            parse("[08:21] <Cal[] John> how to  compile "),
            Line::Chat {
                nick: "Cal[] John",
                text: "how to  compile "
            }
        );
        assert_eq!(
            parse("[00:00] <[FiDo] > thanks"),
            Line::Chat {
                nick: "[FiDo]",
                text: "thanks"
            }
        );
        assert_eq!(
            parse("[07:00] <a>  > b"),
            Line::Chat {
                nick: "a",
                text: " > b"
            }
        );
    }

    #[test]
    fn a_blank_text_is_not_a_chat_line_but_names_a_nick() {
        for line in [
            "[11:25] <pirate> ",
            "[11:30] <pirate>",
            "[11:30] <pirate>   ",
        ] {
            assert_eq!(parse(line), Line::Silent { nick: "pirate" });
        }
    }

    #[test]
    fn everything_else_is_skipped() {
        for line in [
            "",
            "=== spiv [~andrew@213.151.107.243]  has joined #ubuntu",
            "[05:12] -pikoopnbcq:#ubuntu- notice",
            "[5:12] <nick> text",
            "[05:1x] <nick> text",
            " [05:12] <nick> text",
            "[05:12]  <nick> text",
            "[05:12] <nick>text",
            "[05:12] <> text",
            "[05:12] <nick text",
            "[05:12] \u{e9}<nick> text",
            "[05:12",
        ] {
            assert_eq!(parse(line), Line::Other, "{line}");
        }
    }

    #[test]
    fn a_text_is_directed_at_what_stands_before_the_first_colon() {
        assert_eq!(directed_at("tux: just search: here"), Some("tux"));
        assert_eq!(directed_at("oshi :hello"), Some("oshi "));
        assert_eq!(directed_at(": hello"), None);
        assert_eq!(directed_at("hello"), None);
    }
}
