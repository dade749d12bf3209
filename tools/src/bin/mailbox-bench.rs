//! `mailbox-bench`: loads a mailbox cluster and measures it. See `mailbox-bench --help`.

fn main() -> std::process::ExitCode {
    mailbox_tools::mailbox_bench()
}
