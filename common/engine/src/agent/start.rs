//! What the two agents' `main` do: read the configuration, set the log up, run.

use std::path::Path;
use std::process::ExitCode;

use sitepair_model::cause::chain;
use sitepair_model::ids::Site;

use super::config::Config;
use super::log;
use super::run::run;

/// Runs the agent of `site` with the configuration in `path`, until it is told to stop.
#[must_use]
pub fn start(site: Site, path: &Path) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(e) => return cannot_start(&chain(&e)),
    };
    if let Err(e) = log::init(&config.log) {
        return cannot_start(&chain(&e));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return cannot_start(&chain(&e)),
    };
    match runtime.block_on(run(site, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let why = chain(&e);
            tracing::error!("{why}");
            cannot_start(&why)
        }
    }
}

/// There may be no log yet.
#[expect(
    clippy::print_stderr,
    reason = "the reason must reach whoever started the agent"
)]
fn cannot_start(why: &str) -> ExitCode {
    eprintln!(
        "{}: {why}",
        std::env::args()
            .next()
            .unwrap_or_else(|| "agent".to_owned())
    );
    ExitCode::FAILURE
}
