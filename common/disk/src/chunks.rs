//! A disk's content in chunks, as it is sent from one host to another, and its hash.
//!
//! A chunk begins at a multiple of [`CHUNK_BYTES`] and is as long, but for the last of a disk. Chunks of zeros are left
//! out, so that two images of the same size have the same chunks, and the same [`ChunkHash`], if and only if they have
//! the same content, whatever their formats and their holes.
//!
//! Does not do: sending.

use crate::copy::stretches;
use crate::error::DiskError;
use crate::image::{ExtentKind, Image};
use crate::walk::is_zero;

/// Length of a chunk in bytes.
pub const CHUNK_BYTES: u64 = 256 << 10;
/// Most bytes that are looked through for data at a time, so that a caller can stop.
const LOOK_BYTES: u64 = 64 << 30;

/// BLAKE3 over all chunks in ascending order: offset u64, length u64 (little-endian), bytes.
#[derive(Debug, Clone, Default)]
pub struct ChunkHash(blake3::Hasher);

impl ChunkHash {
    /// Adds a chunk.
    pub fn add(&mut self, offset: u64, chunk: &[u8]) {
        self.0.update(&offset.to_le_bytes());
        self.0.update(&(chunk.len() as u64).to_le_bytes());
        self.0.update(chunk);
    }

    /// The hash of all chunks so far.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }

    /// The hash of an image's content. `each` learns how far it has come, and says whether to go on; `None` if not.
    ///
    /// # Errors
    /// The image's.
    pub fn of(
        image: &dyn Image,
        each: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<[u8; 32]>, DiskError> {
        let (mut hash, mut chunk, mut at) = (Self::default(), Vec::new(), 0);
        while let Some(offset) = next_chunk(image, at, &mut chunk)? {
            hash.add(offset, &chunk);
            at = offset + chunk.len() as u64;
            if !each(at) {
                return Ok(None);
            }
        }
        Ok(Some(hash.digest()))
    }
}

/// Whether a disk of this size has a chunk here of this length.
#[must_use]
pub fn is_chunk(size_bytes: u64, offset: u64, length: u64) -> bool {
    offset < size_bytes
        && offset.is_multiple_of(CHUNK_BYTES)
        && length == CHUNK_BYTES.min(size_bytes - offset)
}

/// Reads the first chunk from `at` on, a chunk's start or the disk's end, that is not all zeros; gives its offset, or `None` when
/// there is none.
///
/// # Errors
/// The image's.
pub fn next_chunk(
    image: &dyn Image,
    mut at: u64,
    chunk: &mut Vec<u8>,
) -> Result<Option<u64>, DiskError> {
    let size_bytes = image.geometry().size_bytes;
    while at < size_bytes {
        let Some(data) = first_data(image, at, (size_bytes - at).min(LOOK_BYTES))? else {
            at = at.saturating_add(LOOK_BYTES);
            continue;
        };
        at = data - data % CHUNK_BYTES;
        let length = CHUNK_BYTES.min(size_bytes - at);
        chunk.resize(usize::try_from(length).expect("at most a chunk"), 0);
        image.read_at(chunk, at)?;
        if !is_zero(chunk) {
            return Ok(Some(at));
        }
        at += length;
    }
    Ok(None)
}

/// Writes a chunk to an image that reads as zeros there; zeros within it take no space. Gives the bytes that were written.
///
/// # Errors
/// The image's.
pub fn write_chunk(image: &dyn Image, offset: u64, chunk: &[u8]) -> Result<u64, DiskError> {
    let mut written = 0;
    for range in stretches(chunk) {
        let part = &chunk[range.clone()];
        image.write_at(part, offset + range.start as u64, false)?;
        written += part.len() as u64;
    }
    Ok(written)
}

/// Where the first data of a range begins.
fn first_data(image: &dyn Image, offset: u64, length: u64) -> Result<Option<u64>, DiskError> {
    let mut found = None;
    image.extents(offset, length, &mut |run| {
        if run.kind == ExtentKind::Data {
            found = Some(run.offset.max(offset));
        }
        found.is_none()
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::raw::RawImage;
    use crate::storage::fake::FakeStorage;

    const SIZE: u64 = 5 * CHUNK_BYTES + 1024;

    fn image(storage: &FakeStorage, name: &str) -> RawImage {
        RawImage::create(storage, Path::new(name), SIZE).unwrap()
    }

    fn hash(image: &RawImage) -> [u8; 32] {
        ChunkHash::of(image, &mut |_| true).unwrap().unwrap()
    }

    #[test]
    fn chunks_are_whole_and_those_of_zeros_are_left_out() {
        let storage = FakeStorage::new();
        let disk = image(&storage, "/disk");
        disk.write_at(&[1; 512], CHUNK_BYTES + 512, false).unwrap();
        disk.write_at(&[0; 4096], 3 * CHUNK_BYTES, false).unwrap();
        disk.write_at(&[2; 512], SIZE - 512, false).unwrap();
        let (mut chunk, mut at, mut found) = (Vec::new(), 0, Vec::new());
        while let Some(offset) = next_chunk(&disk, at, &mut chunk).unwrap() {
            assert!(is_chunk(SIZE, offset, chunk.len() as u64));
            found.push((offset, chunk.len() as u64));
            at = offset + chunk.len() as u64;
        }
        assert_eq!(found, [(CHUNK_BYTES, CHUNK_BYTES), (5 * CHUNK_BYTES, 1024)]);
        assert!(!is_chunk(SIZE, 512, CHUNK_BYTES));
        assert!(!is_chunk(SIZE, SIZE, CHUNK_BYTES));
        assert!(!is_chunk(SIZE, 5 * CHUNK_BYTES, CHUNK_BYTES));
    }

    #[test]
    fn the_hash_is_of_the_content_alone() {
        let storage = FakeStorage::new();
        let (one, other) = (image(&storage, "/one"), image(&storage, "/other"));
        assert_eq!(hash(&one), hash(&other));
        one.write_at(&[7; 512], 2 * CHUNK_BYTES, false).unwrap();
        assert_ne!(hash(&one), hash(&other));
        other.write_at(&[0; 8192], 0, false).unwrap();
        other.write_at(&[7; 512], 2 * CHUNK_BYTES, false).unwrap();
        assert_eq!(hash(&one), hash(&other));
        other.write_at(&[0; 512], 2 * CHUNK_BYTES, false).unwrap();
        other.write_at(&[7; 512], 3 * CHUNK_BYTES, false).unwrap();
        assert_ne!(hash(&one), hash(&other), "elsewhere");
    }
}
