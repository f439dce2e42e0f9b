//! A guest that can prove which of its writes a disk holds.
//!
//! Owns a numbered history of writes over one or several disks. Write `k + 1` is issued only after
//! write `k` was answered, on the next disk in turn, so that any state of the disks that holds `k`
//! must hold everything before it: that is crash consistency of a recovery point over all disks of
//! a group. Every slot carries its own number, disk, place and checksum.
//!
//! Does not do: the writing. It says what to write ([`Writer::issue`]), learns what was answered
//! ([`Writer::acknowledged`]) and judges what is read back ([`Writer::verify`]), so that the same
//! history can be checked against a live disk, an image file, or the view of a point.
//!
//! # Invariants
//! 1. A slot holds zeros (never written) or exactly one numbered write of this history.
//! 2. At most one write is issued and not answered.

use anyhow::{Result, bail, ensure};

use crate::data::Random;

/// Unit of writing: one numbered write is one slot.
pub const SLOT_BYTES: usize = 4096;

const SLOT_LENGTH: u64 = SLOT_BYTES as u64;
const MAGIC: [u8; 8] = *b"SPWRITE1";
/// Magic, run, number, disk, offset, and the checksum of all else.
const HEADER_BYTES: usize = 8 + 8 + 8 + 8 + 8 + 32;

/// One write of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Its number; the first is 1.
    pub number: u64,
    /// Which disk, from 0.
    pub disk: usize,
    /// First byte on that disk.
    pub offset: u64,
}

/// The history, and the state that the disks must be in after any part of it.
#[derive(Debug)]
pub struct Writer {
    run: u64,
    random: Random,
    /// Slots that each disk offers to the writer.
    slots: Vec<u64>,
    history: Vec<Write>,
    acknowledged: u64,
}

/// What a set of disks turned out to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The last write that is present; all before it are too.
    pub last: u64,
    /// Slots that hold a write.
    pub slots_written: u64,
}

/// Reads a disk: `(disk, offset, buffer)`.
pub type ReadAt<'a> = dyn FnMut(usize, u64, &mut [u8]) -> Result<()> + 'a;

impl Writer {
    /// A history over disks that offer this many bytes each from their start. `seed` chooses the
    /// places and marks the run, so that leftovers of another run are not taken for ours.
    ///
    /// # Panics
    /// When there is no disk, or one offers less than a slot.
    #[must_use]
    pub fn new(seed: u64, disk_bytes: &[u64]) -> Self {
        let slots: Vec<u64> = disk_bytes.iter().map(|bytes| bytes / SLOT_LENGTH).collect();
        assert!(
            !slots.is_empty() && slots.iter().all(|&n| n > 0),
            "each disk offers a slot"
        );
        Self {
            run: seed,
            random: Random::new(seed),
            slots,
            history: Vec::new(),
            acknowledged: 0,
        }
    }

    /// The next write to issue, and its bytes.
    ///
    /// # Panics
    /// When the write before it was not answered (invariant 2).
    pub fn issue(&mut self) -> (Write, Vec<u8>) {
        assert_eq!(self.acknowledged, self.issued(), "one write at a time");
        let number = self.issued() + 1;
        let disk = usize::try_from(number % self.slots.len() as u64).expect("below a length");
        let offset = self.random.below(self.slots[disk]) * SLOT_LENGTH;
        let write = Write {
            number,
            disk,
            offset,
        };
        self.history.push(write);
        (write, self.content(write))
    }

    /// The guest was told that write `number`, the last one issued, succeeded.
    ///
    /// # Panics
    /// When it is not the last one issued.
    pub fn acknowledged(&mut self, number: u64) {
        assert_eq!(number, self.issued(), "answers come for the last write");
        self.acknowledged = number;
    }

    /// Number of the last acknowledged write; 0 before the first.
    #[must_use]
    pub fn last_acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn issued(&self) -> u64 {
        self.history.len() as u64
    }

    /// The bytes of a write: a header that names it, then noise that only it has.
    fn content(&self, write: Write) -> Vec<u8> {
        let mut slot = vec![0; SLOT_BYTES];
        slot[0..8].copy_from_slice(&MAGIC);
        slot[8..16].copy_from_slice(&self.run.to_le_bytes());
        slot[16..24].copy_from_slice(&write.number.to_le_bytes());
        slot[24..32].copy_from_slice(&(write.disk as u64).to_le_bytes());
        slot[32..40].copy_from_slice(&write.offset.to_le_bytes());
        Random::new(self.run ^ write.number.rotate_left(32)).fill(&mut slot[HEADER_BYTES..]);
        let checksum = blake3::hash(&slot);
        slot[40..HEADER_BYTES].copy_from_slice(checksum.as_bytes());
        slot
    }

    /// Which write a slot holds; `None` for zeros.
    fn identify(&self, disk: usize, offset: u64, slot: &[u8]) -> Result<Option<u64>> {
        if slot.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let here = format!("disk {disk}, offset {offset}");
        ensure!(
            slot[0..8] == MAGIC,
            "{here}: neither zeros nor a write of ours"
        );
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&slot[16..24]);
        let number = u64::from_le_bytes(bytes);
        let index = usize::try_from(number.wrapping_sub(1)).unwrap_or(usize::MAX);
        let Some(&write) = self.history.get(index) else {
            bail!("{here}: write {number}, which was never issued");
        };
        ensure!(
            (write.disk, write.offset) == (disk, offset),
            "{here}: write {number} belongs to disk {}, offset {}",
            write.disk,
            write.offset
        );
        ensure!(
            slot == self.content(write),
            "{here}: write {number} is torn"
        );
        Ok(Some(number))
    }

    /// Reads all slots and checks that the disks hold exactly some first part of the history: if a
    /// write is present, everything before it is, or was overwritten by a later present one.
    ///
    /// # Errors
    /// Names the first slot that breaks this, or the read that failed.
    pub fn verify(&self, read_at: &mut ReadAt<'_>) -> Result<Verdict> {
        let found = self.scan(read_at)?;
        let last = found.iter().flatten().flatten().copied().max().unwrap_or(0);
        let expected = self.state_after(last);
        let mut slots_written = 0;
        for (disk, slots) in found.iter().enumerate() {
            for (slot, &number) in slots.iter().enumerate() {
                let wanted = expected[disk][slot];
                ensure!(
                    number == wanted,
                    "disk {disk}, slot {slot}: holds {}, but write {last} is present, so it must hold {}",
                    Shown(number),
                    Shown(wanted)
                );
                slots_written += u64::from(number.is_some());
            }
        }
        Ok(Verdict {
            last,
            slots_written,
        })
    }

    /// As [`verify`](Self::verify), and every write up to `floor` must be there: the last one that
    /// was acknowledged before a flush, a cut or a hand-over.
    ///
    /// # Errors
    /// Also when the disks end before `floor`.
    pub fn verify_through(&self, floor: u64, read_at: &mut ReadAt<'_>) -> Result<Verdict> {
        let verdict = self.verify(read_at)?;
        let last = verdict.last;
        ensure!(
            last >= floor,
            "write {floor} was acknowledged, the disks end at {last}"
        );
        Ok(verdict)
    }

    fn scan(&self, read_at: &mut ReadAt<'_>) -> Result<Vec<Vec<Option<u64>>>> {
        const AT_ONCE: usize = 256;
        let mut buf = vec![0; AT_ONCE * SLOT_BYTES];
        let mut found = Vec::new();
        for (disk, &slots) in self.slots.iter().enumerate() {
            let mut numbers = Vec::new();
            let bytes = slots * SLOT_LENGTH;
            let mut offset = 0;
            while offset < bytes {
                let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
                let n = buf.len().min(left);
                read_at(disk, offset, &mut buf[..n])?;
                for slot in buf[..n].chunks_exact(SLOT_BYTES) {
                    numbers.push(self.identify(disk, offset, slot)?);
                    offset += SLOT_LENGTH;
                }
            }
            found.push(numbers);
        }
        Ok(found)
    }

    /// Which write each slot holds after write `last`.
    fn state_after(&self, last: u64) -> Vec<Vec<Option<u64>>> {
        let slots = |&n: &u64| vec![None; usize::try_from(n).expect("slots were scanned")];
        let mut state: Vec<Vec<Option<u64>>> = self.slots.iter().map(slots).collect();
        for write in self.history.iter().take_while(|write| write.number <= last) {
            let slot = usize::try_from(write.offset / SLOT_LENGTH).expect("slots were scanned");
            state[write.disk][slot] = Some(write.number);
        }
        state
    }
}

struct Shown(Option<u64>);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(number) => write!(f, "write {number}"),
            None => f.write_str("zeros"),
        }
    }
}

#[cfg(test)]
mod tests;
