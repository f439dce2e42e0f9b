//! Test failovers: a point runs beside the guest that goes on, and nothing of it reaches anything else.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sitepair_tests::ctl::{EXIT_REFUSED, EXIT_USAGE};
use sitepair_tests::nbd_client::{Client, Options};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::wait;

use crate::both_ways;
use crate::scene::{DATA, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    tests_run_beside_the_guest_and_leave_no_trace,
    a_test_ends_in_time_and_with_a_failover,
);

/// Starts a test, and gives the NBD URIs of its disks in the order of the group's.
fn start(pair: &Pair, vm: &Vm, args: &[&str]) -> Result<Vec<String>> {
    let mut line = vec!["test", "start", &vm.group];
    line.extend(args);
    if !args.contains(&"--space") {
        // The machine may have less free than the default.
        line.extend(["--space", "64M"]);
    }
    let reply = pair.ctl().json_anywhere(&line)?;
    let disks = reply["test"]["disks"].as_array().context("disks")?;
    vm.names()
        .iter()
        .map(|name| {
            let disk = disks.iter().find(|d| d["name"] == *name);
            let uri = disk.and_then(|d| d["nbd_uri"].as_str());
            Ok(uri.context("the disk's URI")?.to_owned())
        })
        .collect()
}

/// The names of the tests that the replica's site shows.
fn running(pair: &Pair, vm: &Vm) -> Result<Vec<String>> {
    let status = pair.ctl().group(pair.second(), &vm.group)?;
    let tests = status.0["tests"].as_array().context("tests")?.clone();
    let name = |test: &Value| Some(test["name"].as_str()?.to_owned());
    tests
        .iter()
        .map(|t| name(t).context("a test's name"))
        .collect()
}

fn tests_run_beside_the_guest_and_leave_no_trace(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;
        guest.wait_writes(200)?;
        let acknowledged = guest.acknowledged();
        let cycle = pair.ctl().cut("vm")?;
        guest.wait_writes(200)?;

        let old = start(pair, &vm, &[&cycle.to_string(), "--name", "old"])?;
        let new = start(pair, &vm, &[])?;
        vm.check_content(&old)?;
        vm.check_content(&new)?;
        // What the test's guest does: it wipes its disks.
        let wiped = scribble(&old[0], SYSTEM.size)?;
        scribble(&new[1], DATA.size)?;

        // The replica's host fails meanwhile; what was flushed is there afterwards.
        pair.crash_and_restart(pair.second())?;
        pair.wait_linked(LIMIT)?;
        wait::until("both tests are served again", LIMIT, || {
            Ok((running(pair, &vm)?.len() == 2 && wiped.is_there(&old[0]).is_ok()).then_some(()))
        })?;

        // Replication went on, and neither the source nor a point saw anything of it.
        vm.wait_replicating(pair, pair.second())?;
        let resting = vm.shut_down(pair, pair.first(), guest)?;
        vm.check_point_against(pair, pair.first())?;
        let point = pair.ctl().export("vm", cycle, &vm.names())?;
        resting.verify_exports(acknowledged, &point)?;
        vm.check_content(&point)?;
        pair.ctl().unexport("vm", cycle)?;

        let taken = pair
            .ctl()
            .run_anywhere(&["test", "start", "vm", "--name", "old"])?;
        ensure!(taken.failed(EXIT_REFUSED)?.contains("runs already"));
        let name = &running(pair, &vm)?[1];
        for test in ["old", name] {
            pair.ctl().json_anywhere(&["test", "end", "vm", test])?;
        }
        ensure!(running(pair, &vm)?.is_empty());
        let left = pair.site_folder(pair.second()).join("state/tests");
        let left: Vec<_> = walk(&left)?;
        ensure!(left.is_empty(), "files stay: {left:?}");
        Ok(())
    });
}

fn a_test_ends_in_time_and_with_a_failover(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[DATA])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;

        // A cap that the guest of the test meets as a full disk, and is told of.
        let small = start(pair, &vm, &["--name", "small", "--space", "1M"])?;
        let full = scribble(&small[0], 4 * MIB).err();
        let full = full.context("a test wrote more than it may")?;
        ensure!(format!("{full:#}").contains("NBD error 28"), "{full:#}");
        // Its time is over.
        start(pair, &vm, &["--name", "short", "--ttl", "2s"])?;
        wait::until("the test ends by itself", LIMIT, || {
            Ok((running(pair, &vm)? == ["small"]).then_some(()))
        })?;

        for (args, code) in [
            (&["--ttl", "31d"][..], EXIT_USAGE),
            (&["--ttl", "1000h"], EXIT_USAGE),
            (&["--name", "../x"], EXIT_USAGE),
            (&["--space", "8000T"], EXIT_REFUSED),
            (&["999999"], EXIT_REFUSED),
        ] {
            let mut line = vec!["test", "start", "vm"];
            line.extend(args);
            pair.ctl().run_anywhere(&line)?.failed(code)?;
        }
        let unknown = pair.ctl().run_anywhere(&["test", "end", "vm", "nobody"])?;
        ensure!(unknown.failed(EXIT_REFUSED)?.contains("no test is named"));

        let resting = vm.shut_down(pair, pair.first(), guest)?;
        pair.ctl().failover("vm", &[])?;
        vm.check_all(&resting, &vm.uris(pair, pair.second())?)?;
        ensure!(running(pair, &vm)?.is_empty(), "the failover ended it");
        Ok(())
    });
}

/// What a test's guest wrote.
struct Scribbled {
    bytes: u64,
}

const STEP: u32 = 1 << 20;

/// Fills the first bytes of a disk, and flushes.
fn scribble(uri: &str, bytes: u64) -> Result<Scribbled> {
    let mut client = Client::connect(Options::from_uri(uri)?)?;
    let page = vec![0x5A; STEP as usize];
    for at in (0..bytes).step_by(STEP as usize) {
        client.write(at, &page)?;
    }
    client.flush()?;
    client.disconnect()?;
    Ok(Scribbled { bytes })
}

impl Scribbled {
    fn is_there(&self, uri: &str) -> Result<()> {
        let mut client = Client::connect(Options::from_uri(uri)?)?;
        for at in (0..self.bytes).step_by(STEP as usize) {
            let found = client.read(at, STEP)?;
            ensure!(found.iter().all(|b| *b == 0x5A), "other bytes at {at}");
        }
        client.disconnect()
    }
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}
