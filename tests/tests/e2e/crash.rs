//! Agents that die at the worst moment.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::wait;

use crate::both_ways;
use crate::scene::{DATA, DiskPlan, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    initial_replication_goes_on_after_either_agent_died,
    deltas_go_on_after_either_agent_died,
    a_failover_survives_the_death_of_the_source,
    a_failover_survives_the_death_of_the_replica,
);

/// So slow that an agent can be killed in the middle, in bytes per second.
const SLOW: u64 = 8 * MIB;

fn initial_replication_goes_on_after_either_agent_died(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let plan = DiskPlan {
            size: 256 * MIB,
            content: 160 * MIB,
            ..SYSTEM
        };
        let vm = Vm::create(pair, "vm", &[plan])?;
        pair.limit_link_rate(Some(SLOW));
        let guest = vm.protect_and_boot(pair)?;
        let begun = pair
            .ctl()
            .group(first, "vm")?
            .source_counter("seed_left_bytes");
        let left = wait::until("the other site has confirmed a good part", LIMIT, || {
            let left = pair
                .ctl()
                .group(first, "vm")?
                .source_counter("seed_left_bytes");
            Ok((left + 32 * MIB <= begun).then_some(left))
        })?;
        ensure!(left > 0, "initial replication is over too early");
        let before = pair.link_bytes();
        pair.kill9(first)?;
        pair.kill9(second)?;
        pair.limit_link_rate(None);
        pair.start_agent(first)?;
        pair.start_agent(second)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        // What was left, a quarter of it zeros, and what the guest wrote; not what was confirmed.
        let (sent, left) = ((pair.link_bytes() - before) / MIB, left / MIB);
        ensure!(
            sent < left + 16,
            "{sent} MiB were sent after the crash, {left} MiB were left"
        );
        finish(pair, &vm, guest)
    });
}

fn deltas_go_on_after_either_agent_died(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let plan = DiskPlan {
            content: 40 * MIB,
            ..SYSTEM
        };
        let vm = Vm::create(pair, "vm", &[plan, DATA])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;
        let (first, second) = (pair.first(), pair.second());
        for victims in [&[first][..], &[second], &[first, second], &[first]] {
            guest.wait_writes(100)?;
            let before = pair.link_bytes();
            for &victim in victims {
                pair.kill9(victim)?;
            }
            for &victim in victims {
                pair.start_agent(victim)?;
            }
            pair.wait_linked(LIMIT)?;
            guest.wait_writes(100)?;
            vm.wait_replicating(pair, second)?;
            // The hot zones, which are where the guest writes, and what it wrote meanwhile.
            let sent = (pair.link_bytes() - before) / MIB;
            let hot = vm.guest_bytes() / MIB;
            let all = vm.content_bytes() / MIB;
            ensure!(
                sent < hot + 12,
                "{sent} MiB after a crash; {hot} MiB were hot, of {all}"
            );
        }
        finish(pair, &vm, guest)
    });
}

fn a_failover_survives_the_death_of_the_source(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        interrupt_failovers(pair, |at| at)
    });
}

fn a_failover_survives_the_death_of_the_replica(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        interrupt_failovers(pair, Site::other)
    });
}

/// How long after the command was given an agent dies: from its first steps to after its end, on a
/// link that makes them take a while.
const MOMENTS_MS: [u64; 5] = [40, 120, 250, 450, 900];
const LINK_DELAY: Duration = Duration::from_millis(25);

fn interrupt_failovers(pair: &mut Pair, victim: fn(Site) -> Site) -> Result<()> {
    let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
    let mut guest = vm.protect_and_boot(pair)?;
    let mut at = pair.first();
    vm.wait_replicating(pair, at.other())?;
    for moment in MOMENTS_MS {
        guest.wait_writes(100)?;
        let resting = vm.shut_down(pair, at, guest)?;
        pair.delay_link(LINK_DELAY);
        let ctl = pair.ctl().clone();
        let command = thread::spawn(move || ctl.run_anywhere(&["failover", "--planned", "vm"]));
        // Not a wait for something to become true: the moment itself is what is tried.
        thread::sleep(Duration::from_millis(moment));
        pair.kill9(victim(at))?;
        pair.delay_link(Duration::ZERO);
        pair.start_agent(victim(at))?;
        // Whatever it came to; what counts is what is true now.
        let _ = command.join();
        pair.wait_linked(LIMIT)?;
        at = vm.wait_settled(pair)?;
        let uris = vm.uris(pair, at)?;
        vm.check_all(&resting, &uris)?;
        guest = resting.resume(&uris)?;
        vm.wait_replicating(pair, at.other())?;
    }
    let resting = vm.shut_down(pair, at, guest)?;
    vm.check_point_against(pair, at)?;
    vm.check_all(&resting, &vm.uris(pair, at)?)
}

/// Shuts the guest down, and compares.
fn finish(pair: &Pair, vm: &Vm, guest: sitepair_tests::guest::Guest) -> Result<()> {
    guest.wait_writes(50)?;
    let resting = vm.shut_down(pair, pair.first(), guest)?;
    vm.check_all(&resting, &vm.uris(pair, pair.first())?)?;
    vm.check_point_against(pair, pair.first())
}
