//! Two sites in one process, driven by random schedules: a network that loses, repeats and reorders,
//! crashes between any two steps, operators who cancel, pause, fail over and sign.
//!
//! The sites here are toys, but what they do is decided by the real state machine, and what they
//! remember goes through the real record format. The guest's disk is one number: a hash over all
//! writes that were acknowledged, so that two disks are equal exactly when the numbers are.
//!
//! Checked at every step:
//! - I1: the guest is never served at both sites, unless a forced act was signed with a false statement.
//! - I2: as long as nothing was forced, whoever opens has every acknowledged write.
//! - I3: a replica that takes over opens the very state of the cut it was granted at.
//! - I5: two durable source records never carry the same generation.
//!
//! A failure prints its seed; `SITEPAIR_SEED=n` runs that schedule alone.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it does not expect"
)]

use std::collections::BTreeMap;

use sitepair_model::group::{
    Access, BootId, Effect, Event, ForceOpen, GroupState, PeerStatement, Restart, Role, RoleRecord,
    Signature, Transition, step,
};
use sitepair_model::ids::{Cycle, Digest, GenId, Generation, GroupId, Nonce, OpId, UnixMillis};
use sitepair_model::peer::{
    Committed, Grant, Hello, HelloAnswer, RoleName, TransferBegin, TransferKind,
};

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from((self.next() >> 11) % u64::try_from(limit).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next().to_le_bytes());
        id[8..].copy_from_slice(&self.next().to_le_bytes());
        id
    }
}

fn group() -> GroupId {
    GroupId::from_bytes([7; 16])
}

/// The guest's disk after one more write.
fn written(disk: u64, value: u64) -> u64 {
    (disk ^ value)
        .wrapping_mul(0x0100_0000_01b3)
        .rotate_left(17)
}

fn digest(disk: u64, cycle: Cycle) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&disk.to_le_bytes());
    bytes[8..16].copy_from_slice(&cycle.0.to_le_bytes());
    Digest::from_bytes(bytes)
}

#[derive(Debug, Clone)]
enum Message {
    Hello(Hello),
    HelloAnswer(HelloAnswer),
    Grant(Grant),
    GrantAnswer(OpId),
    /// A whole transfer: begin, bytes and commit.
    Cycle {
        begin: TransferBegin,
        sender: Nonce,
        disk: u64,
    },
    /// Belongs to a call of one life of the sender, as answers to calls do.
    Acknowledged {
        to: Nonce,
        generation: GenId,
        last: Committed,
        disk: u64,
    },
}

#[derive(Debug)]
struct Machine {
    /// Durable: role record (and its bytes), image, committed cycles, last cycle number given out.
    durable: RoleRecord,
    bytes: Vec<u8>,
    image: u64,
    points: BTreeMap<Cycle, u64>,
    last_cut: Cycle,
    /// Volatile.
    state: Option<GroupState>,
    exported: bool,
    draining: Option<OpId>,
    drained: Option<(Committed, u64)>,
    todo: Vec<Event>,
    asks: usize,
    boot: BootId,
}

/// What a schedule may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signing {
    Nothing,
    Truth,
    Lies,
}

#[derive(Debug, Default)]
struct Tally {
    failovers: u64,
    forced: u64,
    crashes: u64,
    calm_swaps: u64,
    double_writers: u64,
    fenced: u64,
    diverged: u64,
    reopened: u64,
    reopened_alone: u64,
}

struct World {
    random: Random,
    sites: [Machine; 2],
    network: Vec<(usize, Message)>,
    signing: Signing,
    /// All acknowledged guest writes, while nothing was forced.
    truth: u64,
    forced: bool,
    lied: bool,
    calm: bool,
    tally: Tally,
}

impl World {
    fn new(seed: u64, signing: Signing) -> Self {
        let mut random = Random::new(seed);
        let first = GenId::from_bytes(random.id());
        let source =
            GroupState::born_source(group(), first, Nonce::from_bytes(random.id()), random.id());
        let generation = Generation {
            epoch: 1,
            id: first,
        };
        let replica = GroupState::born_replica(
            group(),
            generation,
            Nonce::from_bytes(random.id()),
            random.id(),
        );
        let sites = [&source, &replica].map(|t| Machine {
            durable: t.next.record.clone(),
            bytes: t.next.record.encode(),
            image: 0,
            points: BTreeMap::new(),
            last_cut: Cycle::NONE,
            state: Some(t.next.clone()),
            exported: t.next.serves(),
            draining: None,
            drained: None,
            todo: Vec::new(),
            asks: 1,
            boot: t.next.session.boot,
        });
        Self {
            random,
            sites,
            network: Vec::new(),
            signing,
            truth: 0,
            forced: false,
            lied: false,
            calm: false,
            tally: Tally::default(),
        }
    }

    fn op(&mut self) -> OpId {
        OpId::from_bytes(self.random.id())
    }

    fn crash_now(&mut self, one_in: usize) -> bool {
        !self.calm && self.random.one_in(one_in)
    }

    fn crash(&mut self, site: usize) {
        self.tally.crashes += 1;
        let host_too = self.random.one_in(2);
        let boot = self.random.id();
        let machine = &mut self.sites[site];
        if host_too {
            machine.boot = boot;
        }
        machine.state = None;
        machine.exported = false;
        machine.draining = None;
        machine.drained = None;
        machine.todo.clear();
        machine.asks = 0;
    }

    fn start(&mut self, site: usize) {
        let restart = Restart {
            nonce: Nonce::from_bytes(self.random.id()),
            boot: self.sites[site].boot,
            dead_for_ms: (!self.random.one_in(3)).then(|| self.random.next() % 120_000),
            grace_ms: 60_000,
        };
        let record = RoleRecord::decode(&self.sites[site].bytes).unwrap();
        let t = GroupState::restarted(record, &restart);
        self.carry_out(site, t);
    }

    /// As an agent does: before, record, state, after; and a crash may come between any two.
    fn carry_out(&mut self, site: usize, t: Transition) {
        for effect in t.before {
            if self.crash_now(120) {
                return self.crash(site);
            }
            self.act(site, effect);
        }
        if self.crash_now(120) {
            return self.crash(site);
        }
        let machine = &mut self.sites[site];
        if t.next.record != machine.durable {
            assert!(
                t.next.record.seq > machine.durable.seq,
                "a change has a higher number"
            );
            machine.durable = t.next.record.clone();
            machine.bytes = t.next.record.encode();
        }
        self.count(site, &t.next);
        self.sites[site].state = Some(t.next);
        self.check();
        for effect in t.after {
            if self.crash_now(120) {
                return self.crash(site);
            }
            self.act(site, effect);
        }
        self.check();
    }

    fn count(&mut self, site: usize, next: &GroupState) {
        let before = self.sites[site]
            .state
            .as_ref()
            .map(|state| state.record.role.name());
        match (before, next.record.role.name()) {
            (Some(RoleName::Replica), RoleName::Source) => self.tally.failovers += 1,
            (Some(RoleName::Source | RoleName::HandedOver), RoleName::Fenced) => {
                self.tally.fenced += 1
            }
            _ => {}
        }
        if next
            .session
            .trouble
            .is_some_and(sitepair_model::group::Trouble::is_conflict)
        {
            self.tally.diverged += 1;
        }
    }

    fn send(&mut self, from: usize, message: Message) {
        self.network.push((1 - from, message));
    }

    fn act(&mut self, site: usize, effect: Effect) {
        match effect {
            Effect::CloseExports { .. } => self.sites[site].exported = false,
            Effect::OpenExports => self.open(site),
            Effect::StopReplication => {
                self.sites[site].draining = None;
                self.sites[site].drained = None;
            }
            Effect::DrainAndShip { op } => {
                assert!(!self.sites[site].exported, "closed before the last cut");
                self.sites[site].draining = Some(op);
            }
            Effect::AskPeer => self.sites[site].asks += 1,
            Effect::SendHello(hello) => self.send(site, Message::Hello(hello)),
            Effect::AnswerHello(answer) => self.send(site, Message::HelloAnswer(answer)),
            Effect::SendGrant(grant) => {
                let demoted = matches!(self.sites[site].durable.role, Role::HandedOver { .. });
                assert!(demoted, "invariant 3: demoted durably before the Grant");
                assert!(!self.sites[site].exported, "closed before the Grant");
                self.send(site, Message::Grant(grant));
            }
            Effect::AnswerGrant { request } => self.send(site, Message::GrantAnswer(request)),
            Effect::Acknowledge(last) => self.acknowledge(site, last),
            Effect::Promote(promotion) => {
                let through = promotion.through();
                let machine = &mut self.sites[site];
                if let Some(disk) = machine.points.get(&through) {
                    machine.image = *disk;
                }
                machine.last_cut = machine.last_cut.max(through);
                machine.todo.push(Event::Promoted);
            }
            Effect::BecomeReplica { at } => {
                let machine = &mut self.sites[site];
                assert_eq!(
                    digest(machine.image, at.cycle),
                    at.digest,
                    "nothing to be copied"
                );
                machine.points = BTreeMap::from([(at.cycle, machine.image)]);
            }
            Effect::StartReplication(_)
            | Effect::AcceptTransfer
            | Effect::OfferGroup
            | Effect::Alarm(_)
            | Effect::Forget => {}
            Effect::SendFence(_)
            | Effect::AnswerFence(_)
            | Effect::SendRelease(_)
            | Effect::AnswerRelease(_)
            | Effect::OpenOverlay { .. }
            | Effect::KeepFork(_)
            | Effect::DropFork(_) => panic!("nobody fails over to a point here: {effect:?}"),
        }
    }

    fn open(&mut self, site: usize) {
        let machine = &mut self.sites[site];
        let state = machine.state.as_ref().unwrap();
        assert!(state.serves());
        machine.exported = true;
        if !self.forced {
            assert_eq!(
                machine.image, self.truth,
                "I2: site {site} opens without some writes"
            );
        }
    }

    fn acknowledge(&mut self, site: usize, last: Committed) {
        let state = self.sites[site].state.as_ref().unwrap();
        let generation = state.record.lineage.current;
        let Some(to) = state.session.peer.as_ref().map(|peer| peer.nonce) else {
            return;
        };
        let disk = self.sites[site].points[&last.cycle];
        self.send(
            site,
            Message::Acknowledged {
                to,
                generation,
                last,
                disk,
            },
        );
    }

    fn check(&mut self) {
        let both = self.sites.iter().all(|site| site.exported);
        if both {
            self.tally.double_writers += 1;
            assert!(self.lied, "I1: both sites serve the guest");
        }
        let records = [&self.sites[0].durable, &self.sites[1].durable];
        let sources = records
            .iter()
            .all(|record| matches!(record.role, Role::Source | Role::Quiescing { .. }));
        assert!(
            !sources || records[0].lineage.current != records[1].lineage.current,
            "I5: two source records in one generation"
        );
        for site in &self.sites {
            if let Some(state) = &site.state {
                let open = state.session.access == Access::Open;
                assert!(!open || state.record.role == Role::Source, "invariant 1");
                assert_eq!(state.record, site.durable, "state and record agree");
            }
        }
    }

    /// Feeds an event; a refusal changes nothing.
    fn feed(&mut self, site: usize, event: &Event) -> bool {
        let Some(state) = &self.sites[site].state else {
            return false;
        };
        match step(state, event) {
            Ok(t) => {
                self.carry_out(site, t);
                true
            }
            Err(refusal) => {
                assert!(!refusal.to_string().is_empty());
                false
            }
        }
    }

    fn deliver(&mut self, at: usize, repeat: bool) {
        let (site, message) = if repeat {
            self.network[at].clone()
        } else {
            self.network.swap_remove(at)
        };
        match message {
            Message::Hello(hello) => {
                self.feed(site, &Event::HelloReceived(hello));
            }
            Message::HelloAnswer(answer) => {
                self.feed(site, &Event::HelloAnswered(answer));
            }
            Message::Grant(grant) => {
                self.feed(site, &Event::GrantReceived(grant));
            }
            Message::GrantAnswer(request) => {
                self.feed(site, &Event::GrantAnswered { request });
            }
            Message::Cycle {
                begin,
                sender,
                disk,
            } => self.receive(site, begin, sender, disk),
            Message::Acknowledged {
                to,
                generation,
                last,
                disk,
            } => {
                self.acknowledged(site, to, generation, last, disk);
            }
        }
    }

    fn receive(&mut self, site: usize, begin: TransferBegin, sender: Nonce, disk: u64) {
        let Some(state) = &self.sites[site].state else {
            return;
        };
        let known = state.session.peer.as_ref().map(|peer| peer.nonce);
        let Ok(t) = step(state, &Event::TransferAsked(begin.clone())) else {
            return;
        };
        let accepted = t.after.contains(&Effect::AcceptTransfer);
        self.carry_out(site, t);
        if !accepted || known != Some(sender) || self.sites[site].state.is_none() {
            return;
        }
        let TransferKind::Cycle { to, .. } = begin.kind else {
            return;
        };
        self.sites[site].points.insert(to, disk);
        let last = Committed {
            cycle: to,
            digest: digest(disk, to),
        };
        self.feed(
            site,
            &Event::CycleCommitted {
                generation: begin.generation,
                last,
            },
        );
    }

    fn acknowledged(
        &mut self,
        site: usize,
        to: Nonce,
        generation: GenId,
        last: Committed,
        disk: u64,
    ) {
        let life = self.sites[site]
            .state
            .as_ref()
            .map(|state| state.session.nonce);
        if life != Some(to) || !self.feed(site, &Event::CycleAcknowledged { generation, last }) {
            return;
        }
        let machine = &mut self.sites[site];
        // No cycle may be under way that the peer could still commit after the hand-over cut.
        let newest = last.cycle == machine.last_cut;
        if machine.draining.is_some() && newest && disk == machine.image {
            machine.drained = Some((last, disk));
        }
    }

    /// Source: cut and send, as replication that is on or a planned failover asks for.
    fn cut(&mut self, site: usize) {
        let machine = &mut self.sites[site];
        let Some(state) = &machine.state else { return };
        let Some(peer) = state.replicates_to() else {
            return;
        };
        machine.last_cut = machine
            .last_cut
            .max(state.record.cycle())
            .max(peer.summary.cycle)
            .next();
        let from = peer.summary.cycle;
        let kind = TransferKind::Cycle {
            from,
            to: machine.last_cut,
        };
        let begin = TransferBegin {
            group: group(),
            generation: state.record.lineage.current,
            kind,
        };
        let (sender, disk) = (state.session.nonce, machine.image);
        self.send(
            site,
            Message::Cycle {
                begin,
                sender,
                disk,
            },
        );
    }

    fn guest_write(&mut self, site: usize) {
        if self.sites[site].exported {
            let value = self.random.next();
            let machine = &mut self.sites[site];
            machine.image = written(machine.image, value);
            self.truth = machine.image;
        }
    }

    fn work(&mut self, site: usize) {
        if self.sites[site].state.is_none() {
            return;
        }
        if let Some(event) = self.sites[site].todo.pop() {
            self.feed(site, &event);
        } else if let (Some(op), Some((last, _))) =
            (self.sites[site].draining, self.sites[site].drained)
        {
            let granted = GenId::from_bytes(self.random.id());
            self.feed(site, &Event::Shipped { op, last, granted });
        } else if self.sites[site].asks > 0 {
            self.sites[site].asks = 0;
            self.ask(site);
        } else {
            self.cut(site);
        }
    }

    fn ask(&mut self, site: usize) {
        let request = self.op();
        self.feed(site, &Event::AskPeer { request });
    }

    fn fail_over(&mut self, site: usize, reverse: bool) -> bool {
        let op = self.op();
        let writers = usize::from(self.sites[site].exported);
        self.feed(
            site,
            &Event::PlannedFailover {
                op,
                writers,
                disconnect: true,
                reverse,
            },
        )
    }

    fn sign(&mut self, site: usize) {
        let peer_is_down = self.sites[1 - site].state.is_none();
        match self.signing {
            Signing::Nothing => return,
            Signing::Truth if !peer_is_down => return,
            Signing::Truth | Signing::Lies => {}
        }
        let act = ForceOpen {
            op: self.op(),
            signature: Signature {
                who: "ann".to_owned(),
                why: "flood".to_owned(),
                at: UnixMillis(0),
                typed_name_matches: true,
                peer: PeerStatement::HostOff,
            },
            new: GenId::from_bytes(self.random.id()),
        };
        self.feed(site, &Event::PeerLost);
        if self.sites[site].state.is_none() {
            return;
        }
        // From here on the two sites may hold different writes, as was signed.
        let (forced, lied) = (self.forced, self.lied);
        self.forced = true;
        self.lied |= !peer_is_down;
        if peer_is_down {
            // The host is off, as stated: it comes back in another boot, if ever.
            self.sites[1 - site].boot = self.random.id();
        }
        if self.feed(site, &Event::ForceOpen(act)) {
            self.tally.forced += 1;
        } else {
            (self.forced, self.lied) = (forced, lied);
        }
    }

    /// Cancels a planned failover, half of the time because the link has just died. The site opens again
    /// alone. That no forced act with a true statement gets in between is the statement itself:
    /// it says that this agent does not run, and a restart forgets the planned failover.
    fn cancel(&mut self, site: usize, op: OpId) {
        let alone = self.random.one_in(2);
        if alone {
            self.feed(site, &Event::PeerLost);
        }
        if self.sites[site].state.is_some() && self.feed(site, &Event::QuiesceCancelled { op }) {
            let reopened = u64::from(self.sites[site].exported);
            self.tally.reopened += reopened;
            self.tally.reopened_alone += if alone { reopened } else { 0 };
        }
    }

    fn operate(&mut self, site: usize) {
        if self.signing != Signing::Nothing && self.random.one_in(2) {
            return self.sign(site);
        }
        match self.random.below(7) {
            0..3 => {
                let reverse = !self.random.one_in(3);
                self.fail_over(site, reverse);
            }
            3 => {
                if let Some(Role::Quiescing { op, .. }) = self.sites[site]
                    .state
                    .as_ref()
                    .map(|state| state.record.role.clone())
                {
                    self.cancel(site, op);
                }
            }
            4 => {
                self.feed(site, &Event::Pause);
            }
            5 => {
                self.feed(site, &Event::Resume);
            }
            _ => {
                self.feed(site, &Event::Reverse);
            }
        }
    }

    fn storm(&mut self, steps: usize) {
        for _ in 0..steps {
            let site = self.random.below(2);
            match self.random.below(100) {
                0..45 if !self.network.is_empty() => {
                    let at = self.random.below(self.network.len());
                    let repeat = self.random.one_in(5);
                    self.deliver(at, repeat);
                }
                45..53 if !self.network.is_empty() => {
                    let at = self.random.below(self.network.len());
                    self.network.swap_remove(at);
                }
                53..63 => self.guest_write(site),
                63..80 => self.work(site),
                80..86 => self.ask(site),
                86..91 => self.operate(site),
                91 if self.random.one_in(2) => {
                    self.feed(site, &Event::PeerLost);
                }
                94 if self.sites[site].state.is_some() => self.crash(site),
                95..100 if self.sites[site].state.is_none() => self.start(site),
                _ => {}
            }
            while self.network.len() > 24 {
                self.network.swap_remove(0);
            }
        }
    }

    /// Both sites up, a link that works, old messages gone: what is still wrong now stays wrong.
    fn calm_down(&mut self, rounds: usize) {
        self.calm = true;
        self.network.clear();
        for site in 0..2 {
            if self.sites[site].state.is_none() {
                self.start(site);
            }
        }
        for round in 0..rounds {
            for site in 0..2 {
                let waits = self.sites[site]
                    .state
                    .as_ref()
                    .is_some_and(GroupState::wants_answer);
                if waits || round % 8 == 0 {
                    self.ask(site);
                }
                self.work(site);
                while !self.network.is_empty() {
                    self.deliver(0, false);
                }
            }
        }
    }

    fn server(&self) -> Option<usize> {
        (0..2).find(|site| self.sites[*site].exported)
    }

    /// Fails over and back once the storm is over. With nothing forced this has to work.
    fn swap_twice(&mut self) {
        self.calm_down(24);
        for _ in 0..2 {
            let source = self
                .server()
                .unwrap_or_else(|| panic!("one site serves after the storm: {:#?}", self.sites));
            self.feed(source, &Event::Resume);
            self.feed(source, &Event::Reverse);
            self.calm_down(24);
            self.guest_write(source);
            assert!(
                self.fail_over(source, true),
                "site {source} refuses a planned failover"
            );
            self.calm_down(24);
            assert_eq!(self.server(), Some(1 - source), "the other site serves now");
            self.tally.calm_swaps += 1;
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "how much a run has covered belongs beside its result"
)]
fn run(seeds: std::ops::Range<u64>, signing: Signing, finish: impl Fn(&mut World)) -> Tally {
    let only = only_seed();
    let mut total = Tally::default();
    for seed in seeds {
        if only.is_some_and(|only| only != seed) {
            continue;
        }
        let mut world = World::new(seed, signing);
        let shout = SeedOnPanic(seed);
        world.storm(400);
        finish(&mut world);
        drop(shout);
        total.failovers += world.tally.failovers;
        total.forced += world.tally.forced;
        total.crashes += world.tally.crashes;
        total.calm_swaps += world.tally.calm_swaps;
        total.double_writers += world.tally.double_writers;
        total.fenced += world.tally.fenced;
        total.diverged += world.tally.diverged;
        total.reopened += world.tally.reopened;
        total.reopened_alone += world.tally.reopened_alone;
    }
    println!("{signing:?}: {total:?}");
    total
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test replays the schedule that it is told"
)]
fn only_seed() -> Option<u64> {
    std::env::var("SITEPAIR_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
}

struct SeedOnPanic(u64);

#[expect(
    clippy::print_stdout,
    reason = "a schedule that failed is replayed by its seed"
)]
impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay with SITEPAIR_SEED={}", self.0);
        }
    }
}

#[test]
fn without_forced_acts_nothing_is_lost_and_every_pair_recovers() {
    let total = run(0..2_000, Signing::Nothing, World::swap_twice);
    if only_seed().is_none() {
        assert_eq!(total.calm_swaps, 4_000);
        assert_eq!(
            total.fenced, 0,
            "nobody is left behind without a forced act"
        );
        assert_eq!(total.diverged, 0);
        assert!(total.failovers > total.calm_swaps + 500, "{total:?}");
        assert!(total.crashes > 5_000, "{total:?}");
        assert!(total.reopened_alone > 100, "{total:?}");
    }
}

#[test]
fn with_true_statements_two_sites_never_serve_the_guest() {
    let total = run(10_000..12_000, Signing::Truth, |world| world.calm_down(24));
    if only_seed().is_none() {
        assert!(total.forced > 200, "{total:?}");
        assert!(total.diverged > 0, "{total:?}");
        assert!(total.reopened > 50, "{total:?}");
    }
}

#[test]
fn with_false_statements_generations_still_differ() {
    let total = run(20_000..22_000, Signing::Lies, |world| world.calm_down(24));
    if only_seed().is_none() {
        assert!(total.forced > 500, "{total:?}");
        assert!(
            total.double_writers > 0,
            "the check of I1 sees what it looks for: {total:?}"
        );
        assert!(total.fenced + total.diverged > 0, "{total:?}");
    }
}
