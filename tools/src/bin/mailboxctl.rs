//! `mailboxctl`: look into, talk to and exercise a mailbox cluster. See `mailboxctl --help`.

fn main() -> std::process::ExitCode {
    mailbox_tools::mailboxctl()
}
