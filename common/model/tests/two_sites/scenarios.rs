//! What is explored in full, and what must be reached on the way.

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Act, Limits, TwoSites};
use crate::script::{self, Play, Script};

/// How far beyond where it begins an exploration goes.
#[derive(Debug, Clone, Copy)]
struct More {
    writes: u8,
    generations: u8,
    crashes: u8,
    cuts: u8,
    acts: u8,
    breaks: u8,
    mail: usize,
    repeats: bool,
}

/// With each test run: one crash, one act.
const STORMY: More = More {
    writes: 1,
    generations: 2,
    crashes: 1,
    cuts: 1,
    acts: 1,
    breaks: 0,
    mail: 2,
    repeats: false,
};
/// With each test run: nobody crashes, two acts.
const CALM: More = More {
    crashes: 0,
    acts: 2,
    ..STORMY
};
/// With each test run: nobody crashes, one act.
const QUIET: More = More { acts: 1, ..CALM };
/// With each test run: nobody crashes, the link breaks at each side, two acts.
const PARTED: More = More { breaks: 2, ..CALM };
/// With each test run: one crash, and nothing but what is under way.
const ALONE: More = More {
    writes: 0,
    acts: 0,
    ..STORMY
};
/// On request: messages are repeated, links break, and two acts meet a crash.
const LARGE: More = More {
    acts: 2,
    breaks: 1,
    repeats: true,
    ..STORMY
};

/// One exploration.
struct Scenario {
    name: &'static str,
    from: &'static [(Script, More)],
    kinds: &'static [Act],
    lies: bool,
    reaches: &'static [&'static str],
}

const PLANNED: Scenario = Scenario {
    name: "planned failover, with a test below it",
    from: &[(script::in_touch, STORMY), (script::handed_over, CALM)],
    kinds: &[Act::Planned, Act::Cancel, Act::TestBegin, Act::TestEnd],
    lies: false,
    reaches: &[
        "planned failover",
        "reversed",
        "tested",
        "reopened in the grace",
    ],
};

const FENCED: Scenario = Scenario {
    name: "fenced failover",
    from: &[
        (script::in_touch, STORMY),
        (script::on_trial, STORMY),
        (script::fenced_after_handing_over, CALM),
    ],
    kinds: &[Act::FailOver, Act::RollBack, Act::Release, Act::GiveUp],
    lies: false,
    reaches: &["fenced failover", "rolled back", "released"],
};

const OLDER: Scenario = Scenario {
    name: "failover to an older point",
    from: &[
        (script::two_points, CALM),
        (script::on_trial_at_an_older_point, STORMY),
    ],
    kinds: &[Act::FailOverOlder, Act::Commit, Act::Resync],
    lies: false,
    reaches: &["older point on trial", "another point", "committed"],
};

const FORCED: Scenario = Scenario {
    name: "forced acts",
    from: &[
        (script::in_touch, STORMY),
        (script::forced_over, QUIET),
        (script::fence_answered, STORMY),
        (script::both_down, QUIET),
    ],
    kinds: &[Act::ForceFailOver, Act::ForceOpen, Act::ForceRollBack],
    lies: false,
    reaches: &["forced failover", "forced open", "fenced site forced"],
};

const RESYNC: Scenario = Scenario {
    name: "resync and resolution",
    from: &[
        (script::diverged, CALM),
        (script::parted, CALM),
        (script::resync_under_way, ALONE),
        (script::replica_behind, CALM),
    ],
    kinds: &[Act::Resolve, Act::Resync],
    lies: false,
    reaches: &[
        "diverged",
        "resolved",
        "resync of a fenced site",
        "resync of a replica",
    ],
};

const LIES: Scenario = Scenario {
    name: "false statements",
    from: &[
        (script::in_touch, PARTED),
        (script::on_trial, More { acts: 1, ..PARTED }),
    ],
    kinds: &[Act::ForceFailOverHostOff, Act::ForceOpen, Act::Resolve],
    lies: true,
    reaches: &["forced failover", "diverged"],
};

/// States, seen again or not, after which an exploration is given up.
const STATES_MAX: usize = 2_500_000;
/// The variable that asks for `LARGE`: `cargo xtask model` sets it.
const LARGE_IF: &str = "SITEPAIR_MODEL_LARGE";
/// The states after which it is given up.
const LARGE_STATES_MAX: usize = 10_000_000;

/// Explores from one start; gives the states that were seen, and whether they were all.
fn explore_from(
    scenario: &Scenario,
    (script, more): (Script, More),
    max: usize,
    missing: &mut Vec<&str>,
) -> (usize, bool) {
    let from = Play::of(script, None);
    assert_eq!(from.fault, None, "{}", scenario.name);
    let limits = Limits {
        writes: from.writes + more.writes,
        generations: from.generations + more.generations,
        crashes: from.crashes + more.crashes,
        cuts: from.cuts + more.cuts,
        acts: from.acts + more.acts,
        breaks: from.breaks + more.breaks,
        mail: more.mail,
        repeats: more.repeats,
        lies: scenario.lies,
        kinds: scenario.kinds,
    };
    let checker = TwoSites::new(vec![from], limits, None)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(max)
        .spawn_bfs()
        .join();
    if let Some((rule, path)) = checker.discoveries().into_iter().next() {
        let rule = path.last_state().fault.unwrap_or(rule);
        panic!("{}: {rule}, by {:?}", scenario.name, path.into_actions());
    }
    missing.retain(|milestone| !checker.model().seen.has(milestone));
    let all = checker.state_count() < max;
    (checker.unique_state_count(), all)
}

#[expect(
    clippy::print_stdout,
    reason = "how much was explored belongs beside its result"
)]
fn explore(scenario: &Scenario) {
    let large = std::env::var_os(LARGE_IF).is_some();
    let mut missing = scenario.reaches.to_vec();
    for (number, &(script, more)) in scenario.from.iter().enumerate() {
        let (more, max) = if large {
            (LARGE, LARGE_STATES_MAX)
        } else {
            (more, STATES_MAX)
        };
        let (states, all) = explore_from(scenario, (script, more), max, &mut missing);
        let extent = if all { "all" } else { "not all" };
        println!(
            "{}, start {number}: {states} states ({extent})",
            scenario.name
        );
        assert!(all || large, "{}: more than {max} states", scenario.name);
    }
    assert!(
        missing.is_empty(),
        "{}: never seen: {missing:?}",
        scenario.name
    );
}

#[test]
fn planned_failovers() {
    explore(&PLANNED);
}

#[test]
fn fenced_failovers() {
    explore(&FENCED);
}

#[test]
fn failovers_to_older_points() {
    explore(&OLDER);
}

#[test]
fn forced_acts() {
    explore(&FORCED);
}

#[test]
fn resyncs_and_resolutions() {
    explore(&RESYNC);
}

#[test]
fn false_statements() {
    explore(&LIES);
}
