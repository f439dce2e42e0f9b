//! What a block status reply says: runs of an image, joined, clipped and limited.

use sitepair_disk::ExtentKind;
use sitepair_model::nbd::reply::{STATE_HOLE, STATE_ZERO, StatusRun};

/// Collects the runs of one reply.
pub(super) struct Runs {
    runs: Vec<StatusRun>,
    runs_max: usize,
    /// Bytes of the range that no run covers yet.
    left: u32,
}

impl Runs {
    /// For a range of `length` bytes.
    pub(super) fn new(length: u32, runs_max: usize) -> Self {
        Self {
            runs: Vec::new(),
            runs_max,
            left: length,
        }
    }

    /// Adds the next run, joined to the last one where it holds the same. False: enough.
    pub(super) fn push(&mut self, length: u64, kind: ExtentKind) -> bool {
        let state = match kind {
            ExtentKind::Data => 0,
            ExtentKind::Zero => STATE_ZERO,
            ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        };
        let length = u32::try_from(length).map_or(self.left, |length| length.min(self.left));
        let full = self.runs.len() == self.runs_max;
        match self.runs.last_mut() {
            Some(last) if last.state == state => last.length += length,
            _ if full => return false,
            _ if length == 0 => {}
            _ => self.runs.push(StatusRun { length, state }),
        }
        self.left -= length;
        self.left > 0
    }

    /// What was collected. Covers the range from its start, though perhaps not to its end.
    pub(super) fn into_status(self) -> Vec<StatusRun> {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(length: u32, runs_max: usize, pushed: &[(u64, ExtentKind)]) -> Vec<(u32, u32)> {
        let mut runs = Runs::new(length, runs_max);
        for &(length, kind) in pushed {
            if !runs.push(length, kind) {
                break;
            }
        }
        runs.into_status()
            .iter()
            .map(|run| (run.length, run.state))
            .collect()
    }

    #[test]
    fn equal_neighbours_are_joined_and_the_end_is_clipped() {
        use ExtentKind::{Data, Hole, Zero};
        let pushed = [
            (512, Data),
            (512, Data),
            (512, Zero),
            (0, Data),
            (512, Zero),
            (9999, Hole),
        ];
        assert_eq!(
            collected(4096, 9, &pushed),
            [(1024, 0), (1024, 2), (2048, 3)]
        );
        assert_eq!(collected(4096, 1, &pushed), [(1024, 0)]);
        assert_eq!(collected(u32::MAX, 9, &[(u64::MAX, Hole)]), [(u32::MAX, 3)]);
        assert!(collected(4096, 9, &[]).is_empty());
    }
}
