//! Accident after accident, chosen at random: whatever happens, one site serves in the end, it has
//! every acknowledged write, and the other one follows.
//!
//! The choices depend on a seed, which is printed. `SITEPAIR_ACCIDENTS_SEED` replays one, and
//! `SITEPAIR_ACCIDENTS_STEPS` makes the story longer.

use std::env;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sitepair_model::ids::Site;
use sitepair_tests::data::Random;
use sitepair_tests::guest::{Guest, Resting};
use sitepair_tests::site::{Pair, PairOptions};

use crate::both_ways;
use crate::scene::{DATA, LIMIT, SYSTEM, Vm, on_stage};

both_ways!(random_accidents_lose_nothing);

const STEPS: u64 = 10;

/// Both sites are compared in full after this many steps.
const COMPARE_EVERY: u64 = 4;

#[derive(Debug, Clone, Copy)]
enum Accident {
    /// The agent that serves dies.
    SourceDies,
    /// The other one dies.
    ReplicaDies,
    BothDie,
    /// The agent that serves is stopped cleanly.
    SourceStops,
    ReplicaStops,
    LinkCut,
    LinkSilent,
    Nothing,
}

const ACCIDENTS: [Accident; 8] = [
    Accident::SourceDies,
    Accident::ReplicaDies,
    Accident::BothDie,
    Accident::SourceStops,
    Accident::ReplicaStops,
    Accident::LinkCut,
    Accident::LinkSilent,
    Accident::Nothing,
];

fn number(variable: &str, default: u64) -> u64 {
    let given = env::var(variable).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn random_accidents_lose_nothing(swapped: bool) {
    let seed = number("SITEPAIR_ACCIDENTS_SEED", 1 + u64::from(swapped));
    eprintln!("SITEPAIR_ACCIDENTS_SEED={seed}");
    let options = PairOptions {
        keep_points: 4,
        ..PairOptions::swapped(swapped)
    };
    on_stage(options, |pair| {
        let mut story = Story::begin(pair, seed)?;
        for step in 1..=number("SITEPAIR_ACCIDENTS_STEPS", STEPS) {
            let told = story.step(pair, step)?;
            eprintln!("step {step}: {told}");
        }
        story.end(pair)
    });
}

struct Story {
    random: Random,
    vm: Vm,
    at: Site,
    guest: Option<Guest>,
}

impl Story {
    fn begin(pair: &Pair, seed: u64) -> Result<Self> {
        let vm = Vm::create(pair, "vm", &[SYSTEM, DATA])?;
        let guest = Some(vm.protect_and_boot(pair)?);
        Ok(Self {
            random: Random::new(seed),
            vm,
            at: pair.first(),
            guest,
        })
    }

    fn step(&mut self, pair: &mut Pair, step: u64) -> Result<String> {
        let accident = ACCIDENTS[usize::try_from(self.random.below(8))?];
        let moment = Duration::from_millis(self.random.below(700));
        let duration = Duration::from_millis(self.random.below(2500));
        let moves = self.random.below(2) == 0;
        let told = format!("{accident:?} after {moment:?} for {duration:?}, moving: {moves}");
        self.play(pair, accident, moment, duration, moves)
            .with_context(|| told.clone())?;
        if step.is_multiple_of(COMPARE_EVERY) {
            let resting = self.rest(pair)?;
            self.vm.check_point_against(pair, self.at)?;
            self.work_on(pair, resting)?;
        }
        Ok(told)
    }

    fn play(
        &mut self,
        pair: &mut Pair,
        accident: Accident,
        moment: Duration,
        duration: Duration,
        moves: bool,
    ) -> Result<()> {
        let resting = if moves { Some(self.rest(pair)?) } else { None };
        let command = resting.is_some().then(|| {
            let ctl = pair.ctl().clone();
            thread::spawn(move || ctl.run_anywhere(&["failover", "--planned", "vm"]))
        });
        // The moment and the duration are what is tried, not waits for something to become true.
        thread::sleep(moment);
        self.happen(pair, accident, duration)?;
        if let Some(command) = command {
            // Whatever it came to; what counts is what is true now.
            let _ = command.join();
        }
        pair.wait_linked(LIMIT)?;
        self.at = self.vm.wait_settled(pair)?;
        if let Some(resting) = resting {
            self.work_on(pair, resting)?;
        }
        let guest = self.guest.as_ref().context("the guest is at work")?;
        guest.wait_writes(30)?;
        self.vm.wait_replicating(pair, self.at.other()).map(drop)
    }

    fn happen(&self, pair: &mut Pair, accident: Accident, duration: Duration) -> Result<()> {
        let (source, replica) = (self.at, self.at.other());
        let victims = match accident {
            Accident::SourceDies | Accident::SourceStops => vec![source],
            Accident::ReplicaDies | Accident::ReplicaStops => vec![replica],
            Accident::BothDie => vec![source, replica],
            Accident::LinkCut | Accident::LinkSilent | Accident::Nothing => Vec::new(),
        };
        for &victim in &victims {
            if matches!(accident, Accident::SourceStops | Accident::ReplicaStops) {
                pair.sigterm(victim)?;
            } else {
                pair.kill9(victim)?;
            }
        }
        match accident {
            Accident::LinkCut => pair.cut_link(),
            Accident::LinkSilent => pair.black_hole_link(),
            _ => {}
        }
        thread::sleep(duration);
        pair.heal_link();
        victims
            .into_iter()
            .try_for_each(|victim| pair.start_agent(victim))
    }

    /// The guest is shut down.
    fn rest(&mut self, pair: &Pair) -> Result<Resting> {
        let guest = self.guest.take().context("the guest is at work")?;
        self.vm.shut_down(pair, self.at, guest)
    }

    /// Everything is looked for, and the guest goes on where the group is served.
    fn work_on(&mut self, pair: &Pair, resting: Resting) -> Result<()> {
        let uris = self.vm.uris(pair, self.at)?;
        self.vm.check_all(&resting, &uris)?;
        self.guest = Some(resting.resume(&uris)?);
        Ok(())
    }

    fn end(mut self, pair: &Pair) -> Result<()> {
        let resting = self.rest(pair)?;
        self.vm.check_all(&resting, &self.vm.uris(pair, self.at)?)?;
        self.vm.check_point_against(pair, self.at)
    }
}
