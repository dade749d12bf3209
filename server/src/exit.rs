//! The exit status of `mailboxd`, by how it ended.

/// Could not start, or could not go on for a reason that is not its storage.
pub const ERROR: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// A write, an fsync or a read of the node's own files failed while it ran.
pub const STORAGE_FAULT: u8 = 3;
/// A second signal cut an orderly stop short.
pub const AT_ONCE: u8 = 130;

/// What `mailboxd --help` says of them.
pub(crate) const TABLE: &str = "\
Exit status:
    0  stopped as asked by SIGTERM or SIGINT: everything is flushed
    1  could not start or go on: configuration, ports, missing or damaged files; or an
       orderly stop took longer than 15 s
    2  the command line makes no sense
    3  storage fault while running: a write, an fsync or a read of the node's own files
       failed. Nothing acked is lost; start the node again once the cause is gone
  130  a second signal came during an orderly stop: ended at once, nothing acked is lost

Whatever is not 0 is explained on stderr, naming the file or directory where there is one.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_in_the_table_once() {
        let listed: Vec<u8> = TABLE
            .lines()
            .filter_map(|line| line.get(..5)?.trim().parse().ok())
            .collect();
        assert_eq!(listed, [0, ERROR, USAGE, STORAGE_FAULT, AT_ONCE]);
    }
}
