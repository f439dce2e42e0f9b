//! Damaged and crafted logs: refused, or read as they were written.

use super::super::format::RawEntry;
use super::super::*;
use super::{Rng, crafted, entry, file_of, options, path, read_all};
use crate::ErrorKind;
use crate::storage::fake::FakeStorage;

/// A file that is small, so that most mutations hit something that matters.
fn small_log() -> Vec<u8> {
    let storage = FakeStorage::new();
    let mut writer = HrlWriter::create(&storage, path(), options()).unwrap();
    for round in 0..140 {
        writer
            .append(
                round * 512,
                &[u8::try_from(round % 251).unwrap(); 512],
                HrlTime(1),
            )
            .unwrap();
    }
    writer.append_zeros(1 << 20, 512, HrlTime(2)).unwrap();
    writer.finish(HrlTime(3)).unwrap();
    storage.content(path()).unwrap()
}

#[test]
fn a_truncated_log_is_refused_at_every_length() {
    let whole = small_log();
    let mut rng = Rng(5);
    for _ in 0..500 {
        let length = usize::try_from(rng.below(whole.len() as u64)).unwrap();
        let refused = read_all(file_of(&whole[..length])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{length}: {refused}");
    }
    let longer = [&whole[..], &[0; 5000]].concat();
    assert!(read_all(file_of(&longer)).is_ok());
}

/// Flipped bits, random bytes and random numbers: an error or other facts of the header, never other
/// content, a panic or an endless loop.
#[test]
fn a_damaged_log_never_shows_other_content() {
    let whole = small_log();
    let expected = read_all(file_of(&whole)).unwrap();
    let mut rng = Rng(77);
    let mut refused = 0;
    for round in 0..4000 {
        let mut bytes = whole.clone();
        // Half of the mutations go to the header and to the metadata blocks.
        let region = match rng.below(4) {
            0 => 0..126,
            1 => 4096 + 127 * 512..8192 + 127 * 512,
            _ => 0..whole.len(),
        };
        let at = region.start + usize::try_from(rng.below(region.len() as u64)).unwrap();
        let kind = rng.below(3);
        match kind {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = u8::try_from(rng.below(256)).unwrap(),
            _ => {
                let value = [0, 1, u64::MAX, 1 << 63, rng.below(1 << 20)][round % 5];
                let end = bytes.len().min(at + 8);
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
        }
        match read_all(file_of(&bytes)) {
            // The sum does not see what it was made not to see: two changes that cancel out. One byte it sees.
            Ok(disk) if kind != 2 => assert!(disk == expected, "round {round} at {at}"),
            Ok(_) => {}
            Err(e) => {
                refused += 1;
                assert!(
                    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported),
                    "{e}"
                );
            }
        }
    }
    assert!(refused > 2000, "{refused}");
}

#[test]
fn crafted_distances_and_lengths_are_refused() {
    let good = crafted(0, 1, entry(0, 4096), 12_288);
    assert_eq!(read_all(file_of(&good)).unwrap().len(), 4096);
    for distance in [1, 512, 4095, 4097, 8192, 8193, u64::MAX, 1 << 63] {
        let bad = crafted(distance, 1, entry(0, 4096), 12_288);
        let refused = read_all(file_of(&bad)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{distance}");
    }
    for (valid, bad) in [
        (1, entry(0, 0)),
        (1, entry(0, 4095)),
        (1, entry(0, 4097)),
        (1, entry(0, u32::MAX)),
        (1, entry(u64::MAX - 100, 4096)),
        (
            1,
            RawEntry {
                operation: 2,
                ..entry(0, 4096)
            },
        ),
        (0, entry(0, 4096)),
        (2, entry(0, 4096)),
        (128, entry(0, 4096)),
        (u32::MAX, entry(0, 4096)),
    ] {
        let refused = read_all(file_of(&crafted(0, valid, bad, 12_288))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{valid} {bad:?}");
    }
}

#[test]
fn wrong_data_is_noticed() {
    let mut whole = small_log();
    whole[4096 + 700] ^= 4;
    let reader = HrlReader::of(file_of(&whole), "log".into()).unwrap();
    let entry = reader.entries().nth(1).unwrap().unwrap();
    let mut data = [0; 512];
    let refused = reader.read_entry_data(&entry, 0, &mut data).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(reader.verify_entry(&entry).is_err());
    reader
        .read_entry_data(&entry, 256, &mut data[..256])
        .unwrap();
    let past = reader.read_entry_data(&entry, 256, &mut data).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::Invalid);
}
