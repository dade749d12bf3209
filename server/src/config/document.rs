//! The documented config file and `config explain`, printed from the table of options.

use std::fmt::Write as _;

use super::options::{Bounds, OPTIONS, OptionFacts, SECTIONS};
use super::{Config, Error};

const WIDTH: usize = 96;

const PREFACE: &str = "\
# Configuration of `mailboxd server` and `mailboxd gateway`. Every option is shown with its default.
#
# Each can also be given in the environment (MAILBOX_NODE__LISTEN for node.listen: two underscores
# between section and option) or as a flag (--set node.listen=127.0.0.1:7700). Flags go before the
# environment, the environment before this file. Unknown options are refused. Relative paths are
# relative to the working directory. All options need a restart.
# `mailboxd config check FILE` says what is wrong with a file; `mailboxd config explain` lists
# the options.
";

/// The whole configuration with its defaults, each option documented; itself a valid file.
pub fn default_document() -> String {
    let defaults = values(&Config::default());
    let mut text = PREFACE.to_owned();
    for (section, doc) in SECTIONS {
        text.push('\n');
        comment(&mut text, doc);
        let _ = writeln!(text, "[{section}]");
        let mut nodes = None;
        for option in OPTIONS
            .iter()
            .filter(|option| section_of(option.path) == *section)
        {
            if option.path == "cluster.nodes" {
                nodes = Some(option); // A table: it must follow the plain options.
                continue;
            }
            comment(
                &mut text,
                &format!("{} {}.", option.doc, describe(&option.bounds)),
            );
            let _ = writeln!(
                text,
                "{} = {}\n",
                name_of(option.path),
                value(&defaults, option.path)
            );
        }
        if let Some(option) = nodes {
            comment(
                &mut text,
                &format!("{} {}.", option.doc, describe(&option.bounds)),
            );
            let _ = writeln!(text, "[cluster.nodes]");
            for (id, address) in &Config::default().cluster.nodes {
                let _ = writeln!(text, "{id} = \"{address}\"");
            }
        } else {
            text.truncate(text.trim_end().len() + 1);
        }
    }
    text
}

/// What `topic` (an option, a section, or nothing for all) is about, with bounds and default.
pub fn explain(topic: Option<&str>) -> Result<String, Error> {
    let defaults = values(&Config::default());
    let wanted = |option: &&OptionFacts| {
        topic.is_none_or(|topic| option.path == topic || section_of(option.path) == topic)
    };
    let mut text = String::new();
    for option in OPTIONS.iter().filter(wanted) {
        let _ = writeln!(text, "{}", option.path);
        let _ = writeln!(text, "    {}", option.doc);
        let _ = writeln!(text, "    {}", describe(&option.bounds));
        let _ = writeln!(text, "    default      {}", value(&defaults, option.path));
        let _ = writeln!(text, "    environment  {}\n", environment_name(option.path));
    }
    match topic {
        Some(topic) if text.is_empty() => Err(Error::UnknownOption(topic.to_owned())),
        Some(_) | None => Ok(text),
    }
}

fn environment_name(path: &str) -> String {
    format!("MAILBOX_{}", path.to_uppercase().replace('.', "__"))
}

/// The config as a TOML tree, so that options can be found by their path.
pub(super) fn values(config: &Config) -> toml::Table {
    toml::Table::try_from(config).expect("plain structs of numbers and text serialise to TOML")
}

/// The value at `path`, as TOML text.
pub(super) fn value(values: &toml::Table, path: &str) -> String {
    let found = values
        .get(section_of(path))
        .and_then(|section| section.get(name_of(path)));
    found.map(ToString::to_string).unwrap_or_default()
}

pub(super) fn section_of(path: &str) -> &str {
    path.split_once('.').map_or("", |(section, _)| section)
}

pub(super) fn name_of(path: &str) -> &str {
    path.split_once('.').map_or(path, |(_, name)| name)
}

/// Unit and bounds in words.
pub(super) fn describe(bounds: &Bounds) -> String {
    match bounds {
        Bounds::Number { min, max, unit } => format!("In {unit}, {min} to {max}"),
        Bounds::Bytes { min, max } => format!("In bytes (B, KiB, MiB, GiB), {min} to {max}"),
        Bounds::OneOf(words) => format!("One of: {}", words.join(", ")),
        Bounds::Flag => "true or false".into(),
        Bounds::Text(what) => format!("Format: {what}"),
        Bounds::Address => "Format: host:port".into(),
    }
}

/// Appends `words` as comment lines.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = "#".into();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
