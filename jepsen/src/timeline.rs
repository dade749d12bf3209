//! A run as a page: a column for each process, a box for each operation, a band for each fault.
//!
//! A pixel is a millisecond. The colours are Jepsen's, so that who knows its pages can read ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::events::{Event, Kind, Process};

/// Operations shown. Who wants to see more of them reads the history.
pub const OPS_MAX: usize = 10_000;

const NS_PER_PX: u64 = 1_000_000;
const COLUMN_PX: usize = 110;
const HEAD_PX: u64 = 40;
/// Of an operation that took less.
const HEIGHT_MIN_PX: u64 = 3;

/// Letters shown of what an operation was about.
const TITLE_MAX: usize = 300;

const STYLE: &str = "body{font:12px sans-serif}#run{position:relative}\
#run div{position:absolute;overflow:hidden;box-sizing:border-box;border-radius:2px}\
.ok{background:#6DB6FE}.info{background:#FFAA26}.fail{background:#FEB5DA}\
.band{left:0;right:0;opacity:.6}.none{border:1px dashed}.name{top:20px;font-weight:bold}";

/// An operation from its begin to its end.
struct Span<'a> {
    begun_ns: u64,
    ended: Event<'a>,
}

/// What is shown of a run.
#[derive(Default)]
struct Shown<'a> {
    ops: Vec<Span<'a>>,
    faults: Vec<Span<'a>>,
    /// Operations that there are.
    all: usize,
}

impl<'a> Shown<'a> {
    /// Pairs what begins with what ends it: a process does one thing after the other.
    fn of(events: impl Iterator<Item = Event<'a>>) -> Self {
        let (mut open, mut shown) = (BTreeMap::new(), Self::default());
        for event in events {
            let Some(begun_ns) = open.remove(&event.whose()) else {
                open.insert(event.whose(), event.time_ns);
                continue;
            };
            let span = Span {
                begun_ns,
                ended: event,
            };
            if span.ended.process == Process::Nemesis {
                shown.faults.push(span);
                continue;
            }
            shown.all += 1;
            if shown.ops.len() < OPS_MAX {
                shown.ops.push(span);
            }
        }
        if shown.ops.len() < shown.all {
            let end_ns = shown.end_ns();
            shown.faults.retain(|fault| fault.begun_ns < end_ns);
        }
        shown
    }

    /// When the last operation ends that is shown.
    fn end_ns(&self) -> u64 {
        let ends = self.ops.iter().map(|op| op.ended.time_ns);
        ends.max().unwrap_or(0)
    }
}

/// The page. `title` says which run it is.
pub fn page<'a>(title: &str, events: impl Iterator<Item = Event<'a>>) -> String {
    let shown = Shown::of(events);
    let processes: BTreeSet<Process> = shown.ops.iter().map(|op| op.ended.process).collect();
    let columns: BTreeMap<Process, usize> = processes.into_iter().zip(0..).collect();
    let (height, width) = (top(shown.end_ns()) + HEAD_PX, columns.len() * COLUMN_PX);
    let mut page = format!(
        "<!DOCTYPE html>\n<meta charset=utf-8>\n<title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escaped(title)
    );
    if shown.ops.len() < shown.all {
        let _ = writeln!(
            page,
            "<p>The first {OPS_MAX} of {} operations.</p>",
            shown.all
        );
    }
    let _ = writeln!(
        page,
        "<div id=run style='height:{height}px;min-width:{width}px'>"
    );
    for fault in &shown.faults {
        band(&mut page, fault);
    }
    for (process, column) in &columns {
        if let Process::Number(number) = process {
            let left = column * COLUMN_PX;
            let _ = writeln!(page, "<div class=name style='left:{left}px'>{number}</div>");
        }
    }
    for op in &shown.ops {
        let column = columns.get(&op.ended.process).copied().unwrap_or(0);
        op_box(&mut page, op, column * COLUMN_PX);
    }
    page.push_str("</div>\n");
    page
}

fn top(time_ns: u64) -> u64 {
    HEAD_PX + time_ns / NS_PER_PX
}

fn tall(span: &Span<'_>) -> u64 {
    let took_ns = span.ended.time_ns.saturating_sub(span.begun_ns);
    (took_ns / NS_PER_PX).max(HEIGHT_MIN_PX)
}

/// What is told of an operation when it is pointed at.
fn about(span: &Span<'_>) -> String {
    let text = span.ended.edn(0).to_string();
    let cut = text.char_indices().nth(TITLE_MAX).map(|(at, _)| at);
    match cut {
        Some(at) => format!("{} …", escaped(&text[..at])),
        None => escaped(&text),
    }
}

/// Of a fault's band, by its name.
pub(crate) fn fault_colour(fault: &str) -> &'static str {
    match fault.split('-').next() {
        Some("kill") => "#E9A4A0",
        Some("pause") => "#A0B1E9",
        Some("partition") => "#E9DCA0",
        Some("clock") => "#A0E9E3",
        Some("power" | "disk") => "#99F2E2",
        _ => "#D1E8A0",
    }
}

fn band(page: &mut String, fault: &Span<'_>) {
    let (at, height, f) = (top(fault.begun_ns), tall(fault), fault.ended.f);
    let colour = fault_colour(f);
    // One that was not there, or may not have been, is no reason for what is seen beside it.
    let (class, fill, doubt) = match fault.ended.error {
        None => ("band", format!(";background:{colour}"), ""),
        Some(_) => (
            "'band none'",
            String::new(),
            ": not installed, or not surely",
        ),
    };
    let _ = writeln!(
        page,
        "<div class={class} style='top:{at}px;height:{height}px{fill}' title='{}'>{}{doubt}</div>",
        about(fault),
        escaped(f)
    );
}

fn op_box(page: &mut String, op: &Span<'_>, left: usize) {
    let (at, height, width) = (top(op.begun_ns), tall(op), COLUMN_PX - 6);
    let class = match op.ended.kind {
        Kind::Fail => "fail",
        Kind::Info => "info",
        Kind::Ok | Kind::Invoke => "ok",
    };
    let _ = writeln!(
        page,
        "<div class={class} style='left:{left}px;top:{at}px;width:{width}px;height:{height}px' title='{}'>{}</div>",
        about(op),
        escaped(op.ended.f)
    );
}

/// Text that stays text in a page and in an attribute.
fn escaped(text: &str) -> String {
    let mut page = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use crate::history::{Fault, History, Installation, Op, Outcome};
    use crate::page::{Page, Synced};

    fn page_of(device: &str, process: u64, begun_ms: u64) -> Op {
        Op::Page(Page {
            process,
            invoked_ns: begun_ms * NS_PER_PX,
            completed_ns: (begun_ms + 7) * NS_PER_PX,
            user: 17,
            device: device.into(),
            gateway: 1,
            last: false,
            outcome: Outcome::Ok(Synced {
                rows: Vec::new(),
                more: false,
            }),
        })
    }

    fn run(ops: u64, device: &str, installation: Installation) -> History {
        let pause = Op::Fault(Fault {
            kind: "pause".into(),
            node: Some(1),
            begun_ns: 0,
            healed_ns: 10 * ops * NS_PER_PX,
            installation,
        });
        let pages = (0..ops).map(|op| page_of(device, op % 2, 10 * op));
        History {
            ops: std::iter::once(pause).chain(pages).collect(),
        }
    }

    fn shown(title: &str, history: &History) -> String {
        page(title, Events::of(history).iter())
    }

    #[test]
    fn operations_stand_in_the_column_of_their_process_at_their_time() {
        let page = shown("smoke 7", &run(2, "it's <b>", Installation::Installed));
        for wanted in [
            "<h1>smoke 7</h1>",
            "class=ok style='left:0px;top:40px;width:104px;height:7px'",
            "class=ok style='left:110px;top:50px;width:104px;height:7px'",
            "class=band style='top:40px;height:20px;background:#A0B1E9'",
            "it&#39;s &lt;b&gt;",
        ] {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
        assert!(!page.contains("<b>") && !page.contains("operations"));
    }

    #[test]
    fn a_page_is_bounded_and_says_what_it_leaves_out() {
        let history = run(OPS_MAX as u64 + 1, "phone", Installation::Installed);
        let page = shown("long", &history);
        assert_eq!(page.matches("class=ok").count(), OPS_MAX);
        assert!(page.contains("The first 10000 of 10001 operations."));
    }

    #[test]
    fn a_long_value_is_cut_and_a_fault_that_was_not_there_has_no_colour() {
        let skipped = Installation::Skipped("it did not run".to_owned());
        let page = shown("cut", &run(1, &"é".repeat(10_000), skipped));
        assert!(page.len() < 3000, "{}", page.len());
        assert!(page.contains("pause: not installed") && !page.contains("A0B1E9"));
    }

    #[test]
    fn a_run_without_operations_is_a_page_too() {
        assert!(page("empty", std::iter::empty()).contains("<h1>empty</h1>"));
    }
}
