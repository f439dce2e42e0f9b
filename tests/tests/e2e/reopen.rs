//! Who may serve the guest after a restart.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::ctl::{Ctl, EXIT_REFUSED};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, SYSTEM, Vm, on_stage};

both_ways!(
    an_agent_that_was_away_for_a_moment_reopens_alone,
    after_a_long_absence_only_the_other_site_can_open,
    a_forced_act_must_be_signed_in_full,
    a_disk_changed_while_its_agent_was_down_is_replicated_as_it_is,
);

/// No grace: every absence is a long one.
fn without_grace(swapped: bool) -> PairOptions {
    let settings = vec![("replication", "same_boot_grace", "0s".into())];
    PairOptions {
        settings,
        ..PairOptions::swapped(swapped)
    }
}

fn an_agent_that_was_away_for_a_moment_reopens_alone(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let first = pair.first();
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;
        pair.cut_link();
        for _ in 0..2 {
            pair.kill9(first)?;
            pair.start_agent(first)?;
            guest.wait_writes(50)?;
        }
        let status = pair.ctl().group(first, "vm")?;
        ensure!(
            status.role() == "source" && status.is_open(),
            "{}",
            status.0
        );
        pair.heal_link();
        pair.wait_linked(LIMIT)?;
        vm.wait_replicating(pair, pair.second())?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

/// Waits until the source's agent is there, knows the group, has tried to reach its peer more than
/// once, and still does not serve.
fn wait_closed(ctl: &Ctl, site: Site) -> Result<()> {
    wait::until("the source is there and closed", LIMIT, || {
        let Ok(status) = ctl.status(site) else {
            return Ok(None);
        };
        let group = status.group("vm")?;
        ensure!(!group.is_open(), "it opened by itself: {}", group.0);
        let tried = status.link_attempts() >= 2;
        Ok((group.role() == "source" && tried).then_some(()))
    })
}

fn after_a_long_absence_only_the_other_site_can_open(swapped: bool) {
    on_stage(without_grace(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        pair.cut_link();
        pair.kill9(first)?;
        pair.start_agent(first)?;
        wait_closed(pair.ctl(), first)?;
        let written = guest.acknowledged();
        let closed = pair.ctl().group(first, "vm")?;
        ensure!(
            closed.0["health"] == "critical",
            "a closed source is no alarm: {}",
            closed.0
        );
        ensure!(
            guest.acknowledged() == written,
            "the guest was served by a closed source"
        );

        pair.heal_link();
        guest.wait_writes(50)?;
        vm.wait_replicating(pair, second)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

fn force_open(pair: &Pair, site: Site, flags: &[&str]) -> Result<sitepair_tests::ctl::Output> {
    let mut args = vec!["force-open", "vm", "--reason", "drill"];
    args.extend(flags);
    pair.ctl().run(site, &args)
}

fn a_forced_act_must_be_signed_in_full(swapped: bool) {
    on_stage(without_grace(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let signed = ["--confirm", "vm", "--peer-is-stopped"];
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        // Open, with a peer that answers: there is nothing to force.
        force_open(pair, first, &signed)?.failed(EXIT_REFUSED)?;

        pair.kill9(second)?;
        pair.kill9(first)?;
        pair.start_agent(first)?;
        wait_closed(pair.ctl(), first)?;
        let why = force_open(pair, first, &["--confirm", "vm"])?.failed(EXIT_REFUSED)?;
        ensure!(why.contains("forced act needs"), "{why}");
        let wrong_name = ["--confirm", "vn", "--peer-is-stopped"];
        force_open(pair, first, &wrong_name)?.failed(EXIT_REFUSED)?;
        wait_closed(pair.ctl(), first)?;

        force_open(pair, first, &signed)?.done()?;
        guest.wait_writes(50)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;

        // The other site learns of it, does not serve, and both say what is to be done.
        pair.start_agent(second)?;
        pair.wait_linked(LIMIT)?;
        let told = pair
            .ctl()
            .wait_group(first, "vm", "told what to do", LIMIT, |now| {
                now.messages().contains("end the protection") && now.is_open()
            })?;
        ensure!(
            told.0["health"] != "ok",
            "not protected, and yet well: {}",
            told.0
        );
        ensure!(
            !pair.ctl().group(second, "vm")?.is_open(),
            "both sites serve"
        );
        Ok(())
    });
}

fn a_disk_changed_while_its_agent_was_down_is_replicated_as_it_is(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        let resting = vm.shut_down(pair, first, guest)?;
        pair.sigterm(first)?;
        for ((name, path), format) in vm.disks().iter().zip(["vhdx", "raw"]) {
            let mut write = Command::new("qemu-io");
            write
                .args(["-f", format, "-c", "write -P 0x5a 20M 256k"])
                .arg(path);
            tools::run(&mut write).context(*name)?;
        }
        pair.start_agent(first)?;
        pair.wait_linked(LIMIT)?;
        let uris = vm.uris(pair, first)?;
        resting.verify_all(&uris)?;
        wait::until("the sites agree again", LIMIT, || {
            let Ok(cycle) = pair.ctl().cut("vm") else {
                return Ok(None);
            };
            let points = pair.ctl().export("vm", cycle, &vm.names())?;
            let mut same = true;
            for (point, live) in points.iter().zip(&uris) {
                same &= tools::hash_export(point)? == tools::hash_export(live)?;
            }
            pair.ctl().unexport("vm", cycle)?;
            Ok(same.then_some(()))
        })
    });
}
