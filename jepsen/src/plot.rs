//! Latency and rate over the time of a run, with a band for each fault: what a tester looks at first.
//!
//! Names and colours are Jepsen's: blue is ok, orange unknown, red failed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use crate::events::{Events, Kind, Process};
use crate::timeline::fault_colour;

const SIZE: (u32, u32) = (1200, 500);
/// Points of a plot at most: of more, every n-th is shown.
const POINTS_MAX: usize = 20_000;
/// Operations of so long are counted together.
const STEP_NS: u64 = 1_000_000_000;
/// Whatever is faster is drawn here: a logarithm has no zero.
const LATENCY_MS_MIN: f64 = 0.1;
/// Shares of operations that are faster.
const QUANTILES: [(f64, RGBColor); 4] = [
    (0.5, RGBColor(0x6D, 0xB6, 0xFE)),
    (0.95, RGBColor(0xFF, 0xAA, 0x26)),
    (0.99, RGBColor(0xFE, 0x6D, 0x6D)),
    (1.0, RGBColor(0x66, 0x66, 0x66)),
];
/// How operations end.
const ENDS: [(Kind, RGBColor); 3] = [
    (Kind::Ok, RGBColor(0x6D, 0xB6, 0xFE)),
    (Kind::Info, RGBColor(0xFF, 0xAA, 0x26)),
    (Kind::Fail, RGBColor(0xFE, 0x6D, 0x6D)),
];

/// An operation that has ended.
struct Done {
    at_ns: u64,
    took_ns: u64,
    end: Kind,
}

/// A fault that was there.
struct Band {
    from_ns: u64,
    to_ns: u64,
    colour: RGBColor,
}

/// What a run is drawn from.
pub struct Plots {
    done: Vec<Done>,
    bands: Vec<Band>,
}

impl std::fmt::Debug for Plots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plots")
            .field("done", &self.done.len())
            .field("bands", &self.bands.len())
            .finish()
    }
}

/// What went wrong with a drawing.
fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow::Error::msg(error.to_string())
}

impl Plots {
    /// Of all operations.
    pub fn of(events: &Events<'_>) -> Self {
        let mut begun = BTreeMap::new();
        let (mut done, mut bands) = (Vec::new(), Vec::new());
        for event in events.iter() {
            let Some(from_ns) = begun.remove(&event.whose()) else {
                begun.insert(event.whose(), event.time_ns);
                continue;
            };
            match event.process {
                Process::Nemesis if event.error.is_none() => bands.push(Band {
                    from_ns,
                    to_ns: event.time_ns,
                    colour: colour(fault_colour(event.f)),
                }),
                Process::Nemesis => {}
                Process::Number(_) => done.push(Done {
                    at_ns: event.time_ns,
                    took_ns: event.time_ns - from_ns,
                    end: event.kind,
                }),
            }
        }
        Self { done, bands }
    }

    /// Writes `latency-raw.svg`, `latency-quantiles.svg` and `rate.svg`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let draw = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        draw("latency-raw.svg", &self.latency_raw()?)?;
        draw("latency-quantiles.svg", &self.latency_quantiles()?)?;
        draw("rate.svg", &self.rate()?)
    }

    fn end_s(&self) -> f64 {
        let last = self.done.iter().map(|done| done.at_ns).max();
        seconds(last.unwrap_or(0)).max(1.0)
    }

    fn latency_raw(&self) -> anyhow::Result<String> {
        let every = self.done.len().div_ceil(POINTS_MAX).max(1);
        let marks = ENDS.map(|(end, colour)| {
            let shown = self.done.iter().step_by(every);
            let shown = shown.filter(|done| done.end == end);
            let points = shown.map(|done| (seconds(done.at_ns), ms(done.took_ns)));
            Marks {
                points: points.collect(),
                colour,
                joined: false,
            }
        });
        self.draw(
            "latency of each operation, ms",
            self.latencies_ms(),
            true,
            &marks,
        )
    }

    fn latency_quantiles(&self) -> anyhow::Result<String> {
        let mut steps: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for done in self.done.iter().filter(|done| done.end == Kind::Ok) {
            let step = steps.entry(done.at_ns / STEP_NS);
            step.or_default().push(done.took_ns);
        }
        for step in steps.values_mut() {
            step.sort_unstable();
        }
        let marks = QUANTILES.map(|(share, colour)| {
            let points = steps.iter().map(|(step, took)| {
                let place = (took.len() as f64 * share).ceil() as usize;
                let took = took.get(place.saturating_sub(1)).copied().unwrap_or(0);
                (seconds(step * STEP_NS), ms(took))
            });
            Marks {
                points: points.collect(),
                colour,
                joined: true,
            }
        });
        let title = "latency of those that were ok, each second: half, 95 %, 99 %, all, ms";
        self.draw(title, self.latencies_ms(), true, &marks)
    }

    fn rate(&self) -> anyhow::Result<String> {
        let steps = self.done.iter().map(|done| done.at_ns / STEP_NS).max();
        let steps = usize::try_from(steps.unwrap_or(0)).unwrap_or(0) + 1;
        let mut most = 1.0_f64;
        let marks = ENDS.map(|(end, colour)| {
            let mut counts = vec![0.0; steps];
            for done in self.done.iter().filter(|done| done.end == end) {
                if let Some(count) = counts.get_mut((done.at_ns / STEP_NS) as usize) {
                    *count += 1.0;
                }
            }
            most = counts.iter().copied().fold(most, f64::max);
            let seconds = (0_u32..).map(f64::from);
            Marks {
                points: seconds.zip(counts).collect(),
                colour,
                joined: true,
            }
        });
        self.draw("operations ended a second, by how", most, false, &marks)
    }

    fn latencies_ms(&self) -> f64 {
        let most = self.done.iter().map(|done| done.took_ns).max();
        ms(most.unwrap_or(0)).max(1.0)
    }

    /// Axes, bands and marks; `top` is the greatest that is marked.
    fn draw(&self, title: &str, top: f64, log: bool, marks: &[Marks]) -> anyhow::Result<String> {
        let scale = |y: f64| {
            if log {
                y.max(LATENCY_MS_MIN).log10()
            } else {
                y
            }
        };
        let (bottom, top) = (scale(0.0), scale(top) * 1.05 + 0.01);
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .caption(title, ("sans-serif", 16))
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..self.end_s(), bottom..top)
            .map_err(failed)?;
        let bands = self.bands.iter().map(|band| {
            let corners = [(seconds(band.from_ns), bottom), (seconds(band.to_ns), top)];
            Rectangle::new(corners, band.colour.filled())
        });
        chart.draw_series(bands).map_err(failed)?;
        let label = |y: &f64| {
            let y = if log { 10_f64.powf(*y) } else { *y };
            format!("{y:.*}", usize::from(y < 10.0))
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_desc("seconds since the run began")
            .y_label_formatter(&label)
            .draw()
            .map_err(failed)?;
        for mark in marks {
            let points = mark.points.iter().map(|(x, y)| (*x, scale(*y)));
            let drawn = if mark.joined {
                let line = LineSeries::new(points, mark.colour.stroke_width(2));
                chart.draw_series(line).map(drop)
            } else {
                let dots = points.map(|point| Circle::new(point, 2, mark.colour.filled()));
                chart.draw_series(dots).map(drop)
            };
            drawn.map_err(failed)?;
        }
        area.present().map_err(failed)?;
        drop(chart);
        drop(area);
        Ok(text)
    }
}

/// Marks of one colour, by seconds and height.
struct Marks {
    points: Vec<(f64, f64)>,
    colour: RGBColor,
    joined: bool,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// `#E9A4A0`.
fn colour(text: &str) -> RGBColor {
    let number = u32::from_str_radix(text.trim_start_matches('#'), 16).unwrap_or(0);
    let [_, red, green, blue] = number.to_be_bytes();
    RGBColor(red, green, blue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Fault, History, Installation, Op, Outcome, Read, Source, Timeline, View};

    fn read(process: u64, (invoked_ns, completed_ns): (u64, u64), ok: bool) -> Op {
        let view = View {
            after: 0,
            head: 0,
            rows: Vec::new(),
        };
        Op::Read(Read {
            process,
            invoked_ns,
            completed_ns,
            timeline: Timeline::Mailbox(17),
            source: Source::Leader,
            last: false,
            staleness_ms: None,
            outcome: if ok {
                Outcome::Ok(view)
            } else {
                Outcome::Fail("Unavailable".into())
            },
        })
    }

    fn fault(installation: Installation) -> Op {
        Op::Fault(Fault {
            kind: "pause".into(),
            node: Some(1),
            begun_ns: 500_000_000,
            healed_ns: 900_000_000,
            installation,
        })
    }

    #[test]
    fn every_operation_and_every_fault_that_was_there_is_drawn() {
        let history = History {
            ops: vec![
                read(1, (0, 2_000_000), true),
                read(2, (1_000_000, 1_500_000_000), false),
                fault(Installation::Installed),
                fault(Installation::Skipped("it did not run".into())),
            ],
        };
        let plots = Plots::of(&Events::of(&history));
        assert_eq!((plots.done.len(), plots.bands.len()), (2, 1));
        let raw = plots.latency_raw().unwrap();
        assert_eq!(raw.matches("<circle").count(), 2);
        assert!(raw.contains("#A0B1E9"), "the band of the pause");
        let quantiles = plots.latency_quantiles().unwrap();
        for (_, colour) in QUANTILES {
            let RGBColor(red, green, blue) = colour;
            let colour = format!("#{red:02X}{green:02X}{blue:02X}");
            assert!(quantiles.contains(&colour), "the line in {colour}");
        }
        let dir = tempfile::tempdir().unwrap();
        plots.write(dir.path()).unwrap();
        assert!(dir.path().join("rate.svg").exists());
    }

    #[test]
    fn an_empty_run_is_drawn_too() {
        let plots = Plots::of(&Events::of(&History::default()));
        assert!(plots.latency_quantiles().unwrap().contains("<svg"));
        assert!(plots.rate().unwrap().contains("<svg"));
    }
}
