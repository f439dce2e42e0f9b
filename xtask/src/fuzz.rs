//! Fuzzing for a bounded time, with what the machine has.
//!
//! Owns the choice of the tool and the division of the time. Does not do: installing the tool; keeping what it finds
//! in the tree (a person does that, who has looked at it).

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::kept_dir;
use crate::run::{Step, cargo, root, say, succeeds};

const SECONDS: u64 = 60;
/// Longest input; as the mutator's.
const INPUT_BYTES_MAX: &str = "-max_len=262144";
/// Memory of the whole process: what a parser takes is measured on its own.
const MEMORY: &str = "-rss_limit_mb=1024";

/// Runs `fuzz [--seconds N] [TARGET]`.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (seconds, target) = match args {
        [] => (SECONDS, None),
        ["--seconds", n] => (parse(n)?, None),
        ["--seconds", n, target] | [target, "--seconds", n] => (parse(n)?, Some(*target)),
        [target] => (SECONDS, Some(*target)),
        _ => bail!("fuzz takes [--seconds N] [TARGET]"),
    };
    if succeeds("cargo", &["+nightly", "fuzz", "--version"]) {
        with_libfuzzer(seconds, target)
    } else {
        say("cargo-fuzz or nightly is not installed: mutations without coverage instead");
        with_mutations(seconds, target)
    }
}

fn parse(number: &str) -> Result<u64> {
    number
        .parse()
        .with_context(|| format!("{number} is no number of seconds"))
}

fn with_mutations(seconds: u64, target: Option<&str>) -> Result<()> {
    let seconds = seconds.to_string();
    let mut run = cargo(&["run", "--quiet", "--locked", "-p", "sitepair-fuzzing"]);
    run.args(["--bin", "mutate", "--"]).args(target);
    run.args(["--seconds", &seconds]);
    Step::new(run).run()
}

/// New inputs go below `target/`; the stored corpus is only read.
fn with_libfuzzer(seconds: u64, target: Option<&str>) -> Result<()> {
    let targets = match target {
        Some(target) => vec![target.to_owned()],
        None => all_targets()?,
    };
    let share = (seconds / u64::try_from(targets.len().max(1))?).max(1);
    for target in targets {
        let found = kept_dir()?.join("corpus").join(&target);
        std::fs::create_dir_all(&found)
            .with_context(|| format!("make folder {}", found.display()))?;
        let mut run = nightly(&["fuzz", "run", "--sanitizer", "none", &target]);
        run.arg(found);
        run.arg(root().join("fuzz/corpus").join(&target));
        run.args(["--", &format!("-max_total_time={share}")]);
        run.args([INPUT_BYTES_MAX, MEMORY]);
        Step::new(run).run()?;
    }
    Ok(())
}

fn all_targets() -> Result<Vec<String>> {
    let listed = nightly(&["fuzz", "list"])
        .output()
        .context("list the fuzz targets")?;
    let listed = String::from_utf8(listed.stdout).context("read the list of fuzz targets")?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The rustup proxy, not the cargo that runs us: that one belongs to one toolchain.
fn nightly(args: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    cargo.arg("+nightly").args(args);
    cargo
}
