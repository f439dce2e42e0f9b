//! Change logs taken out of a journal, as files for other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sitepair_tests::ctl::EXIT_REFUSED;
use sitepair_tests::nbd_client::{Client, Options};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(exported_cycles_bring_an_image_from_one_point_to_another);

const KEEP: u32 = 3;

/// Three cuts with known writes between them; the third cycle leaves one disk alone.
fn exported_cycles_bring_an_image_from_one_point_to_another(swapped: bool) {
    let options = PairOptions {
        keep_points: KEEP,
        // Points are made by this scenario alone.
        interval: "10m".to_owned(),
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
        vm.protect(pair)?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let [mut system, mut data] = clients(pair, &vm)?;
        system.write(0, &[0x11; 65536])?;
        data.write(MIB, &[0x12; 4096])?;
        let base = pair.ctl().cut("vm")?;
        system.write(4096, &[0x21; 8192])?;
        // Zeros over content, long enough for a hole in the file.
        system.zero(5 * MIB, 1 << 20)?;
        data.write(3 * MIB + 512, &[0x22; 1536])?;
        let second = pair.ctl().cut("vm")?;
        system.write(8192, &[0x31; 512])?;
        system.trim(6 * MIB, 1 << 20)?;
        let third = pair.ctl().cut("vm")?;
        ensure!(
            pair.ctl().points("vm")? == [base, second, third],
            "other points than those that were asked for"
        );

        let folder = pair.folder().join("exported");
        let images = copies(pair, &vm, base)?;
        for cycle in [second, third] {
            exported(pair, &folder, cycle)?;
        }
        compare_with_point(pair, &vm, &folder, &images, [second, third])?;
        refusals(pair, &folder, base, second)?;
        let audited = format!("export change log system.{second} of");
        ensure!(
            pair.logs().contains(&audited),
            "not in the audit: {audited}"
        );
        [system, data].into_iter().try_for_each(Client::disconnect)
    });
}

fn clients(pair: &Pair, vm: &Vm) -> Result<[Client; 2]> {
    let uris = vm.uris(pair, pair.first())?;
    let connect = |uri: &String| Client::connect(Options::from_uri(uri)?);
    Ok([connect(&uris[0])?, connect(&uris[1])?])
}

/// The disks at a point, as raw files made by QEMU.
fn copies(pair: &Pair, vm: &Vm, cycle: u64) -> Result<Vec<PathBuf>> {
    let uris = pair.ctl().export("vm", cycle, &vm.names())?;
    let mut images = Vec::new();
    for (name, uri) in vm.names().iter().zip(&uris) {
        let image = pair.folder().join(format!("{name}.copy"));
        tools::run(
            Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "raw", uri])
                .arg(&image),
        )?;
        images.push(image);
    }
    pair.ctl().unexport("vm", cycle)?;
    Ok(images)
}

fn log_file(folder: &Path, disk: &str, cycle: u64) -> String {
    let path = folder.join(format!("{disk}.{cycle}.hrl"));
    path.to_string_lossy().into_owned()
}

/// Exports a cycle; its files are those of the journal.
fn exported(pair: &Pair, folder: &Path, cycle: u64) -> Result<()> {
    let (number, to) = (cycle.to_string(), folder.to_string_lossy());
    let reply = pair
        .ctl()
        .json_anywhere(&["hrl", "export", "vm", &number, &to])?;
    let logs = reply["logs"].as_array().context("a list of logs")?;
    ensure!(logs.len() == 2, "one file for each disk: {reply}");
    let journal = files_below(&pair.site_folder(pair.second()).join("state"))?;
    for log in logs {
        let path = PathBuf::from(log["file"].as_str().context("a file's name")?);
        let name = path.file_name().context("a file's name")?;
        let bytes = fs::read(&path)?;
        ensure!(log["bytes"] == bytes.len(), "{reply}");
        match journal.iter().find(|kept| kept.file_name() == Some(name)) {
            Some(kept) => ensure!(fs::read(kept)? == bytes, "{reply}: another file"),
            None => ensure!(log["entries"] == 0, "{reply}: from where?"),
        }
    }
    Ok(())
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Verifies and applies the chain of each disk, and compares it with the last cycle's point.
fn compare_with_point(
    pair: &Pair,
    vm: &Vm,
    folder: &Path,
    images: &[PathBuf],
    cycles: [u64; 2],
) -> Result<()> {
    let point = pair.ctl().export("vm", cycles[1], &vm.names())?;
    for ((disk, image), uri) in vm.names().iter().zip(images).zip(&point) {
        let [first, last] = cycles.map(|cycle| log_file(folder, disk, cycle));
        let image = image.to_string_lossy();
        pair.ctl().say(&["hrl", "verify", &first, &last])?;
        pair.ctl().say(&["disk", "check", &last])?;
        // In the wrong order they are refused, and the image is not touched.
        let output = pair
            .ctl()
            .run_anywhere(&["hrl", "apply", "--format", "raw", &last, &first, &image])?;
        output.failed(EXIT_REFUSED)?;
        let args = ["hrl", "apply", "--format", "raw", &first, &last, &image];
        pair.ctl().say(&args)?;
        tools::compare((&image, "raw"), (uri, "raw"))?;
        ensure!(
            blake3::hash(&fs::read(&*image)?) == tools::hash_export(uri)?,
            "disk {disk} has other bytes"
        );
    }
    pair.ctl().unexport("vm", cycles[1])
}

fn refusals(pair: &Pair, folder: &Path, base: u64, second: u64) -> Result<()> {
    let to = folder.to_string_lossy();
    let refused = |cycle: u64, more: &[&str]| {
        let number = cycle.to_string();
        let args = [&["hrl", "export", "vm", &number, &to], more].concat();
        let said = pair.ctl().run_anywhere(&args)?.failed(EXIT_REFUSED);
        said.with_context(|| format!("sitepair {}", args.join(" ")))
    };
    let before = files_below(folder)?;
    let why = refused(second, &[])?;
    ensure!(why.contains("is there already"), "{why}");
    let why = refused(second, &["--disk", "swap"])?;
    ensure!(why.contains("system"), "the disks are not named: {why}");
    let why = refused(second + 1000, &[])?;
    ensure!(why.contains("sitepair points"), "no advice: {why}");
    // One more point than is kept, and the first cycle goes into the image.
    pair.ctl().cut("vm")?;
    wait::until("the oldest point is merged away", LIMIT, || {
        Ok((!pair.ctl().points("vm")?.contains(&base)).then_some(()))
    })?;
    let why = refused(base, &[])?;
    ensure!(why.contains("merged"), "{why}");
    let mut after = files_below(folder)?;
    after.sort();
    let mut before = before;
    before.sort();
    ensure!(before == after, "a refusal left files: {after:?}");
    Ok(())
}
