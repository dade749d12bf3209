//! Which cases run, in which order and how long that takes; which need not run again.

use serde::Serialize;

use super::case::{CASES, Case};
use super::results::{Line, Origin};

/// What is to be done, and what is there already.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Left out, since the file has them: same revision, build, machine and seconds.
    pub(super) skipped: Vec<Step>,
    /// As asked for on the command line.
    seconds: Option<u64>,
}

/// One case in one round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) case: &'static Case,
    pub(super) round: u32,
}

impl Plan {
    /// All cases once, then all once more: what slows the machine down for a while hits every case alike, not all rounds
    /// of one.
    pub(super) fn new(
        cases: &[&'static Case],
        rounds: u32,
        seconds: Option<u64>,
        held: impl Fn(&Step) -> bool,
    ) -> Self {
        let all = (1..=rounds)
            .flat_map(|round| cases.iter().copied().map(move |case| Step { case, round }));
        let (skipped, steps) = all.partition(held);
        Self {
            steps,
            skipped,
            seconds,
        }
    }

    /// Expected seconds of the steps from one on.
    pub(super) fn left_s(&self, from: usize) -> u64 {
        let left = self.steps.iter().skip(from);
        left.map(|step| step.case.expected_s(self.seconds)).sum()
    }

    /// The plan in words: every case with its seconds, and the total.
    pub(super) fn human(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for case in CASES {
            let rounds = self.steps.iter().filter(|step| step.case.name == case.name);
            let (rounds, each) = (rounds.count() as u64, case.expected_s(self.seconds));
            match rounds {
                0 => {}
                1 => lines.push(format!("{:<26} {each:>5} s  {}", case.name, case.words())),
                _ => lines.push(format!(
                    "{:<26} {:>5} s  {rounds} rounds of {each} s: {}",
                    case.name,
                    rounds * each,
                    case.words()
                )),
            }
        }
        let (steps, total) = (self.steps.len(), minutes(self.left_s(0)));
        lines.push(format!("{steps} runs of cases, {total} in all"));
        lines.extend(self.skipped_human());
        lines.join("\n")
    }

    fn skipped_human(&self) -> Option<String> {
        let names = self.skipped.iter().map(|step| {
            let Step { case, round } = step;
            format!("{} (round {round})", case.name)
        });
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| {
            let names = names.join(", ");
            format!("skipped, since the results have them of this build and machine: {names}")
        })
    }
}

/// Whether a file has a step's result: of the same thing, measured as long, without a failed operation.
pub(super) fn holds(lines: &[Line], step: &Step, origin: &Origin, seconds: Option<u64>) -> bool {
    let result = lines
        .iter()
        .find(|line| line.case == step.case.name && line.round == step.round);
    result.is_some_and(|line| {
        let seconds = step.case.seconds(seconds);
        line.errors == 0 && line.seconds == seconds && line.origin.is(origin)
    })
}

/// What a case has reached in a round: the rate that open loops take shares of.
pub(super) fn reached(lines: &[Line], case: &str, round: u32, origin: &Origin) -> Option<f64> {
    let line = lines
        .iter()
        .find(|line| line.case == case && line.round == round);
    let line = line.filter(|line| line.origin.is(origin))?;
    line.figures.get("sends_per_s").copied()
}

/// Seconds as a person says them.
pub(super) fn minutes(seconds: u64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s"),
        _ => format!("{} min", seconds.div_ceil(60)),
    }
}

/// One case as `--list` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    name: &'static str,
    /// From begin to end, about.
    expected_s: u64,
    what: String,
}

/// All chosen cases, for `--list`.
#[derive(Debug, Serialize)]
pub(super) struct List {
    cases: Vec<Listed>,
    expected_s: u64,
}

impl List {
    pub(super) fn new(cases: &[&'static Case], seconds: Option<u64>) -> Self {
        let listed = cases.iter().map(|case| Listed {
            name: case.name,
            expected_s: case.expected_s(seconds),
            what: case.words(),
        });
        let cases: Vec<Listed> = listed.collect();
        Self {
            expected_s: cases.iter().map(|case| case.expected_s).sum(),
            cases,
        }
    }

    /// The list in words.
    pub(super) fn human(&self) -> String {
        let lines = self.cases.iter();
        let lines = lines.map(|case| {
            let (name, seconds) = (case.name, case.expected_s);
            format!("{name:<26} {seconds:>5} s  {}\n", case.what)
        });
        let (count, total) = (self.cases.len(), minutes(self.expected_s));
        lines.collect::<String>() + &format!("{count} cases, {total} a round")
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::choose;
    use super::super::results::tests::line;
    use super::*;

    fn plan(names: &[&str], rounds: u32, held: impl Fn(&Step) -> bool) -> Plan {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Plan::new(&choose(&names).unwrap(), rounds, Some(10), held)
    }

    fn names(steps: &[Step]) -> Vec<(&str, u32)> {
        let steps = steps.iter();
        steps.map(|step| (step.case.name, step.round)).collect()
    }

    #[test]
    fn rounds_are_interleaved_and_what_is_held_is_skipped() {
        let plan = plan(&["gateway", "idle"], 2, |step| {
            step.round == 1 && step.case.name == "idle-256-shards"
        });
        assert_eq!(
            names(&plan.steps),
            [
                ("gateway-3-nodes", 1),
                ("gateway-3-nodes", 2),
                ("idle-256-shards", 2)
            ]
        );
        assert_eq!(names(&plan.skipped), [("idle-256-shards", 1)]);
        let seconds = |step: &Step| step.case.expected_s(Some(10));
        assert_eq!(plan.left_s(0), plan.steps.iter().map(seconds).sum::<u64>());
        assert_eq!(plan.left_s(2), seconds(&plan.steps[2]));
        let words = plan.human();
        for part in [
            "gateway-3-nodes",
            "2 rounds of",
            "3 runs of cases, ",
            "machine: idle-256-shards (round 1)",
        ] {
            assert!(words.contains(part), "{part} is not in\n{words}");
        }
    }

    #[test]
    fn only_the_same_measurement_is_held() {
        let good = line("gateway-3-nodes", 1, &[("sends_per_s", 15_000.0)]);
        let origin = good.origin.clone();
        let plan = plan(&["gateway"], 2, |_| false);
        let [first, second] = plan.steps[..] else {
            panic!("two steps")
        };
        let held = |line: &Line, step| holds(std::slice::from_ref(line), step, &origin, Some(15));
        assert!(held(&good, &first));
        assert!(!held(&good, &second), "another round");
        assert!(
            !holds(std::slice::from_ref(&good), &first, &origin, Some(10)),
            "shorter"
        );
        let mut failed = good.clone();
        failed.errors = 1;
        assert!(!held(&failed, &first));
        let mut other = good.clone();
        other.origin.build = "x".to_owned();
        assert!(!held(&other, &first));
        let lines = [other];
        assert_eq!(reached(&lines, "gateway-3-nodes", 1, &origin), None);
        let lines = [good];
        assert_eq!(
            reached(&lines, "gateway-3-nodes", 1, &origin),
            Some(15_000.0)
        );
        assert_eq!(reached(&lines, "gateway-3-nodes", 2, &origin), None);
    }

    #[test]
    fn a_list_adds_up() {
        let list = List::new(
            &choose(&["gateway".to_owned(), "idle".to_owned()]).unwrap(),
            None,
        );
        let sum: u64 = list.cases.iter().map(|case| case.expected_s).sum();
        assert_eq!(list.expected_s, sum);
        assert!(list.human().contains("2 cases, "));
        assert_eq!(minutes(119), "119 s");
        assert_eq!(minutes(121), "3 min");
    }
}
