//! Running commands, and saying so.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// One command that must succeed.
#[derive(Debug)]
pub(crate) struct Step(Command);

impl Step {
    pub(crate) fn new(command: Command) -> Self {
        Self(command)
    }

    /// Says the command, runs it with its output on the terminal, and fails if it does.
    pub(crate) fn run(mut self) -> Result<()> {
        let line = self.line();
        say(&format!("+ {line}"));
        let status = self.0.status().with_context(|| format!("start {line}"))?;
        if !status.success() {
            bail!("{line}: {status}");
        }
        Ok(())
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Cargo, in the workspace's root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(args);
    cargo
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the workspace root")
}

/// Whether a command runs and succeeds, with its output thrown away.
pub(crate) fn succeeds(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> bool {
    let quiet = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok_and(|status| status.success())
}

/// Tells the person at the terminal.
#[expect(
    clippy::print_stderr,
    reason = "xtask talks to the person who called it"
)]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
