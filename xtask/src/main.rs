//! One command for each chore: `cargo xtask demo`, `test`, `lint`, `model`, `bench`, `fuzz`.
//!
//! Owns no logic of the product. It runs cargo, and installs what the tests need where it may; it
//! says each command before it runs it. Has next to no dependencies, so that it starts at once.

mod fuzz;
mod install;
mod run;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use run::{Step, cargo, root};

const USAGE: &str = "\
usage: cargo xtask <chore>

  demo [--keep]    build, then show replication, failover and failback on this machine
  test [FILTER]    install what the tests need, then run all of them, or those that match, and
                   random ones for longer than `cargo test` does (SITEPAIR_THOROUGH=0: no longer)
  lint             formatting, clippy with warnings as errors, also without optional features, and
                   the rules of tests/tests/tidy.rs
  model            explore two sites further than the tests do: minutes, gigabytes of memory
  bench [NAME]     build in release mode, then measure, all or one measurement
  fuzz [--seconds N] [TARGET]
                   give hostile bytes to every parser, or to one, for N seconds in all (60):
                   with cargo-fuzz where it is installed, otherwise with mutations from a seed";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["demo", rest @ ..] => demo(rest),
        ["test", rest @ ..] => test(rest),
        ["lint"] => lint(),
        ["model"] => model(),
        ["bench", rest @ ..] => bench(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["--help" | "-h" | "help"] => {
            run::say(USAGE);
            return ExitCode::SUCCESS;
        }
        _ => {
            run::say(USAGE);
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The programs that an administrator installs.
const PROGRAMS: [&str; 6] = [
    "-p",
    "primary-agent",
    "-p",
    "secondary-agent",
    "-p",
    "sitepair",
];

fn demo(args: &[&str]) -> Result<()> {
    run_release("demo", args)
}

fn bench(args: &[&str]) -> Result<()> {
    install::tools()?;
    run_release("bench", args)
}

/// Builds everything in release mode and runs one of the harness's own programs.
fn run_release(name: &str, args: &[&str]) -> Result<()> {
    let bins = ["primary-agent", "secondary-agent", "sitepair", name];
    let mut build = cargo(&["build", "--release", "--locked", "-p", "sitepair-tests"]);
    build.args(PROGRAMS);
    for bin in bins {
        build.args(["--bin", bin]);
    }
    Step::new(build).run()?;
    let folder = target_dir().join("release");
    let mut program = std::process::Command::new(folder.join(name));
    program
        .args(args)
        .env("SITEPAIR_BIN_DIR", &folder)
        .current_dir(root());
    Step::new(program).run()
}

fn test(args: &[&str]) -> Result<()> {
    install::tools()?;
    let python = install::python_client()?;
    // Programs and tests in one go: built apart, they would differ in the features of some
    // dependencies, and all of those would be built twice.
    Step::new(cargo(&[
        "build",
        "--workspace",
        "--all-targets",
        "--locked",
    ]))
    .run()?;
    let mut tests = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    match args {
        [] => {}
        [filter] => {
            tests.args(["--", filter]);
        }
        _ => bail!("test takes one filter at most"),
    }
    tests
        .env("SITEPAIR_BIN_DIR", target_dir().join("debug"))
        .env("SITEPAIR_PYTHON", python);
    if env::var_os("SITEPAIR_THOROUGH").is_none() {
        tests.env("SITEPAIR_THOROUGH", "1");
    }
    Step::new(tests).run()
}

fn lint() -> Result<()> {
    Step::new(cargo(&["fmt", "--all", "--check"])).run()?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    Step::new(cargo(&clippy)).run()?;
    // The workspace has every feature on; who takes the disk crate alone may not.
    let without_features = [
        "clippy",
        "-p",
        "sitepair-disk",
        "--no-default-features",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    Step::new(cargo(&without_features)).run()?;
    Step::new(cargo(&[
        "test",
        "-p",
        "sitepair-tests",
        "--locked",
        "--test",
        "tidy",
    ]))
    .run()
}

/// Checks the group's state machine within wider bounds.
fn model() -> Result<()> {
    let mut explore = cargo(&[
        "test",
        "--release",
        "--locked",
        "-p",
        "sitepair-model",
        "--test",
        "two_sites",
        "scenarios",
        "--",
        "--nocapture",
        "--test-threads=1",
    ]);
    explore.env("SITEPAIR_MODEL_LARGE", "1");
    Step::new(explore).run()
}

/// Where cargo puts what it builds.
fn target_dir() -> std::path::PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(Path::new(&dir)),
        None => root().join("target"),
    }
}

/// The folder for what the chores keep between runs.
fn kept_dir() -> Result<std::path::PathBuf> {
    let dir = target_dir().join("xtask");
    std::fs::create_dir_all(&dir).with_context(|| format!("make folder {}", dir.display()))?;
    Ok(dir)
}
