//! Long work on image files: on a thread of its own, with a bar on a terminal, stopped by Ctrl-C.
//!
//! Does not do: cleaning up; work that is stopped removes what it made before it ends.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sitepair_disk::Progress;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Output;
use crate::error::Failure;
use crate::progress::{hidden_bar, steps_bar};

/// Time between two looks at how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Does `work` on a disk of `total_bytes`, and waits for its end, whatever that is. Signals that ask us to end ask
/// it to stop.
pub(crate) async fn run<T: Send + 'static>(
    what: &'static str,
    total_bytes: u64,
    output: Output,
    work: impl FnOnce(&Progress) -> T + Send + 'static,
) -> Result<T, Failure> {
    let mut signals = Signals::listen().context("listen for signals")?;
    let progress = Arc::new(Progress::new());
    let shared = Arc::clone(&progress);
    let mut task = tokio::task::spawn_blocking(move || work(&shared));
    let bar = if output == Output::Table && std::io::stderr().is_terminal() {
        steps_bar()
    } else {
        hidden_bar()
    };
    bar.set_length(total_bytes);
    bar.set_message(what);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let done = loop {
        tokio::select! {
            done = &mut task => break done,
            () = signals.any() => {
                progress.stop();
                bar.set_message("stopping");
            }
            _ = looks.tick() => bar.set_position(progress.done_bytes()),
        }
    };
    bar.finish_and_clear();
    Ok(done.with_context(|| format!("{what}: the thread that did it ended"))?)
}

/// What asks a command to end: Ctrl-C, the system, the terminal that goes away.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
