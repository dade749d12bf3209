//! The answer, in words and in JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::figure::{pretty, with_unit};
use super::formula::{Check, Sheet, Worked};
use super::inputs::Kind;
use super::simulation::Outcome;
use crate::ctl::show_table::plain_table;

/// Everything that was asked for. Keys are for ever.
#[derive(Serialize)]
pub(super) struct Answer {
    store_nodes: f64,
    gateway_nodes: f64,
    shards: f64,
    inputs: Vec<InputLine>,
    lines: Vec<Worked>,
    checks: Vec<Check>,
    /// Absent without `--simulate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulation: Option<Simulated>,
}

#[derive(Serialize)]
struct InputLine {
    name: &'static str,
    unit: &'static str,
    value: f64,
    kind: Kind,
    what: &'static str,
    source: String,
}

/// What the runs of the simulation came to.
#[derive(Serialize)]
pub(super) struct Simulated {
    /// Into which the day was compressed.
    seconds: u32,
    target_p95_ms: f64,
    /// No run took longer than the target.
    holds: bool,
    figures: Vec<Figure>,
    runs: Vec<Outcome>,
}

/// One figure of all runs, beside what the sheet says of it.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// Absent: no formula says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_formula: Option<f64>,
    lowest: f64,
    median: f64,
    highest: f64,
}

/// A figure of one run.
type Of = fn(&Outcome) -> f64;

impl Simulated {
    /// Puts runs beside the sheet that they are of.
    ///
    /// # Errors
    /// The sheet lacks a line.
    pub(super) fn new(
        sheet: &Sheet,
        seconds: u32,
        runs: Vec<Outcome>,
    ) -> anyhow::Result<Simulated> {
        let target_p95_ms = sheet.get("target_p95_ms")?;
        let holds = runs
            .iter()
            .all(|run| run.ack.p95_ms <= target_p95_ms && run.delivery.p95_ms <= target_p95_ms);
        let by_formula = |name| sheet.get(name).map(Some);
        let entry_commands = sheet.get("shard_commands")? / sheet.get("shard_entries_per_s")?;
        let ack_ms = sheet.get("ack_us")? / 1e3;
        let figures: [(&str, &str, Option<f64>, Of); 14] = [
            ("ack_mean", "ms", Some(ack_ms), |run| run.ack.mean_ms),
            ("ack_p50", "ms", None, |run| run.ack.p50_ms),
            ("ack_p95", "ms", None, |run| run.ack.p95_ms),
            ("ack_p99", "ms", None, |run| run.ack.p99_ms),
            ("delivery_mean", "ms", None, |run| run.delivery.mean_ms),
            ("delivery_p50", "ms", None, |run| run.delivery.p50_ms),
            ("delivery_p95", "ms", None, |run| run.delivery.p95_ms),
            ("delivery_p99", "ms", None, |run| run.delivery.p99_ms),
            ("apply_share", "", by_formula("apply_share")?, |run| {
                run.apply_share
            }),
            ("proposer_share", "", None, |run| run.proposer_share),
            ("log_sync_share", "", None, |run| run.sync_share),
            ("fsyncs_per_s", "/s", by_formula("fsyncs_per_s")?, |run| {
                run.fsyncs_per_s
            }),
            (
                "entries_per_sync",
                "entries",
                by_formula("entries_per_sync")?,
                |run| run.entries_per_sync,
            ),
            (
                "commands_per_entry",
                "commands",
                Some(entry_commands.max(1.0)),
                |run| run.commands_per_entry,
            ),
        ];
        let figures = figures.map(|figure| spread(figure, &runs));
        Ok(Simulated {
            seconds,
            target_p95_ms,
            holds,
            figures: figures.into(),
            runs,
        })
    }

    fn put(&self, out: &mut String) -> std::fmt::Result {
        let seeds: Vec<String> = self.runs.iter().map(|run| run.seed.to_string()).collect();
        writeln!(
            out,
            "\nSimulated: two shards that send to each other, a day in {} s, its busiest fifth, bursts in it; seeds {}",
            self.seconds,
            seeds.join(", ")
        )?;
        let mut table = plain_table([
            "figure",
            "unit",
            "by formula",
            "lowest",
            "median",
            "highest",
        ]);
        for figure in &self.figures {
            table.add_row([
                figure.name.to_owned(),
                figure.unit.to_owned(),
                figure.by_formula.map_or_else(|| "-".to_owned(), three),
                three(figure.lowest),
                three(figure.median),
                three(figure.highest),
            ]);
        }
        writeln!(out, "{table}")?;
        let verdict = match self.holds {
            true => "kept in every run",
            false => "MISSED",
        };
        writeln!(
            out,
            "target       p95 of acks and deliveries at most {} ms: {verdict}",
            pretty(self.target_p95_ms)
        )
    }
}

fn spread(
    (name, unit, by_formula, of): (&'static str, &'static str, Option<f64>, Of),
    runs: &[Outcome],
) -> Figure {
    let mut found: Vec<f64> = runs.iter().map(of).collect();
    found.sort_by(f64::total_cmp);
    let at = |place: usize| found.get(place).copied().unwrap_or(0.0);
    Figure {
        name,
        unit,
        by_formula,
        lowest: at(0),
        median: at(found.len() / 2),
        highest: at(found.len().saturating_sub(1)),
    }
}

/// To three places, since no two runs agree in more.
fn three(value: f64) -> String {
    pretty((value * 1e3).round() / 1e3)
}

impl Answer {
    /// Puts the answer together.
    ///
    /// # Errors
    /// The sheet lacks a line.
    pub(super) fn new(sheet: &Sheet, simulation: Option<Simulated>) -> anyhow::Result<Answer> {
        let inputs = sheet.values().iter().map(|value| InputLine {
            name: value.input.name,
            unit: value.input.unit,
            value: value.value,
            kind: value.input.kind,
            what: value.input.what,
            source: value.source.clone(),
        });
        Ok(Answer {
            store_nodes: sheet.get("nodes")?,
            gateway_nodes: sheet.get("gateways")?,
            shards: sheet.get("shards")?,
            inputs: inputs.collect(),
            lines: sheet.lines.clone(),
            checks: sheet.checks()?,
            simulation,
        })
    }

    /// Everything fits, and what was simulated keeps its target.
    pub(super) fn holds(&self) -> bool {
        let simulated = self
            .simulation
            .as_ref()
            .is_none_or(|simulated| simulated.holds);
        simulated && self.checks.iter().all(|check| check.holds)
    }

    /// The answer in words: inputs, formulas, checks, the simulation, and last what was asked for.
    pub(super) fn human(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.put(&mut out);
        out
    }

    fn put(&self, out: &mut String) -> std::fmt::Result {
        self.put_inputs(out)?;
        self.put_lines(out)?;
        writeln!(out, "\nWhat has to hold")?;
        for check in &self.checks {
            let Check {
                name,
                value,
                at_most,
                mend,
                ..
            } = check;
            let (value, at_most) = (pretty(*value), pretty(*at_most));
            match check.holds {
                true => writeln!(out, "  {name} = {value}, at most {at_most}: holds")?,
                false => writeln!(out, "  {name} = {value}, at most {at_most}: MISSED; {mend}")?,
            }
        }
        if let Some(simulation) = &self.simulation {
            simulation.put(out)?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "store        {} nodes, {} shards",
            pretty(self.store_nodes),
            pretty(self.shards)
        )?;
        writeln!(out, "gateways     {} nodes", pretty(self.gateway_nodes))?;
        for (title, name) in [
            ("disk", "node_disk_bytes"),
            ("writes", "node_write_bytes_per_s"),
            ("fsyncs", "fsyncs_per_s"),
            ("network out", "node_out_bytes_per_s"),
            ("network in", "node_in_bytes_per_s"),
            ("memory", "node_memory_bytes"),
        ] {
            if let Some(line) = self.lines.iter().find(|line| line.name == name) {
                writeln!(
                    out,
                    "{title:<12} {} on each store node",
                    with_unit(line.value, line.unit)
                )?;
            }
        }
        Ok(())
    }

    fn put_inputs(&self, out: &mut String) -> std::fmt::Result {
        for kind in Kind::ALL {
            writeln!(out, "{}", kind.heading())?;
            for input in self.inputs.iter().filter(|input| input.kind == kind) {
                let value = with_unit(input.value, input.unit);
                writeln!(out, "  {} = {value}   ({})", input.name, input.source)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn put_lines(&self, out: &mut String) -> std::fmt::Result {
        let mut section = "";
        for line in &self.lines {
            if line.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = line.section;
                writeln!(out, "{gap}{section}")?;
            }
            let why = match line.why {
                "" => String::new(),
                why => format!("   ({why})"),
            };
            writeln!(out, "  {} = {}", line.name, line.formula)?;
            if line.with != line.formula {
                writeln!(out, "    = {}", line.with)?;
            }
            writeln!(out, "    = {}{why}", with_unit(line.value, line.unit))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Latency;
    use super::super::values::tests::values;
    use super::*;

    fn outcome(seed: u64, p95_ms: f64) -> Outcome {
        let latency = Latency {
            mean_ms: 2.0,
            p50_ms: 2.0,
            p95_ms,
            p99_ms: 9.0,
        };
        Outcome {
            seed,
            sends: 10,
            acked: 10,
            delivered: 10,
            ack: latency,
            delivery: latency,
            proposer_share: 0.1,
            apply_share: 0.2,
            sync_share: 0.3,
            fsyncs_per_s: 400.0,
            entries_per_sync: 5.0,
            commands_per_entry: 6.0,
        }
    }

    fn answer(runs: Vec<Outcome>) -> Answer {
        let sheet = Sheet::work(values(&[("push_cpu_us", 3.0)])).unwrap();
        let simulated = (!runs.is_empty()).then(|| Simulated::new(&sheet, 20, runs).unwrap());
        Answer::new(&sheet, simulated).unwrap()
    }

    #[test]
    fn every_input_and_line_is_in_the_words_with_its_numbers() {
        let answer = answer(Vec::new());
        let text = answer.human();
        for part in [
            "  push_cpu_us = 3 us   (--push-cpu-us)",
            "  send_cpu_us = 12.62 us   (tools/bench-results/send-1-node.jsonl",
            "  peak_sends_per_s = messages_per_day / 86400 * peak_factor\n    = 100000000000 / 86400 * 3\n    = 3,472,222 /s",
            "Measured costs",
            "Assumed costs",
            "  apply_share = ",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        for input in &answer.inputs {
            assert!(text.contains(&format!("  {} = ", input.name)));
        }
        for line in &answer.lines {
            assert!(text.contains(&format!("  {} = {}", line.name, line.formula)));
        }
    }

    #[test]
    fn the_json_keys_are_the_promised_ones() {
        let json = serde_json::to_value(answer(vec![outcome(1, 9.0)])).unwrap();
        for key in "store_nodes gateway_nodes shards inputs lines checks simulation".split(' ') {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
        for key in ["name", "unit", "formula", "with", "value", "why"] {
            assert!(json["lines"][0].get(key).is_some(), "{key} is missing");
        }
        for key in ["name", "unit", "value", "kind", "what", "source"] {
            assert!(json["inputs"][0].get(key).is_some(), "{key} is missing");
        }
        let simulation = &json["simulation"];
        assert_eq!(simulation["holds"], true);
        assert_eq!(simulation["runs"][0]["seed"], 1);
        assert_eq!(simulation["figures"][0]["name"], "ack_mean");
        let without = serde_json::to_value(answer(Vec::new())).unwrap();
        assert!(without.get("simulation").is_none());
    }

    #[test]
    fn the_spread_is_of_all_seeds() {
        let runs = vec![outcome(1, 9.0), outcome(2, 7.0), outcome(3, 8.0)];
        let answer = answer(runs);
        let figures = &answer.simulation.as_ref().unwrap().figures;
        let p95 = figures
            .iter()
            .find(|figure| figure.name == "ack_p95")
            .unwrap();
        assert_eq!((p95.lowest, p95.median, p95.highest), (7.0, 8.0, 9.0));
        assert!(answer.human().contains("seeds 1, 2, 3"));
    }

    #[test]
    fn one_run_over_the_target_is_enough_to_miss_it() {
        assert!(answer(vec![outcome(1, 200.0), outcome(2, 1.0)]).holds());
        assert!(!answer(vec![outcome(1, 1.0), outcome(2, 200.1)]).holds());
    }
}
