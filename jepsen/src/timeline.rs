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

const STYLE: &str = "body{font:12px sans-serif}#run{position:relative}\
#run div{position:absolute;overflow:hidden;box-sizing:border-box;border-radius:2px}\
.ok{background:#6DB6FE}.info{background:#FFAA26}.fail{background:#FEB5DA}\
.band{left:0;right:0;opacity:.6}.name{top:20px;font-weight:bold}";

/// An operation from its begin to its end.
struct Span<'a> {
    begun: &'a Event,
    ended: &'a Event,
}

/// The page. `title` says which run it is.
pub fn page(title: &str, events: &[Event]) -> String {
    let spans = spans(events);
    let (faults, ops): (Vec<Span<'_>>, Vec<Span<'_>>) = spans
        .into_iter()
        .partition(|span| span.begun.process == Process::Nemesis);
    let shown = &ops[..ops.len().min(OPS_MAX)];
    let processes: BTreeSet<Process> = shown.iter().map(|span| span.begun.process).collect();
    let columns: BTreeMap<Process, usize> = processes.into_iter().zip(0..).collect();
    let last_ns = events.last().map_or(0, |event| event.time_ns);
    let (height, width) = (top(last_ns) + HEAD_PX, columns.len() * COLUMN_PX);
    let mut page = format!(
        "<!DOCTYPE html>\n<meta charset=utf-8>\n<title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escaped(title)
    );
    if shown.len() < ops.len() {
        let _ = writeln!(
            page,
            "<p>The first {OPS_MAX} of {} operations.</p>",
            ops.len()
        );
    }
    let _ = writeln!(
        page,
        "<div id=run style='height:{height}px;min-width:{width}px'>"
    );
    for fault in &faults {
        band(&mut page, fault);
    }
    for (process, column) in &columns {
        if let Process::Number(number) = process {
            let left = column * COLUMN_PX;
            let _ = writeln!(page, "<div class=name style='left:{left}px'>{number}</div>");
        }
    }
    for op in shown {
        let column = columns.get(&op.begun.process).copied().unwrap_or(0);
        op_box(&mut page, op, column * COLUMN_PX);
    }
    page.push_str("</div>\n");
    page
}

/// Pairs what begins with what ends it: a process does one thing after the other.
fn spans(events: &[Event]) -> Vec<Span<'_>> {
    let mut open: BTreeMap<Process, &Event> = BTreeMap::new();
    let mut spans = Vec::new();
    for event in events {
        match open.remove(&event.process) {
            Some(begun) => spans.push(Span {
                begun,
                ended: event,
            }),
            None => {
                open.insert(event.process, event);
            }
        }
    }
    spans
}

fn top(time_ns: u64) -> u64 {
    HEAD_PX + time_ns / NS_PER_PX
}

fn tall(span: &Span<'_>) -> u64 {
    let took_ns = span.ended.time_ns.saturating_sub(span.begun.time_ns);
    (took_ns / NS_PER_PX).max(HEIGHT_MIN_PX)
}

fn band(page: &mut String, fault: &Span<'_>) {
    let (at, height, f) = (top(fault.begun.time_ns), tall(fault), &fault.begun.f);
    let colour = if f.starts_with("kill") {
        "#E9A4A0"
    } else if f.starts_with("pause") {
        "#A0B1E9"
    } else if f.starts_with("partition") {
        "#E9DCA0"
    } else if f.starts_with("clock") {
        "#A0E9E3"
    } else {
        "#D1E8A0"
    };
    let _ = writeln!(
        page,
        "<div class=band style='top:{at}px;height:{height}px;background:{colour}' title='{}'>{}</div>",
        escaped(&fault.ended.edn(0).to_string()),
        escaped(f)
    );
}

fn op_box(page: &mut String, op: &Span<'_>, left: usize) {
    let (at, height, width) = (top(op.begun.time_ns), tall(op), COLUMN_PX - 6);
    let class = match op.ended.kind {
        Kind::Fail => "fail",
        Kind::Info => "info",
        Kind::Ok | Kind::Invoke => "ok",
    };
    let _ = writeln!(
        page,
        "<div class={class} style='left:{left}px;top:{at}px;width:{width}px;height:{height}px' title='{}'>{}</div>",
        escaped(&op.ended.edn(0).to_string()),
        escaped(&op.begun.f)
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
    use crate::edn::Edn;

    fn event(time_ms: u64, process: Process, kind: Kind, f: &str) -> Event {
        Event {
            time_ns: time_ms * NS_PER_PX,
            process,
            kind,
            f: f.to_owned(),
            value: Edn::text("it's <b>"),
            error: None,
        }
    }

    fn run(ops: u64) -> Vec<Event> {
        let mut events = vec![event(0, Process::Nemesis, Kind::Info, "pause")];
        for op in 0..ops {
            let process = Process::Number(op % 2);
            events.push(event(10 * op, process, Kind::Invoke, "send"));
            events.push(event(10 * op + 7, process, Kind::Ok, "send"));
        }
        events.push(event(10 * ops, Process::Nemesis, Kind::Info, "pause"));
        events
    }

    #[test]
    fn operations_stand_in_the_column_of_their_process_at_their_time() {
        let page = page("smoke 7", &run(2));
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
        let page = page("long", &run(OPS_MAX as u64 + 1));
        assert_eq!(page.matches("class=ok").count(), OPS_MAX);
        assert!(page.contains("The first 10000 of 10001 operations."));
    }

    #[test]
    fn a_run_without_operations_is_a_page_too() {
        assert!(page("empty", &[]).contains("<h1>empty</h1>"));
    }
}
