//! The documented config file and `config explain`, printed from the table of options.

use std::fmt::Write as _;

use mailbox_engine::ClusterOptions;

use super::facts::{Bounds, OptionFacts};
use super::options::{OPTIONS, SECTIONS};
use super::{Config, Error};

const WIDTH: usize = 96;

const PREFACE: &str = "\
# Configuration of `mailboxd server` and `mailboxd gateway`. Every option is shown with its default;
# one that is not set by default is commented out.
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
            let name = name_of(option.path);
            let _ = match value(&defaults, option.path) {
                Some(value) => writeln!(text, "{name} = {value}\n"),
                None => writeln!(text, "# {name} = {}\n", of_a_new_cluster(option.path)),
            };
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
        let default = value(&defaults, option.path);
        let default = default.as_deref().unwrap_or("not set");
        let _ = writeln!(text, "    default      {default}");
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

/// The value at `path`, as TOML text, if it is set.
fn value(values: &toml::Table, path: &str) -> Option<String> {
    let found = values
        .get(section_of(path))
        .and_then(|section| section.get(name_of(path)));
    found.map(ToString::to_string)
}

/// What stands for an option in a new cluster when it is not set.
fn of_a_new_cluster(path: &str) -> u32 {
    match path {
        "cluster.dead_letters_max" => ClusterOptions::default().dead_letters_max,
        _ => None,
    }
    .expect("every other option has a default")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    #[test]
    fn an_option_without_a_default_is_commented_out_and_checked_once_it_is_set() {
        assert!(default_document().contains("\n# dead_letters_max = 1000\n"));
        let words = explain(Some("cluster.dead_letters_max")).expect("there is one");
        assert!(words.contains("default      not set"), "{words}");
        let load = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            let config = Config::load(None, &overrides, Role::Server)?;
            Ok::<_, Error>(config.cluster.dead_letters_max)
        };
        assert_eq!(load(&[]).expect("it need not be set"), None);
        let set = load(&["cluster.dead_letters_max=8"]);
        assert_eq!(set.expect("it may be set"), Some(8));
        let error = load(&["cluster.dead_letters_max=0"]).expect_err("too few");
        let words = error.to_string();
        assert!(words.contains("cluster.dead_letters_max = 0"), "{words}");
    }
}
