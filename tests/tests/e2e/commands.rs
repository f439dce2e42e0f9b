//! Commands at the wrong time, and commands twice.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sitepair_tests::ctl::{EXIT_NOT_REACHABLE, EXIT_REFUSED, EXIT_USAGE};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::wait;

use crate::both_ways;
use crate::scene::{DiskPlan, LIMIT, MIB, SYSTEM, Vm, on_stage};

both_ways!(
    commands_in_the_wrong_state_are_refused_with_advice,
    commands_given_twice_do_their_work_once,
    an_agent_that_is_not_there_has_its_own_exit_code,
    a_point_in_use_stays_and_unprotect_cleans_up,
    a_group_is_kept_as_it_was_asked_for,
    a_pause_outlives_both_agents,
    a_name_is_taken_at_both_sites,
    a_site_alone_can_end_protection_only_by_force,
    people_can_read_it_too,
);

fn refused(pair: &Pair, args: &[&str]) -> Result<String> {
    let said = pair.ctl().run_anywhere(args)?.failed(EXIT_REFUSED);
    said.with_context(|| format!("sitepair {}", args.join(" ")))
}

fn commands_in_the_wrong_state_are_refused_with_advice(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(
            pair,
            "vm",
            &[DiskPlan {
                content: 32 * MIB,
                ..SYSTEM
            }],
        )?;
        for command in ["cut", "pause", "resume", "reverse", "points", "unprotect"] {
            let why = refused(pair, &[command, "nobody"])?;
            ensure!(why.contains("nobody"), "{command}: {why}");
        }
        // In the middle of initial replication.
        pair.limit_link_rate(Some(4 * MIB));
        vm.protect(pair)?;
        vm.uris(pair, pair.first())?;
        refused(pair, &["failover", "--planned", "vm"])?;
        ensure!(
            pair.ctl().group(pair.second(), "vm")?.newest_cycle() == 0,
            "too fast for this"
        );
        let path = vm.disks()[0].1.display().to_string();
        refused(
            pair,
            &["protect", "vm", "--disk", &format!("system={path}")],
        )?;
        let reply = pair.ctl().json_anywhere(&["reverse", "vm"])?;
        ensure!(
            reply["changed"] == false,
            "there is nothing to reverse: {reply}"
        );
        pair.limit_link_rate(None);
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;

        refused(pair, &["export", "vm", "999999"])?;
        // Either agent will do: what is for the other one goes there.
        pair.ctl().run(pair.second(), &["cut", "vm"])?.done()?;
        pair.ctl().run(pair.first(), &["points", "vm"])?.done()?;
        // Paused.
        pair.ctl().json_anywhere(&["pause", "vm"])?;
        let why = refused(pair, &["cut", "vm"])?;
        ensure!(why.contains("resume"), "no advice: {why}");
        let why = refused(pair, &["failover", "--planned", "vm"])?;
        ensure!(why.contains("resume"), "no advice: {why}");
        pair.ctl().json_anywhere(&["resume", "vm"])?;
        wait::until("cuts are made again", LIMIT, || {
            Ok(pair.ctl().cut("vm").ok())
        })
        .map(drop)
    });
}

fn commands_given_twice_do_their_work_once(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;
        for (command, changes) in [("pause", [true, false]), ("resume", [true, false])] {
            for expected in changes {
                let reply = pair.ctl().json_anywhere(&[command, "vm"])?;
                ensure!(reply["changed"] == expected, "{command}: {reply}");
            }
        }
        vm.wait_replicating(pair, pair.second())?;
        let cycle = pair.ctl().cut("vm")?;
        let first = pair.ctl().export("vm", cycle, &["system"])?;
        ensure!(
            pair.ctl().export("vm", cycle, &["system"])? == first,
            "another export"
        );
        pair.ctl().unexport("vm", cycle)?;
        let reply = pair
            .ctl()
            .json_anywhere(&["unexport", "vm", &cycle.to_string()])?;
        ensure!(reply["changed"] == false, "{reply}");
        vm.shut_down(pair, pair.first(), guest).map(drop)
    });
}

fn an_agent_that_is_not_there_has_its_own_exit_code(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        pair.sigterm(second)?;
        pair.ctl()
            .run(second, &["cut", "vm"])?
            .failed(EXIT_NOT_REACHABLE)?;
        let output = pair.ctl().run(second, &["status"])?;
        ensure!(output.code == Some(EXIT_NOT_REACHABLE), "{output:?}");
        // The one that is there still tells what it knows.
        pair.ctl().status(first)?;
        pair.ctl()
            .run_anywhere(&["failover", "vm"])?
            .failed(EXIT_USAGE)
            .map(drop)
            .or_else(|_| {
                // Arguments that the parser refuses are told by the parser, not as JSON.
                let output = pair.ctl().run_anywhere(&["failover", "vm"])?;
                ensure!(output.code == Some(EXIT_USAGE), "{output:?}");
                Ok(())
            })
    });
}

fn a_point_in_use_stays_and_unprotect_cleans_up(swapped: bool) {
    let options = PairOptions {
        keep_points: 2,
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        let floor = guest.acknowledged();
        let cycle = pair.ctl().cut("vm")?;
        let uris = pair.ctl().export("vm", cycle, &["system"])?;
        for _ in 0..4 {
            guest.wait_writes(20)?;
            pair.ctl().cut("vm")?;
        }
        ensure!(
            pair.ctl().points("vm")?.contains(&cycle),
            "a point in use was merged away"
        );
        refused(pair, &["unprotect", "vm"])?;
        let resting = vm.shut_down(pair, first, guest)?;
        let verdict = resting.verify_exports(floor, &uris)?;
        ensure!(
            verdict.last < resting.writer.last_acknowledged(),
            "the point has moved"
        );
        pair.ctl().unexport("vm", cycle)?;
        wait::until("the point is merged away", LIMIT, || {
            pair.ctl().cut("vm")?;
            Ok((!pair.ctl().points("vm")?.contains(&cycle)).then_some(()))
        })?;

        let paths = pair.ctl().group(second, "vm")?.paths();
        pair.ctl()
            .json_anywhere(&["unprotect", "vm", "--delete-replica"])?;
        for site in [first, second] {
            wait::until("the group is gone", LIMIT, || {
                Ok(pair.ctl().group(site, "vm").is_err().then_some(()))
            })?;
        }
        for path in paths {
            wait::until("the replica's file is gone", LIMIT, || {
                Ok((!path.exists()).then_some(()))
            })?;
        }
        // The image is an ordinary file again, and can be protected again.
        let path = &vm.disks()[0].1;
        sitepair_tests::tools::check(path, "vhdx")?;
        vm.protect(pair)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT).map(drop)
    });
}

fn a_group_is_kept_as_it_was_asked_for(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let disk = format!("system={}", vm.disks()[0].1.display());
        let flags = ["--keep", "3", "--interval", "2s"];
        pair.ctl().json(
            first,
            &[&["protect", "vm", "--disk", &disk], &flags[..]].concat(),
        )?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        for site in [first, second] {
            let status = pair.ctl().group(site, "vm")?;
            ensure!(status.0["keep_points"] == 3, "{site}: {}", status.0);
            ensure!(status.0["interval_ms"] == 2000, "{site}: {}", status.0);
        }
        let cycle = pair
            .ctl()
            .json_anywhere(&["cut", "vm", "--label", "before the upgrade"])?;
        let points = pair.ctl().json_anywhere(&["points", "vm"])?;
        let labelled = points["points"]
            .as_array()
            .context("a list of points")?
            .last();
        let labelled = labelled.context("a point")?;
        ensure!(labelled["label"] == "before the upgrade", "{points}");
        ensure!(
            labelled["cycle"] == cycle["cycle"],
            "{points} after {cycle}"
        );
        for (flag, value) in [
            ("--keep", "0"),
            ("--interval", "1ms"),
            ("--interval", "soon"),
        ] {
            let args = ["protect", "other", "--disk", &disk, flag, value];
            let output = pair.ctl().run(first, &args)?;
            ensure!(
                output.code == Some(EXIT_USAGE),
                "{flag} {value}: {output:?}"
            );
        }
        Ok(())
    });
}

fn a_pause_outlives_both_agents(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, second)?;
        pair.ctl().json_anywhere(&["pause", "vm"])?;
        for site in [first, second] {
            pair.crash_and_restart(site)?;
        }
        let cycle = pair.ctl().group(second, "vm")?.newest_cycle();
        guest.wait_writes(1500)?;
        let now = pair.ctl().group(second, "vm")?.newest_cycle();
        ensure!(
            now == cycle,
            "cycle {now} came although cycle {cycle} was to be the last"
        );
        let allowed = pair.ctl().group(first, "vm")?.0["allowed_operations"].to_string();
        ensure!(
            allowed.contains("resume"),
            "resume is not offered: {allowed}"
        );
        pair.ctl().json_anywhere(&["resume", "vm"])?;
        vm.wait_replicating(pair, second)?;
        let resting = vm.shut_down(pair, first, guest)?;
        vm.check_all(&resting, &vm.uris(pair, first)?)?;
        vm.check_point_against(pair, first)
    });
}

fn a_name_is_taken_at_both_sites(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let other = Vm::create(pair, "other", &[SYSTEM])?;
        vm.protect(pair)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        let disk = format!("system={}", other.disks()[0].1.display());
        for site in [first, second] {
            pair.ctl()
                .run(site, &["protect", "vm", "--disk", &disk])?
                .failed(EXIT_REFUSED)?;
        }
        ensure!(
            pair.ctl().group(second, "vm")?.role() == "replica",
            "the replica was lost"
        );
        ensure!(
            pair.ctl().group(first, "vm")?.role() == "source",
            "the source was lost"
        );
        pair.ctl().cut("vm")?;
        // The disk was not kept.
        sitepair_tests::tools::check(&other.disks()[0].1, "vhdx")
    });
}

fn a_site_alone_can_end_protection_only_by_force(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let (first, second) = (pair.first(), pair.second());
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        vm.protect(pair)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT)?;
        pair.sigterm(second)?;
        let output = pair.ctl().run(first, &["unprotect", "vm"])?;
        ensure!([Some(3), Some(4)].contains(&output.code), "{output:?}");
        pair.ctl().json(first, &["unprotect", "vm", "--force"])?;
        ensure!(
            pair.ctl().group(first, "vm").is_err(),
            "the group is still there"
        );
        sitepair_tests::tools::check(&vm.disks()[0].1, "vhdx")?;
        // What the other site still has is told as what it is, and can be removed there.
        pair.start_agent(second)?;
        pair.wait_linked(LIMIT)?;
        pair.ctl()
            .json(second, &["unprotect", "vm", "--force", "--delete-replica"])?;
        ensure!(
            pair.ctl().group(second, "vm").is_err(),
            "the replica is still there"
        );
        vm.protect(pair)?;
        pair.ctl().wait_replicating(second, "vm", LIMIT).map(drop)
    });
}

fn people_can_read_it_too(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        vm.wait_replicating(pair, pair.second())?;
        let say = |args: &[&str]| pair.ctl().say(args);
        let status = say(&["status"])?;
        for word in ["primary", "secondary", "vm", "source", "replica"] {
            ensure!(status.contains(word), "{word} is not in:\n{status}");
        }
        let cycle = pair.ctl().cut("vm")?.to_string();
        let points = say(&["points", "vm"])?;
        ensure!(
            points.contains(&cycle),
            "cycle {cycle} is not in:\n{points}"
        );
        ensure!(
            say(&["completions", "bash"])?.contains("failover"),
            "no completion for bash"
        );

        vm.shut_down(pair, pair.first(), guest)?;
        let state = pair.site_folder(pair.second()).join("state");
        let log = first_log(&state)?.context("a change log in the journal")?;
        let log = log.to_string_lossy();
        let told = say(&["hrl", "inspect", &log])?;
        ensure!(told.lines().count() > 3, "little is said of {log}:\n{told}");
        let other = vm.disks()[0].1.to_string_lossy().into_owned();
        let output = pair.ctl().run_anywhere(&["hrl", "inspect", &other])?;
        ensure!(
            output.code == Some(1),
            "a disk taken for a change log: {output:?}"
        );
        Ok(())
    });
}

/// Any change log below a folder.
fn first_log(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            first_log(&path)?
        } else {
            path.extension()
                .is_some_and(|end| end == "hrl")
                .then_some(path)
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
