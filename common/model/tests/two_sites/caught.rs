//! Every rule and guard that is switched off is seen: the same search finds nothing when it is on.

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Act, Limits, TwoSites};
use crate::mutation::Mutation;
use crate::script::{self, Play, Script};
use crate::world::World;

/// What is broken, where the search begins, and the acts that operators know of.
type Row = (Mutation, Script, &'static [Act]);

const ROWS: [Row; 26] = [
    (
        Mutation::ForcedKeepsGeneration,
        script::source_down,
        &[Act::ForceFailOver],
    ),
    (Mutation::OldAnswersCount, script::an_old_answer, &[]),
    (Mutation::FenceUnbound, script::released, &[Act::FailOver]),
    (
        Mutation::ReleaseSurvivesFence,
        script::release_answered,
        &[Act::FailOver],
    ),
    (
        Mutation::FailoverSurvivesRelease,
        script::fence_answered,
        &[Act::Release],
    ),
    (
        Mutation::OldGrantsCount,
        script::fenced_after_handing_over,
        &[],
    ),
    (
        Mutation::GrantNonceUnbound,
        script::released_after_handing_over,
        &[],
    ),
    (Mutation::FramesUnbound, script::an_old_cycle, &[]),
    (
        Mutation::DemotedInMemory,
        script::crashed_after_handing_over,
        &[],
    ),
    (
        Mutation::ClearedOnSend,
        script::another_write_after_a_lost_cycle,
        &[],
    ),
    (
        Mutation::ShippedNotFolded,
        script::another_write_after_a_lost_link,
        &[],
    ),
    (
        Mutation::FencedWhileServing,
        script::in_touch,
        &[Act::FailOver],
    ),
    (Mutation::ReopensUnasked, script::forced_over, &[]),
    (
        Mutation::SilenceUnchecked,
        script::source_down,
        &[Act::ForceFailOver],
    ),
    (
        Mutation::ReachableUnchecked,
        script::in_touch,
        &[Act::ForceFailOver],
    ),
    (Mutation::ResolvedByItself, script::parted, &[]),
    (
        Mutation::PointsDroppedOnTrial,
        script::two_points,
        &[Act::FailOverOlder],
    ),
    (
        Mutation::TestServesGuest,
        script::in_touch,
        &[Act::TestBegin],
    ),
    (
        Mutation::OlderPointUnmarked,
        script::resync_from_an_older_point,
        &[],
    ),
    (Mutation::OwnMapOnly, script::resync_under_way, &[]),
    (Mutation::ResyncInPlace, script::resync_under_way, &[]),
    (Mutation::NoFork, script::on_trial, &[Act::RollBack]),
    (Mutation::FullCopyOnRestart, script::in_touch, &[]),
    (
        Mutation::OperationForgotten,
        script::on_trial,
        &[Act::Commit],
    ),
    (Mutation::DivergenceUnreported, script::parted, &[]),
    (Mutation::PinsIgnored, script::handed_over_below_a_test, &[]),
];

/// States that a search may look at.
const STATES_MAX: usize = 100_000;
/// States that are looked at without the mutation.
const CONTROL_STATES: usize = 10_000;

/// A little more than what led here.
fn limits(world: &World, kinds: &'static [Act]) -> Limits {
    Limits {
        writes: world.writes + 1,
        generations: world.generations + 1,
        crashes: world.crashes + 1,
        cuts: world.cuts + 1,
        acts: world.acts + 1,
        breaks: world.breaks,
        mail: 3,
        repeats: true,
        lies: false,
        kinds,
    }
}

/// What a search finds broken first, with the way there, and the states it took.
fn search(row: Row, broken: Option<Mutation>, states: usize) -> (Option<String>, usize) {
    let (_, script, kinds) = row;
    let from = Play::of(script, broken);
    let limits = limits(&from, kinds);
    let checker = TwoSites::new(vec![from], limits, broken)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(states)
        .spawn_bfs()
        .join();
    let found = checker.discoveries().into_iter().next();
    let text = found.map(|(rule, path)| {
        let rule = path.last_state().fault.unwrap_or(rule);
        format!("{rule}, by {:?}", path.into_actions())
    });
    (text, checker.unique_state_count())
}

#[test]
fn each_rule_that_is_switched_off_is_missed() {
    let mut failures = Vec::new();
    for row in ROWS {
        match search(row, Some(row.0), STATES_MAX) {
            (Some(found), states) => println!("{:?}: {found} ({states} states)", row.0),
            (None, states) => failures.push(format!("{:?} is not seen in {states} states", row.0)),
        }
        if let (Some(found), _) = search(row, None, CONTROL_STATES) {
            failures.push(format!("{:?}: broken without it: {found}", row.0));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
