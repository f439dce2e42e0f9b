//! The agent's log: tracing to standard error, as text or JSON.

use tracing_subscriber::EnvFilter;

use super::config::{LogConfig, LogFormat};

/// A log that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter makes no sense.
    #[error("log.filter {filter:?}: {why}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else logs in this process.
    #[error("a log is set up already")]
    Taken,
}

/// Sets the process's log up.
///
/// # Errors
/// [`LogError`].
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|e| LogError::Filter {
        filter: config.filter.clone(),
        why: e.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let set = match config.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
    };
    set.map_err(|_| LogError::Taken)
}
