//! The short account at the demonstration's end.

use std::fmt;
use std::time::{Duration, Instant};

use sitepair_model::ids::Site;

use super::{bytes, seconds};
use crate::writer::SLOT_BYTES;

/// One planned failover.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Where the guest runs since.
    pub to: Site,
    /// From the guest's last write to the command's end.
    pub took: Duration,
    /// Acknowledged writes that were looked for and found there.
    pub writes: u64,
}

/// What happened, in numbers.
#[derive(Debug, Clone)]
pub struct Account {
    started: Instant,
    whole: Duration,
    disk_bytes: u64,
    /// Bytes that initial replication carried, and how long it took.
    pub seed: (u64, Duration),
    /// Planned failovers, in their order.
    pub moves: Vec<Move>,
    /// Writes of the guest that were acknowledged.
    pub writes: u64,
    /// Recovery points made in all.
    pub points_made: u64,
    /// Recovery points kept at the end.
    pub points_kept: usize,
    /// Space that they take besides the image.
    pub journal_bytes: u64,
    /// Bytes that crossed the link, both ways, TLS included.
    pub link_bytes: u64,
}

impl Account {
    pub(super) fn new(started: Instant, disk_bytes: u64) -> Self {
        Self {
            started,
            whole: Duration::ZERO,
            disk_bytes,
            seed: (0, Duration::ZERO),
            moves: Vec::new(),
            writes: 0,
            points_made: 0,
            points_kept: 0,
            journal_bytes: 0,
            link_bytes: 0,
        }
    }

    pub(super) fn finish(&mut self) {
        self.whole = self.started.elapsed();
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, text: String| writeln!(f, "  {name:22} {text}");
        row("disk", format!("{}, dynamic VHDX", bytes(self.disk_bytes)))?;
        let (carried, took) = self.seed;
        let rate = carried as f64 / took.as_secs_f64().max(1e-3) / f64::from(1 << 20);
        let carried = bytes(carried);
        let took = seconds(took);
        row(
            "initial replication",
            format!("{carried} in {took} ({rate:.0} MiB/s)"),
        )?;
        let written = bytes(self.writes * SLOT_BYTES as u64);
        row(
            "guest",
            format!("{} writes acknowledged, {written}, none lost", self.writes),
        )?;
        let journal = bytes(self.journal_bytes);
        let (made, kept) = (self.points_made, self.points_kept);
        row(
            "recovery points",
            format!("{made} made, {kept} kept in {journal} of journal"),
        )?;
        for (number, moved) in self.moves.iter().enumerate() {
            let name = if number == 0 {
                "planned failover"
            } else {
                "failback"
            };
            let Move { to, took, writes } = moved;
            let took = seconds(*took);
            row(
                name,
                format!("to {to} in {took}, {writes} of {writes} writes found"),
            )?;
        }
        row("over the link", bytes(self.link_bytes))?;
        row("all of it", seconds(self.whole))
    }
}
