//! The operator's command line (`mailboxctl`) and the load generator (`mailbox-bench`).
//!
//! One file per subcommand: `ctl/` for the first, `bench/` for the second. What is printed on stdout
//! is a result, in words or (`--json`) as JSON; everything else goes to stderr. Start reading at
//! `ctl/mod.rs`; the replay's rules are in `ctl/replay/`, what each bench figure means in README.md.

mod bench;
mod chaos;
mod ctl;
mod device;
mod duration;
mod node;
mod output;
mod process;
mod survey;

pub use bench::mailbox_bench;
pub use ctl::mailboxctl;

use std::process::ExitCode;

/// Runs a command to its end on a runtime of its own.
fn block_on(command: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(command);
    // A task that still reads stdin cannot be stopped: do not wait for it.
    runtime.shutdown_background();
    result
}

/// 0: all went well. 1: it did not; an error is told on stderr.
fn exit_code(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Warnings of the libraries below go to stderr; `RUST_LOG` asks for more.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
