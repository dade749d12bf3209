//! Results on stdout, in words or as JSON.

use std::io::{self, Write as _};

use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Words and tables for a person.
    Human,
    /// One JSON value per result, for a program.
    Json,
}

/// The flags that every subcommand takes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// How results are printed on stdout
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "human",
        help_heading = "Output"
    )]
    output: Format,
    /// Short for --output json
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
}

impl OutputArgs {
    /// Whether results are JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json || self.output == Format::Json
    }

    /// Prints one result: `value` as one line of JSON, or what `human` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        let text = if self.is_json() {
            serde_json::to_string(value)?
        } else {
            human(value)
        };
        print_line(&text)
    }
}

/// Writes one line to stdout and flushes it: a reader at the other end of a pipe sees it now.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end_matches('\n'))?;
    stdout.flush()
}

/// `12345678` as `12,345,678`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as whole mebibytes, or as kibibytes where there is not one.
pub(crate) fn mebibytes(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mebibytes => format!("{} MiB", grouped(mebibytes)),
    }
}

/// Shows text from elsewhere on a terminal: control characters (cursor moves, colours) become `�`,
/// so that no message can repaint the reader's screen.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// How progress looks on a terminal; elsewhere it is not shown.
pub(crate) fn bar_style() -> indicatif::ProgressStyle {
    indicatif::ProgressStyle::with_template(
        "{msg:10} {wide_bar} {human_pos}/{human_len} {per_sec} {elapsed}",
    )
    .expect("the template is a constant that parses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn a_message_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
