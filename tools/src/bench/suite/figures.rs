//! What a case has measured, by key, and what each key means: its unit, and which way is better.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use crate::output::grouped;

/// The figures of one case in one round, by key. What was not measurable is absent.
pub(in crate::bench) type Figures = BTreeMap<String, f64>;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Better {
    More,
    Less,
    /// It says how something came about, and is neither.
    Neither,
}

/// What a figure is about: figures of one group stand in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Group {
    Rate,
    Latency,
    Cpu,
    Memory,
    Log,
    Disk,
    Calls,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Latency => "latency",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Log => "log",
            Self::Disk => "disk",
            Self::Calls => "calls",
        }
    }
}

/// One figure. `README.md` says how it is measured.
#[derive(Debug, Clone, Copy)]
pub(in crate::bench) struct Meaning {
    /// As in JSON, for ever.
    pub(in crate::bench) key: &'static str,
    /// Beside the group's name.
    pub(in crate::bench) label: &'static str,
    pub(in crate::bench) unit: &'static str,
    pub(in crate::bench) better: Better,
    pub(in crate::bench) group: Group,
    /// Whether it is worth bars in a plot.
    pub(in crate::bench) plotted: bool,
}

const fn figure(
    group: Group,
    key: &'static str,
    (label, unit): (&'static str, &'static str),
    better: Better,
) -> Meaning {
    Meaning {
        key,
        label,
        unit,
        better,
        group,
        plotted: false,
    }
}

const fn plotted(meaning: Meaning) -> Meaning {
    Meaning {
        plotted: true,
        ..meaning
    }
}

use Better::{Less, More, Neither};
use Group::{Calls, Cpu, Disk, Latency, Log, Memory, Rate};

/// All figures that the suite keeps, in the order in which they are shown. A case of another kind adds its own here, and
/// its report's keys are taken up by [`of`].
pub(in crate::bench) const MEANINGS: &[Meaning] = &[
    plotted(figure(Rate, "sends_per_s", ("sends", "/s"), More)),
    plotted(figure(Rate, "syncs_per_s", ("syncs", "/s"), More)),
    plotted(figure(Rate, "deliveries_per_s", ("deliveries", "/s"), More)),
    figure(Rate, "rows_per_s", ("rows", "/s"), More),
    figure(Rate, "rate", ("sends asked for", "/s"), Neither),
    figure(
        Rate,
        "peer_messages_per_s",
        ("messages between nodes", "/s"),
        Less,
    ),
    figure(Rate, "errors", ("errors", ""), Less),
    figure(Rate, "undelivered", ("undelivered", ""), Less),
    figure(Rate, "missing", ("missing", ""), Less),
    figure(Rate, "out_of_order", ("out of order", ""), Less),
    figure(Rate, "wrong", ("wrong", ""), Less),
    figure(Rate, "ready_s", ("ready after", "s"), Less),
    figure(Latency, "p50_ms", ("p50", "ms"), Less),
    figure(Latency, "p95_ms", ("p95", "ms"), Less),
    plotted(figure(Latency, "p99_ms", ("p99", "ms"), Less)),
    figure(Latency, "p999_ms", ("p99.9", "ms"), Less),
    figure(Latency, "delivery_p50_ms", ("delivery p50", "ms"), Less),
    figure(Latency, "delivery_p99_ms", ("delivery p99", "ms"), Less),
    figure(Latency, "sync_p50_ms", ("sync p50", "ms"), Less),
    figure(Latency, "sync_p99_ms", ("sync p99", "ms"), Less),
    figure(Cpu, "leader_cpu_us_per_send", ("leader", "us/send"), Less),
    figure(
        Cpu,
        "follower_cpu_us_per_send",
        ("each follower", "us/send"),
        Less,
    ),
    figure(
        Cpu,
        "gateway_cpu_us_per_send",
        ("gateways", "us/send"),
        Less,
    ),
    plotted(figure(
        Cpu,
        "server_cpu_us_per_send",
        ("all servers", "us/send"),
        Less,
    )),
    figure(
        Cpu,
        "client_cpu_us_per_send",
        ("generator", "us/send"),
        Less,
    ),
    figure(
        Cpu,
        "store_cpu_us_per_delivery",
        ("store", "us/delivery"),
        Less,
    ),
    figure(
        Cpu,
        "gateway_cpu_us_per_delivery",
        ("gateway", "us/delivery"),
        Less,
    ),
    figure(
        Cpu,
        "generator_cpu_us_per_delivery",
        ("generator", "us/delivery"),
        Less,
    ),
    figure(Cpu, "store_cpu_us_per_sync", ("store", "us/sync"), Less),
    figure(Cpu, "gateway_cpu_us_per_sync", ("gateway", "us/sync"), Less),
    figure(
        Cpu,
        "generator_cpu_us_per_sync",
        ("generator", "us/sync"),
        Less,
    ),
    figure(Cpu, "cpu_percent", ("all servers", "% of a core"), Less),
    figure(Cpu, "cpu_us_per_replica_s", ("a replica", "us/s"), Less),
    figure(Memory, "rss_mb", ("all servers", "MB"), Less),
    figure(Log, "fsyncs_per_s", ("fsyncs", "/s"), Neither),
    figure(Log, "entries_per_s", ("entries", "/s"), Neither),
    figure(Log, "sends_per_frame", ("sends in a frame", ""), Neither),
    figure(Log, "sends_per_entry", ("sends in an entry", ""), Neither),
    figure(Log, "entry_bytes", ("bytes in an entry", ""), Neither),
    figure(
        Log,
        "entries_per_fsync",
        ("entries in an fsync", ""),
        Neither,
    ),
    figure(Log, "fsync_bytes", ("bytes in an fsync", ""), Neither),
    figure(Disk, "bytes_per_send", ("written", "bytes/send"), Less),
    figure(
        Disk,
        "stored_bytes_per_send",
        ("stored", "bytes/send"),
        Less,
    ),
    figure(Disk, "written_bytes_per_s", ("written", "bytes/s"), Less),
    figure(
        Disk,
        "disk_fdatasync_per_s",
        ("bare fdatasync", "/s"),
        Neither,
    ),
    figure(
        Disk,
        "disk_read_bytes_per_sync",
        ("read", "bytes/sync"),
        Less,
    ),
    figure(
        Calls,
        "messages_per_push",
        ("messages in a push", ""),
        Neither,
    ),
    figure(
        Calls,
        "wire_bytes_per_delivery",
        ("wire", "bytes/delivery"),
        Less,
    ),
    figure(
        Calls,
        "server_waits_per_send",
        ("server waits", "/send"),
        Less,
    ),
    figure(
        Calls,
        "server_file_calls_per_send",
        ("server file calls", "/send"),
        Less,
    ),
    figure(
        Calls,
        "gateway_waits_per_send",
        ("gateway waits", "/send"),
        Less,
    ),
];

/// What a key means; `None` for one of a later version.
pub(in crate::bench) fn meaning(key: &str) -> Option<&'static Meaning> {
    MEANINGS.iter().find(|meaning| meaning.key == key)
}

/// The figures of a bench's own report: of its members those that have a meaning here.
///
/// # Errors
/// The report is no JSON object.
pub(in crate::bench) fn of(report: &impl Serialize) -> anyhow::Result<Figures> {
    let json = serde_json::to_value(report).context("read the figures of a report")?;
    let members = json.as_object().context("a report is an object")?;
    let known = members.iter().filter(|(key, _)| meaning(key).is_some());
    let known = known.filter_map(|(key, value)| Some((key.clone(), Value::as_f64(value)?)));
    Ok(known.collect())
}

/// A figure to three digits or so: no more of them are exact.
pub(in crate::bench) fn shown(figure: f64) -> String {
    let size = figure.abs();
    if figure == 0.0 {
        "0".to_owned()
    } else if size >= 100.0 {
        // As in every other place: thousands apart.
        let sign = if figure < 0.0 { "-" } else { "" };
        format!("{sign}{}", grouped(size.round() as u64))
    } else if size >= 10.0 {
        format!("{figure:.1}")
    } else {
        format!("{figure:.2}")
    }
}

/// The figures in words, a line for each group that has some.
pub(super) fn human(figures: &Figures) -> String {
    let (mut text, mut group) = (String::new(), None);
    for meaning in MEANINGS {
        let Some(figure) = figures.get(meaning.key) else {
            continue;
        };
        let begin = match group.replace(meaning.group) {
            None => format!("  {:<9}", meaning.group.name()),
            Some(before) if before == meaning.group => ", ".to_owned(),
            Some(_) => format!("\n  {:<9}", meaning.group.name()),
        };
        let (label, figure) = (meaning.label, shown(*figure));
        let space = if meaning.unit.starts_with(['/', '%']) || meaning.unit.is_empty() {
            ""
        } else {
            " "
        };
        // Text grows in memory only: it cannot fail.
        let _ = write!(text, "{begin}{label} {figure}{space}{}", meaning.unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_meaning_and_a_group_stands_together() {
        let keys: std::collections::BTreeSet<_> = MEANINGS.iter().map(|one| one.key).collect();
        assert_eq!(keys.len(), MEANINGS.len());
        let mut groups: Vec<Group> = MEANINGS.iter().map(|one| one.group).collect();
        groups.dedup();
        let names: std::collections::BTreeSet<_> = groups.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), groups.len(), "a group is in two places");
    }

    #[test]
    fn a_report_gives_its_known_numbers() {
        let report = crate::bench::report::tests::report();
        let figures = of(&report).unwrap();
        assert_eq!(figures.get("sends_per_s"), Some(&9_000.4));
        assert_eq!(figures.get("leader_cpu_us_per_send"), Some(&70.0));
        // Null, no figure, and not ours.
        for absent in ["disk_fdatasync_per_s", "fs", "users"] {
            assert!(!figures.contains_key(absent), "{absent}");
        }
        assert!(of(&17).is_err());
    }

    #[test]
    fn digits_fit_the_size() {
        for (figure, text) in [
            (44_826.1, "44,826"),
            (100.0, "100"),
            (20.04, "20.0"),
            (4.061, "4.06"),
            (0.0, "0"),
            (0.05, "0.05"),
            (-150.0, "-150"),
        ] {
            assert_eq!(shown(figure), text);
        }
    }

    #[test]
    fn words_have_a_line_for_each_group() {
        let figures = Figures::from([
            ("p99_ms".to_owned(), 22.0),
            ("sends_per_s".to_owned(), 44_826.1),
            ("p50_ms".to_owned(), 4.061),
            ("of_a_later_version".to_owned(), 1.0),
        ]);
        assert_eq!(
            human(&figures),
            "  rate     sends 44,826/s\n  latency  p50 4.06 ms, p99 22.0 ms"
        );
        assert_eq!(human(&Figures::new()), "");
    }
}
