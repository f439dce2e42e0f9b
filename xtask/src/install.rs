//! Installs what the tests need: independent tools to write with, compare and call.
//!
//! Only what is missing, only with the system's own package managers, and never silently.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::kept_dir;
use crate::run::{Step, say, succeeds};

/// A command that tests run, how to see that it is there, and the Debian package that has it.
const TOOLS: [(&str, &[&str], &str); 6] = [
    ("qemu-img", &["--version"], "qemu-utils"),
    ("qemu-nbd", &["--version"], "qemu-utils"),
    ("fio", &["--version"], "fio"),
    ("nbdcopy", &["--version"], "libnbd-bin"),
    ("7z", &["i"], "p7zip-full"),
    // For Debian's own Python, whatever else is called python3.
    (
        "/usr/bin/python3",
        &["-c", "import pyvhdi"],
        "python3-libvhdi",
    ),
];

/// Packages of the independent gRPC client.
const PYTHON_PACKAGES: [&str; 3] = ["grpcio", "grpcio-reflection", "grpcio-health-checking"];
const PYTHON_PROBE: [&str; 2] = ["-c", "import grpc, grpc_reflection.v1alpha, grpc_health.v1"];

/// Sees to it that the tools are there.
pub(crate) fn tools() -> Result<()> {
    let mut missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, probe, _)| !succeeds(program, probe))
        .map(|(_, _, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        Ok(())
    } else {
        install_debian(&missing)
    }
}

/// A Python that can be a gRPC client: the system's if it has the packages, otherwise a virtual
/// environment below the target folder.
pub(crate) fn python_client() -> Result<PathBuf> {
    if succeeds("python3", &PYTHON_PROBE) {
        return Ok("python3".into());
    }
    let venv = kept_dir()?.join("python");
    let python = venv.join("bin/python");
    if succeeds(&python, &PYTHON_PROBE) {
        return Ok(python);
    }
    if !succeeds("python3", &["-c", "import venv, ensurepip"]) {
        install_debian(&["python3-venv"])?;
    }
    say("the gRPC client of the tests is not there; installing it below target/");
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&venv);
    Step::new(make).run()?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    Step::new({
        pip.args(PYTHON_PACKAGES);
        pip
    })
    .run()?;
    Ok(python)
}

fn install_debian(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    if !root || !succeeds("apt-get", &["--version"]) {
        bail!("install these packages first (not root on Debian, so not done here): {list}");
    }
    say(&format!("installing what is missing: {list}"));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        Step::new(command)
    };
    apt(&["-q", "update"]).run()?;
    let mut args = vec!["-q", "install", "-y", "--no-install-recommends"];
    args.extend(packages);
    apt(&args).run()
}
