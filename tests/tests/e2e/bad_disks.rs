//! Disks that cannot be protected: each is refused with its reason, and nothing half-done stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::ctl::{EXIT_NOT_REACHABLE, EXIT_REFUSED, EXIT_USAGE, Output};
use sitepair_tests::disks::{self, DiskFormat};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::tools::{self, QemuNbd};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    unusable_images_are_refused_and_leave_nothing,
    files_in_the_replicas_place_are_not_touched_unless_told_to,
    nobody_else_writes_to_a_protected_image,
    without_the_other_site_nothing_is_protected,
);

fn protect(pair: &Pair, path: &Path, flags: &[&str]) -> Result<Output> {
    let disk = format!("system={}", path.display());
    let mut args = vec!["protect", "vm", "--disk", &disk];
    args.extend(flags);
    pair.ctl().run(pair.first(), &args)
}

/// No site knows the group, and no file of it is left.
fn check_nothing_left(pair: &Pair, image: &Path) -> Result<()> {
    for site in [Site::Primary, Site::Secondary] {
        let status = pair.ctl().status(site)?;
        ensure!(
            status.groups().is_empty(),
            "{site} has {:?}",
            status.groups()
        );
        for folder in ["replicas/vm", "run/vm"] {
            let left = files_in(&pair.site_folder(site).join(folder))?;
            ensure!(left.is_empty(), "{site} has {left:?}");
        }
    }
    let map = PathBuf::from(format!("{}.map", image.display()));
    ensure!(!map.exists(), "{} was left", map.display());
    Ok(())
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}

fn unusable_images_are_refused_and_leave_nothing(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let file = |name: &str| pair.folder().join(name);
        let missing = file("missing.vhdx");
        let folder = file("folder.raw");
        fs::create_dir(&folder)?;
        let old = file("old.qcow2");
        tools::run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", "compat=0.10"])
                .arg(&old)
                .arg("8M"),
        )?;
        let empty = file("empty.raw");
        fs::write(&empty, b"")?;
        let odd = file("odd.raw");
        fs::write(&odd, vec![1; 1000])?;
        let damaged = file("damaged.vhdx");
        disks::create(&damaged, DiskFormat::VhdxDynamic, 8 * MIB)?;
        damage(&damaged)?;
        let cases = [
            (&missing, "missing.vhdx", &[][..]),
            (&folder, "folder.raw", &[]),
            (&old, "compat=1.1", &[]),
            (&empty, "empty.raw", &[]),
            (&odd, "odd.raw", &[]),
            (&damaged, "damaged.vhdx", &[]),
            (&odd, "odd.raw", &["--format", "vhdx"]),
        ];
        for (path, word, flags) in cases {
            let why = protect(pair, path, flags)?
                .failed(EXIT_REFUSED)
                .context(word)?;
            ensure!(why.contains(word), "{word} is not in: {why}");
            check_nothing_left(pair, path).context(word)?;
        }
        let locked = file("locked.vhdx");
        disks::create(&locked, DiskFormat::VhdxDynamic, 8 * MIB)?;
        {
            let _other = QemuNbd::start(pair.folder(), &locked, "vhdx")?;
            let why = protect(pair, &locked, &[])?.failed(EXIT_REFUSED)?;
            ensure!(why.contains("lock"), "{why}");
            check_nothing_left(pair, &locked)?;
        }
        let disk = format!("../system={}", locked.display());
        let args = ["protect", "vm", "--disk", &disk];
        pair.ctl().run(pair.first(), &args)?.failed(EXIT_USAGE)?;
        let disk = format!("system={}", locked.display());
        let args = ["protect", "../vm", "--disk", &disk];
        pair.ctl().run(pair.first(), &args)?.failed(EXIT_USAGE)?;
        check_nothing_left(pair, &locked)?;
        // Refusals leave no trace that would keep a good disk out.
        protect(pair, &locked, &[])?.done()?;
        pair.ctl()
            .wait_replicating(pair.second(), "vm", LIMIT)
            .map(drop)
    });
}

/// Both copies of the region table.
fn damage(vhdx: &Path) -> Result<()> {
    let mut bytes = fs::read(vhdx)?;
    for at in [192 << 10, 256 << 10] {
        bytes[at..at + 64].fill(0xee);
    }
    fs::write(vhdx, bytes).map_err(Into::into)
}

fn files_in_the_replicas_place_are_not_touched_unless_told_to(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let path = pair.folder().join("system.vhdx");
        disks::create(&path, DiskFormat::VhdxDynamic, 16 * MIB)?;
        disks::fill(&path, 4 * MIB, 4 * MIB, 1)?;
        let folder = pair.site_folder(pair.second()).join("replicas/vm");
        fs::create_dir_all(&folder)?;
        let theirs = folder.join("system.vhdx");
        // Smaller than the disk: of no use even when it may be used.
        disks::create(&theirs, DiskFormat::VhdxDynamic, 8 * MIB)?;
        disks::fill(&theirs, 0, 8 * MIB, 2)?;
        let before = fs::read(&theirs)?;
        let why = protect(pair, &path, &[])?.failed(EXIT_REFUSED)?;
        ensure!(why.contains("use-existing"), "no advice: {why}");
        let why = protect(pair, &path, &["--use-existing"])?.failed(EXIT_REFUSED)?;
        ensure!(why.contains("small") || why.contains("size"), "{why}");
        ensure!(fs::read(&theirs)? == before, "somebody's file was changed");
        for site in [Site::Primary, Site::Secondary] {
            let status = pair.ctl().status(site)?;
            ensure!(
                status.groups().is_empty(),
                "{site} has {:?}",
                status.groups()
            );
        }

        fs::remove_file(&theirs)?;
        disks::create(&theirs, DiskFormat::VhdxDynamic, 16 * MIB)?;
        disks::fill(&theirs, 0, 16 * MIB, 2)?;
        protect(pair, &path, &["--use-existing"])?.done()?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let cycle = pair.ctl().cut("vm")?;
        let point = pair.ctl().export("vm", cycle, &["system"])?;
        let live = pair.ctl().wait_open(pair.first(), "vm", LIMIT)?;
        tools::compare((&point[0], "raw"), (&live[0], "raw"))
    });
}

fn nobody_else_writes_to_a_protected_image(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "one", &[SYSTEM])?;
        vm.protect(pair)?;
        let path = vm.disks()[0].1.clone();
        let why = protect(pair, &path, &[])?.failed(EXIT_REFUSED)?;
        ensure!(why.contains("lock") || why.contains("one"), "{why}");
        for site in [Site::Primary, Site::Secondary] {
            ensure!(
                pair.ctl().group(site, "vm").is_err(),
                "{site} has half a group"
            );
        }
        let mut write = Command::new("qemu-io");
        write.args(["-f", "vhdx", "-c", "write 0 512"]).arg(&path);
        let said = write.output().context("run qemu-io")?;
        let said = String::from_utf8_lossy(&said.stderr).to_lowercase();
        ensure!(
            said.contains("lock"),
            "QEMU could open the image for writing: {said}"
        );
        pair.ctl()
            .wait_replicating(pair.second(), "one", LIMIT)
            .map(drop)
    });
}

fn without_the_other_site_nothing_is_protected(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let path = pair.folder().join("data.raw");
        disks::create(&path, DATA.format, 8 * MIB)?;
        pair.cut_link();
        crate::scene::wait_link_down(pair.ctl(), pair.first())?;
        let output = protect(pair, &path, &[])?;
        let why = output.failed(EXIT_NOT_REACHABLE)?;
        ensure!(why.contains("other site"), "{why}");
        check_nothing_left(pair, &path)?;
        pair.heal_link();
        pair.wait_linked(LIMIT)?;
        protect(pair, &path, &[])?.done()?;
        pair.ctl()
            .wait_replicating(pair.second(), "vm", LIMIT)
            .map(drop)
    });
}
