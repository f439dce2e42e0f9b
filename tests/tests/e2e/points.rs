//! Recovery points in an operator's hands: written into images of every format, pinned through a run of retention,
//! planned before they go.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sitepair_tests::ctl::{EXIT_REFUSED, EXIT_USAGE};
use sitepair_tests::nbd_client::{Client, Options};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    a_point_becomes_an_image_of_any_format,
    a_pinned_point_outlives_a_run_of_retention,
);

/// Our formats, and what QEMU calls them.
const FORMATS: [(&str, &str); 4] = [
    ("raw", "raw"),
    ("vhd", "vpc"),
    ("vhdx", "vhdx"),
    ("qcow2", "qcow2"),
];

/// Points are made by the scenario alone.
fn by_hand(swapped: bool, keep_points: u32) -> PairOptions {
    PairOptions {
        keep_points,
        interval: "10m".to_owned(),
        ..PairOptions::swapped(swapped)
    }
}

/// A protected machine whose disks can be written.
fn machine(pair: &Pair) -> Result<(Vm, Client, Client)> {
    let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
    vm.protect(pair)?;
    pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
    let uris = vm.uris(pair, pair.first())?;
    let connect = |uri: &String| Client::connect(Options::from_uri(uri)?);
    Ok((vm, connect(&uris[0])?, connect(&uris[1])?))
}

fn a_point_becomes_an_image_of_any_format(swapped: bool) {
    on_stage(by_hand(swapped, 5), |pair| {
        let (vm, mut system, mut data) = machine(pair)?;
        system.write(0, &[0x11; 65536])?;
        system.zero(5 * MIB, 1 << 20)?;
        data.write(32 * MIB - 512, &[0x12; 512])?;
        let old = pair.ctl().cut("vm")?;
        system.write(4096, &[0x21; 8192])?;
        data.write(3 * MIB + 512, &[0x22; 1536])?;
        let new = pair.ctl().cut("vm")?;

        let folder = pair.folder().join("images");
        fs::create_dir(&folder)?;
        // The older point, which change logs lie above, in every format; the newest as one.
        for (cycle, formats) in [(old, &FORMATS[..]), (new, &FORMATS[2..3])] {
            let uris = pair.ctl().export("vm", cycle, &vm.names())?;
            for (disk, uri) in vm.names().iter().zip(&uris) {
                for (format, theirs) in formats {
                    let image = folder.join(format!("{disk}-{cycle}.{format}"));
                    let said = materialize(pair, cycle, &image, &["--disk", disk])?;
                    ensure!(said["format"] == *format, "{said}");
                    tools::compare((&image.to_string_lossy(), theirs), (uri, "raw"))?;
                }
            }
            pair.ctl().unexport("vm", cycle)?;
        }
        let raw = folder.join(format!("system-{old}.raw"));
        takes_no_space_for_zeros(&raw)?;
        refusals(pair, &folder, old, new)?;
        let audited = format!("read disk system at recovery point {old} of");
        ensure!(
            pair.logs().contains(&audited),
            "not in the audit: {audited}"
        );
        [system, data].into_iter().try_for_each(Client::disconnect)
    });
}

fn materialize(pair: &Pair, cycle: u64, image: &Path, more: &[&str]) -> Result<Value> {
    let (cycle, file) = (cycle.to_string(), image.to_string_lossy());
    let args = [&["materialize", "vm", &cycle, &file], more].concat();
    pair.ctl().json_anywhere(&args)
}

fn takes_no_space_for_zeros(raw: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let facts = fs::metadata(raw)?;
    let taken = facts.blocks() * 512;
    ensure!(facts.len() == SYSTEM.size, "{} bytes", facts.len());
    ensure!(taken < 16 * MIB, "{taken} bytes of space");
    Ok(())
}

fn refusals(pair: &Pair, folder: &Path, old: u64, new: u64) -> Result<()> {
    let image = folder.join(format!("system-{old}.raw"));
    let file = image.to_string_lossy();
    let failed = |cycle: u64, more: &[&str], code: i32| {
        let cycle = cycle.to_string();
        let args = [&["materialize", "vm", &cycle, &file], more].concat();
        pair.ctl().run_anywhere(&args)?.failed(code)
    };
    let before = fs::read(&image)?;
    let why = failed(new, &["--disk", "system"], EXIT_REFUSED)?;
    ensure!(why.contains("--force"), "{why}");
    let why = failed(new, &["--force"], EXIT_USAGE)?;
    ensure!(
        why.contains("system") && why.contains("data"),
        "the disks are not named: {why}"
    );
    let why = failed(new + 1000, &["--disk", "system", "--force"], EXIT_REFUSED)?;
    ensure!(why.contains("sitepair points"), "no advice: {why}");
    ensure!(fs::read(&image)? == before, "a refusal changed the image");
    let other = materialize(pair, new, &image, &["--disk", "system", "--force"])?;
    ensure!(other["cycle"] == new, "{other}");
    ensure!(fs::read(&image)? != before, "it was not replaced");
    let files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(
        files.len() == 2 * FORMATS.len() + 2,
        "something was left behind: {files:?}"
    );
    Ok(())
}

fn a_pinned_point_outlives_a_run_of_retention(swapped: bool) {
    on_stage(by_hand(swapped, 3), |pair| {
        let (vm, mut system, mut data) = machine(pair)?;
        let mut cut = |n: u8| {
            system.write(u64::from(n) * 8192, &[n; 4096])?;
            data.write(0, &[n; 4096])?;
            pair.ctl().cut("vm")
        };
        let first = cut(1)?;
        let (number, ctl) = (first.to_string(), pair.ctl());
        ctl.json_anywhere(&["pin", "vm", &number])?;
        ctl.json_anywhere(&["label", "vm", &number, "before the upgrade"])?;
        let second = cut(2)?;
        let last = (3..=8).map(&mut cut).last().context("some cuts")??;
        wait::until("retention has run", LIMIT, || {
            let points = pair.ctl().points("vm")?;
            Ok((points.first() == Some(&first) && !points.contains(&second)).then_some(()))
        })?;
        let points = listed(pair, &[])?;
        ensure!(points["points"][0]["pinned"] == true, "{points}");
        ensure!(
            points["points"][0]["label"] == "before the upgrade",
            "{points}"
        );
        ensure!(points.get("plan").is_none(), "{points}");
        // The pinned one shows what it showed, and so do those after it, whose logs are merged.
        let uris = pair.ctl().export("vm", last, &vm.names())?;
        let mut newest = Client::connect(Options::from_uri(&uris[0])?)?;
        for n in 1..=8_u8 {
            let block = newest.read(u64::from(n) * 8192, 4096)?;
            ensure!(block.iter().all(|byte| *byte == n), "block {n}");
        }
        newest.disconnect()?;
        pair.ctl().unexport("vm", last)?;

        plans(pair, first, last)?;
        changes(pair, first, last)?;
        [system, data].into_iter().try_for_each(Client::disconnect)
    });
}

fn listed(pair: &Pair, more: &[&str]) -> Result<Value> {
    pair.ctl()
        .json_anywhere(&[&["points", "vm"], more].concat())
}

/// A plan says what would go, and changes nothing.
fn plans(pair: &Pair, first: u64, last: u64) -> Result<()> {
    let before = pair.ctl().points("vm")?;
    let planned = listed(pair, &["--plan", "--retain", "newest:1"])?;
    ensure!(planned["plan"]["policy"] == "newest:1", "{planned}");
    for point in planned["points"].as_array().context("points")? {
        let stays = point["cycle"] == first || point["cycle"] == last;
        ensure!(stays != point["goes"].is_string(), "{point}");
    }
    let bytes = planned["plan"]["merges_bytes"].as_u64();
    ensure!(bytes.is_some_and(|bytes| bytes > 0), "{planned}");
    ensure!(pair.ctl().points("vm")? == before, "a plan is only a plan");
    let text = pair.ctl().say(&["points", "vm", "--plan"])?;
    ensure!(
        text.contains("GOES") && text.contains("pinned") && text.contains("by newest:3"),
        "{text}"
    );
    let wrong = ["points", "vm", "--plan", "--retain", "newest:none"];
    pair.ctl().run_anywhere(&wrong)?.failed(EXIT_USAGE)?;
    Ok(())
}

/// Changes are known at both sites, and what nobody holds goes.
fn changes(pair: &Pair, first: u64, last: u64) -> Result<()> {
    let ctl = pair.ctl();
    let shown = ctl.json_anywhere(&["retention", "vm"])?;
    ensure!(shown["retention"]["policy"] == "newest:3", "{shown}");
    let args = [
        "retention",
        "vm",
        "newest:2",
        "--cap",
        "1G",
        "--min-free",
        "1M",
    ];
    ensure!(ctl.json_anywhere(&args)?["changed"] == true, "no change");
    wait::until("both sites know the policy", LIMIT, || {
        let known = [pair.first(), pair.second()].map(|site| {
            let group = pair.ctl().group(site, "vm")?;
            let retention = &group.0["retention"];
            Ok::<_, anyhow::Error>(
                retention["policy"] == "newest:2" && retention["cap_bytes"] == 1 << 30,
            )
        });
        let [here, there] = known;
        Ok((here? && there?).then_some(()))
    })?;
    let number = first.to_string();
    ensure!(
        ctl.json_anywhere(&["unpin", "vm", &number])?["changed"] == true,
        "it was pinned"
    );
    wait::until("only two points are kept", LIMIT, || {
        let points = pair.ctl().points("vm")?;
        Ok((points.len() == 2 && points.last() == Some(&last)).then_some(()))
    })?;
    let why = ctl.run_anywhere(&["pin", "vm", &number])?;
    let why = why.failed(EXIT_REFUSED)?;
    ensure!(why.contains("sitepair points"), "no advice: {why}");
    ensure!(
        pair.logs().contains("set retention newest:2"),
        "not in the audit"
    );
    Ok(())
}
