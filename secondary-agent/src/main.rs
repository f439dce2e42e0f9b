//! The agent of the secondary site.
//!
//! Starts the machine that both sites share with this site's profile. Does not do: anything else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sitepair_engine::agent;
use sitepair_engine::site::Site;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The sitepair agent of the secondary site
#[derive(Debug, Parser)]
#[command(name = "secondary-agent", version)]
struct Arguments {
    /// Configuration file; see the sample beside the binary's package
    #[arg(
        long,
        env = "SITEPAIR_AGENT_CONFIG",
        default_value = "/etc/sitepair/agent.toml"
    )]
    config: PathBuf,
}

fn main() -> ExitCode {
    agent::start(Site::Secondary, &Arguments::parse().config)
}
