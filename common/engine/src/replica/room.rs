//! Room: how much the journal takes, how much it may take, and what follows from that.
//!
//! Owns: the verdict. Two limits of the group's retention are one here: a cap, and free space that must stay in the
//! journal's file system. Near the limit somebody is warned; at it, the oldest points that nobody holds go early, and
//! no cycle is admitted until there is room again. Whoever sends asks again by himself, so nothing needs to be resumed.
//!
//! Does not do: letting points go (the plan does, by [`Inner::allowed_bytes`]). One cycle may go past the cap, for its size is not
//! known before; the free space is looked after while it arrives.

use sitepair_model::retention::Retention;

use super::{Inner, ReplicaError, State, lock};

/// Warned from so many hundredths of what is allowed.
const LOW_PERCENT: u128 = 80;
/// A cycle that found too little room asks for at least so much more than it had written.
const WANTED_MORE_BYTES: u64 = 64 << 20;

/// What a journal takes, and may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of its change logs.
    pub used_bytes: u64,
    /// Bytes that it may have, by its cap and by the free space; `None` for any number.
    pub allowed_bytes: Option<u64>,
    /// What is free in its file system and what must stay free, when that is not free.
    pub lacking: Option<Lack>,
    /// What all that means.
    pub state: RoomState,
}

/// Too little free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// What is free, in bytes.
    pub free_bytes: u64,
    /// What must stay free, and a cycle that found too little room needs.
    pub wanted_bytes: u64,
}

/// How a journal stands to its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoomState {
    /// Far from them.
    Enough,
    /// Near them.
    Low,
    /// At them; the oldest points are on their way out, and cycles wait meanwhile.
    Making,
    /// At them, and no point can go: cycles wait.
    Full,
}

impl Room {
    /// What an operator should know, and do.
    #[must_use]
    pub fn words(&self) -> String {
        let used = mebibytes(self.used_bytes);
        let taken = match (self.lacking, self.allowed_bytes) {
            (Some(lack), _) => format!(
                "the journal takes {used}, and beside it {} of space are free where {} are wanted",
                mebibytes(lack.free_bytes),
                mebibytes(lack.wanted_bytes)
            ),
            (None, Some(allowed)) => format!(
                "the journal takes {used} of {} that it may have",
                mebibytes(allowed)
            ),
            (None, None) => format!("the journal takes {used}"),
        };
        match self.state {
            RoomState::Enough => taken,
            RoomState::Low => format!(
                "{taken}; at the limit its oldest recovery points go early: free space, or see \
                 `sitepair retention`"
            ),
            RoomState::Making => format!(
                "{taken}; its oldest recovery points go early, and replication goes on by itself \
                 when they are gone"
            ),
            RoomState::Full => format!(
                "{taken}, and no recovery point can go: replication is paused. Free space, unpin \
                 points, end exports and tests, or allow more with `sitepair retention`; it goes on by itself"
            ),
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes / (1 << 20) * 10 + bytes % (1 << 20) * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

impl Inner {
    /// What the journal takes and may take.
    pub(super) fn room(&self, state: &State) -> Room {
        let retention = lock(&self.retention).clone();
        let used_bytes = state.journal_bytes();
        let allowed_bytes = self.allowed_bytes(state, &retention);
        let is_low = |allowed: u64| {
            u128::from(used_bytes) * 100 >= u128::from(allowed) * LOW_PERCENT && used_bytes > 0
        };
        let verdict = if self.is_over(state) {
            let can_go = !self.plan(state, None).drop.is_empty();
            let oldest = state.points.first().map(|p| p.cycle);
            let unfolded = state.logs.iter().any(|l| Some(l.cycle) <= oldest);
            if can_go || unfolded {
                RoomState::Making
            } else {
                RoomState::Full
            }
        } else if allowed_bytes.is_some_and(is_low) {
            RoomState::Low
        } else {
            RoomState::Enough
        };
        Room {
            used_bytes,
            allowed_bytes,
            lacking: self.lacking(state, &retention),
            state: verdict,
        }
    }

    /// Bytes that the journal may have: its cap, and what is free beyond what must stay free.
    pub(super) fn allowed_bytes(&self, state: &State, retention: &Retention) -> Option<u64> {
        let Some(free_bytes) = self.free_bytes(retention) else {
            return retention.cap_bytes;
        };
        let stays = retention.min_free_bytes.saturating_add(state.wanted_bytes);
        let by_space = state
            .journal_bytes()
            .saturating_add(free_bytes)
            .saturating_sub(stays);
        Some(
            retention
                .cap_bytes
                .map_or(by_space, |cap| cap.min(by_space)),
        )
    }

    /// Whether a limit is broken.
    pub(super) fn is_over(&self, state: &State) -> bool {
        let retention = lock(&self.retention).clone();
        let allowed = self.allowed_bytes(state, &retention);
        self.lacking(state, &retention).is_some()
            || allowed.is_some_and(|allowed| state.journal_bytes() > allowed)
    }

    fn lacking(&self, state: &State, retention: &Retention) -> Option<Lack> {
        let wanted_bytes = retention.min_free_bytes.saturating_add(state.wanted_bytes);
        let free_bytes = self.free_bytes(retention)?;
        (free_bytes < wanted_bytes).then_some(Lack {
            free_bytes,
            wanted_bytes,
        })
    }

    /// Free space, if it matters and can be told.
    fn free_bytes(&self, retention: &Retention) -> Option<u64> {
        if retention.min_free_bytes == 0 {
            return None;
        }
        match self.site.env.free_bytes(&self.journal_dir) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let folder = self.journal_dir.display();
                tracing::warn!(group = %self.group, %folder, "free space cannot be told: {error}");
                None
            }
        }
    }

    /// Refuses a cycle while there is no room for it.
    pub(super) fn check_room(&self, state: &State) -> Result<(), ReplicaError> {
        if !self.is_over(state) {
            return Ok(());
        }
        let room = self.room(state);
        // Looked at again and again as long as somebody wants to send.
        self.merge_due.notify_one();
        Err(ReplicaError::NoRoom { room })
    }

    /// Refuses the rest of a cycle, of which `written` bytes are here, when too little would stay free.
    pub(super) fn check_free(&self, written: u64) -> Result<(), ReplicaError> {
        let retention = lock(&self.retention).clone();
        let free = self.free_bytes(&retention);
        if free.is_none_or(|free| free >= retention.min_free_bytes) {
            return Ok(());
        }
        let mut state = self.state();
        // What it wrote is free again in a moment, and would be too little again.
        let more = WANTED_MORE_BYTES.max(written / 4);
        state.wanted_bytes = state.wanted_bytes.max(written.saturating_add(more));
        let room = self.room(&state);
        drop(state);
        self.merge_due.notify_one();
        Err(ReplicaError::NoRoom { room })
    }

    /// Writes to the log when the verdict is another than last time.
    pub(super) fn note_room(&self) {
        let room = self.room(&self.state());
        let before = std::mem::replace(&mut *lock(&self.told), room.state);
        if before == room.state {
            return;
        }
        let (group, words) = (self.group, room.words());
        match room.state {
            RoomState::Enough => tracing::info!(%group, "{words}"),
            RoomState::Low | RoomState::Making => tracing::warn!(%group, "{words}"),
            RoomState::Full => tracing::error!(%group, "{words}"),
        }
    }
}

impl State {
    fn journal_bytes(&self) -> u64 {
        self.logs.iter().map(|l| l.file_bytes).sum()
    }
}
