//! Results as a picture: a bar for each case and side, grouped by figure, with a whisker from the least to the greatest
//! round.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::suite::figures::{MEANINGS, Meaning, shown};
use super::suite::spread::{Side, Spread};

/// Pixels.
const WIDTH: i32 = 1000;
const MARGIN: i32 = 15;
const TITLE: i32 = 30;
/// Where bars begin: names of cases stand before.
const BARS_FROM: i32 = 230;
/// Where the longest bar ends: its number stands behind.
const BARS_TO: i32 = 880;
const BAR: i32 = 11;
/// Between two cases.
const GAP: i32 = 6;
const TEXT: i32 = 12;

/// Of the sides in their order.
const COLOURS: [RGBColor; 2] = [RGBColor(0x9A, 0xB8, 0xD8), RGBColor(0x1F, 0x4E, 0x8C)];

/// The bars of one figure.
struct Panel {
    meaning: &'static Meaning,
    /// By case: a bar for each side that has it.
    groups: Vec<(String, Vec<Option<Spread>>)>,
}

impl Panel {
    /// `None` if no side has the figure.
    fn new(meaning: &'static Meaning, sides: &[Side]) -> Option<Self> {
        let mut groups: Vec<(String, Vec<Option<Spread>>)> = Vec::new();
        for (case, _) in sides.iter().flat_map(|side| &side.cases) {
            if groups.iter().any(|(name, _)| name == case) {
                continue;
            }
            let bar = |side: &Side| side.case(case)?.get(meaning.key).copied();
            let bars: Vec<Option<Spread>> = sides.iter().map(bar).collect();
            if bars.iter().any(Option::is_some) {
                groups.push((case.clone(), bars));
            }
        }
        (!groups.is_empty()).then_some(Self { meaning, groups })
    }

    fn height(&self) -> i32 {
        let group = |(_, bars): &(_, Vec<_>)| pixels(bars.len()) * BAR + GAP;
        TITLE + self.groups.iter().map(group).sum::<i32>() + MARGIN
    }

    fn greatest(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|(_, bars)| bars).flatten();
        bars.map(|bar| bar.max).fold(0.0, f64::max)
    }
}

fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Writes the picture.
///
/// # Errors
/// No side has a figure that is drawn, or the file cannot be written.
pub(super) fn write(path: &Path, sides: &[Side]) -> anyhow::Result<()> {
    let text = draw(sides)?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    eprintln!("drew {}", path.display());
    Ok(())
}

/// The picture as SVG.
fn draw(sides: &[Side]) -> anyhow::Result<String> {
    let drawn = MEANINGS.iter().filter(|meaning| meaning.plotted);
    let panels: Vec<Panel> = drawn
        .filter_map(|meaning| Panel::new(meaning, sides))
        .collect();
    if panels.is_empty() {
        anyhow::bail!("the results have no figure that is drawn");
    }
    let height = MARGIN + panels.iter().map(Panel::height).sum::<i32>();
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let canvas = Canvas { area: &area };
    if sides.len() > 1 {
        canvas.legend(sides)?;
    }
    let mut y = MARGIN;
    for panel in &panels {
        canvas.panel(panel, y)?;
        y += panel.height();
    }
    area.present().map_err(failed)?;
    drop(area);
    Ok(text)
}

/// What went wrong with a drawing.
fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow::Error::msg(error.to_string())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

struct Canvas<'a, 'b> {
    area: &'b Area<'a>,
}

impl Canvas<'_, '_> {
    fn write(&self, text: &str, at: (i32, i32), size: i32) -> anyhow::Result<()> {
        let text = Text::new(text.to_owned(), at, ("sans-serif", size));
        self.area.draw(&text).map_err(failed)
    }

    fn fill(&self, corners: [(i32, i32); 2], colour: RGBColor) -> anyhow::Result<()> {
        let rectangle = Rectangle::new(corners, colour.filled());
        self.area.draw(&rectangle).map_err(failed)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32)) -> anyhow::Result<()> {
        let line = PathElement::new(vec![from, to], BLACK);
        self.area.draw(&line).map_err(failed)
    }

    /// Which colour is whose, in the upper right corner.
    fn legend(&self, sides: &[Side]) -> anyhow::Result<()> {
        let mut y = MARGIN;
        for (side, colour) in sides.iter().zip(COLOURS.iter().cycle()) {
            self.fill([(BARS_TO, y), (BARS_TO + BAR, y + BAR)], *colour)?;
            self.write(&side.name, (BARS_TO + 2 * BAR, y), TEXT)?;
            y += BAR + GAP;
        }
        Ok(())
    }

    /// One figure's title and its bars, from `y` downwards.
    fn panel(&self, panel: &Panel, mut y: i32) -> anyhow::Result<()> {
        let Meaning {
            key, label, unit, ..
        } = panel.meaning;
        let title = format!("{label} {unit} ({key})");
        self.write(&title, (MARGIN, y), TEXT + 4)?;
        y += TITLE;
        let greatest = panel.greatest();
        for (case, bars) in &panel.groups {
            let middle = y + (pixels(bars.len()) * BAR - TEXT) / 2;
            self.write(case, (MARGIN, middle), TEXT)?;
            for (bar, colour) in bars.iter().zip(COLOURS.iter().cycle()) {
                if let Some(bar) = bar {
                    self.bar(bar, greatest, (y, *colour))?;
                }
                y += BAR;
            }
            y += GAP;
        }
        Ok(())
    }

    /// A bar as long as the median, a whisker over the rounds, and the number.
    fn bar(&self, bar: &Spread, greatest: f64, (y, colour): (i32, RGBColor)) -> anyhow::Result<()> {
        let at = |figure: f64| x_of(figure, greatest);
        self.fill([(BARS_FROM, y), (at(bar.median), y + BAR - 1)], colour)?;
        let middle = y + BAR / 2;
        if bar.max > bar.min {
            self.line((at(bar.min), middle), (at(bar.max), middle))?;
            for end in [bar.min, bar.max] {
                self.line((at(end), middle - 2), (at(end), middle + 2))?;
            }
        }
        let behind = at(bar.max.max(bar.median)) + GAP;
        self.write(&shown(bar.median), (behind, y), BAR)
    }
}

/// Where a figure's bar ends, if the greatest one takes all the room.
fn x_of(figure: f64, greatest: f64) -> i32 {
    if greatest <= 0.0 {
        return BARS_FROM;
    }
    let share = (figure / greatest).clamp(0.0, 1.0);
    BARS_FROM + (share * f64::from(BARS_TO - BARS_FROM)).round() as i32
}

#[cfg(test)]
mod tests {
    use super::super::suite::results::tests::line;
    use super::*;

    #[test]
    fn the_greatest_bar_takes_all_the_room() {
        assert_eq!(x_of(0.0, 10.0), BARS_FROM);
        assert_eq!(x_of(10.0, 10.0), BARS_TO);
        assert_eq!(x_of(5.0, 10.0), (BARS_FROM + BARS_TO) / 2);
        assert_eq!(x_of(0.0, 0.0), BARS_FROM, "nothing but zeros");
    }

    #[test]
    fn every_case_of_each_drawn_figure_has_its_bars() {
        let a = [
            line(
                "one",
                1,
                &[("sends_per_s", 1000.0), ("p99_ms", 5.0), ("p50_ms", 2.0)],
            ),
            line("one", 2, &[("sends_per_s", 3000.0)]),
            line("two", 1, &[("sends_per_s", 500.0)]),
        ];
        let b = [line("one", 1, &[("sends_per_s", 1234.0)])];
        let sides = [Side::new("A", &a), Side::new("B", &b)];
        let panels: Vec<Panel> = MEANINGS
            .iter()
            .filter(|meaning| meaning.plotted)
            .filter_map(|meaning| Panel::new(meaning, &sides))
            .collect();
        let keys: Vec<&str> = panels.iter().map(|panel| panel.meaning.key).collect();
        assert_eq!(
            keys,
            ["sends_per_s", "p99_ms"],
            "what nobody has is left out"
        );
        assert_eq!(panels[0].greatest(), 3000.0);
        assert_eq!(panels[1].groups.len(), 1);
        let svg = draw(&sides).unwrap();
        for part in [
            "one",
            "two",
            "2,000",
            "1,234",
            "500",
            "sends_per_s",
            "p99_ms",
        ] {
            assert!(svg.contains(part), "{part} is not in the picture");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_side_needs_no_legend_and_nothing_is_no_picture() {
        let one = [Side::new("suite", &[line("one", 1, &[("p99_ms", 5.0)])])];
        assert!(!draw(&one).unwrap().contains("suite"));
        let nothing = [Side::new("suite", &[line("one", 1, &[("rate", 5.0)])])];
        assert!(draw(&nothing).is_err());
    }
}
