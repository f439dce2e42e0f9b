//! Planned failover and failback, given as commands.

use std::time::Duration;

use anyhow::ensure;
use sitepair_tests::ctl::EXIT_REFUSED;
use sitepair_tests::disks::DiskFormat;
use sitepair_tests::site::PairOptions;
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DATA, DiskPlan, LIMIT, SYSTEM, Vm, on_stage};

both_ways!(
    three_rounds_lose_nothing,
    a_writer_is_disconnected_only_when_told_to,
    replication_back_waits_for_reverse_when_told_to,
    a_qcow2_survives_a_killed_agent_and_comes_home_whole,
);

fn three_rounds_lose_nothing(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
        let mut guest = vm.protect_and_boot(pair)?;
        let mut at = pair.first();
        for _ in 0..3 {
            for _ in 0..2 {
                vm.wait_replicating(pair, at.other())?;
                guest.wait_writes(200)?;
                let resting = vm.shut_down(pair, at, guest)?;
                vm.check_point_against(pair, at)?;
                pair.ctl().failover(&vm.group, &[])?;
                at = at.other();
                let uris = vm.uris(pair, at)?;
                ensure!(
                    !pair.ctl().group(at.other(), &vm.group)?.is_open(),
                    "both sites serve"
                );
                vm.check_all(&resting, &uris)?;
                guest = resting.resume(&uris)?;
            }
        }
        vm.wait_replicating(pair, at.other())?;
        let resting = vm.shut_down(pair, at, guest)?;
        vm.check_all(&resting, &vm.uris(pair, at)?)?;
        vm.check_point_against(pair, at)
    });
}

fn a_writer_is_disconnected_only_when_told_to(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (ctl, first, second) = (pair.ctl(), pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        vm.protect(pair)?;
        let uris = vm.uris(pair, first)?;
        let guest = vm.new_guest_reconnecting(Duration::ZERO).resume(&uris)?;
        vm.wait_replicating(pair, second)?;

        let refused = ctl
            .run_anywhere(&["failover", "--planned", "vm"])?
            .failed(EXIT_REFUSED)?;
        ensure!(
            refused.contains("--disconnect"),
            "the refusal gives no advice: {refused}"
        );
        ensure!(
            ctl.group(first, "vm")?.role() == "source",
            "a refusal changed the role"
        );
        guest.wait_writes(50)?;

        ctl.failover("vm", &["--disconnect"])?;
        wait::until("the guest is disconnected", LIMIT, || {
            Ok(guest.has_broken_off().then_some(()))
        })?;
        let resting = guest.stop_anyway()?;
        let uris = vm.uris(pair, second)?;
        vm.check_all(&resting, &uris)?;
        // Goes on with the write that was never answered.
        let guest = resting.resume(&uris)?;
        guest.wait_writes(50)?;
        let resting = vm.shut_down(pair, second, guest)?;
        vm.check_all(&resting, &uris)
    });
}

fn replication_back_waits_for_reverse_when_told_to(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (ctl, first, second) = (pair.ctl(), pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        guest.wait_writes(100)?;
        let resting = vm.shut_down(pair, first, guest)?;

        ctl.failover("vm", &["--no-reverse"])?;
        let uris = vm.uris(pair, second)?;
        vm.check_all(&resting, &uris)?;
        let guest = resting.resume(&uris)?;
        guest.wait_writes(200)?;
        let held = ctl.group(second, "vm")?;
        ensure!(
            held.0["allowed_operations"].to_string().contains("reverse"),
            "reverse is not offered: {}",
            held.0
        );
        let why = ctl.run_anywhere(&["cut", "vm"])?.failed(EXIT_REFUSED)?;
        ensure!(
            why.contains("reverse"),
            "the refusal gives no advice: {why}"
        );
        let cycle = ctl.group(first, "vm")?.newest_cycle();
        guest.wait_writes(1500)?;
        ensure!(
            ctl.group(first, "vm")?.newest_cycle() == cycle,
            "a cycle was sent although replication is held"
        );

        ctl.json_anywhere(&["reverse", "vm"])?;
        vm.wait_replicating(pair, first)?;
        let resting = vm.shut_down(pair, second, guest)?;
        vm.check_point_against(pair, second)?;
        vm.check_all(&resting, &vm.uris(pair, second)?)
    });
}

fn a_qcow2_survives_a_killed_agent_and_comes_home_whole(swapped: bool) {
    const QCOW2: DiskPlan = DiskPlan {
        format: DiskFormat::Qcow2,
        ..SYSTEM
    };
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[QCOW2])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        // While new clusters are given out.
        for _ in 0..3 {
            guest.wait_writes(50)?;
            pair.kill9(first)?;
            pair.start_agent(first)?;
        }
        guest.wait_writes(50)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_point_against(pair, first)?;

        pair.ctl().failover(&vm.group, &[])?;
        let there = vm.uris(pair, second)?;
        vm.check_all(&resting, &there)?;
        let guest = resting.resume(&there)?;
        vm.wait_replicating(pair, first)?;
        guest.wait_writes(50)?;
        let resting = vm.shut_down(pair, second, guest)?;
        pair.ctl().failover(&vm.group, &[])?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)?;

        let (_, file) = &vm.disks()[0];
        ensure!(pair.sigterm(first)?.success(), "the agent did not end well");
        tools::check(file, "qcow2")
    });
}
