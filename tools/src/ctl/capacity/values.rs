//! The inputs of one answer: defaults, over them `--measured FILE`, over that flags.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};
use serde_json::Value as Json;

use super::figure::pretty;
use super::inputs::{self, Input, Kind};

impl Input {
    /// Reads a number as the command line has it: `1e9` is one.
    fn parse(&self, text: &str) -> Result<f64, String> {
        match text.parse() {
            Ok(value) => self.check(value),
            Err(_) => Err(format!("it is not a number; {}", self.rule())),
        }
    }

    fn check(&self, value: f64) -> Result<f64, String> {
        // Not a number is in no range.
        match self.bounds.contains(&value) {
            true => Ok(value),
            false => Err(self.rule()),
        }
    }

    fn rule(&self) -> String {
        let (from, to) = (self.bounds.start(), self.bounds.end());
        let unit = match self.unit {
            "" => String::new(),
            unit => format!(" {unit}"),
        };
        format!("it must be {} to {}{unit}", pretty(*from), pretty(*to))
    }

    fn arg(&'static self) -> Arg {
        let unit = match self.unit {
            "" => "a ratio",
            unit => unit,
        };
        let (from, to) = (self.bounds.start(), self.bounds.end());
        Arg::new(self.name)
            .long(self.flag)
            .value_name("N")
            .help_heading(self.kind.heading())
            .allow_negative_numbers(true)
            .value_parser(move |text: &str| self.parse(text))
            .help(format!(
                "{} [{unit}, {} to {}; default {}]",
                self.what,
                pretty(*from),
                pretty(*to),
                pretty(self.default)
            ))
    }
}

/// What the command line says of the inputs: a flag for each of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Given(BTreeMap<&'static str, f64>);

impl clap::FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Given, clap::Error> {
        let mut given = Given::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for input in inputs::all() {
            if let Some(value) = matches.get_one::<f64>(input.name) {
                self.0.insert(input.name, *value);
            }
        }
        Ok(())
    }
}

impl clap::Args for Given {
    fn augment_args(command: Command) -> Command {
        inputs::all().fold(command, |command, input| command.arg(input.arg()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Given::augment_args(command)
    }
}

/// A number and who said it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) input: &'static Input,
    pub(super) value: f64,
    /// The flag, the file, or where the default comes from.
    pub(super) source: String,
}

/// All inputs of one answer.
#[derive(Debug, Clone)]
pub(super) struct Values(Vec<Value>);

impl Values {
    /// Puts them together. Flags win over the file, the file over defaults.
    ///
    /// # Errors
    /// The file cannot be read, names nothing or something out of its bounds; inputs contradict each other.
    pub(super) fn gather(given: &Given, measured: Option<&Path>) -> anyhow::Result<Values> {
        let file = measured.map(read_file).transpose()?.unwrap_or_default();
        let values = inputs::all().map(|input| {
            let (value, source) = if let Some(value) = given.0.get(input.name) {
                (*value, format!("--{}", input.flag))
            } else if let (Some(value), Some(path)) = (file.get(input.name), measured) {
                (*value, path.display().to_string())
            } else {
                (input.default, default_source(input))
            };
            Value {
                input,
                value,
                source,
            }
        });
        let values = Values(values.collect());
        values.require_sense()?;
        Ok(values)
    }

    /// What an input is.
    pub(super) fn get(&self, name: &str) -> Option<f64> {
        let found = self.0.iter().find(|value| value.input.name == name);
        found.map(|value| value.value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    fn require_sense(&self) -> anyhow::Result<()> {
        let of = |name| self.get(name).unwrap_or_default();
        if of("online") > of("users") {
            bail!(
                "--online {} is more than --users {}: a user's further devices are users here",
                pretty(of("online")),
                pretty(of("users"))
            );
        }
        if of("replicas") % 2.0 != 1.0 {
            bail!(
                "--replicas {} is not an odd number, 1 to 7: a majority of an even number can lose no more",
                pretty(of("replicas"))
            );
        }
        if of("log_share_64") > of("log_share_1") {
            bail!(
                "--log-share-64 {} is more than --log-share-1 {}: a sync of 64 entries takes no less than one of one",
                of("log_share_64"),
                of("log_share_1")
            );
        }
        for name in ["spare_nodes", "spare_gateways"] {
            if of(name).fract() != 0.0 {
                let flag = name.replace('_', "-");
                bail!("--{flag} {} is not a whole number, 0 to 10,000", of(name));
            }
        }
        Ok(())
    }
}

fn default_source(input: &Input) -> String {
    match input.kind {
        Kind::Load | Kind::Machine => "default".to_owned(),
        Kind::Measured | Kind::Assumed => input.source.to_owned(),
    }
}

/// A JSON object of numbers under the inputs' names.
fn read_file(path: &Path) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("read --measured {shown}"))?;
    parse_file(&text).with_context(|| format!("read --measured {shown}"))
}

fn parse_file(text: &str) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let json: Json = serde_json::from_str(text)?;
    let Json::Object(fields) = json else {
        bail!("it is not a JSON object such as {{\"push_cpu_us\": 6.0}}");
    };
    let mut values = BTreeMap::new();
    for (name, value) in fields {
        let Some(input) = inputs::all().find(|input| input.name == name) else {
            let names: Vec<_> = inputs::all().map(|input| input.name).collect();
            bail!("{name} is no input; these are: {}", names.join(", "));
        };
        let checked = match value.as_f64() {
            Some(number) => input.check(number),
            None => Err(format!("it is not a number; {}", input.rule())),
        };
        let number = checked.map_err(|rule| anyhow::anyhow!("{name} is {value}: {rule}"))?;
        values.insert(input.name, number);
    }
    Ok(values)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The values that a command line gives.
    pub(in super::super) fn values(flags: &[(&'static str, f64)]) -> Values {
        Values::gather(&Given(flags.iter().copied().collect()), None).unwrap()
    }

    fn refusal(flags: &[(&'static str, f64)]) -> String {
        let given = Given(flags.iter().copied().collect());
        format!("{:#}", Values::gather(&given, None).unwrap_err())
    }

    fn parsed(line: &[&str]) -> Result<Given, String> {
        use clap::{Args as _, FromArgMatches as _};
        let command = Given::augment_args(Command::new("capacity"));
        let matches = command.try_get_matches_from([&["capacity"], line].concat());
        let given = matches.and_then(|matches| Given::from_arg_matches(&matches));
        given.map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measured.json");
        std::fs::write(&path, r#"{"push_cpu_us": 3.5, "apply_us": 2}"#).unwrap();
        let given = parsed(&["--apply-us", "1.5", "--users", "2e9"]).unwrap();
        let values = Values::gather(&given, Some(&path)).unwrap();
        assert_eq!(values.get("apply_us"), Some(1.5));
        assert_eq!(values.get("push_cpu_us"), Some(3.5));
        assert_eq!(values.get("users"), Some(2e9));
        assert_eq!(values.get("body_bytes"), Some(100.0));
        let source = |name| {
            let found = values.iter().find(|value| value.input.name == name);
            found.unwrap().source.clone()
        };
        assert_eq!(source("apply_us"), "--apply-us");
        assert!(source("push_cpu_us").ends_with("measured.json"));
        assert!(source("send_cpu_us").contains("send-1-node.jsonl"));
    }

    #[test]
    fn a_flag_out_of_its_bounds_is_refused_by_name_and_bounds() {
        for (line, parts) in [
            (["--users", "0"], ["--users", "1 to 1,000,000,000,000"]),
            (["--users", "many"], ["--users", "not a number"]),
            (
                ["--push-cpu-us", "-1"],
                ["--push-cpu-us", "0 to 100,000 us"],
            ),
            (["--utilisation", "1"], ["--utilisation", "0.05 to 0.95"]),
            (["--peak-factor", "NaN"], ["--peak-factor", "1 to 100"]),
            (["--peak-factor", "inf"], ["--peak-factor", "1 to 100"]),
        ] {
            let error = parsed(&line).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part} is not in\n{error}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused_by_both_names() {
        let error = refusal(&[("users", 10.0), ("online", 11.0)]);
        assert!(
            error.contains("--online 11") && error.contains("--users 10"),
            "{error}"
        );
        assert!(refusal(&[("replicas", 4.0)]).contains("--replicas 4"));
        assert!(refusal(&[("replicas", 2.5)]).contains("--replicas 2.5"));
        assert!(refusal(&[("spare_nodes", 0.5)]).contains("--spare-nodes 0.5"));
        let error = refusal(&[("log_share_1", 0.5), ("log_share_64", 0.6)]);
        assert!(error.contains("--log-share-64") && error.contains("--log-share-1"));
    }

    #[test]
    fn a_file_that_says_nothing_useful_is_refused() {
        for (text, part) in [
            ("[1]", "not a JSON object"),
            ("{", "EOF"),
            (
                r#"{"push_us": 1}"#,
                "push_us is no input; these are: users,",
            ),
            (
                r#"{"push_cpu_us": -1}"#,
                "push_cpu_us is -1: it must be 0 to 100,000 us",
            ),
            (r#"{"push_cpu_us": "6"}"#, "not a number"),
        ] {
            let error = format!("{:#}", parse_file(text).unwrap_err());
            assert!(error.contains(part), "{part} is not in\n{error}");
        }
        let absent = Values::gather(&Given::default(), Some(Path::new("absent.json")));
        let error = format!("{:#}", absent.unwrap_err());
        assert!(error.contains("--measured absent.json"), "{error}");
    }
}
