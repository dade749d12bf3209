//! The rounds of a case together: least, middle and greatest of each figure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::results::Line;

/// One figure over the rounds of a case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::bench) struct Spread {
    pub(in crate::bench) min: f64,
    pub(in crate::bench) median: f64,
    pub(in crate::bench) max: f64,
    /// That have the figure, from 1.
    pub(in crate::bench) rounds: u64,
}

impl Spread {
    /// `None` of nothing.
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let lower = match figures.len() % 2 {
            0 => *figures.get(middle.checked_sub(1)?)?,
            _ => upper,
        };
        Some(Self {
            min,
            median: f64::midpoint(lower, upper),
            max,
            rounds: figures.len() as u64,
        })
    }
}

/// One case of a side, by figure.
pub(in crate::bench) type Spreads = BTreeMap<String, Spread>;

/// What one results file holds, by case.
#[derive(Debug)]
pub(in crate::bench) struct Side {
    /// What it is called in a picture.
    pub(in crate::bench) name: String,
    /// In the order in which they were measured first.
    pub(in crate::bench) cases: Vec<(String, Spreads)>,
}

impl Side {
    pub(in crate::bench) fn new(name: &str, lines: &[Line]) -> Self {
        let mut order: Vec<&str> = Vec::new();
        let mut all: BTreeMap<&str, BTreeMap<&String, Vec<f64>>> = BTreeMap::new();
        for line in lines {
            let case = all.entry(&line.case).or_insert_with(|| {
                order.push(&line.case);
                BTreeMap::new()
            });
            for (key, figure) in &line.figures {
                case.entry(key).or_default().push(*figure);
            }
        }
        let cases = order.into_iter().map(|case| {
            let figures = all.remove(case).unwrap_or_default().into_iter();
            let spreads = figures.filter_map(|(key, all)| Some((key.clone(), Spread::of(all)?)));
            (case.to_owned(), spreads.collect())
        });
        Self {
            name: name.to_owned(),
            cases: cases.collect(),
        }
    }

    /// A case's figures, if it has the case.
    pub(in crate::bench) fn case(&self, name: &str) -> Option<&Spreads> {
        let case = self.cases.iter().find(|(case, _)| case == name);
        case.map(|(_, spreads)| spreads)
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::line;
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = |figures: &[f64]| {
            let spread = Spread::of(figures.to_vec());
            spread.map(|one| (one.min, one.median, one.max, one.rounds))
        };
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some((3.0, 3.0, 3.0, 1)));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some((1.0, 2.0, 9.0, 3)));
        assert_eq!(spread(&[9.0, 1.0, 2.0, 4.0]), Some((1.0, 3.0, 9.0, 4)));
    }

    #[test]
    fn rounds_of_a_case_come_together_and_cases_keep_their_order() {
        let side = Side::new(
            "a",
            &[
                line("second", 1, &[("p50_ms", 1.0)]),
                line("first", 1, &[("p50_ms", 5.0)]),
                line("second", 2, &[("p50_ms", 3.0), ("p99_ms", 7.0)]),
            ],
        );
        let names: Vec<&str> = side.cases.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["second", "first"]);
        let spreads = side.case("second").unwrap();
        assert_eq!(spreads["p50_ms"].median, 2.0);
        assert_eq!((spreads["p50_ms"].rounds, spreads["p99_ms"].rounds), (2, 1));
        assert!(side.case("third").is_none());
    }
}
