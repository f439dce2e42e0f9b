//! `cargo xtask demo`: shows replication, failover and failback on this machine.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use clap::Parser;
use sitepair_tests::demo::{self, Console, DemoOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Shows replication, failover and failback on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Keep everything running at the end, and print how to look at it
    #[arg(long)]
    keep: bool,
}

#[expect(clippy::print_stderr, reason = "the demonstration's last words")]
fn main() -> ExitCode {
    let args = Args::parse();
    match show(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demonstration failed: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: &Args) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(Arc::clone(&stop))?;
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = stdout.lock();
    let mut console = Console::new(&mut out, is_terminal, stop);
    let mut stage = demo::run(DemoOptions::default(), &mut console)?;
    console.raw(&format!("\n{}", stage.account))?;
    if args.keep {
        stage.keep(&mut console)
    } else {
        stage.end()
    }
}

/// Sets `stop` when the person has had enough. The story then ends at its next word, and the agents
/// and their folder with it; a signal that ended this process at once would leave both behind.
fn stop_on_signals(stop: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime for signals")?;
    let signals = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("listen for signals");
        [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        ]
    };
    // Lives as long as the process: it only waits.
    thread::spawn(move || {
        let [mut interrupt, mut terminate] = signals;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        stop.store(true, Ordering::Release);
    });
    Ok(())
}
