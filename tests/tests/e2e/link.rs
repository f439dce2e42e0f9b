//! A link that breaks, or goes silent, while groups are in every phase.

use std::thread;

use anyhow::{Result, anyhow, ensure};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::wait;

use crate::both_ways;
use crate::scene::{DATA, DiskPlan, LIMIT, MIB, SYSTEM, Vm, on_stage, wait_link_down};

both_ways!(
    a_cut_link_is_noticed_and_work_goes_on_when_it_heals,
    a_silent_link_is_noticed_and_work_goes_on_when_it_heals,
);

fn a_cut_link_is_noticed_and_work_goes_on_when_it_heals(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        break_link(pair, Pair::cut_link)
    });
}

fn a_silent_link_is_noticed_and_work_goes_on_when_it_heals(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        break_link(pair, Pair::black_hole_link)
    });
}

/// So slow that initial replication of the late machine fills the link, in bytes per second.
const SLOW: u64 = 6 * MIB;

/// One machine moves, one is replicated, one is in initial replication when the link breaks.
fn break_link(pair: &Pair, fault: fn(&Pair)) -> Result<()> {
    let (ctl, first, second) = (pair.ctl(), pair.first(), pair.second());
    let moving = Vm::create(pair, "moving", &[SYSTEM])?;
    let steady = Vm::create(pair, "steady", &[DATA])?;
    let late = Vm::create(
        pair,
        "late",
        &[DiskPlan {
            content: 48 * MIB,
            ..SYSTEM
        }],
    )?;
    let moving_guest = moving.protect_and_boot(pair)?;
    let steady_guest = steady.protect_and_boot(pair)?;
    moving.wait_replicating(pair, second)?;
    steady.wait_replicating(pair, second)?;
    moving_guest.wait_writes(50)?;
    let moving_resting = moving.shut_down(pair, first, moving_guest)?;

    pair.limit_link_rate(Some(SLOW));
    let begin = pair.link_bytes();
    let late_guest = late.protect_and_boot(pair)?;
    wait::until("initial replication fills the link", LIMIT, || {
        Ok((pair.link_bytes() - begin > 6 * MIB).then_some(()))
    })?;
    let for_command = ctl.clone();
    let command =
        thread::spawn(move || for_command.run_anywhere(&["failover", "--planned", "moving"]));
    fault(pair);

    for site in [first, second] {
        wait_link_down(ctl, site)?;
    }
    ensure!(
        ctl.status(first)?.0["health"] != "ok",
        "a broken link is not seen in the health"
    );
    for guest in [&steady_guest, &late_guest] {
        guest.wait_writes(50)?;
    }
    wait::until("somebody tries to connect again", LIMIT, || {
        let tried = ctl.status(first)?.link_attempts() + ctl.status(second)?.link_attempts();
        Ok((tried >= 2).then_some(()))
    })?;

    pair.limit_link_rate(None);
    pair.heal_link();
    // Done, or undone; what counts is what is true now.
    let _ = command
        .join()
        .map_err(|_| anyhow!("the command's thread panicked"))??;
    for (vm, guest) in [(&steady, steady_guest), (&late, late_guest)] {
        ensure!(vm.wait_settled(pair)? == first, "{} has moved", vm.group);
        vm.wait_replicating(pair, second)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)?;
    }
    let at = moving.wait_settled(pair)?;
    let uris = moving.uris(pair, at)?;
    moving.check_all(&moving_resting, &uris)?;
    let guest = moving_resting.resume(&uris)?;
    moving.wait_replicating(pair, at.other())?;
    moving.shut_down(pair, at, guest)?;
    moving.check_point_against(pair, at)?;
    // 36 MiB of the late machine's content are not zeros.
    let sent = (pair.link_bytes() - begin) / MIB;
    ensure!(
        sent < 80,
        "{sent} MiB crossed the link: something was copied again"
    );
    Ok(())
}
