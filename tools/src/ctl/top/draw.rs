//! A picture as lines of text, without a terminal: the same for the live view, for a pipe and for tests.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::picture::{HotLine, NodeLine, Picture, Rates, ShardLine};
use crate::output::{grouped, printable};

/// How the shards are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// By number.
    Shard,
    /// Most sends first.
    Sends,
    /// Most deliveries first.
    Deliveries,
    /// Most reads first.
    Reads,
    /// The furthest behind first; those without a leader before all.
    Lag,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Sort::Shard => Sort::Sends,
            Sort::Sends => Sort::Deliveries,
            Sort::Deliveries => Sort::Reads,
            Sort::Reads => Sort::Lag,
            Sort::Lag => Sort::Shard,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Shard => "shard",
            Sort::Sends => "sends",
            Sort::Deliveries => "deliveries",
            Sort::Reads => "reads",
            Sort::Lag => "lag",
        }
    }
}

/// What is to be seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) picture: Option<&'a Picture>,
    /// Why the last look failed, if it did.
    pub(super) fault: Option<&'a str>,
    pub(super) sort: Sort,
    /// Shards left out at the top.
    pub(super) scroll: usize,
    pub(super) paused: bool,
    pub(super) help: bool,
}

const KEYS: &str = "q quit  s sort  up/down scroll  space pause  ? help";
const HELP: &str = "\
  q, Esc, Ctrl-C   leave
  s                order the shards by number, sends, deliveries, reads, lag
  up, down         scroll the shards (also k, j, PgUp, PgDn, Home)
  space            hold the picture; looks go on
  ?                this page

  sends            messages appended to their home timelines, per second
  deliver          rows appended to mailboxes of others than the sender
  reads            timelines of which pages or heads were read
  behind           entries that the slowest replica of the shard lacks
  hot timelines    those with the most traffic of late, at least the rate shown";

/// Everything, for as long as it is: for a pipe.
pub(super) fn all(view: View<'_>) -> Vec<Line<'static>> {
    lines(view, usize::MAX)
}

/// At most `height` lines, the last one being the keys.
pub(super) fn screen(view: View<'_>, height: u16) -> Vec<Line<'static>> {
    let height = usize::from(height);
    if height == 0 {
        return Vec::new();
    }
    let mut shown = lines(view, height.saturating_sub(1));
    shown.truncate(height.saturating_sub(1));
    shown.resize(height.saturating_sub(1), Line::default());
    shown.push(Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)));
    shown
}

fn lines(view: View<'_>, height: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(fault) = view.fault {
        lines.push(Line::styled(
            format!("no look: {}", printable(fault)),
            bad(),
        ));
    }
    if view.help {
        lines.extend(HELP.lines().map(Line::from));
        return lines;
    }
    let Some(picture) = view.picture else {
        if view.fault.is_none() {
            lines.push(Line::from("looking ..."));
        }
        return lines;
    };
    lines.extend(head(picture, view.paused));
    let room = Room::of(picture, height.saturating_sub(lines.len()));
    lines.push(Line::default());
    lines.extend(cut(node_lines(picture), 0, room.nodes));
    lines.push(Line::default());
    lines.extend(cut(
        shard_lines(picture, view.sort),
        view.scroll,
        room.shards,
    ));
    if !picture.hot.is_empty() {
        lines.push(Line::default());
        lines.extend(cut(hot_lines(picture), 0, room.hot));
    }
    lines
}

/// Lines for the rows of each table, their headers not counted.
struct Room {
    nodes: usize,
    shards: usize,
    hot: usize,
}

impl Room {
    /// The shards get what the others leave; no table goes without a row.
    fn of(picture: &Picture, height: usize) -> Self {
        let (nodes, hot) = (picture.nodes.len(), picture.hot.len());
        // Three headers and three blank lines.
        let left = height.saturating_sub(6);
        let nodes = nodes.min((left / 3).max(1));
        let hot = hot.min((left / 4).max(1));
        let shards = left.saturating_sub(nodes + hot).max(1);
        Self { nodes, shards, hot }
    }
}

/// A header and at most `room` rows from `skip` on, the last saying how many more there are.
fn cut(mut table: Vec<Line<'static>>, skip: usize, room: usize) -> Vec<Line<'static>> {
    let rows = table.len().saturating_sub(1);
    let skip = skip.min(rows.saturating_sub(room));
    table.drain(1..=skip);
    let rows = rows - skip;
    if rows > room && room > 1 {
        table.truncate(room);
        table.push(Line::from(format!("  and {} more", rows + 1 - room)));
    } else {
        table.truncate(room.saturating_add(1));
    }
    table
}

fn bad() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn head(picture: &Picture, paused: bool) -> Vec<Line<'static>> {
    let (words, style) = match (picture.serves, picture.can_lose) {
        (_, spare) if spare < 0 => (
            "some shard has no majority and does not serve".to_owned(),
            bad(),
        ),
        (false, _) => ("some shard has no leader at this moment".to_owned(), bad()),
        (true, 0) => (
            "serves; losing one more node stops some shard".to_owned(),
            Style::new().fg(Color::Yellow),
        ),
        (true, spare) => (
            format!("serves and can lose {spare} node(s)"),
            Style::new().fg(Color::Green),
        ),
    };
    let first = format!(
        "cluster {}, map {}: ",
        picture.cluster_id, picture.map_epoch
    );
    let mut spans = vec![Span::raw(first), Span::styled(words, style)];
    if paused {
        spans.push(Span::styled("  (held)", bad()));
    }
    let Rates {
        sends_per_s,
        deliveries_per_s,
        reads_per_s,
    } = picture.rates;
    let moves = match &picture.running {
        None => "what is on the move is not known".to_owned(),
        Some(steps) if steps.is_empty() => "nothing is on the move".to_owned(),
        Some(steps) => match steps.as_slice() {
            [step] => step.clone(),
            [step, ..] => format!("{step} (and {} more)", steps.len() - 1),
            [] => String::new(),
        },
    };
    let totals = format!(
        "per second: {} sends, {} deliveries, {} reads; {moves}",
        rate(sends_per_s),
        rate(deliveries_per_s),
        rate(reads_per_s),
    );
    vec![Line::from(spans), Line::from(totals)]
}

fn node_lines(picture: &Picture) -> Vec<Line<'static>> {
    let header = [
        "node",
        "standing",
        "up",
        "cpu",
        "memory",
        "disk free",
        "leads",
        "version",
        "address",
    ];
    let rows = picture
        .nodes
        .iter()
        .map(|node| (node_cells(node), node_style(node)));
    table(header, b"<<<>>>><<", rows)
}

fn node_cells(node: &NodeLine) -> [String; 9] {
    let build: String = node.build.chars().take(8).collect();
    let version = match build.as_str() {
        "" => node.version.clone(),
        build => format!("{} {build}", node.version),
    };
    let ails = match &node.error {
        Some(error) => format!("{}  {}", node.address, printable(error)),
        None if !node.clock_fault.is_empty() => {
            format!("{}  {}", node.address, printable(&node.clock_fault))
        }
        None => node.address.clone(),
    };
    let unknown = || "-".to_owned();
    [
        node.node.to_string(),
        node.standing.to_owned(),
        if node.up {
            since(node.uptime_ms)
        } else {
            "NO".to_owned()
        },
        node.cpu_percent
            .map_or_else(unknown, |percent| format!("{percent:.0}%")),
        node.rss_bytes.map_or_else(unknown, size),
        if node.up {
            size(node.disk_free_bytes)
        } else {
            unknown()
        },
        format!("{} of {}", node.leads, node.replicas),
        if node.up {
            printable(&version)
        } else {
            unknown()
        },
        ails,
    ]
}

fn node_style(node: &NodeLine) -> Style {
    match node.up {
        false => bad(),
        true if !node.clock_fault.is_empty() => bad(),
        true if node.standing != "member" => Style::new().fg(Color::Yellow),
        true => Style::new(),
    }
}

fn shard_lines(picture: &Picture, sort: Sort) -> Vec<Line<'static>> {
    let mut shards: Vec<&ShardLine> = picture.shards.iter().collect();
    // Stable: equal ones stay in the order of their numbers.
    let by = |of: fn(&Rates) -> Option<f64>| {
        move |one: &&ShardLine, other: &&ShardLine| {
            let (one, other) = (of(&one.rates), of(&other.rates));
            other.unwrap_or(-1.0).total_cmp(&one.unwrap_or(-1.0))
        }
    };
    match sort {
        Sort::Shard => {}
        Sort::Sends => shards.sort_by(by(|rates| rates.sends_per_s)),
        Sort::Deliveries => shards.sort_by(by(|rates| rates.deliveries_per_s)),
        Sort::Reads => shards.sort_by(by(|rates| rates.reads_per_s)),
        Sort::Lag => {
            shards.sort_by_key(|shard| (shard.leader.is_some(), std::cmp::Reverse(shard.lag)))
        }
    }
    let header = [
        "shard",
        "leader",
        "voters",
        "learners",
        "behind",
        "sends/s",
        "deliver/s",
        "reads/s",
        "memtables",
    ];
    let rows = shards
        .into_iter()
        .map(|shard| (shard_cells(shard), shard_style(shard)));
    let mut lines = table(header, b"<<<<>>>>>", rows);
    if let Some(header) = lines.first_mut() {
        let by = format!("   by {}", sort.name());
        header.push_span(Span::styled(by, Style::new().add_modifier(Modifier::DIM)));
    }
    lines
}

fn shard_cells(shard: &ShardLine) -> [String; 9] {
    let nodes = |nodes: &[u64]| {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        if nodes.is_empty() {
            "-".to_owned()
        } else {
            nodes.join(" ")
        }
    };
    [
        shard.shard.to_string(),
        shard
            .leader
            .map_or_else(|| "NONE".to_owned(), |node| node.to_string()),
        nodes(&shard.voters),
        nodes(&shard.learners),
        shard.lag.map_or_else(|| "?".to_owned(), grouped),
        rate(shard.rates.sends_per_s),
        rate(shard.rates.deliveries_per_s),
        rate(shard.rates.reads_per_s),
        size(shard.memtable_bytes),
    ]
}

fn shard_style(shard: &ShardLine) -> Style {
    match shard.leader {
        None => bad(),
        Some(_) if shard.changing || !shard.learners.is_empty() => Style::new().fg(Color::Yellow),
        Some(_) => Style::new(),
    }
}

fn hot_lines(picture: &Picture) -> Vec<Line<'static>> {
    let mut hot: Vec<&HotLine> = picture.hot.iter().collect();
    hot.sort_by(|one, other| {
        let heat = |line: &HotLine| line.writes_per_s + line.reads_per_s;
        heat(other).total_cmp(&heat(one))
    });
    let rows = hot.into_iter().map(|line| {
        let cells = [
            line.timeline.clone(),
            line.shard.to_string(),
            rate(Some(line.writes_per_s)),
            rate(Some(line.reads_per_s)),
        ];
        (cells, Style::new())
    });
    table(
        ["hot timeline", "shard", "writes/s", "reads/s"],
        b"<>>>",
        rows,
    )
}

/// Columns as wide as their widest cell; `>` stands at the right.
fn table<const N: usize>(
    header: [&str; N],
    align: &[u8; N],
    rows: impl Iterator<Item = ([String; N], Style)>,
) -> Vec<Line<'static>> {
    let rows: Vec<([String; N], Style)> = rows.collect();
    let mut widths = header.map(str::len);
    for (cells, _) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let text = |cells: &[String; N]| {
        let cells = cells.iter().zip(widths).zip(align);
        let cells = cells.map(|((cell, width), align)| match align {
            b'>' => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        let text = cells.collect::<Vec<_>>().join("  ");
        text.trim_end().to_owned()
    };
    let title = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![Line::styled(text(&header.map(str::to_owned)), title)];
    lines.extend(
        rows.iter()
            .map(|(cells, style)| Line::styled(text(cells), *style)),
    );
    lines
}

/// A rate with as many digits as tell something.
fn rate(per_s: Option<f64>) -> String {
    match per_s {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => grouped(rate.round() as u64),
    }
}

fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib < 10 << 10 => format!("{} MiB", grouped(mib)),
        mib => format!("{} GiB", grouped(mib >> 10)),
    }
}

fn since(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::picture::tests::survey;
    use super::*;

    fn picture() -> Picture {
        let (before, now) = (survey(100), survey(300));
        Picture::of(&now, Some((&before, Duration::from_secs(2))), None)
    }

    fn view(picture: &Picture) -> View<'_> {
        View {
            picture: Some(picture),
            fault: None,
            sort: Sort::Shard,
            scroll: 0,
            paused: false,
            help: false,
        }
    }

    fn text(lines: &[Line<'_>]) -> String {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn a_screen_of_24_lines_shows_all_three_tables() {
        let picture = picture();
        let lines = screen(view(&picture), 24);
        assert_eq!(lines.len(), 24);
        let wanted = "\
cluster test, map 7: serves and can lose 1 node(s)
per second: 100 sends, 200 deliveries, 300 reads; what is on the move is not known

node  standing  up     cpu   memory  disk free   leads  version         address
1     member    1h00m  20%  200 MiB  5,120 MiB  2 of 2  0.1.0 abcdef01  n1:7700
2     member    1h00m  20%  200 MiB  5,120 MiB  0 of 2  0.1.0 abcdef01  n2:7700
3     member    1h00m  20%  200 MiB  5,120 MiB  0 of 2  0.1.0 abcdef01  n3:7700

shard  leader  voters  learners  behind  sends/s  deliver/s  reads/s  memtables   by shard
0      1       1 2 3   -             60        0          0        0      0 MiB
1      1       1 2 3   -             60      100        200      300      0 MiB

hot timeline  shard  writes/s  reads/s
group:65          1        12       12";
        let shown = text(&lines);
        let shown = shown.trim_end_matches(KEYS).trim_end();
        assert_eq!(shown, wanted);
        assert_eq!(lines[23].to_string(), KEYS);
    }

    #[test]
    fn a_small_screen_cuts_and_scrolls_the_shards() {
        let mut picture = picture();
        let shard = |number| {
            let mut now = survey(1);
            now.map.shards[1].shard = number;
            Picture::of(&now, None, None).shards.remove(1)
        };
        picture.shards.extend((2..40).map(shard));
        for height in 0..60_u16 {
            assert_eq!(screen(view(&picture), height).len(), usize::from(height));
        }
        let shown = text(&screen(view(&picture), 20));
        assert!(shown.contains("  and 34 more"), "{shown}");
        assert!(shown.contains("group:65"), "{shown}");
        let mut end = view(&picture);
        end.scroll = 1_000;
        let shown = text(&screen(end, 20));
        assert!(
            shown.contains("\n39 ") && !shown.contains(" more\n"),
            "{shown}"
        );
    }

    #[test]
    fn shards_are_ordered_as_asked() {
        let mut picture = picture();
        picture.shards[1].leader = None;
        let first = |sort| {
            let lines = shard_lines(&picture, sort);
            lines[1].to_string().chars().next().unwrap()
        };
        assert_eq!(first(Sort::Shard), '0');
        for sort in [Sort::Sends, Sort::Deliveries, Sort::Reads, Sort::Lag] {
            assert_eq!(first(sort), '1', "{sort:?}");
        }
        let mut sort = Sort::Shard;
        for _ in 0..5 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Shard, "the key goes round");
    }

    #[test]
    fn faults_and_silent_nodes_cannot_paint() {
        let mut picture = picture();
        picture.nodes[1].up = false;
        picture.nodes[1].error = Some("refused\u{1b}[2J".to_owned());
        let mut view = view(&picture);
        view.fault = Some("nobody\u{1b}c answers");
        let shown = text(&all(view));
        assert!(
            shown.starts_with("no look: nobody\u{fffd}c answers"),
            "{shown}"
        );
        assert!(shown.contains("n2:7700  refused\u{fffd}[2J"), "{shown}");
        view.help = true;
        assert!(text(&all(view)).contains("order the shards"));
    }

    #[test]
    fn figures_are_as_long_as_they_tell() {
        assert_eq!(
            [rate(None), rate(Some(0.0)), rate(Some(0.04))],
            ["-", "0", "0.0"]
        );
        assert_eq!(
            [rate(Some(9.94)), rate(Some(9.96)), rate(Some(12_345.6))],
            ["9.9", "10", "12,346"]
        );
        assert_eq!(
            [since(59_000), since(61_000), since(3_660_000)],
            ["59s", "1m01s", "1h01m"]
        );
        assert_eq!(since(90_000_000), "1d01h");
        assert_eq!([size(5 << 20), size(20 << 30)], ["5 MiB", "20 GiB"]);
    }
}
