//! The file under check, with what its log would change laid over it in memory.
//!
//! Owns: [`Source`]. Receives changes, gives out bytes. Never writes. Readers check that a range is inside
//! [`Source::length`] first; a failed read is a failure of the check, not a finding.

use std::collections::BTreeMap;
use std::io;

use crate::error::DiskError;
use crate::storage::BlockFile;

/// Unit of what a log changes, in bytes.
pub(super) const PAGE: u64 = 4096;
/// Longer files are not checked: what is remembered of a file grows with its length.
const FILE_BYTES_MAX: u64 = 256 << 40;

pub(super) struct Source<'a> {
    pub(super) file: &'a dyn BlockFile,
    pub(super) name: String,
    /// Length in bytes of the file as it is.
    real_length: u64,
    /// Length in bytes once the log is applied.
    length: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Zeroed ranges, from and to, that neither touch nor overlap; pages lie above them.
    zeros: BTreeMap<u64, u64>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a dyn BlockFile, name: String) -> Result<Self, DiskError> {
        let length = file
            .length()
            .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
        if length > FILE_BYTES_MAX {
            let what = format!("a check of {name}, a file of {length} bytes,");
            return Err(DiskError::Unsupported { what });
        }
        Ok(Self {
            file,
            name,
            real_length: length,
            length,
            pages: BTreeMap::new(),
            zeros: BTreeMap::new(),
        })
    }

    /// Length in bytes, the log applied.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether a range is inside the file.
    pub(super) fn holds(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length)
    }

    /// Lays a page over the file.
    pub(super) fn lay_page(&mut self, offset: u64, page: Box<[u8]>) {
        assert!(offset.is_multiple_of(PAGE), "pages are aligned");
        self.pages.insert(offset, page);
    }

    /// Lays zeros over the file from `from` to `to`.
    pub(super) fn lay_zeros(&mut self, mut from: u64, mut to: u64) {
        let gone: Vec<u64> = self.pages.range(from..to).map(|(&at, _)| at).collect();
        for at in gone {
            self.pages.remove(&at);
        }
        while let Some((&start, &end)) = self.zeros.range(..=to).next_back() {
            if end < from {
                break;
            }
            self.zeros.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.zeros.insert(from, to);
    }

    /// The first place from `from` to `to` over which something is laid.
    pub(super) fn first_laid(&self, from: u64, to: u64) -> Option<u64> {
        let page = self.pages.range(from / PAGE * PAGE..to).next();
        let zeros = self.zeros.range(..to).next_back();
        let zeroed = zeros.filter(|(_, end)| **end > from);
        let places = [page.map(|(at, _)| *at), zeroed.map(|(start, _)| *start)];
        places.into_iter().flatten().min().map(|at| at.max(from))
    }

    /// The file ends no earlier than here. False where that is longer than any file we check.
    pub(super) fn grow(&mut self, length: u64) -> bool {
        self.length = self.length.max(length);
        self.length <= FILE_BYTES_MAX
    }

    /// Fills `buf` from `offset`, the log applied.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let end = offset + to_u64(buf.len());
        if end > self.length {
            return Err(self.failed(buf.len(), offset, io::ErrorKind::UnexpectedEof.into()));
        }
        let real = to_usize(self.real_length.clamp(offset, end) - offset);
        let (stored, grown) = buf.split_at_mut(real);
        if real > 0 {
            self.file
                .read_at(stored, offset)
                .map_err(|e| self.failed(real, offset, e))?;
        }
        grown.fill(0);
        let before = self.zeros.range(..end).rev();
        for (&from, &to) in before.take_while(|(_, to)| **to > offset) {
            let (from, to) = (from.max(offset), to.min(end));
            buf[to_usize(from - offset)..to_usize(to - offset)].fill(0);
        }
        let first = offset / PAGE * PAGE;
        for (&at, page) in self.pages.range(first..end) {
            let (from, to) = (at.max(offset), (at + PAGE).min(end));
            buf[to_usize(from - offset)..to_usize(to - offset)]
                .copy_from_slice(&page[to_usize(from - at)..to_usize(to - at)]);
        }
        Ok(())
    }

    /// `length` bytes from `offset`.
    pub(super) fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; to_usize(length)];
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn failed(&self, length: usize, offset: u64, error: io::Error) -> DiskError {
        let name = &self.name;
        DiskError::io(format!("read {length} bytes at {offset} of {name}"), error)
    }
}

/// For lengths of what is, or is to be, in memory.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit host")
}

pub(super) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("a host of at most 64 bits")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::fake::FakeStorage;
    use crate::storage::{OpenMode, Storage};

    #[test]
    fn what_is_laid_last_is_read() {
        let storage = FakeStorage::new();
        let file = storage.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[1; 20_000], 0).unwrap();
        let mut source = Source::new(&*file, "f".into()).unwrap();
        source.lay_page(4096, vec![2; 4096].into());
        source.lay_zeros(8192, 12_288);
        source.lay_page(8192, vec![3; 4096].into());
        source.lay_zeros(12_288, 16_384);
        source.lay_zeros(4096, 8192);
        assert_eq!(source.zeros.len(), 1);
        assert_eq!(source.first_laid(0, 4096), None);
        assert_eq!(source.first_laid(0, 4097), Some(4096));
        assert_eq!(source.first_laid(5000, 6000), Some(5000));
        assert_eq!(source.first_laid(16_384, 20_000), None);
        assert!(source.grow(24_576));
        let bytes = source.bytes(0, 24_576).unwrap();
        let runs: Vec<(u8, usize)> = bytes
            .chunk_by(|a, b| a == b)
            .map(|run| (run[0], run.len()))
            .collect();
        assert_eq!(
            runs,
            [
                (1, 4096),
                (0, 4096),
                (3, 4096),
                (0, 4096),
                (1, 3616),
                (0, 4576)
            ]
        );
        assert_eq!(source.bytes(8000, 300).unwrap(), bytes[8000..8300]);
        assert!(source.bytes(24_000, 1000).is_err());
    }
}
