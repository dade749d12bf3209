//! Logs go to stderr only: stdout is for what a program may read.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LoggingConfig};

/// Starts logging; later calls in the same process change nothing.
///
/// # Errors
/// If the filter is not `level` or a `target=level` list.
pub(crate) fn start(config: &LoggingConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| format!("config: logging.filter = {}: {error}", config.filter))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start is a test's second server in one process: the first one's choice stands.
    let _ = match config.format {
        LogFormat::Text => {
            let to_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(to_terminal).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
