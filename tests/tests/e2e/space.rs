//! A replica's host that runs out of space.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DiskPlan, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(without_space_at_the_replica_the_guest_works_on_and_status_tells);

/// Whether this process may give the agent a small file system of its own.
fn may_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn without_space_at_the_replica_the_guest_works_on_and_status_tells(swapped: bool) {
    if !may_mount() {
        eprintln!("not tried: only root may mount a small file system");
        return;
    }
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let replicas = pair.site_folder(second).join("replicas");
        std::fs::create_dir_all(&replicas)?;
        let replicas = replicas.to_string_lossy().into_owned();
        pair.sigterm(second)?;
        let script = "mount -t tmpfs -o size=16m tmpfs \"$0\" && exec \"$@\"";
        pair.start_agent_through(
            second,
            &["unshare", "--mount", "sh", "-c", script, &replicas],
        )?;
        pair.wait_linked(LIMIT)?;

        let vm = Vm::create(
            pair,
            "vm",
            &[DiskPlan {
                content: 40 * MIB,
                ..SYSTEM
            }],
        )?;
        let guest = vm.protect_and_boot(pair)?;
        pair.ctl()
            .wait_group(first, "vm", "told of the lack of space", LIMIT, |now| {
                now.0["health"] != "ok" && now.messages().contains("space")
            })?;
        guest.wait_writes(100)?;
        ensure!(
            pair.ctl().group(second, "vm")?.newest_cycle() == 0,
            "a point without space"
        );

        grow(pair, &replicas)?;
        wait::until("it goes on by itself", LIMIT, || {
            let now = pair.ctl().group(second, "vm")?;
            Ok((now.newest_cycle() > 0).then_some(()))
        })?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

fn grow(pair: &Pair, replicas: &str) -> Result<()> {
    let process = pair.process_id(pair.second())?.to_string();
    let mut remount = Command::new("nsenter");
    remount.args(["--target", &process, "--mount"]);
    remount.args(["mount", "-o", "remount,size=256m", replicas]);
    tools::run(&mut remount)
        .map(drop)
        .context("give the replica more space")
}
