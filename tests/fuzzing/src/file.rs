//! Files from few bytes: disk files are mostly zeros, and mutations of zeros find nothing.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::storage::{BlockFile, OpenMode, Storage};

/// Files are no longer than this.
const FILE_BYTES_MAX: u64 = 96 << 20;
const SECTOR: u64 = 512;
/// Bytes before each piece: sector u32, length u16.
const PIECE_HEADER: usize = 6;

/// Where the file under test lies.
pub(crate) const PATH: &str = "/input";

/// Unfolds `pieces` (sector, length, bytes, each after the other) into a file. A piece of no bytes sets the end.
pub(crate) fn unfold(mut pieces: &[u8]) -> (FakeStorage, Arc<dyn BlockFile>) {
    let storage = FakeStorage::new();
    let file = storage.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    while let Some((header, rest)) = pieces.split_first_chunk::<PIECE_HEADER>() {
        let sector = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let at = u64::from(sector) * SECTOR % FILE_BYTES_MAX;
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        if bytes.is_empty() {
            if file.length().unwrap() < at {
                file.set_length(at).unwrap();
            }
        } else {
            file.write_at(bytes, at).unwrap();
        }
        pieces = rest;
    }
    (storage, file)
}

/// The reverse: pieces of all sectors that are not zero, and the end.
pub(crate) fn fold(content: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut put = |sector: usize, bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap();
        pieces.extend_from_slice(&u32::try_from(sector).unwrap().to_le_bytes());
        pieces.extend_from_slice(&length.to_le_bytes());
        pieces.extend_from_slice(bytes);
    };
    for (sector, bytes) in content.chunks(512).enumerate() {
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            put(sector, &bytes[..=last]);
        }
    }
    put(content.len().div_ceil(512), &[]);
    pieces
}
