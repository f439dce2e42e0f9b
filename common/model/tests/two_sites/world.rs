//! Two sites and what is on its way between them: the whole state that the checker explores.
//!
//! A site's decisions are the real state machine's. Its data are toys: two blocks, each with the number of
//! the write that it holds, and bit masks for change maps. Ids are the smallest ones that nothing refers
//! to, so that histories which differ in names only are one state.

use sitepair_model::group::{
    Event, FailOver, ForceOpen, GroupState, Pending, Role, RoleRecord, Session, step,
};
use sitepair_model::ids::{Cycle, Digest, GenId, Generation, GroupId, Nonce, OpId};
use sitepair_model::peer::{
    Committed, Confirmation, FenceRequest, Grant, Hello, HelloAnswer, ReleaseRequest, TransferBegin,
};

use crate::mutation::Mutation;

/// What a disk holds: the number of the last write of each block.
pub(crate) type Disk = [u8; 2];

pub(crate) const GROUP: GroupId = GroupId::from_bytes([7; 16]);
pub(crate) const BLOCKS: usize = 2;

pub(crate) fn gen_id(n: u8) -> GenId {
    GenId::from_bytes([n; 16])
}

pub(crate) fn cut_of(cycle: u64, disk: Disk) -> Committed {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&cycle.to_le_bytes());
    bytes[8..10].copy_from_slice(&disk);
    Committed {
        cycle: Cycle(cycle),
        digest: Digest::from_bytes(bytes),
    }
}

/// The blocks in which two disks differ.
pub(crate) fn difference(a: Disk, b: Disk) -> u8 {
    (0..BLOCKS).fold(0, |mask, block| {
        mask | u8::from(a[block] != b[block]) << block
    })
}

/// `below` with the blocks of `mask` as in `above`.
pub(crate) fn patched(below: Disk, mask: u8, above: Disk) -> Disk {
    let mut disk = below;
    for block in 0..BLOCKS {
        if mask & (1 << block) != 0 {
            disk[block] = above[block];
        }
    }
    disk
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Mail {
    Hello(Hello),
    HelloAnswer(HelloAnswer),
    Grant(Grant),
    GrantAnswer(OpId),
    Fence(FenceRequest),
    FenceAnswer(Confirmation),
    Release(ReleaseRequest),
    ReleaseAnswer(Confirmation),
    /// A whole transfer: the blocks of `mask`, from a disk that looked like `disk`.
    Cycle {
        begin: TransferBegin,
        sender: Nonce,
        mask: u8,
        disk: Disk,
    },
    Acknowledged {
        to: Nonce,
        generation: GenId,
        last: Committed,
    },
}

/// A cycle that was sent and not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sealed {
    pub(crate) cycle: u64,
    pub(crate) mask: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, all of which the checker compares"
)]
pub(crate) struct Site {
    /// Durable, as are image, map, points, forks, the number of the last cut and the pinned point.
    pub(crate) record: RoleRecord,
    /// What the guest sees, or would.
    pub(crate) image: Disk,
    /// Blocks that the peer may not have.
    pub(crate) map: u8,
    /// The image was partly overwritten by something that never became whole.
    pub(crate) torn: bool,
    pub(crate) points: Vec<(u64, Disk)>,
    pub(crate) forks: Vec<(GenId, Disk)>,
    /// The overlay that exists, by its generation.
    pub(crate) overlay: Option<GenId>,
    pub(crate) last_cut: u64,
    /// The point of a test failover.
    pub(crate) pin: Option<(u64, Disk)>,
    /// `None` while the agent does not run.
    pub(crate) session: Option<Session>,
    pub(crate) exported: bool,
    pub(crate) sealed: Option<Sealed>,
    pub(crate) draining: Option<OpId>,
    pub(crate) ask_due: bool,
    pub(crate) boot: u8,
    /// The agent has not run for longer than the grace.
    pub(crate) long_down: bool,
}

impl Site {
    pub(crate) fn state(&self) -> Option<GroupState> {
        self.session.as_ref().map(|session| GroupState {
            record: self.record.clone(),
            session: session.clone(),
        })
    }

    /// What the next cycle is laid over.
    pub(crate) fn newest(&self) -> Option<Disk> {
        match self.record.role {
            Role::Replica => self.point(self.record.cycle().0),
            _ => Some(self.image),
        }
    }

    pub(crate) fn point(&self, cycle: u64) -> Option<Disk> {
        self.points.iter().find(|p| p.0 == cycle).map(|p| p.1)
    }

    /// Forgets all points but the pinned one.
    pub(crate) fn drop_points(&mut self, pins: bool) {
        let pin = self.pin;
        self.points.retain(|point| pins && pin == Some(*point));
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) sites: [Site; 2],
    /// Receiver and message, oldest first; delivered in any order.
    pub(crate) network: Vec<(usize, Mail)>,
    pub(crate) writes: u8,
    /// Blocks that a guest ever wrote.
    pub(crate) touched: u8,
    pub(crate) generations: u8,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) acts: u8,
    pub(crate) breaks: u8,
    /// A statement was signed that was false.
    pub(crate) lied: bool,
    /// The first rule that was seen broken in a step.
    pub(crate) fault: Option<&'static str>,
}

impl World {
    /// A source and its replica, in touch and at the first point.
    pub(crate) fn begin() -> Self {
        let nonce = |n| Nonce::from_bytes([n; 16]);
        let first = Generation {
            epoch: 1,
            id: gen_id(1),
        };
        let point = cut_of(1, [0; 2]);
        let go = |state: &GroupState, event: Event| step(state, &event).unwrap().next;
        let source = GroupState::born_source(GROUP, first.id, nonce(1), [0; 16]).next;
        let replica = GroupState::born_replica(GROUP, first, nonce(2), [0; 16]).next;
        let hello = |from: &GroupState| {
            Event::HelloReceived(Hello {
                request: OpId::from_bytes([1; 16]),
                nonce: from.session.nonce,
                summary: from.summary(),
            })
        };
        let committed = Event::CycleCommitted {
            generation: first.id,
            last: point,
        };
        let acknowledged = Event::CycleAcknowledged {
            generation: first.id,
            last: point,
        };
        let source = go(&go(&source, hello(&replica)), acknowledged);
        let replica = go(&go(&replica, hello(&source)), committed);
        let site = |state: GroupState, points| {
            let mut record = state.record;
            record.seq = 1;
            Site {
                record,
                image: [0; 2],
                map: 0,
                torn: false,
                points,
                forks: Vec::new(),
                overlay: None,
                last_cut: 1,
                pin: None,
                exported: state.session.access == sitepair_model::group::Access::Open,
                session: Some(state.session),
                sealed: None,
                draining: None,
                ask_due: false,
                boot: 0,
                long_down: false,
            }
        };
        Self {
            sites: [site(source, Vec::new()), site(replica, vec![(1, [0; 2])])],
            network: Vec::new(),
            writes: 0,
            touched: 0,
            generations: 1,
            crashes: 0,
            cuts: 0,
            acts: 0,
            breaks: 0,
            lied: false,
            fault: None,
        }
    }

    pub(crate) fn fail(&mut self, rule: &'static str) {
        self.fault = self.fault.or(Some(rule));
    }

    /// Another boot than any that a record can speak of.
    pub(crate) fn reboot(&mut self, at: usize) {
        let boot = &mut self.sites[at].boot;
        *boot = (*boot + 1) % 5;
    }

    pub(crate) fn generation(&mut self) -> GenId {
        self.generations += 1;
        gen_id(self.generations)
    }

    /// The smallest request id that nothing refers to.
    pub(crate) fn op(&self) -> OpId {
        let mut used = Vec::new();
        for site in &self.sites {
            used.extend(site.record.finished);
            used.extend(site.draining);
            if let Role::Quiescing { op, .. } | Role::HandedOver { op, .. } = site.record.role {
                used.push(op);
            }
            if let Some(session) = &site.session {
                used.extend(session.asked);
                used.extend(session.pending.as_ref().map(Pending::op));
            }
        }
        used.extend(self.network.iter().filter_map(|(_, mail)| match mail {
            Mail::Hello(m) => Some(m.request),
            Mail::HelloAnswer(m) => Some(m.request),
            Mail::Grant(m) => Some(m.request),
            Mail::GrantAnswer(request) => Some(*request),
            Mail::Fence(m) => Some(m.request),
            Mail::FenceAnswer(m) | Mail::ReleaseAnswer(m) => Some(m.request),
            Mail::Release(m) => Some(m.request),
            Mail::Cycle { .. } | Mail::Acknowledged { .. } => None,
        }));
        (1..=u8::MAX)
            .map(|n| OpId::from_bytes([n; 16]))
            .find(|op| !used.contains(op))
            .unwrap()
    }

    /// The smallest name of a life that nothing refers to.
    pub(crate) fn nonce(&self) -> Nonce {
        let mut used = Vec::new();
        for session in self.sites.iter().filter_map(|site| site.session.as_ref()) {
            used.push(session.nonce);
            used.extend(session.peer.as_ref().map(|peer| peer.nonce));
        }
        for (_, mail) in &self.network {
            match mail {
                Mail::Hello(m) => used.push(m.nonce),
                Mail::HelloAnswer(m) => used.extend([m.nonce, m.own_nonce]),
                Mail::Grant(m) => used.push(m.to_nonce),
                Mail::GrantAnswer(_) => {}
                Mail::Fence(m) => used.extend([m.nonce, m.to_nonce]),
                Mail::FenceAnswer(m) | Mail::ReleaseAnswer(m) => used.push(m.nonce),
                Mail::Release(m) => used.extend([m.nonce, m.to_nonce]),
                Mail::Cycle { sender, .. } => used.push(*sender),
                Mail::Acknowledged { to, .. } => used.push(*to),
            }
        }
        (1..=u8::MAX)
            .map(|n| Nonce::from_bytes([n; 16]))
            .find(|nonce| !used.contains(nonce))
            .unwrap()
    }

    /// Whether an operator's event is answered the same when it comes again (I8).
    pub(crate) fn answers_again(
        state: &GroupState,
        event: &Event,
        broken: Option<Mutation>,
    ) -> bool {
        let has_op = matches!(
            event,
            Event::PlannedFailover { .. }
                | Event::FailOver(FailOver { .. })
                | Event::CommitFailover { .. }
                | Event::RollBack(_)
                | Event::Resync { .. }
                | Event::Resolve { .. }
                | Event::Release { .. }
                | Event::ForceOpen(ForceOpen { .. })
                | Event::GrantReceived(_)
                | Event::FenceReceived(_)
                | Event::ReleaseReceived(_)
        );
        if !has_op {
            return true;
        }
        let mut state = state.clone();
        if broken == Some(Mutation::OperationForgotten) {
            state.record.finished = None;
        }
        step(&state, event).is_ok_and(|again| again.next.record == state.record)
    }
}
