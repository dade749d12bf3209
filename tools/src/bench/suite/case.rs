//! The cases of the suite: a fixed list, so that results of any two runs have the same names for the same work.

use super::super::send::Pairs;

/// Load before anything is measured, in seconds.
pub(super) const WARMUP_S: u64 = 3;
/// Seconds that a case is measured for, unless told otherwise.
const MEASURED_S: u64 = 15;
/// A cluster at rest shows what it costs more slowly.
const IDLE_S: u64 = 20;
/// Rest before a cluster at rest is measured, in seconds.
pub(super) const SETTLE_S: u64 = 10;
/// Of 100 operations of the mixed load so many are syncs.
const MIXED_SYNCS: u8 = 10;

/// One case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// For ever: results are compared by it.
    pub(super) name: &'static str,
    pub(super) work: Work,
    /// Seconds that are measured.
    pub(super) measured_s: u64,
    /// Expected seconds of everything around: a disk probe, start, registration, warm-up, last answers, stop.
    around_s: u64,
}

/// What a case does. A case of another kind is an entry here, one in [`CASES`] and an arm in `run.rs`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// 1:1 sends over gRPC.
    Send(Sends),
    /// 1:1 sends over WebSockets, each node with a gateway.
    Gateway { nodes: usize },
    /// Posts to a group whose members are all online, behind one gateway.
    Group { members: u32, tls: bool },
    /// Devices that read what they have missed, from the store of one node.
    Sync { rows: u32, cold: bool },
    /// Nothing at all.
    Idle { nodes: usize, shards: u16 },
}

/// 1:1 sends to a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sends {
    pub(super) nodes: usize,
    pub(super) shards: u16,
    pub(super) pairs: Pairs,
    pub(super) body_bytes: usize,
    /// Of 100 operations so many are syncs.
    pub(super) syncs: u8,
    pub(super) pressure: Pressure,
}

/// How hard to load.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pressure {
    /// A closed loop: as much as goes.
    Full,
    /// An open loop at a share of what another case, a closed loop, has reached in the same round.
    Share { percent: u64, of: &'static str },
}

const fn sends(nodes: usize, shards: u16, pairs: Pairs) -> Sends {
    Sends {
        nodes,
        shards,
        pairs,
        body_bytes: 100,
        syncs: 0,
        pressure: Pressure::Full,
    }
}

impl Sends {
    const fn with_bodies(self, body_bytes: usize) -> Self {
        Self { body_bytes, ..self }
    }

    const fn at(self, percent: u64, of: &'static str) -> Self {
        let pressure = Pressure::Share { percent, of };
        Self { pressure, ..self }
    }

    const fn with_syncs(self, syncs: u8) -> Self {
        Self { syncs, ..self }
    }

    const fn named(self, name: &'static str) -> Case {
        Case {
            name,
            work: Work::Send(self),
            measured_s: MEASURED_S,
            around_s: around_s(self.nodes, self.shards),
        }
    }
}

/// What the begin and the end of a case take: mostly 100,000 registrations, slower on more shards.
const fn around_s(nodes: usize, shards: u16) -> u64 {
    match (nodes, shards) {
        (1, _) => 20,
        (_, ..=1) => 28,
        (_, ..=16) => 38,
        (_, _) => 60,
    }
}

const fn group(name: &'static str, members: u32, tls: bool) -> Case {
    Case {
        name,
        work: Work::Group { members, tls },
        measured_s: MEASURED_S,
        around_s: 15,
    }
}

const fn sync(name: &'static str, rows: u32, cold: bool) -> Case {
    Case {
        name,
        work: Work::Sync { rows, cold },
        measured_s: MEASURED_S,
        around_s: if rows >= 1000 { 60 } else { 25 },
    }
}

const ONE_NODE: Sends = sends(1, 1, Pairs::Any);
const THREE_NODES: Sends = sends(3, 1, Pairs::Any);
const CROSS_16: Sends = sends(3, 16, Pairs::CrossShard);
const SAME_16: Sends = sends(3, 16, Pairs::SameShard);
const CROSS_64: Sends = sends(3, 64, Pairs::CrossShard);

/// Every case, in the order in which they run: an open loop after the closed loop that it takes its rate from.
pub(super) const CASES: &[Case] = &[
    ONE_NODE.named("send-1-node-100b"),
    ONE_NODE.with_bodies(1 << 10).named("send-1-node-1k"),
    ONE_NODE.with_bodies(8 << 10).named("send-1-node-8k"),
    THREE_NODES.named("send-3-nodes-100b"),
    THREE_NODES
        .at(25, "send-3-nodes-100b")
        .named("open-3-nodes-25"),
    THREE_NODES
        .at(50, "send-3-nodes-100b")
        .named("open-3-nodes-50"),
    THREE_NODES
        .at(75, "send-3-nodes-100b")
        .named("open-3-nodes-75"),
    THREE_NODES.with_bodies(1 << 10).named("send-3-nodes-1k"),
    THREE_NODES.with_bodies(8 << 10).named("send-3-nodes-8k"),
    THREE_NODES.with_syncs(MIXED_SYNCS).named("mixed-3-nodes"),
    CROSS_16.named("send-16-shards-cross-100b"),
    CROSS_16
        .at(25, "send-16-shards-cross-100b")
        .named("open-16-shards-cross-25"),
    CROSS_16
        .at(50, "send-16-shards-cross-100b")
        .named("open-16-shards-cross-50"),
    CROSS_16
        .at(75, "send-16-shards-cross-100b")
        .named("open-16-shards-cross-75"),
    CROSS_16
        .with_bodies(1 << 10)
        .named("send-16-shards-cross-1k"),
    CROSS_16
        .with_bodies(8 << 10)
        .named("send-16-shards-cross-8k"),
    SAME_16.named("send-16-shards-same-100b"),
    SAME_16.with_bodies(1 << 10).named("send-16-shards-same-1k"),
    SAME_16.with_bodies(8 << 10).named("send-16-shards-same-8k"),
    CROSS_64.named("send-64-shards-100b"),
    CROSS_64.with_bodies(1 << 10).named("send-64-shards-1k"),
    CROSS_64.with_bodies(8 << 10).named("send-64-shards-8k"),
    Case {
        name: "gateway-3-nodes",
        work: Work::Gateway { nodes: 3 },
        measured_s: MEASURED_S,
        around_s: around_s(3, 1),
    },
    group("group-10", 10, false),
    group("group-100", 100, false),
    group("group-500", 500, false),
    group("group-500-tls", 500, true),
    sync("sync-25-hot", 25, false),
    sync("sync-100-hot", 100, false),
    sync("sync-1000-hot", 1000, false),
    sync("sync-25-cold", 25, true),
    sync("sync-100-cold", 100, true),
    sync("sync-1000-cold", 1000, true),
    Case {
        name: "idle-256-shards",
        work: Work::Idle {
            nodes: 3,
            shards: 256,
        },
        measured_s: IDLE_S,
        around_s: 40,
    },
];

impl Case {
    /// Seconds that are measured, as asked for.
    pub(super) fn seconds(&self, asked: Option<u64>) -> u64 {
        asked.unwrap_or(self.measured_s)
    }

    /// Expected seconds from begin to end.
    pub(super) fn expected_s(&self, asked: Option<u64>) -> u64 {
        self.seconds(asked) + self.around_s
    }

    /// The case whose rate this one takes a share of.
    pub(super) fn needs(&self) -> Option<&'static str> {
        match self.work {
            Work::Send(Sends {
                pressure: Pressure::Share { of, .. },
                ..
            }) => Some(of),
            Work::Send(_)
            | Work::Gateway { .. }
            | Work::Group { .. }
            | Work::Sync { .. }
            | Work::Idle { .. } => None,
        }
    }

    /// What it does, in words.
    pub(super) fn words(&self) -> String {
        match self.work {
            Work::Send(sends) => sends.words(),
            Work::Gateway { nodes } => {
                format!(
                    "{nodes} node(s), each with a gateway: 1:1 sends over WebSockets, closed loop"
                )
            }
            Work::Group { members, tls } => {
                let way = if tls { "TLS" } else { "plain" };
                format!(
                    "3 node(s), one gateway: posts to a group of {members}, all online over {way} WebSockets, closed loop"
                )
            }
            Work::Sync { rows, cold } => {
                let warmth = if cold { "cold" } else { "hot" };
                format!("1 node(s): {warmth} mailboxes, {rows} messages a sync, closed loop")
            }
            Work::Idle { nodes, shards } => format!("{nodes} node(s), {shards} shards: at rest"),
        }
    }
}

impl Sends {
    fn words(&self) -> String {
        let pairs = match self.pairs {
            Pairs::Any => "",
            Pairs::CrossShard => " between two shards",
            Pairs::SameShard => " within a shard",
        };
        let syncs = match self.syncs {
            0 => String::new(),
            percent => format!(" and {percent} % syncs"),
        };
        let pressure = match self.pressure {
            Pressure::Full => "closed loop".to_owned(),
            Pressure::Share { percent, of } => format!("open loop at {percent} % of {of}"),
        };
        format!(
            "{} node(s), {} shard(s): 1:1 sends{pairs}{syncs}, {}-byte bodies, {pressure}",
            self.nodes, self.shards, self.body_bytes
        )
    }
}

/// The cases that are asked for by name, and those that they need, in the order of the list. A name stands for the one
/// case that has it, else for all that begin with it; no name at all stands for every case.
///
/// # Errors
/// No case begins with a name.
pub(super) fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Case>> {
    let mut chosen: Vec<&str> = Vec::new();
    for name in names {
        let exact = CASES.iter().any(|case| case.name == name);
        let fits = |case: &&Case| case.name == name || (!exact && case.name.starts_with(name));
        let found: Vec<&Case> = CASES.iter().filter(fits).collect();
        if found.is_empty() {
            let all: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            anyhow::bail!("no case begins with `{name}`; there are {}", all.join(", "));
        }
        chosen.extend(found.iter().map(|case| case.name));
        chosen.extend(found.iter().filter_map(|case| case.needs()));
    }
    let all = names.is_empty();
    let cases = CASES.iter();
    Ok(cases
        .filter(|case| all || chosen.contains(&case.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &[&str]) -> Vec<&'static str> {
        let asked: Vec<String> = asked.iter().map(|&name| name.to_owned()).collect();
        let cases = choose(&asked).unwrap();
        cases.into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn every_case_has_a_name_of_its_own_that_a_shell_takes() {
        let names: std::collections::BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(plain)));
    }

    #[test]
    fn all_cases_take_three_quarters_of_an_hour_at_most() {
        let seconds: u64 = CASES.iter().map(|case| case.expected_s(None)).sum();
        assert!(seconds <= super::super::ROUND_S_MAX, "{seconds} s");
    }

    #[test]
    fn a_share_is_taken_of_a_closed_loop_that_ran_before() {
        for (place, case) in CASES.iter().enumerate() {
            let Some(of) = case.needs() else { continue };
            let before = &CASES[..place];
            let of = before.iter().find(|before| before.name == of);
            let of = of.unwrap_or_else(|| panic!("{} has nothing before it", case.name));
            assert!(
                matches!(of.work, Work::Send(sends) if matches!(sends.pressure, Pressure::Full))
            );
        }
    }

    #[test]
    fn a_name_is_one_case_or_the_begin_of_several() {
        assert_eq!(names(&[]).len(), CASES.len());
        assert_eq!(names(&["mixed-3-nodes"]), ["mixed-3-nodes"]);
        assert_eq!(
            names(&["idle", "gateway"]),
            ["gateway-3-nodes", "idle-256-shards"]
        );
        // In the list's order, once each, with what they need.
        assert_eq!(
            names(&["open-3", "send-3-nodes-100b", "open-3-nodes-50"]),
            [
                "send-3-nodes-100b",
                "open-3-nodes-25",
                "open-3-nodes-50",
                "open-3-nodes-75"
            ]
        );
        let error = choose(&["sned".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("`sned`") && error.contains("send-1-node-100b"),
            "{error}"
        );
    }

    #[test]
    fn words_tell_cases_apart() {
        let words: std::collections::BTreeSet<_> = CASES.iter().map(Case::words).collect();
        assert_eq!(words.len(), CASES.len());
    }
}
