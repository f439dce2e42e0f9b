//! QEMU's copy: `qemu-img convert` to a `qemu-nbd` behind mutual TLS.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sitepair_tests::ports::ReservedPort;
use sitepair_tests::process::Process;
use sitepair_tests::{tools, wait};

use crate::cpu::{self, Copied};
use crate::pki::{HOST, Pki};

const START_LIMIT: Duration = Duration::from_secs(20);

/// Copies `source` into a new file of `folder`, which is removed afterwards. qemu-img is told that
/// the target is empty, and to see to it that the end is durable.
pub(crate) fn convert(source: &Path, folder: &Path, pki: &Pki) -> Result<Copied> {
    let target = folder.join("qemu-target.raw");
    let to = File::create_new(&target).context("create the target")?;
    to.set_len(fs::metadata(source)?.len())?;
    let (server, port) = serve(&target, folder, pki)?;
    let credentials = |end: &str| {
        format!(
            "tls-creds-x509,id=tls,endpoint={end},dir={}",
            pki.folder().display()
        )
    };
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-n", "--target-is-zero", "-t", "writeback"])
        .args(["--object", &credentials("client"), "--image-opts"])
        .arg(format!("driver=raw,file.filename={}", source.display()))
        .args(["--target-image-opts"])
        .arg(format!(
            "driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=tls,tls-hostname={HOST}"
        ));
    let server_before = cpu::process(server.id())?;
    let sender_before = cpu::children()?;
    let began = Instant::now();
    tools::run(&mut command).with_context(|| server.log_tail())?;
    let seconds = began.elapsed().as_secs_f64();
    let copied = Copied {
        seconds,
        sender: cpu::children()? - sender_before,
        receiver: cpu::process(server.id())? - server_before,
    };
    drop(server);
    fs::remove_file(&target).context("remove the copy")?;
    Ok(copied)
}

/// Starts the server and waits until it accepts.
fn serve(target: &Path, folder: &Path, pki: &Pki) -> Result<(Process, u16)> {
    let port = ReservedPort::reserve()?.release().port();
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "--shared=4", "--export-name=disk"])
        .args(["--format=raw", "--bind=127.0.0.1", "--tls-creds=tls"])
        .arg(format!("--port={port}"))
        .arg("--object")
        .arg(format!(
            "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir={}",
            pki.folder().display()
        ))
        .arg(target);
    let mut server = Process::start(&mut command, &folder.join("qemu-nbd-tls.log"))?;
    wait::until("qemu-nbd listens", START_LIMIT, || {
        if let Some(status) = server.ended()? {
            anyhow::bail!("it ended: {status}: {}", server.log_tail());
        }
        Ok(std::net::TcpStream::connect(("127.0.0.1", port))
            .ok()
            .map(drop))
    })?;
    Ok((server, port))
}
