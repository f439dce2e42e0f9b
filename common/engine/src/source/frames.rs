//! Reads dirty blocks and makes frames of them, on a thread of its own, ahead of the sender.
//!
//! Receives: disks, and which of their sets to read. Gives out: frames, in ascending order for each
//! disk, through a channel of bounded length, and at the end the digest of what each disk had.
//!
//! Does not do: change the sets, or talk to the peer.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use sitepair_disk::DiskError;
use sitepair_model::extent::BLOCK_BYTES;
use sitepair_model::ids::{Digest, DiskId};
use sitepair_model::peer::{DiskCommit, FrameExtent, FrameExtentKind};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, Traffic};
use crate::blocks::set::BlockSet;
use crate::endpoint::{DataFrame, FRAME_EXTENTS_MAX, FRAME_PAYLOAD_MAX, TransferDigest};

/// Frames that are read before the sender asks for them.
pub(super) const FRAMES_AHEAD: usize = 4;
/// Most bytes one frame covers, zeros included, so that long runs of zeros show progress.
const FRAME_COVERED_MAX: u64 = 64 << 20;

/// Which blocks are read, and as of when.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    /// Initial replication: as they are now; what the guest changes meanwhile is sent later.
    Seed,
    /// A sealed tick: as they were at its cut.
    Sealed(u64),
}

/// A frame, and how far the disk is done with it.
pub(super) struct Piece {
    pub(super) disk: usize,
    pub(super) frame: DataFrame,
    /// Blocks of the disk below this one are in this frame or an earlier one.
    pub(super) done_below: u64,
}

/// Why reading ended early.
#[derive(Debug)]
pub(super) enum ReadEnd {
    /// The sender has gone, or was told to stop.
    Stopped,
    /// The sealed tick was given up.
    Abandoned,
    /// The image failed.
    Disk(DiskError),
}

/// Reads what a pass asks for.
pub(super) struct Reader {
    pub(super) pass: Pass,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) stop: CancellationToken,
}

impl Reader {
    /// Reads all disks; blocks.
    pub(super) fn run(self) -> Result<Vec<DiskCommit>, ReadEnd> {
        let mut commits = Vec::new();
        for number in 0..self.disks.len() {
            commits.extend(self.read_disk(number)?);
        }
        Ok(commits)
    }

    /// Reads one disk; `None` if it has nothing to send.
    fn read_disk(&self, number: usize) -> Result<Option<DiskCommit>, ReadEnd> {
        let disk = &*self.disks[number];
        let mut digest = TransferDigest::default();
        let mut frame = FrameBuilder::new(disk.id);
        let mut at = 0;
        while let Some(run) = self
            .set(disk)
            .next_run(at, disk.blocks, frame.room_blocks())
        {
            self.read_run(disk, run.start, run.end, &mut frame)?;
            at = run.end;
            if frame.is_full() {
                self.hand_over(number, &mut frame, &mut digest, at)?;
            }
        }
        self.take_through(disk, disk.blocks);
        self.hand_over(number, &mut frame, &mut digest, disk.blocks)?;
        Ok((digest.covered_bytes() > 0).then(|| DiskCommit {
            disk: disk.id,
            digest: digest.digest(),
            covered_bytes: digest.covered_bytes(),
        }))
    }

    fn set<'a>(&self, disk: &'a Disk) -> &'a BlockSet {
        match self.pass {
            Pass::Seed => &disk.sets.seed,
            Pass::Sealed(tick) => disk.sets.of_tick(tick),
        }
    }

    fn read_run(
        &self,
        disk: &Disk,
        first: u64,
        end: u64,
        frame: &mut FrameBuilder,
    ) -> Result<(), ReadEnd> {
        if self.stop.is_cancelled() {
            return Err(ReadEnd::Stopped);
        }
        let bytes = disk.bytes_of(first, end);
        let buf = frame.tail(bytes.length);
        disk.image
            .read_at(buf, bytes.offset)
            .map_err(ReadEnd::Disk)?;
        if let Pass::Sealed(tick) = self.pass {
            self.fix_run(disk, tick, first, end, buf)?;
        }
        frame.settle(bytes.offset, bytes.length);
        Ok(())
    }

    /// Makes of a run that was read without a lock what it was at the cut.
    ///
    /// The writes stamped with the sealed tick are done. A later write to one of these blocks holds
    /// the range lock from before it preserves the block until it has written it. So with the lock
    /// held: a block that has a preserved copy may have been read in any state, and the copy is its
    /// content at the cut; a block that has none was not written since the cut, neither before our
    /// read nor during it. Only then are the blocks marked taken, under the same lock: a write that
    /// comes after need not preserve them any more.
    fn fix_run(
        &self,
        disk: &Disk,
        tick: u64,
        first: u64,
        end: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadEnd> {
        let _range = disk.locks.lock(first, end);
        // Looked at under the lock: a write that could not preserve has given the tick up before
        // it changed the block.
        if !self.traffic.is_unresolved(tick) {
            return Err(ReadEnd::Abandoned);
        }
        if let Err(error) = disk.preserved.lay_over(first, buf) {
            tracing::warn!(disk = %disk.name, %error, "read preserved blocks; give up the cycle");
            self.traffic.give_up(tick);
            return Err(ReadEnd::Abandoned);
        }
        disk.taken_below.store(end, SeqCst);
        Ok(())
    }

    /// Marks the rest of a disk taken: no sealed block is left there.
    fn take_through(&self, disk: &Disk, end: u64) {
        if let Pass::Sealed(_) = self.pass {
            disk.taken_below.store(end, SeqCst);
        }
    }

    fn hand_over(
        &self,
        disk: usize,
        frame: &mut FrameBuilder,
        digest: &mut TransferDigest,
        done_below: u64,
    ) -> Result<(), ReadEnd> {
        let Some(frame) = frame.finish() else {
            return Ok(());
        };
        digest.add(&frame);
        let piece = Piece {
            disk,
            frame,
            done_below,
        };
        self.pieces
            .blocking_send(piece)
            .map_err(|_| ReadEnd::Stopped)
    }
}

/// Collects runs of one disk until they fill a frame.
struct FrameBuilder {
    disk: DiskId,
    extents: Vec<FrameExtent>,
    payload: Vec<u8>,
    covered_bytes: u64,
}

impl FrameBuilder {
    fn new(disk: DiskId) -> Self {
        Self {
            disk,
            extents: Vec::new(),
            payload: Vec::new(),
            covered_bytes: 0,
        }
    }

    /// Blocks that still fit, whatever they hold: each may need an extent of its own.
    fn room_blocks(&self) -> u64 {
        let bytes = (FRAME_PAYLOAD_MAX - self.payload.len()) as u64 / BLOCK_BYTES;
        bytes.min((FRAME_EXTENTS_MAX - self.extents.len()) as u64)
    }

    fn is_full(&self) -> bool {
        self.room_blocks() == 0 || self.covered_bytes >= FRAME_COVERED_MAX
    }

    /// Space for the next `length` bytes, to be read into and then settled.
    fn tail(&mut self, length: u64) -> &mut [u8] {
        let from = self.payload.len();
        let length = usize::try_from(length).expect("a run fits a frame");
        assert!(
            from + length <= FRAME_PAYLOAD_MAX,
            "a frame's payload has a limit"
        );
        self.payload.resize(from + length, 0);
        &mut self.payload[from..]
    }

    /// Turns the last `length` bytes, read from `offset`, into extents; zeros leave the payload.
    fn settle(&mut self, offset: u64, length: u64) {
        let mut from = self.payload.len() - usize::try_from(length).expect("it was read");
        let mut keep = from;
        let mut at = offset;
        while from < self.payload.len() {
            let end = (from + 4096).min(self.payload.len());
            let bytes = (end - from) as u64;
            if is_zero(&self.payload[from..end]) {
                self.push(at, bytes, FrameExtentKind::Zero);
            } else {
                if keep < from {
                    self.payload.copy_within(from..end, keep);
                }
                keep += end - from;
                self.push(at, bytes, FrameExtentKind::Data);
            }
            from = end;
            at += bytes;
        }
        self.payload.truncate(keep);
        self.covered_bytes += length;
    }

    fn push(&mut self, offset: u64, length: u64, kind: FrameExtentKind) {
        match self.extents.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.length == offset => {
                last.length += length;
            }
            _ => self.extents.push(FrameExtent {
                offset,
                length,
                kind,
            }),
        }
    }

    /// The frame so far, if there is anything in it.
    fn finish(&mut self) -> Option<DataFrame> {
        if self.extents.is_empty() {
            return None;
        }
        self.covered_bytes = 0;
        let payload = Bytes::from(std::mem::take(&mut self.payload));
        let hash = Digest::from_bytes(*blake3::hash(&payload).as_bytes());
        Some(DataFrame {
            disk: self.disk,
            extents: std::mem::take(&mut self.extents),
            payload,
            hash,
        })
    }
}

/// Whether a block holds only zeros; in pieces that the compiler turns into wide comparisons.
fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(128)
        .all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_leave_the_payload_and_neighbours_become_one_extent() {
        let mut frame = FrameBuilder::new(DiskId::from_bytes([1; 16]));
        let content: Vec<u8> = [0u8, 7, 7, 0, 9].iter().flat_map(|b| [*b; 4096]).collect();
        frame
            .tail(content.len() as u64 + 512)
            .copy_from_slice(&[content, vec![0; 512]].concat());
        frame.settle(40_960, 5 * 4096 + 512);
        let done = frame.finish().unwrap();
        let seen: Vec<_> = done
            .extents
            .iter()
            .map(|e| (e.offset / 512, e.length / 512, e.kind))
            .collect();
        use FrameExtentKind::{Data, Zero};
        assert_eq!(
            seen,
            [
                (80, 8, Zero),
                (88, 16, Data),
                (104, 8, Zero),
                (112, 8, Data),
                (120, 1, Zero)
            ]
        );
        assert_eq!(&*done.payload, [[7u8; 4096], [7; 4096], [9; 4096]].concat());
        assert_eq!(done.hash.as_bytes(), blake3::hash(&done.payload).as_bytes());
        assert!(frame.finish().is_none());
    }
}
