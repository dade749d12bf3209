//! The two passes over the input: who takes part, and what is sent in which order.

use std::collections::HashMap;

use super::line::{self, Line};

/// Position of a nick in [`Script::nicks`].
pub(super) type NickId = usize;

/// Where a send goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum To {
    /// The channel.
    Group,
    /// One nick, 1:1.
    Nick(NickId),
}

/// One send of the replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) from: NickId,
    pub(super) to: To,
    pub(super) text: String,
}

/// A whole channel, ready to be played.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Every nick of the input, in order of first appearance.
    pub(super) nicks: Vec<String>,
    /// What is sent, in input order; a directed line follows its group line.
    pub(super) sends: Vec<Send>,
    /// Chat lines: sends to the group.
    pub(super) lines: u64,
    /// Lines that are not sent.
    pub(super) skipped: u64,
    /// Directed lines: sends to one nick.
    pub(super) direct: u64,
}

impl Script {
    /// Reads the files in the given order.
    pub(super) fn read(files: &[String]) -> Self {
        let mut script = Self::default();
        let ids = script.find_nicks(files);
        for line in all_lines(files) {
            let Line::Chat { nick, text } = line::parse(line) else {
                script.skipped += 1;
                continue;
            };
            let from = ids[nick];
            script.lines += 1;
            script.sends.push(Send {
                from,
                to: To::Group,
                text: text.to_owned(),
            });
            let other = line::directed_at(text)
                .and_then(|nick| ids.get(nick))
                .copied();
            if let Some(other) = other.filter(|&other| other != from) {
                script.direct += 1;
                script.sends.push(Send {
                    from,
                    to: To::Nick(other),
                    text: text.to_owned(),
                });
            }
        }
        script
    }

    fn find_nicks<'a>(&mut self, files: &'a [String]) -> HashMap<&'a str, NickId> {
        let mut ids = HashMap::new();
        for line in all_lines(files) {
            if let Line::Chat { nick, .. } | Line::Silent { nick } = line::parse(line) {
                ids.entry(nick).or_insert_with(|| {
                    self.nicks.push(nick.to_owned());
                    self.nicks.len() - 1
                });
            }
        }
        ids
    }
}

fn all_lines(files: &[String]) -> impl Iterator<Item = &str> {
    files.iter().flat_map(|file| file.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "\
=== spiv [~andrew@213.151.107.243]  has joined #ubuntu
[15:28] <linda> okay
[15:28] <tux> linda: where?
[15:29] <tux> Linda: wrong case
[15:29] <tux> tux: to myself
[15:29] <linda> oshi: you come later
[15:29] <linda> silent: you never speak
[15:29] <linda> nobody: is not here
";
    const SECOND: &str = "\
[15:30] <oshi> morning all
[15:30] <silent>
[15:30] <linda> 
";

    #[test]
    fn lines_nicks_and_directed_lines_are_counted() {
        let script = Script::read(&[FIRST.to_owned(), SECOND.to_owned()]);
        assert_eq!(script.nicks, ["linda", "tux", "oshi", "silent"]);
        assert_eq!((script.lines, script.skipped, script.direct), (8, 3, 3));
        assert_eq!(script.sends.len(), 11);
    }

    #[test]
    fn a_directed_line_is_a_second_send_after_its_group_line() {
        let script = Script::read(&[FIRST.to_owned(), SECOND.to_owned()]);
        let to: Vec<_> = script
            .sends
            .iter()
            .map(|send| (send.from, send.to))
            .collect();
        let expected = [
            (0, To::Group),
            (1, To::Group),
            (1, To::Nick(0)),
            (1, To::Group),
            (1, To::Group),
            (0, To::Group),
            (0, To::Nick(2)),
            (0, To::Group),
            (0, To::Nick(3)),
            (0, To::Group),
            (2, To::Group),
        ];
        assert_eq!(to, expected);
        assert_eq!(script.sends[1].text, script.sends[2].text);
    }

    #[test]
    fn blanks_at_the_ends_of_a_nick_make_no_other_user() {
        let script = Script::read(&["\
[15:28] <[FiDo] > hello
[15:29] <tux> [FiDo]: hi
[15:30] <[FiDo]> bye
[15:31] < tux> [FiDo] : that is nobody
"
        .to_owned()]);
        assert_eq!(script.nicks, ["[FiDo]", "tux"]);
        let to: Vec<_> = script
            .sends
            .iter()
            .map(|send| (send.from, send.to))
            .collect();
        let expected = [
            (0, To::Group),
            (1, To::Group),
            (1, To::Nick(0)),
            (0, To::Group),
            (1, To::Group),
        ];
        assert_eq!(to, expected);
    }

    #[test]
    fn a_line_end_of_windows_is_not_part_of_the_text() {
        let script = Script::read(&["[15:28] <linda> okay\r\n".to_owned()]);
        assert_eq!(script.sends[0].text, "okay");
    }
}
