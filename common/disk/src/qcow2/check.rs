//! The refcounts of a qcow2 file against what is in use, before anything is written to it.
//!
//! Owns: one walk through all tables. Receives a file and its header; gives out that writing is safe, which counts a
//! crash left out, or where the file is damaged. Does not do: writing; clusters that are counted and not used (they are
//! lost space, not damage).
//!
//! Needed because imago believes the refcounts: a cluster that is in use and not counted would be given to the next
//! write, were it the header itself.

use super::header::Header;
use crate::error::DiskError;
use crate::storage::BlockFile;

/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFBLOCK_OFFSET: u64 = !0x1ff;
const COMPRESSED: u64 = 1 << 62;
/// Tables are read in pieces of at most this.
const PIECE_BYTES: u64 = 64 << 10;

/// What a cluster is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// By one place only.
    Alone,
    /// Compressed data share clusters.
    Shared,
}

struct Walk<'a> {
    file: &'a dyn BlockFile,
    header: &'a Header,
    name: &'a str,
    length: u64,
    /// One bit for each cluster of the file.
    used: Vec<u8>,
}

/// Most counts that a crash can have left out. imago makes a table, or a block of counts, at a time.
const LOST_MAX: usize = 64;

/// Checks that each cluster in use is in the file, is used once, and is counted. Gives the places of counts that a
/// crash left out, each the last byte of a big-endian number that is 0 and must be 1; none for an image that was closed,
/// in which a missing count is damage.
pub(super) fn check(
    file: &dyn BlockFile,
    header: &Header,
    name: &str,
) -> Result<Vec<u64>, DiskError> {
    let length = file
        .length()
        .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
    let clusters = length.div_ceil(header.cluster());
    let bytes = usize::try_from(clusters.div_ceil(8)).map_err(|_| DiskError::Unsupported {
        what: format!("{name} of {length} bytes"),
    })?;
    let mut walk = Walk {
        file,
        header,
        name,
        length,
        used: vec![0; bytes],
    };
    walk.mark(0, header.cluster(), Use::Alone, 0)?;
    let (l1, l1_bytes) = header.l1_table();
    walk.mark(l1, l1_bytes, Use::Alone, 40)?;
    let (refcounts, refcounts_bytes) = header.refcount_table();
    walk.mark(refcounts, refcounts_bytes, Use::Alone, 48)?;
    walk.each(l1, l1_bytes, &mut |walk, at, entry| {
        walk.l2_table(at, entry)
    })?;
    walk.each(refcounts, refcounts_bytes, &mut |walk, at, entry| {
        let block = entry & REFBLOCK_OFFSET;
        match block {
            0 => Ok(()),
            _ => walk.mark(block, walk.header.cluster(), Use::Alone, at),
        }
    })?;
    walk.check_counts(refcounts, refcounts_bytes)
}

impl Walk<'_> {
    fn damaged(&self, offset: u64, detail: &str) -> DiskError {
        DiskError::Corrupt {
            structure: "qcow2 metadata",
            offset,
            detail: format!(
                "{detail} (in {}; repair it with qemu-img check -r all)",
                self.name
            ),
        }
    }

    /// The last cluster of a file may be cut short; the rest of it reads as zeros.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), DiskError> {
        let there = usize::try_from(self.length.saturating_sub(at)).unwrap_or(buf.len());
        let (buf, beyond) = buf.split_at_mut(there.min(buf.len()));
        beyond.fill(0);
        let failed = |e| DiskError::io(format!("read the tables of {}", self.name), e);
        self.file.read_at(buf, at).map_err(failed)
    }

    /// Calls `visit` with the place and value of each entry that is not 0.
    fn each(
        &mut self,
        table: u64,
        bytes: u64,
        visit: &mut dyn FnMut(&mut Self, u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let end = table + bytes;
        let mut at = table;
        let mut buf = Vec::new();
        while at < end {
            let piece = PIECE_BYTES.min(end - at);
            buf.resize(usize::try_from(piece).expect("at most PIECE_BYTES"), 0);
            self.read(&mut buf, at)?;
            for (place, entry) in (at..).step_by(8).zip(buf.chunks_exact(8)) {
                let entry = u64::from_be_bytes(entry.try_into().expect("chunks are exact"));
                if entry != 0 {
                    visit(self, place, entry)?;
                }
            }
            at += piece;
        }
        Ok(())
    }

    fn l2_table(&mut self, at: u64, entry: u64) -> Result<(), DiskError> {
        let table = entry & OFFSET;
        let cluster = self.header.cluster();
        if table == 0 {
            return Ok(());
        }
        self.mark(table, cluster, Use::Alone, at)?;
        self.each(table, cluster, &mut |walk, at, entry| {
            if entry & COMPRESSED != 0 {
                let (offset, bytes) = walk.header.compressed(entry);
                return walk.mark(offset, bytes, Use::Shared, at);
            }
            match entry & OFFSET {
                0 => Ok(()),
                data => walk.mark(data, cluster, Use::Alone, at),
            }
        })
    }

    /// Notes the clusters of a range as used; `at` is where that is said.
    fn mark(&mut self, offset: u64, bytes: u64, how: Use, at: u64) -> Result<(), DiskError> {
        let cluster = self.header.cluster();
        if how == Use::Alone && !offset.is_multiple_of(cluster) {
            return Err(self.damaged(at, "it leads into the middle of a cluster"));
        }
        let end = offset.checked_add(bytes);
        let Some(end) = end.filter(|end| *end <= self.length.next_multiple_of(cluster)) else {
            return Err(self.damaged(at, "it leads behind the end of the file"));
        };
        for number in offset / cluster..end.div_ceil(cluster) {
            let byte = usize::try_from(number / 8).expect("within the bitmap, which is memory");
            let bit = 1_u8 << (number % 8);
            if how == Use::Alone && self.used[byte] & bit != 0 {
                return Err(self.damaged(at, "it leads to a cluster that is used elsewhere"));
            }
            self.used[byte] |= bit;
        }
        Ok(())
    }

    fn is_used(&self, number: u64) -> bool {
        let byte = usize::try_from(number / 8)
            .ok()
            .and_then(|byte| self.used.get(byte));
        byte.is_some_and(|byte| byte & (1 << (number % 8)) != 0)
    }

    /// Compares each block of counts with what is used.
    fn check_counts(&self, table: u64, bytes: u64) -> Result<Vec<u64>, DiskError> {
        let mut lost = Vec::new();
        let cluster = self.header.cluster();
        let counts = self.header.counts_per_block();
        let clusters = self.length.div_ceil(cluster);
        let mut block = vec![0; usize::try_from(cluster).expect("at most 2 MiB")];
        for index in 0..clusters.div_ceil(counts) {
            let at = table + index * 8;
            let mut entry = [0; 8];
            if at + 8 <= table + bytes {
                self.read(&mut entry, at)?;
            }
            let block_at = u64::from_be_bytes(entry) & REFBLOCK_OFFSET;
            match block_at {
                0 => block.fill(0),
                offset => self.read(&mut block, offset)?,
            }
            let first = index * counts;
            for number in first..clusters.min(first + counts) {
                if !self.is_used(number) || self.header.is_counted(&block, number - first) {
                    continue;
                }
                let place = self.header.count_at(number - first);
                match place.filter(|_| block_at != 0 && self.header.is_dirty()) {
                    Some(place) if lost.len() < LOST_MAX => lost.push(block_at + place),
                    _ => {
                        let detail = "a cluster is used and not counted";
                        return Err(self.damaged(number * cluster, detail));
                    }
                }
            }
        }
        Ok(lost)
    }
}
