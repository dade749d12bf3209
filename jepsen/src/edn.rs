//! Values as Clojure writes them: what Jepsen's own tools read.
//!
//! Only written, never read: a history is read back from its JSON lines. <https://github.com/edn-format/edn>

use std::fmt;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edn {
    /// Nothing.
    Nil,
    /// Yes or no.
    Bool(bool),
    /// A number. Those beyond 63 bits are written as Clojure's big integers.
    Int(u64),
    /// Text.
    Text(String),
    /// A name, written behind a colon. What a name may not hold is written as `-`.
    Keyword(String),
    /// Values in a row.
    Vector(Vec<Edn>),
    /// Named values, in this order.
    Map(Vec<(&'static str, Edn)>),
}

impl Edn {
    /// A name.
    pub fn keyword(name: &str) -> Self {
        Self::Keyword(name.to_owned())
    }

    /// Text, of whatever can be shown.
    pub fn text(value: impl fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    /// A value, or nothing.
    pub fn maybe<T>(value: Option<T>, edn: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Nil, edn)
    }
}

impl fmt::Display for Edn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(yes) => yes.fmt(f),
            Self::Int(number) if i64::try_from(*number).is_err() => write!(f, "{number}N"),
            Self::Int(number) => number.fmt(f),
            Self::Text(text) => write_text(text, f),
            Self::Keyword(name) => {
                let may_stay =
                    |letter: &char| letter.is_ascii_alphanumeric() || "-?".contains(*letter);
                let name = name
                    .chars()
                    .map(|letter| Some(letter).filter(may_stay).unwrap_or('-'));
                write!(f, ":{}", name.collect::<String>())
            }
            Self::Vector(values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    let space = if at > 0 { " " } else { "" };
                    write!(f, "{space}{value}")?;
                }
                f.write_str("]")
            }
            Self::Map(pairs) => {
                f.write_str("{")?;
                for (at, (name, value)) in pairs.iter().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}:{name} {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            other if other.is_control() => write!(f, "\\u{:04x}", u32::from(other))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_clojure_reads_them() {
        let map = Edn::Map(vec![
            ("type", Edn::keyword("ok")),
            ("value", Edn::Vector(vec![Edn::Int(1), Edn::Nil])),
            ("valid?", Edn::Bool(false)),
            ("rows", Edn::Vector(Vec::new())),
        ]);
        let text = "{:type :ok, :value [1 nil], :valid? false, :rows []}";
        assert_eq!(map.to_string(), text);
    }

    #[test]
    fn what_text_may_not_hold_as_it_is_is_escaped() {
        let text = Edn::text("a \"b\" \\ \n\t\u{1}é");
        assert_eq!(text.to_string(), r#""a \"b\" \\ \n\t\u0001é""#);
    }

    #[test]
    fn a_keyword_is_a_name_whatever_it_was_made_of() {
        assert_eq!(Edn::keyword("kill-all").to_string(), ":kill-all");
        assert_eq!(Edn::keyword("a b}:c").to_string(), ":a-b--c");
    }

    #[test]
    fn numbers_beyond_a_long_are_big() {
        let greatest = i64::MAX.unsigned_abs();
        assert_eq!(Edn::Int(greatest).to_string(), "9223372036854775807");
        assert_eq!(Edn::Int(greatest + 1).to_string(), "9223372036854775808N");
    }
}
