//! What people do in a run, by name.
//!
//! All workloads are done by the same processes and judged by the same checkers: they differ in what there is most of.

/// A mixture of operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// As `--workload` calls it.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    pub(crate) users: usize,
    pub(crate) groups: usize,
    /// Users who join groups and leave them, beside the others.
    pub(crate) wanderers: usize,
    /// Processes that send for each user.
    pub(crate) senders_per_user: usize,
    /// Processes that read through leaders.
    pub(crate) readers: usize,
    /// Processes that claim handles and raise marks.
    pub(crate) registrars: usize,
    /// Devices of each user, which sync through gateways.
    pub(crate) devices: usize,
    /// Of the reads, those that any replica may answer.
    pub(crate) stale_reads: f64,
    /// Of all sends, those to a group.
    pub(crate) to_group: f64,
    /// Of the others, those to the sender's own mailbox.
    pub(crate) to_self: f64,
    /// Of the others, those to an id that no user has: acked, and refused later.
    pub(crate) to_nobody: f64,
    /// Of the others, those to the first user.
    pub(crate) to_hot: f64,
    /// How often an acked send is sent again, the same or something else under its id.
    pub(crate) repeat: f64,
    /// Attempts after which a send whose outcome is unknown is left alone, at most.
    pub(crate) attempts_max: u32,
    /// Rows of a device's page, at most.
    pub(crate) page_rows_max: u32,
}

const MIXED: Workload = Workload {
    name: "mixed",
    about: "sends to users and groups, reads, syncs of devices, handles, marks: a little of all",
    users: 12,
    groups: 2,
    wanderers: 2,
    senders_per_user: 2,
    readers: 3,
    registrars: 3,
    devices: 1,
    stale_reads: 0.2,
    to_group: 0.3,
    to_self: 0.1,
    to_nobody: 0.02,
    to_hot: 0.2,
    repeat: 0.05,
    attempts_max: 4,
    page_rows_max: 20,
};

/// All of them.
pub const ALL: [Workload; 6] = [
    MIXED,
    Workload {
        name: "append",
        about: "each sends to itself, two processes for a user: one log for each, read all the time (C1, C3, C6)",
        readers: 8,
        to_group: 0.0,
        to_self: 1.0,
        ..MIXED
    },
    Workload {
        name: "exactly-once",
        about: "half of all sends are sent again, doubtful ones up to eight times, ids used again (C2)",
        repeat: 0.5,
        attempts_max: 8,
        ..MIXED
    },
    Workload {
        name: "lanes",
        about: "1:1 between shards, half of it to one user (C2, C4)",
        users: 16,
        senders_per_user: 1,
        to_group: 0.0,
        to_self: 0.0,
        to_nobody: 0.05,
        to_hot: 0.5,
        ..MIXED
    },
    Workload {
        name: "group",
        about: "all write to two groups and read them, some join and leave (C3, C4, C5)",
        wanderers: 4,
        to_group: 1.0,
        ..MIXED
    },
    Workload {
        name: "sync",
        about: "three devices of each user page through gateways chosen at random, by one to five rows (C5)",
        devices: 3,
        readers: 1,
        page_rows_max: 5,
        ..MIXED
    },
];

/// The one of that name.
///
/// # Errors
/// When there is none, with those that there are.
pub fn named(name: &str) -> Result<&'static Workload, String> {
    ALL.iter().find(|it| it.name == name).ok_or_else(|| {
        let names = ALL.map(|it| it.name).join(", ");
        format!("there is no workload {name}; there are {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name_and_has_somebody_to_work() {
        for workload in &ALL {
            assert_eq!(named(workload.name), Ok(workload));
            assert!(workload.users > 1 && workload.groups > 0 && workload.wanderers > 0);
            assert!(workload.senders_per_user > 0 && workload.readers > 0 && workload.devices > 0);
            assert!(workload.registrars > 0 && workload.stale_reads > 0.0);
            assert!(workload.attempts_max > 0 && workload.page_rows_max > 0);
        }
        assert!(named("quake").unwrap_err().contains("mixed, append"));
    }
}
