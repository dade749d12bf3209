//! The service times of a simulated shard, from the sheet.

use super::formula::Sheet;
use super::stations::{Ns, ns, slowdown};

/// Entries proposed and not yet applied, as in `raft/src/proposer.rs`.
const ENTRIES_IN_FLIGHT_MAX: usize = 8;
/// An entry takes no further command once it has so many, or so many bytes.
const ENTRY_COMMANDS_FULL: f64 = 4096.0;
const ENTRY_BYTES_FULL: f64 = 262_144.0;
/// Bytes of a command beside the body.
const COMMAND_BYTES: f64 = 51.0;

/// Two shards that send to each other, each with its leader, its followers and their logs.
#[derive(Debug, Clone)]
pub(super) struct Model {
    /// Simulated time in which clients send: a day, compressed.
    pub(super) horizon: Ns,
    /// Sends of either shard, in the busiest second.
    pub(super) sends_per_s: f64,
    pub(super) peak_factor: f64,
    pub(super) burst_factor: f64,
    /// Of the time.
    pub(super) burst_share: f64,
    pub(super) group_share: f64,
    /// Of the 1:1 sends.
    pub(super) cross_share: f64,
    pub(super) replicas: usize,
    /// From any node to any other.
    pub(super) hop: Ns,
    /// The gateway's work for a send.
    pub(super) frame: Ns,
    pub(super) propose: Ns,
    /// Commands that are worth an entry, and more than which one takes no more.
    pub(super) commands_worth: usize,
    pub(super) commands_full: usize,
    pub(super) entries_in_flight_max: usize,
    /// Commands of other shards that the leader's node is given in a second: what the ticks of entries grow with.
    pub(super) other_commands_per_s: f64,
    /// Entries of other shards that each node's log is given in a second.
    pub(super) other_entries_per_s: f64,
    /// Mean of a sync; what each entry in it adds.
    pub(super) sync_us: f64,
    pub(super) sync_entry: Ns,
    pub(super) apply: Ns,
    /// The gateway's work for a message from the store, and for each session that gets it.
    pub(super) stream: Ns,
    pub(super) push: Ns,
    /// Sessions of a gateway that a group message is pushed to.
    pub(super) pushes_of_group: f64,
}

impl Model {
    /// The shard of the sheet, on nodes as busy as they are when the spare ones are down.
    ///
    /// # Errors
    /// The sheet lacks a line.
    pub(super) fn of(sheet: &Sheet, seconds: u32) -> anyhow::Result<Model> {
        let of = |name| sheet.get(name);
        let store = slowdown(of("nodes_cores")?, of("node_cpu_share")?);
        let gateway = slowdown(of("gateways_cores")?, of("gateway_cpu_share")?);
        let command_bytes = of("body_bytes")? + COMMAND_BYTES;
        let worth = of("entry_commands")?;
        let entry_write_us = worth * command_bytes / of("nodes_write_mb_per_s")?;
        let led_by_node = of("node_replicas")? / of("replicas")?;
        let full = (ENTRY_BYTES_FULL / command_bytes).clamp(1.0, ENTRY_COMMANDS_FULL);
        Ok(Model {
            horizon: Ns::from(seconds) * 1_000_000_000,
            sends_per_s: of("shard_sends")?,
            peak_factor: of("peak_factor")?,
            burst_factor: of("burst_factor")?,
            burst_share: of("burst_share")?,
            group_share: of("group_share")?,
            cross_share: of("cross_share")?,
            replicas: of("replicas")? as usize,
            hop: ns(of("round_trip_us")? / 2.0),
            frame: ns(of("frame_cpu_us")? * gateway),
            propose: ns(of("propose_us")? * store),
            commands_worth: worth.ceil() as usize,
            commands_full: full as usize,
            entries_in_flight_max: ENTRIES_IN_FLIGHT_MAX,
            other_commands_per_s: of("shard_commands")? * (led_by_node - 1.0).max(0.0),
            other_entries_per_s: (of("node_entries_per_s")? - of("shard_entries_per_s")?).max(0.0),
            sync_us: of("log_sync_us")?,
            sync_entry: ns(of("log_entry_us")? * store + entry_write_us),
            apply: ns(of("apply_us")? * store),
            stream: ns(of("stream_cpu_us")? * gateway),
            push: ns(of("push_cpu_us")? * gateway),
            pushes_of_group: (of("online_members")? / of("gateway_touches")?.max(1.0)).max(1.0),
        })
    }

    /// Sends a second at a moment of the day, without bursts: from little at night to the peak at noon, as a cosine.
    ///
    /// Of a day whose peak is more than twice its mean the mean comes out too high: that much harder is the test.
    pub(super) fn rate_at(&self, now: Ns) -> f64 {
        let night = (2.0 / self.peak_factor - 1.0).max(0.0);
        let day = now as f64 / self.horizon.max(1) as f64;
        let height = (1.0 - (std::f64::consts::TAU * day).cos()) / 2.0;
        self.sends_per_s * (night + (1.0 - night) * height)
    }

    /// Whether a moment is in the busiest fifth of the day: only that is measured.
    pub(super) fn is_busiest(&self, now: Ns) -> bool {
        let fifth = self.horizon / 5;
        (2 * fifth..3 * fifth).contains(&now)
    }

    /// What is measured, in seconds.
    pub(super) fn busiest_s(&self) -> f64 {
        self.horizon as f64 / 5e9
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::values::tests::values;
    use super::*;

    /// The shard of a small cluster, and what else the flags say.
    pub(in super::super) fn model(flags: &[(&'static str, f64)], seconds: u32) -> Model {
        let small = [
            ("messages_per_day", 1e9),
            ("users", 1e7),
            ("online", 1e6),
            ("shard_sends_per_s", 2_000.0),
        ];
        let sheet = Sheet::work(values(&[&small, flags].concat())).unwrap();
        Model::of(&sheet, seconds).unwrap()
    }

    #[test]
    fn a_day_is_as_uneven_as_it_was_said_to_be() {
        for (factor, night) in [(1.0, 1.0), (1.6, 0.25), (2.0, 0.0), (5.0, 0.0)] {
            let model = model(&[("peak_factor", factor)], 10);
            let at = |share: f64| model.rate_at((model.horizon as f64 * share) as Ns);
            assert!((at(0.5) / model.sends_per_s - 1.0).abs() < 1e-9);
            assert!((at(0.0) / model.sends_per_s - night).abs() < 1e-9);
            let steps = 1_000;
            let mean: f64 = (0..steps)
                .map(|step| at(f64::from(step) / f64::from(steps)))
                .sum();
            let mean = mean / f64::from(steps);
            let asked = model.sends_per_s / factor;
            assert!(mean > 0.999 * asked, "{factor}: {mean} of {asked}");
        }
    }

    #[test]
    fn the_busiest_fifth_is_about_noon() {
        let model = model(&[], 10);
        assert!(model.is_busiest(5_000_000_000));
        assert!(model.is_busiest(4_000_000_000));
        assert!(!model.is_busiest(3_999_999_999));
        assert!(!model.is_busiest(6_000_000_000));
        assert_eq!(model.busiest_s(), 2.0);
    }

    #[test]
    fn large_bodies_make_entries_of_few_commands() {
        let (small, large) = (model(&[], 1), model(&[("body_bytes", 8_192.0)], 1));
        assert_eq!((small.commands_worth, small.commands_full), (32, 1_736));
        assert_eq!((large.commands_worth, large.commands_full), (4, 31));
    }
}
