//! Guests that we did not write: fio, which verifies what it wrote, and nbdcopy.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use sitepair_tests::disks::{self, DiskFormat};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::tools;

use crate::both_ways;
use crate::scene::{DATA, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    fio_finds_what_it_wrote_at_the_other_site,
    nbdcopy_fills_a_disk_that_is_replicated
);

const FIO_BYTES: u64 = 16 * MIB;

/// Writes and verifies, or only verifies what an earlier run wrote.
fn fio(folder: &Path, uri: &str, verify_only: bool) -> Result<()> {
    let mut command = Command::new("fio");
    command
        .current_dir(folder)
        .args([
            "--name=guest",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bsrange=512-64k",
        ])
        .args([
            "--blockalign=512",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
        ])
        .args(["--randseed=7", "--fsync=64", "--output-format=terse"])
        .arg(format!("--uri={uri}"))
        .arg(format!("--size={FIO_BYTES}"))
        .arg(if verify_only {
            "--verify_only=1"
        } else {
            "--do_verify=1"
        });
    tools::run(&mut command).map(drop)
}

fn fio_finds_what_it_wrote_at_the_other_site(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        vm.protect(pair)?;
        let uris = vm.uris(pair, first)?;
        // The first run is under initial replication, the second one under deltas.
        fio(pair.folder(), &uris[0], false)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        fio(pair.folder(), &uris[0], false)?;
        pair.ctl().wait_detached(first, "vm", LIMIT)?;
        compare(pair, &vm)?;
        pair.ctl().failover("vm", &[])?;
        fio(pair.folder(), &vm.uris(pair, second)?[0], true)
    });
}

fn nbdcopy_fills_a_disk_that_is_replicated(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[DATA])?;
        vm.protect(pair)?;
        let uris = vm.uris(pair, pair.first())?;
        let path = pair.folder().join("origin.raw");
        disks::create(&path, DiskFormat::Raw, DATA.size)?;
        disks::fill(&path, 5 * MIB, 20 * MIB, 77)?;
        tools::run(Command::new("nbdcopy").arg(&path).arg(&uris[0]))?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let cycle = pair.ctl().cut("vm")?;
        let point = pair.ctl().export("vm", cycle, &["data"])?;
        let origin = path.to_string_lossy();
        tools::compare((&origin, "raw"), (&point[0], "raw"))?;
        // And out of the point again, through another program.
        let copy = pair.folder().join("copy.raw");
        tools::run(Command::new("nbdcopy").arg(&point[0]).arg(&copy))?;
        ensure!(
            std::fs::read(&copy)? == std::fs::read(&path)?,
            "nbdcopy read other bytes"
        );
        Ok(())
    });
}

fn compare(pair: &Pair, vm: &Vm) -> Result<()> {
    let cycle = pair.ctl().cut(&vm.group)?;
    let points = pair.ctl().export(&vm.group, cycle, &vm.names())?;
    for (point, live) in points.iter().zip(vm.uris(pair, pair.first())?) {
        tools::compare((point, "raw"), (&live, "raw"))?;
    }
    pair.ctl().unexport(&vm.group, cycle)
}
