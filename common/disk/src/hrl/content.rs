//! The strong hash of what a change log says, which the format does not have.
//!
//! BLAKE3 over, in the file's order: for data, an entry's offset u64, length u64, kind u8 = 1, and its bytes; for
//! zeros, a run's offset u64, length u64, kind u8 = 2 (little-endian). A run of zeros is as long as entries of zeros
//! go on from each other. So zeros cost nothing however long they are, and every byte that could reach a disk is
//! covered.
//!
//! Does not do: the header (ids, times), whose own checksum is all that guards it; keeping the hash.

use super::HrlReader;
use crate::error::DiskError;

/// Data is hashed in pieces of this.
const HASH_BYTES: usize = 1 << 20;
const KIND_DATA: u8 = 1;
const KIND_ZEROS: u8 = 2;

/// The hash, as it grows.
#[derive(Default)]
pub struct ContentHash {
    hasher: blake3::Hasher,
    /// Zeros that may go on: offset and length.
    zeros: Option<(u64, u64)>,
}

impl ContentHash {
    /// Adds an entry of data; its bytes follow, in as many pieces as it takes.
    pub fn data(&mut self, offset: u64, length: u64) {
        self.end_zeros();
        self.head(offset, length, KIND_DATA);
    }

    /// Adds bytes of the entry that [`data`](Self::data) began.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Adds an entry of zeros.
    pub fn zeros(&mut self, offset: u64, length: u64) {
        match &mut self.zeros {
            Some((start, run)) if start.checked_add(*run) == Some(offset) => *run += length,
            _ => {
                self.end_zeros();
                self.zeros = Some((offset, length));
            }
        }
    }

    /// The hash of all that was added.
    #[must_use]
    pub fn digest(mut self) -> [u8; 32] {
        self.end_zeros();
        *self.hasher.finalize().as_bytes()
    }

    fn end_zeros(&mut self) {
        if let Some((offset, length)) = self.zeros.take() {
            self.head(offset, length, KIND_ZEROS);
        }
    }

    fn head(&mut self, offset: u64, length: u64, kind: u8) {
        self.hasher.update(&offset.to_le_bytes());
        self.hasher.update(&length.to_le_bytes());
        self.hasher.update(&[kind]);
    }
}

impl HrlReader {
    /// Reads all entries with their data, checks their checksums, and gives the strong hash of what they say.
    ///
    /// # Errors
    /// As [`entries`](Self::entries) and [`read_entry_data`](Self::read_entry_data).
    pub fn content_hash(&self) -> Result<[u8; 32], DiskError> {
        let mut hash = ContentHash::default();
        let mut buf = vec![0; HASH_BYTES];
        for entry in self.entries() {
            let entry = entry?;
            let length = u64::from(entry.length);
            if entry.is_zeros {
                // Read all the same: a file whose hole was lost would say zeros, and hold something else.
                self.verify_entry(&entry)?;
                hash.zeros(entry.offset, length);
                continue;
            }
            hash.data(entry.offset, length);
            let mut within = 0;
            while within < entry.length {
                let left = usize::try_from(entry.length - within).unwrap_or(HASH_BYTES);
                let piece = &mut buf[..left.min(HASH_BYTES)];
                self.read_entry_data(&entry, within, piece)?;
                hash.bytes(piece);
                within += u32::try_from(piece.len()).expect("at most HASH_BYTES");
            }
        }
        Ok(hash.digest())
    }
}
