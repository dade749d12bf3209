//! Works the sheet: what each formula comes to, and whether what has to hold does.

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::expression::{evaluate, with_numbers};
use super::sheet::{CHECKS, Line, SHEET};
use super::values::Values;

/// A line with what it comes to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Worked {
    #[serde(skip)]
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) formula: &'static str,
    /// The formula with its numbers.
    pub(super) with: String,
    pub(super) value: f64,
    pub(super) why: &'static str,
}

/// What has to hold, and whether it does.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) at_most: f64,
    pub(super) holds: bool,
    /// What to do if it does not.
    pub(super) mend: &'static str,
}

/// The whole sheet, worked.
#[derive(Debug, Clone)]
pub(super) struct Sheet {
    values: Values,
    pub(super) lines: Vec<Worked>,
}

impl Sheet {
    /// Works the sheet from top to bottom.
    ///
    /// # Errors
    /// A line comes to less than nothing or to no number at all: the inputs do not fit each other.
    pub(super) fn work(values: Values) -> anyhow::Result<Sheet> {
        let mut sheet = Sheet {
            values,
            lines: Vec::new(),
        };
        for (section, lines) in SHEET {
            for line in lines {
                let worked = sheet.line(section, line)?;
                sheet.lines.push(worked);
            }
        }
        Ok(sheet)
    }

    fn line(&self, section: &'static str, line: &Line) -> anyhow::Result<Worked> {
        let (name, unit, formula, why) = *line;
        let names = |wanted: &str| self.find(wanted);
        let value = evaluate(formula, &names).with_context(|| format!("work {name}"))?;
        let with = with_numbers(formula, &names)?;
        // A billionth below zero is a rounding.
        if !value.is_finite() || value < -1e-9 {
            bail!("{name} = {formula} = {with} comes to {value}: {why}");
        }
        Ok(Worked {
            section,
            name,
            unit,
            formula,
            with,
            value,
            why,
        })
    }

    fn find(&self, name: &str) -> Option<f64> {
        let line = self.lines.iter().find(|line| line.name == name);
        line.map(|line| line.value)
            .or_else(|| self.values.get(name))
    }

    /// What a line or an input comes to.
    ///
    /// # Errors
    /// There is none of this name.
    pub(super) fn get(&self, name: &str) -> anyhow::Result<f64> {
        self.find(name)
            .with_context(|| format!("find {name} in the sheet"))
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    /// What has to hold beside.
    ///
    /// # Errors
    /// A check names what is not there.
    pub(super) fn checks(&self) -> anyhow::Result<Vec<Check>> {
        let check = |&(name, limit, mend): &(&'static str, &str, &'static str)| {
            let value = self.get(name)?;
            let at_most = evaluate(limit, &|wanted: &str| self.find(wanted))?;
            anyhow::Ok(Check {
                name,
                value,
                at_most,
                // What a ceiling was divided by is not to fail it by a rounding.
                holds: value <= at_most * (1.0 + 1e-9),
                mend,
            })
        };
        CHECKS.iter().map(check).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mailbox_engine::{
        DedupKey, Destination, Flags, MessageId, MessageType, NewRow, RangeId, Seq, StateKey,
        StoredKey, UserId,
    };
    use uuid::Uuid;

    use super::super::values::tests::values;
    use super::*;

    fn sheet(flags: &[(&'static str, f64)]) -> Sheet {
        Sheet::work(values(flags)).unwrap()
    }

    #[track_caller]
    fn assert_near(sheet: &Sheet, name: &str, by_hand: f64) {
        let value = sheet.get(name).unwrap();
        let off = (value - by_hand).abs() / by_hand.abs().max(1e-9);
        assert!(off < 1e-6, "{name} is {value}, by hand {by_hand}");
    }

    #[test]
    fn the_sheet_is_what_a_calculator_says() {
        let sheet = sheet(&[("group_share", 0.0), ("retention_days", 10.0)]);
        assert_near(&sheet, "peak_sends_per_s", 3_472_222.222_222);
        assert_near(&sheet, "pushes_per_s", 1_736_111.111_111);
        // 348 shards by rate; a 1:1 message: 12.62 + 23.1 + 3 x 347/348 x 30.53
        assert_near(&sheet, "shards_by_rate", 348.0);
        assert_near(&sheet, "direct_cpu_us", 127.046_810_3);
        assert_near(&sheet, "send_cores", 441.134_757_9);
        assert_near(&sheet, "message_bytes", 340.0);
        // 1e11 x (3,400 + 469) x 1.18 x 3
        assert_near(&sheet, "stored_bytes", 1.369_626e15);
        assert_near(&sheet, "nodes_by_disk", 172.0);
        // 3,472,222 x 407 x 3.91 x 3
        assert_near(&sheet, "written_bytes_per_s", 16_576_770_833.3);
        // 200 million connections of 8.67 KiB
        assert_near(&sheet, "gateway_memory_bytes", 1.775_616e12);
        assert_near(&sheet, "gateways_by_connections", 200.0);
    }

    #[test]
    fn one_shard_costs_what_was_measured_of_it() {
        let small = sheet(&[
            ("messages_per_day", 86_400.0),
            ("replicas_per_node", 1.0),
            ("users", 1_000.0),
            ("online", 100.0),
        ]);
        assert_near(&small, "cross_share", 0.0);
        assert_near(&small, "direct_cpu_us", 35.72);
    }

    #[test]
    fn sixteen_shards_cost_what_was_measured_of_them() {
        let crossing = sheet(&[("shards_cpu_us", 21.413_333), ("lane_cpu_us", 9.12)]);
        let all = crossing.get("direct_cpu_us").unwrap();
        // Of messages that all cross: 127.31.
        assert!((126.5..=127.35).contains(&all), "{all}");
    }

    #[test]
    fn rows_are_as_long_as_the_engine_writes_them() {
        let (sender, recipient) = (UserId(1), UserId(2));
        let (id, seq) = (Uuid::from_u128(7 << 76 | 2 << 62), Seq(9));
        let timeline = sender.mailbox();
        let row = NewRow {
            message_id: MessageId(1),
            correspondent: recipient,
            client_msg_id: id,
            sent_at_ms: 1,
            kind: MessageType::TEXT,
            flags: Flags::default(),
            body: Bytes::from(vec![7; 100]),
            content_crc: 0,
        };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        StoredKey::State {
            range: RangeId(1),
            suffix: StateKey::Message { timeline, seq }.encode().as_slice(),
        }
        .encode(&mut key);
        row.at(timeline, seq).encode(&mut value);
        let sheet = sheet(&[]);
        assert_near(&sheet, "row_bytes", (key.len() + value.len()) as f64);
        let dedup = DedupKey {
            id,
            sender,
            destination: Destination::timeline(recipient.mailbox()),
        };
        key.clear();
        StoredKey::Dedup {
            hour: dedup.hour(),
            range: RangeId(1),
            suffix: &dedup.encode(),
        }
        .encode(&mut key);
        assert_near(&sheet, "dedup_row_bytes", (key.len() + 25) as f64);
    }

    #[test]
    fn more_of_anything_needs_no_fewer_nodes() {
        let nodes = |flags: &[(&'static str, f64)]| {
            let sheet = sheet(flags);
            let of = |name| sheet.get(name).unwrap();
            (of("nodes"), of("gateways"))
        };
        for (name, steps) in [
            ("messages_per_day", [1e9, 1e10, 1e11, 1e12]),
            ("peak_factor", [1.0, 2.0, 5.0, 20.0]),
            ("body_bytes", [0.0, 100.0, 1_000.0, 8_000.0]),
            ("group_members", [2.0, 20.0, 200.0, 2_000.0]),
            ("retention_days", [1.0, 10.0, 100.0, 1_000.0]),
            ("online", [1e6, 1e7, 1e8, 1e9]),
            ("replicas", [1.0, 3.0, 5.0, 7.0]),
            ("spare_nodes", [0.0, 1.0, 10.0, 100.0]),
            ("write_amplification", [1.0, 4.0, 40.0, 400.0]),
        ] {
            let found = steps.map(|step| nodes(&[(name, step)]));
            let rise = found.windows(2).all(|pair| match pair {
                [(a, x), (b, y)] => a <= b && x <= y,
                _ => false,
            });
            assert!(rise, "{name}: {found:?}");
        }
        let filled = |ceiling| nodes(&[("utilisation", ceiling), ("gateways_connections", 1e8)]);
        let (tight, loose) = (filled(0.8), filled(0.3));
        assert!(tight.0 <= loose.0 && tight.1 < loose.1);
    }

    #[test]
    fn the_ceiling_holds_with_the_spare_nodes_down() {
        for flags in [
            &[][..],
            &[("spare_nodes", 40.0), ("spare_gateways", 60.0)],
            &[("messages_per_day", 1e7), ("users", 1e5), ("online", 1e4)],
            &[("retention_days", 1.0), ("dedup_days", 1.0)],
        ] {
            let sheet = sheet(flags);
            for check in sheet.checks().unwrap() {
                assert!(check.holds, "{flags:?}: {check:?}");
            }
            let left = sheet.get("nodes_left").unwrap();
            assert!(left >= sheet.get("nodes_needed").unwrap(), "{flags:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let error = Sheet::work(values(&[("nodes_memory_gib", 1.0)])).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("node_room_bytes"), "{error}");
        assert!(error.contains("--nodes-memory-gib"), "{error}");
        let sheet = sheet(&[("apply_us", 400.0)]);
        let checks = sheet.checks().unwrap();
        let failed: Vec<_> = checks.iter().filter(|check| !check.holds).collect();
        assert!(
            failed.iter().any(|check| check.name == "apply_share"),
            "{failed:?}"
        );
    }
}
