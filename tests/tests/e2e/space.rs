//! A replica's host that runs out of space.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sitepair_tests::ctl::GroupStatus;
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::tools;

use crate::both_ways;
use crate::scene::{DiskPlan, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    without_space_at_the_replica_the_guest_works_on_and_status_tells,
    a_full_journal_keeps_its_points_and_fills_on_when_there_is_space,
);

/// Whether this process may give the agent a small file system of its own.
fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    let may = probe.status().is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tried: only root may mount a small file system");
    }
    may
}

/// Becomes the agent (`$@`) with a file system of its own, of `$1`, over the folder `$0`, whose files move.
const SMALL: &str = r#"
    size=$1; shift
    mkdir -p "$0" "$0.moved" && cp -a "$0/." "$0.moved/" &&
    mount -t tmpfs -o size="$size" tmpfs "$0" &&
    cp -a "$0.moved/." "$0/" && exec "$@"
"#;

/// Starts the second agent anew with a small file system over one of its folders. Gives its path.
fn make_small(pair: &mut Pair, folder: &str, size: &str) -> Result<String> {
    let second = pair.second();
    let path = pair.site_folder(second).join(folder);
    let path = path.to_string_lossy().into_owned();
    pair.sigterm(second)?;
    pair.start_agent_through(
        second,
        &["unshare", "--mount", "sh", "-c", SMALL, &path, size],
    )?;
    pair.wait_linked(LIMIT)?;
    Ok(path)
}

/// Waits until the first site tells of the lack of space.
fn wait_told(pair: &Pair) -> Result<()> {
    let told = |now: &GroupStatus| now.0["health"] != "ok" && now.messages().contains("space");
    pair.ctl()
        .wait_group(pair.first(), "vm", "told of the lack of space", LIMIT, told)
        .map(drop)
}

fn without_space_at_the_replica_the_guest_works_on_and_status_tells(swapped: bool) {
    if !may_mount() {
        return;
    }
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let replicas = make_small(pair, "replicas", "16m")?;
        let vm = Vm::create(
            pair,
            "vm",
            &[DiskPlan {
                content: 40 * MIB,
                ..SYSTEM
            }],
        )?;
        let guest = vm.protect_and_boot(pair)?;
        wait_told(pair)?;
        guest.wait_writes(100)?;
        ensure!(
            pair.ctl().group(second, "vm")?.newest_cycle() == 0,
            "a point without space"
        );

        grow(pair, &replicas)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

fn a_full_journal_keeps_its_points_and_fills_on_when_there_is_space(swapped: bool) {
    if !may_mount() {
        return;
    }
    let options = PairOptions {
        // All of it may be taken: what is told here is a disk without a byte left.
        settings: vec![("replication", "min_free_mib", 0.into())],
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        let (first, second) = (pair.first(), pair.second());
        let state = make_small(pair, "state", "12m")?;
        let vm = Vm::create(
            pair,
            "vm",
            &[DiskPlan {
                guest: 16 * MIB,
                ..SYSTEM
            }],
        )?;
        let guest = vm.protect_and_boot(pair)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        wait_told(pair)?;
        guest.wait_writes(100)?;
        let full = pair.ctl().group(second, "vm")?.newest_cycle();

        // What is there is whole.
        let points = pair.ctl().points("vm")?;
        ensure!(
            points.last() == Some(&full),
            "{points:?}, but the newest is {full}"
        );
        let uris = pair.ctl().export("vm", full, &vm.names())?;
        vm.check_content(&uris)?;
        pair.ctl().unexport("vm", full)?;

        grow(pair, &state)?;
        pair.ctl()
            .wait_point_at_least(second, "vm", full + 1, LIMIT)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

/// Gives the second agent's small file system more space.
fn grow(pair: &Pair, folder: &str) -> Result<()> {
    let process = pair.process_id(pair.second())?.to_string();
    let mut remount = Command::new("nsenter");
    remount.args(["--target", &process, "--mount"]);
    remount.args(["mount", "-o", "remount,size=256m", folder]);
    tools::run(&mut remount)
        .map(drop)
        .context("give the replica more space")
}
