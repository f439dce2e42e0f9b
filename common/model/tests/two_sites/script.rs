//! Directed ways into the states that are worth exploring from.

use crate::model::{Act, Limits, Move, TwoSites};
use crate::mutation::Mutation;
use crate::world::World;

/// One way; sites are A (0), the source at first, and B (1), its replica.
pub(crate) type Script = fn(&mut Play);

/// A world that is led by hand. It ends where a rule is broken.
pub(crate) struct Play {
    pub(crate) world: World,
    model: TwoSites,
}

/// More than any script needs.
const ROOMY: Limits = Limits {
    writes: 9,
    generations: 20,
    crashes: 9,
    cuts: 9,
    acts: 20,
    breaks: 9,
    mail: 4,
    repeats: true,
    lies: false,
    kinds: &[],
};

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

impl Play {
    /// The state that a script leads to.
    pub(crate) fn of(script: Script, broken: Option<Mutation>) -> World {
        let mut play = Self {
            world: World::begin(),
            model: TwoSites::new(Vec::new(), ROOMY, broken),
        };
        script(&mut play);
        play.world
    }

    fn go(&mut self, what: Move) -> &mut Self {
        let may = match what {
            Move::Cut(at) => self.model.can_cut(&self.world, at),
            Move::Deliver(n) | Move::Drop(n) => n < self.world.network.len(),
            _ => true,
        };
        if may && self.world.fault.is_none() {
            self.world = self.model.apply(&self.world, what);
        }
        self
    }

    fn act(&mut self, at: usize, act: Act) -> &mut Self {
        self.go(Move::Act(at, act))
    }

    fn deliver(&mut self, n: usize) -> &mut Self {
        self.go(Move::Deliver(n))
    }

    fn settle(&mut self) -> &mut Self {
        for _ in 0..30 {
            self.deliver(0);
        }
        self
    }

    fn replicate(&mut self, at: usize, block: usize) -> &mut Self {
        self.go(Move::Write(at, block)).go(Move::Cut(at)).settle()
    }

    fn ask(&mut self, at: usize) -> &mut Self {
        self.go(Move::Ask(at)).settle()
    }
}

pub(crate) fn in_touch(_: &mut Play) {}

pub(crate) fn two_points(play: &mut Play) {
    play.replicate(A, 0);
}

/// A's write is nowhere else, and B's first cycle went missing.
pub(crate) fn a_lost_cycle(play: &mut Play) {
    play.go(Move::Write(A, 0))
        .go(Move::Cut(A))
        .go(Move::Drop(0));
}

pub(crate) fn another_write_after_a_lost_cycle(play: &mut Play) {
    a_lost_cycle(play);
    play.go(Move::Write(A, 1)).go(Move::Cut(A));
}

pub(crate) fn another_write_after_a_lost_link(play: &mut Play) {
    a_lost_cycle(play);
    play.go(Move::Lost(A)).ask(A);
    play.go(Move::Write(A, 1)).go(Move::Cut(A));
}

/// An old cycle is still on its way when B has a newer one.
pub(crate) fn an_old_cycle(play: &mut Play) {
    play.go(Move::Write(A, 0)).go(Move::Cut(A));
    play.go(Move::Repeat(0)).deliver(1);
    play.go(Move::Write(A, 1)).go(Move::Cut(A)).deliver(1);
}

/// The Grant is on its way.
pub(crate) fn handed_over(play: &mut Play) {
    play.act(A, Act::Planned)
        .go(Move::Cut(A))
        .deliver(0)
        .deliver(0);
}

pub(crate) fn crashed_after_handing_over(play: &mut Play) {
    handed_over(play);
    play.go(Move::Crash(A)).go(Move::Start(A));
}

pub(crate) fn handed_over_below_a_test(play: &mut Play) {
    play.act(B, Act::TestBegin);
    handed_over(play);
}

/// Handed over, then fenced, and asking to be released; the Grant is still on its way.
pub(crate) fn fenced_after_handing_over(play: &mut Play) {
    handed_over(play);
    play.act(B, Act::FailOver).deliver(1).go(Move::Drop(1));
    play.act(A, Act::Release).deliver(1);
}

pub(crate) fn released_after_handing_over(play: &mut Play) {
    fenced_after_handing_over(play);
    play.deliver(1).go(Move::Crash(B)).go(Move::Start(B));
}

/// A is fenced for B, and its answer is on its way.
pub(crate) fn fence_answered(play: &mut Play) {
    play.act(B, Act::FailOver).deliver(0);
}

/// B gave up, A was released; the answer to the fence is still on its way.
pub(crate) fn released(play: &mut Play) {
    fence_answered(play);
    play.act(B, Act::GiveUp)
        .act(A, Act::Release)
        .deliver(1)
        .deliver(1);
}

/// B gave up and answered A's request; the answer is on its way.
pub(crate) fn release_answered(play: &mut Play) {
    fence_answered(play);
    play.go(Move::Drop(0))
        .act(B, Act::GiveUp)
        .act(A, Act::Release)
        .deliver(0);
}

pub(crate) fn source_down(play: &mut Play) {
    play.go(Move::Crash(A)).go(Move::Lost(B));
}

pub(crate) fn forced_over(play: &mut Play) {
    source_down(play);
    play.go(Move::Wait).act(B, Act::ForceFailOver);
}

/// The answer to a Hello of A's earlier life is on its way.
pub(crate) fn an_old_answer(play: &mut Play) {
    play.go(Move::Ask(A)).deliver(0);
    forced_over(play);
}

pub(crate) fn on_trial(play: &mut Play) {
    play.go(Move::Write(A, 0)).act(B, Act::FailOver).settle();
    play.go(Move::Write(B, 1)).ask(B);
}

pub(crate) fn on_trial_at_an_older_point(play: &mut Play) {
    play.replicate(A, 0).act(B, Act::FailOverOlder).settle();
    play.ask(B);
}

fn resync(play: &mut Play) {
    play.act(B, Act::Commit).ask(B).act(B, Act::Resync);
    play.go(Move::Write(B, 1)).go(Move::Cut(B));
}

/// B is ahead of A, which has a write of its own, and sends what both wrote.
pub(crate) fn resync_under_way(play: &mut Play) {
    on_trial(play);
    resync(play);
}

pub(crate) fn resync_from_an_older_point(play: &mut Play) {
    on_trial_at_an_older_point(play);
    resync(play);
}

/// Each was forced open while the other was down.
pub(crate) fn parted(play: &mut Play) {
    forced_over(play);
    play.act(B, Act::Commit)
        .go(Move::Crash(B))
        .go(Move::Reboot(A));
    play.go(Move::Wait)
        .act(A, Act::ForceOpen)
        .go(Move::Reboot(B));
}

pub(crate) fn diverged(play: &mut Play) {
    parted(play);
    play.ask(A).ask(B);
}

/// Both went down, and A's host is back.
pub(crate) fn both_down(play: &mut Play) {
    play.go(Move::Crash(B)).go(Move::Crash(A));
    play.go(Move::Reboot(A)).go(Move::Wait);
}

/// A was forced open; B keeps a replica that is behind it.
pub(crate) fn replica_behind(play: &mut Play) {
    play.go(Move::Crash(B))
        .go(Move::Crash(A))
        .go(Move::Reboot(A))
        .go(Move::Wait);
    play.act(A, Act::ForceOpen)
        .go(Move::Write(A, 0))
        .go(Move::Start(B))
        .ask(A);
}
