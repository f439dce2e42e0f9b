//! Independent judges and guests: QEMU's tools, fio and nbdcopy, run as commands.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::nbd_client::{Client, Options};
use crate::process::Process;

/// Longest time in which qemu-nbd must come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Bytes read at once when a disk is hashed.
const HASH_READ_BYTES: u32 = 1 << 20;

/// Runs a command that must succeed, and returns its output.
///
/// # Errors
/// When it cannot be started, or fails; with what it printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Has QEMU compare two disks, given as files or NBD URIs, with their formats.
///
/// # Errors
/// When they differ or cannot be read.
pub fn compare(a: (&str, &str), b: (&str, &str)) -> Result<()> {
    let formats = ["-f", a.1, "-F", b.1];
    run(Command::new("qemu-img")
        .args(["compare", "-U", "-p"])
        .args(formats)
        .args([a.0, b.0]))
    .map(drop)
}

/// Has QEMU check an image's structure.
///
/// # Errors
/// When the check finds anything.
pub fn check(path: &Path, format: &str) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["check", "-U", "-f", format])
        .arg(path))
    .map(drop)
}

/// BLAKE3 of all that an NBD export holds.
///
/// # Errors
/// When it cannot be read.
pub fn hash_export(uri: &str) -> Result<blake3::Hash> {
    let mut client = Client::connect(Options::from_uri(uri)?)?;
    let size = client.export().size_bytes;
    let hash = hash_range(&mut client, 0, size)?;
    client.disconnect()?;
    Ok(hash)
}

/// BLAKE3 of `length` bytes of a disk from `offset`.
///
/// # Errors
/// When they cannot be read.
pub fn hash_range(client: &mut Client, offset: u64, length: u64) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let n = u32::try_from(end - at)
            .unwrap_or(u32::MAX)
            .min(HASH_READ_BYTES);
        hasher.update(&client.read(at, n)?);
        at += u64::from(n);
    }
    Ok(hasher.finalize())
}

/// A running qemu-nbd.
#[derive(Debug)]
pub struct QemuNbd {
    /// Ends with this value.
    pub process: Process,
    /// How to reach it.
    pub uri: String,
}

impl QemuNbd {
    /// Serves `image` on a socket in `folder` and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed or refuses the image.
    pub fn start(folder: &Path, image: &Path, format: &str) -> Result<Self> {
        let socket = folder.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command
            .args([
                "--persistent",
                "--shared=16",
                "--export-name=disk",
                "--format",
                format,
            ])
            .arg("--socket")
            .arg(&socket)
            .arg(image);
        let process = Process::start(&mut command, &folder.join("qemu-nbd.log"))?;
        let options = Options::new(&socket, "disk").reconnecting(START_LIMIT);
        let probe = Client::connect(options).with_context(|| process.log_tail())?;
        probe.disconnect()?;
        Ok(Self {
            process,
            uri: format!("nbd+unix:///disk?socket={}", socket.display()),
        })
    }
}
