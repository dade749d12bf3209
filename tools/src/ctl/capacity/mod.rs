//! `mailboxctl capacity`: from measured costs to nodes, disks and networks.
//!
//! ```text
//!  inputs, costs ─ values ─▶ sheet: formula (expression) ─▶ print
//!                               └─▶ model ─ simulation (stations) ─▶ print
//! ```

mod costs;
mod expression;
mod figure;
mod formula;
mod inputs;
mod model;
mod print;
mod sheet;
mod simulation;
mod stations;
mod values;

use std::path::PathBuf;

use self::formula::Sheet;
use self::model::Model;
use self::print::{Answer, Simulated};
use self::values::{Given, Values};
use crate::output::OutputArgs;

/// Say how many machines a load takes, and show the calculation
///
/// From what a message and a connection cost to store nodes, gateways, disks and networks, for the busiest second of the
/// day and with the spare nodes down. Every input is printed with its source, every formula with its numbers, so that
/// all of it can be checked with a pocket calculator. What a message costs was measured with this project's benchmarks,
/// on one small machine; run them on yours and give the figures with --measured or by flags. Costs that nobody has
/// measured are marked as assumed.
///
/// --simulate sends messages through a shard of that cluster, as random as they come, and shows what acks and deliveries
/// then take: queues are what a formula of means knows nothing of.
///
/// The exit status is 1 if something does not fit or, with --simulate, acks or deliveries take longer than the target.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A JSON object with inputs by name, such as {"push_cpu_us": 6.0}; flags win over it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    measured: Option<PathBuf>,
    /// Simulate a shard of that cluster, with a day's peak and bursts
    #[arg(long)]
    simulate: bool,
    /// Runs of the simulation, each from a seed of its own [1 to 100]
    #[arg(long, value_name = "N", default_value_t = 5, requires = "simulate", value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,
    /// The first seed: the same seed is the same run
    #[arg(long, value_name = "N", default_value_t = 1, requires = "simulate")]
    seed: u64,
    /// Simulated time into which the day is compressed, in seconds [5 to 3,600]
    #[arg(long, value_name = "S", default_value_t = 20, requires = "simulate", value_parser = clap::value_parser!(u32).range(5..=3600))]
    seconds: u32,
    #[command(flatten)]
    given: Given,
}

pub(super) fn run(args: &Args, output: OutputArgs) -> anyhow::Result<bool> {
    let values = Values::gather(&args.given, args.measured.as_deref())?;
    let sheet = Sheet::work(values)?;
    let simulated = match args.simulate {
        true => Some(simulate(args, &sheet)?),
        false => None,
    };
    let answer = Answer::new(&sheet, simulated)?;
    output.print(&answer, Answer::human)?;
    Ok(answer.holds())
}

fn simulate(args: &Args, sheet: &Sheet) -> anyhow::Result<Simulated> {
    let model = Model::of(sheet, args.seconds)?;
    let seeds = (0..u64::from(args.seeds)).map(|number| args.seed.wrapping_add(number));
    let runs: anyhow::Result<Vec<_>> = seeds.map(|seed| simulation::run(&model, seed)).collect();
    Simulated::new(sheet, args.seconds, runs?)
}

#[cfg(test)]
mod tests {
    use super::values::tests::values;
    use super::*;

    #[test]
    fn a_planet_is_answered_and_the_answer_holds_in_the_simulation() {
        let sheet = Sheet::work(values(&[])).unwrap();
        let model = Model::of(&sheet, 5).unwrap();
        let runs = [1, 2].map(|seed| simulation::run(&model, seed).unwrap());
        let simulated = Simulated::new(&sheet, 5, runs.to_vec()).unwrap();
        let answer = Answer::new(&sheet, Some(simulated)).unwrap();
        assert!(answer.holds(), "{}", answer.human());
    }

    #[test]
    fn a_target_that_is_missed_is_told() {
        let sheet = Sheet::work(values(&[
            ("target_p95_ms", 1.0),
            ("round_trip_us", 9_000.0),
        ]));
        let sheet = sheet.unwrap();
        let model = Model::of(&sheet, 5).unwrap();
        let runs = vec![simulation::run(&model, 1).unwrap()];
        let simulated = Simulated::new(&sheet, 5, runs).unwrap();
        let answer = Answer::new(&sheet, Some(simulated)).unwrap();
        assert!(!answer.holds());
        assert!(answer.human().contains("MISSED"), "{}", answer.human());
    }
}
