//! The figures of a peer: of one round, and the medians of several. Keys that `mailbox-bench send` has, too, mean the
//! same.

use anyhow::Context as _;
use serde::Serialize;

use super::super::report::round;
use super::Kind;
use crate::output::grouped;

/// A peer that reaches less of what it is known for, in percent, is told of.
const EXPECTED_PERCENT_MIN: f64 = 75.0;
/// `fdatasync`s a second where the known figures come from.
const EXPECTED_FDATASYNC_PER_S: f64 = 2500.0;
/// Its processors.
const EXPECTED_CORES: u64 = 2;

/// One round. README.md says how each figure is measured.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Round {
    /// Of the peer, as it says itself.
    pub(crate) version: String,
    pub(crate) nodes: u64,
    pub(crate) users: u64,
    /// Sends on the way at any time.
    pub(crate) in_flight: u64,
    pub(crate) body_bytes: u64,
    pub(crate) warmup_s: f64,
    pub(crate) fs: String,
    pub(crate) sends_per_s: f64,
    pub(crate) errors: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) server_cpu_us_per_send: f64,
    pub(crate) client_cpu_us_per_send: f64,
    pub(crate) disk_fdatasync_per_s: f64,
    pub(crate) stored_bytes_per_send: f64,
    /// Processors of this machine.
    pub(crate) cores: u64,
    /// Of all processors: the peer's and the generator's time.
    pub(crate) busy_percent: f64,
}

/// All rounds of a peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    peer: &'static str,
    /// Always `closed`.
    #[serde(rename = "loop")]
    shape: &'static str,
    /// Every peer syncs before it acks.
    fsync: bool,
    /// The median of each figure; `errors` is the sum.
    #[serde(flatten)]
    pub(crate) median: Round,
    /// What each round reached.
    round_sends_per_s: Vec<f64>,
    /// Seen on another machine, see `Kind::expected_sends_per_s`.
    expected_sends_per_s: f64,
    expected_percent: f64,
    /// Why less than three quarters of it was reached, as far as the bench can see.
    shortfall: Option<String>,
}

impl Report {
    /// The medians of these rounds of one peer.
    ///
    /// # Errors
    /// There is no round.
    pub(crate) fn of(kind: Kind, rounds: &[Round]) -> anyhow::Result<Self> {
        let last = rounds.last().context("a report needs a round")?;
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        let median = Round {
            sends_per_s: of(|round| round.sends_per_s),
            errors: rounds.iter().map(|round| round.errors).sum(),
            p50_ms: of(|round| round.p50_ms),
            p95_ms: of(|round| round.p95_ms),
            p99_ms: of(|round| round.p99_ms),
            p999_ms: of(|round| round.p999_ms),
            server_cpu_us_per_send: of(|round| round.server_cpu_us_per_send),
            client_cpu_us_per_send: of(|round| round.client_cpu_us_per_send),
            disk_fdatasync_per_s: of(|round| round.disk_fdatasync_per_s),
            stored_bytes_per_send: of(|round| round.stored_bytes_per_send),
            busy_percent: of(|round| round.busy_percent),
            ..last.clone()
        };
        let expected = kind.expected_sends_per_s();
        let expected_percent = round(median.sends_per_s / expected * 100.0, 1);
        Ok(Self {
            peer: kind.name(),
            shape: "closed",
            fsync: true,
            shortfall: (expected_percent < EXPECTED_PERCENT_MIN).then(|| shortfall(&median)),
            round_sends_per_s: rounds.iter().map(|round| round.sends_per_s).collect(),
            median,
            expected_sends_per_s: expected,
            expected_percent,
        })
    }

    /// No send failed.
    pub(crate) fn is_good(&self) -> bool {
        self.median.errors == 0
    }

    /// The report in words.
    pub(crate) fn human(&self) -> String {
        let median = &self.median;
        let mut lines = vec![
            format!(
                "{} {}, {} node(s), {} mailboxes, {} sends in flight, {}-byte bodies, {} round(s)",
                self.peer,
                median.version,
                median.nodes,
                grouped(median.users),
                median.in_flight,
                median.body_bytes,
                self.round_sends_per_s.len(),
            ),
            format!(
                "sends      {:.0}/s, {} errors; each round: {:?}",
                median.sends_per_s, median.errors, self.round_sends_per_s
            ),
            format!(
                "latency    p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                median.p50_ms, median.p95_ms, median.p99_ms, median.p999_ms
            ),
            format!("server cpu {:.1} us/send", median.server_cpu_us_per_send),
            format!("client cpu {:.1} us/send", median.client_cpu_us_per_send),
            format!(
                "processors {:.0} % of {} busy with both",
                median.busy_percent, median.cores
            ),
            format!(
                "disk       {}, {:.1} fdatasync/s",
                median.fs, median.disk_fdatasync_per_s
            ),
            format!(
                "stored     {:.1} bytes/send, all nodes",
                median.stored_bytes_per_send
            ),
            format!(
                "expected   {} sends/s on another machine of {EXPECTED_CORES} cores; this is {:.0} % of it",
                grouped(self.expected_sends_per_s as u64),
                self.expected_percent
            ),
        ];
        if let Some(shortfall) = &self.shortfall {
            lines.push(format!("shortfall  {shortfall}"));
        }
        lines.join("\n")
    }
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let upper = figures.len() / 2;
    let lower = figures.len().saturating_sub(1) / 2;
    match (figures.get(lower), figures.get(upper)) {
        (Some(lower), Some(upper)) => round((lower + upper) / 2.0, 3),
        _ => 0.0,
    }
}

/// What the machine had to give, beside what it had where the known figure comes from.
fn shortfall(median: &Round) -> String {
    let mut reasons = Vec::new();
    if median.errors > 0 {
        reasons.push(format!("{} sends failed", median.errors));
    }
    if median.disk_fdatasync_per_s < EXPECTED_FDATASYNC_PER_S * EXPECTED_PERCENT_MIN / 100.0 {
        reasons.push(format!(
            "this disk syncs {:.0} times a second, that one {EXPECTED_FDATASYNC_PER_S:.0}",
            median.disk_fdatasync_per_s
        ));
    }
    if median.cores < EXPECTED_CORES {
        reasons.push(format!(
            "this machine has {} core(s), that one {EXPECTED_CORES}",
            median.cores
        ));
    }
    if median.busy_percent > 85.0 {
        reasons.push("all processors were busy with peer and generator".to_owned());
    } else if reasons.is_empty() {
        reasons.push(format!(
            "peer and generator got {:.0} % of the processors: either others used them, or the peer waited",
            median.busy_percent
        ));
    }
    format!(
        "less than {EXPECTED_PERCENT_MIN:.0} % of it: {}",
        reasons.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_of(sends_per_s: f64) -> Round {
        Round {
            version: "7.0".to_owned(),
            nodes: 1,
            sends_per_s,
            p99_ms: 100_000.0 / sends_per_s,
            disk_fdatasync_per_s: 2600.0,
            cores: 2,
            busy_percent: 95.0,
            ..Round::default()
        }
    }

    #[test]
    fn figures_are_medians_and_errors_add_up() {
        let mut rounds = [16_000.0, 10_000.0, 20_000.0].map(round_of);
        rounds[0].errors = 1;
        rounds[1].errors = 2;
        let report = Report::of(Kind::Redis, &rounds).unwrap();
        assert_eq!(
            (report.median.sends_per_s, report.median.errors),
            (16_000.0, 3)
        );
        assert_eq!(report.median.p99_ms, 6.25);
        assert_eq!(report.round_sends_per_s, [16_000.0, 10_000.0, 20_000.0]);
        assert_eq!(
            (report.expected_percent, report.shortfall.clone()),
            (99.4, None)
        );
        assert!(!report.is_good());
        assert_eq!(median(vec![1.0, 4.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
        assert!(Report::of(Kind::Redis, &[]).is_err());
    }

    #[test]
    fn less_than_three_quarters_is_told_of_with_a_reason() {
        let why = |change: fn(&mut Round)| {
            let mut round = round_of(12_000.0);
            change(&mut round);
            Report::of(Kind::Redis, &[round])
                .unwrap()
                .shortfall
                .unwrap()
        };
        assert!(why(|_| {}).contains("processors were busy"));
        assert!(why(|round| round.disk_fdatasync_per_s = 300.0).contains("300 times"));
        assert!(why(|round| round.cores = 1).contains("1 core"));
        assert!(why(|round| round.errors = 5).contains("5 sends failed"));
        assert!(why(|round| round.busy_percent = 40.0).contains("40 %"));
        let enough = Report::of(Kind::Redis, &[round_of(12_075.0)]).unwrap();
        assert_eq!(enough.shortfall, None);
    }

    #[test]
    fn keys_are_those_of_send_and_words_name_every_figure() {
        let report = Report::of(Kind::NatsBatch, &[round_of(2000.0)]).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        let promised = "nodes users in_flight body_bytes loop warmup_s fs fsync sends_per_s errors p50_ms p95_ms \
            p99_ms p999_ms server_cpu_us_per_send client_cpu_us_per_send disk_fdatasync_per_s stored_bytes_per_send \
            peer version round_sends_per_s expected_sends_per_s expected_percent shortfall cores busy_percent";
        for key in promised.split_whitespace() {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
        let text = report.human();
        for part in [
            "nats-batch 7.0",
            "2000/s",
            "3,000 sends/s",
            "67 % of it",
            "less than 75 %",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
