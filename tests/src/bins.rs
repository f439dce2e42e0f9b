//! The programs under test, built once for each test process.
//!
//! They lie beside the running executable, in the folder of the same profile. Cargo decides
//! whether they are stale. `SITEPAIR_BIN_DIR` names a folder to take them from instead, as
//! `cargo xtask test` does after it has built everything in one go.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// Names a folder with ready programs; cargo is not asked then.
pub const BIN_DIR_VARIABLE: &str = "SITEPAIR_BIN_DIR";

/// The three programs.
#[derive(Debug, Clone)]
pub struct Bins {
    /// The agent of the primary site.
    pub primary_agent: PathBuf,
    /// The agent of the secondary site.
    pub secondary_agent: PathBuf,
    /// The operator's command.
    pub sitepair: PathBuf,
}

/// The programs, built if need be.
///
/// # Errors
/// When they cannot be built; the same error for every later caller in this process.
pub fn bins() -> Result<&'static Bins> {
    static BINS: OnceLock<std::result::Result<Bins, String>> = OnceLock::new();
    match BINS.get_or_init(|| locate().map_err(|error| format!("{error:#}"))) {
        Ok(bins) => Ok(bins),
        Err(why) => bail!("build the programs under test: {why}"),
    }
}

fn locate() -> Result<Bins> {
    let dir = match env::var_os(BIN_DIR_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => build(&profile_dir()?)?,
    };
    let program = |name: &str| {
        let path = dir.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            bail!("{} is not there", path.display())
        }
    };
    Ok(Bins {
        primary_agent: program("primary-agent")?,
        secondary_agent: program("secondary-agent")?,
        sitepair: program("sitepair")?,
    })
}

/// The folder of the running executable's profile: `target/debug` or `target/release`.
fn profile_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("find the running executable")?;
    let dir = exe
        .parent()
        .context("the running executable lies in no folder")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

fn build(profile: &Path) -> Result<PathBuf> {
    let target = profile
        .parent()
        .context("the profile's folder has no parent")?;
    fs::create_dir_all(target).context("make the target folder")?;
    // Two test processes that build at once would only wait for each other inside cargo; here they
    // wait without its message on the terminal.
    let lock = File::create(target.join("sitepair-tests.lock")).context("make the build lock")?;
    lock.lock().context("take the build lock")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace_root())
        .args(["build", "--locked", "--quiet"])
        .args([
            "-p",
            "primary-agent",
            "-p",
            "secondary-agent",
            "-p",
            "sitepair",
        ])
        .arg("--target-dir")
        .arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("run cargo build")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(profile.to_owned())
}

/// The root of the source tree that this library was built from.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_folder_holds_the_test_executables() {
        assert!(profile_dir().unwrap().join("deps").is_dir());
    }
}
