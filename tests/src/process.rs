//! A child process that cannot outlive its owner.
//!
//! Owns the child and the file its output goes to. Dropping kills and reaps it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long a process may take to end on SIGTERM.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Longest part of a log that a failure prints, in bytes.
const LOG_TAIL_BYTES: usize = 16 * 1024;

/// A running child with its output in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with output and errors appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("open log {}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .context("look whether a child has ended")
    }

    /// Kills it as a power cut would, and reaps it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().context("kill a child")?;
        self.child.wait().context("reap a child")?;
        Ok(())
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// When it does not end within [`STOP_LIMIT`].
    pub fn sigterm(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait::until("a process ends on SIGTERM", STOP_LIMIT, || self.ended())
    }

    /// Sends a signal, for instance to stop and continue it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signal a child")
    }

    /// The end of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&text[from..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_and_the_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut sh = Process::start(Command::new("sh").args(["-c", "echo hello"]), &log).unwrap();
        let status = wait::until("sh ends", STOP_LIMIT, || sh.ended()).unwrap();
        assert!(status.success());
        assert_eq!(sh.log_tail(), "hello\n");
    }

    #[test]
    fn sigterm_ends_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut cat =
            Process::start(Command::new("sleep").arg("600"), &dir.path().join("log")).unwrap();
        assert!(!cat.sigterm().unwrap().success());
    }
}
