//! Initial replication and deltas under a guest that can prove what it wrote.

use anyhow::{Result, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, SYSTEM, Vm, on_stage};

both_ways!(
    every_point_holds_what_was_acknowledged_before_its_cut,
    a_later_write_is_never_in_a_point_without_the_earlier_one,
);

const KEEP: u32 = 6;

fn every_point_holds_what_was_acknowledged_before_its_cut(swapped: bool) {
    let options = PairOptions {
        keep_points: KEEP,
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        check_points(pair, &vm)?;
        // Stopped cleanly, both files are in order for other programs.
        let paths = [Site::Primary, Site::Secondary].map(|site| pair.ctl().group(site, "vm"));
        for site in [Site::Primary, Site::Secondary] {
            let status = pair.sigterm(site)?;
            ensure!(status.success(), "the {site} agent stopped with {status}");
        }
        for status in paths {
            tools::check(&status?.paths()[0], "vhdx")?;
        }
        Ok(())
    });
}

fn a_later_write_is_never_in_a_point_without_the_earlier_one(swapped: bool) {
    let options = PairOptions {
        keep_points: KEEP,
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        check_points(pair, &Vm::create(pair, "vm", &[SYSTEM, DATA])?)
    });
}

/// Cuts under a writing guest, more often than points are kept; then looks into every kept point.
fn check_points(pair: &Pair, vm: &Vm) -> Result<()> {
    let (ctl, first, second) = (pair.ctl(), pair.first(), pair.second());
    let guest = vm.protect_and_boot(pair)?;
    vm.wait_replicating(pair, second)?;
    let mut floors = Vec::new();
    for _ in 0..KEEP + 2 {
        guest.wait_writes(100)?;
        let acknowledged = guest.acknowledged();
        floors.push((ctl.cut(&vm.group)?, acknowledged));
    }
    // Served while more cycles come and older points are merged away: it must not change.
    let &(held, held_floor) = floors.last().expect("cuts were made");
    let held_uris = ctl.export(&vm.group, held, &vm.names())?;
    guest.wait_writes(300)?;
    let resting = vm.shut_down(pair, first, guest)?;
    let verdict = resting.verify_exports(held_floor, &held_uris)?;
    ensure!(
        verdict.last < resting.writer.last_acknowledged(),
        "the point took later writes"
    );
    ctl.unexport(&vm.group, held)?;

    vm.check_point_against(pair, first)?;
    let kept = wait::until("older points are merged away", LIMIT, || {
        let kept = ctl.points(&vm.group)?;
        Ok((kept.len() <= KEEP as usize).then_some(kept))
    })?;
    ensure!(
        kept.len() == KEEP as usize,
        "{kept:?} instead of {KEEP} points"
    );
    ensure!(kept.is_sorted(), "points out of order: {kept:?}");
    let mut last = 0;
    for &cycle in &kept {
        let made_before = floors.iter().filter(|(cut, _)| *cut <= cycle);
        let floor = made_before.map(|(_, floor)| *floor).max().unwrap_or(0);
        let uris = ctl.export(&vm.group, cycle, &vm.names())?;
        let verdict = resting.verify_exports(floor.max(last), &uris)?;
        vm.check_content(&uris)?;
        ctl.unexport(&vm.group, cycle)?;
        last = verdict.last;
    }
    ensure!(
        last == resting.writer.last_acknowledged(),
        "the newest point ends at write {last}"
    );
    Ok(())
}
