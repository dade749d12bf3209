//! `mailboxd`: reads the command line, runs the role, turns its end into an exit status.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use mailbox_server::{Cli, Command, exit};

/// RocksDB's and Rust's allocations of many sizes and lifetimes fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    #[cfg(feature = "planted")]
    if let Err(error) = mailbox_planted::announce() {
        eprintln!("mailboxd: {error}");
        return ExitCode::from(exit::ERROR);
    }
    // Tests are built with failpoints, and say in the environment where a process dies.
    let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mailboxd: {error:#}");
            let known = error.downcast_ref::<mailbox_server::Error>();
            ExitCode::from(known.map_or(exit::ERROR, mailbox_server::Error::exit_status))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Config { command } => {
            std::io::stdout().write_all(mailbox_server::run_config(&command)?.as_bytes())?;
            Ok(())
        }
        Command::Dev(args) => Ok(mailbox_server::run_dev(&args)?),
        Command::Server(args) => Ok(mailbox_server::run_server(&args)?),
        Command::Gateway(args) => Ok(mailbox_server::run_gateway(&args)?),
    }
}
