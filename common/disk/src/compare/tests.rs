use std::path::Path;

use super::*;
use crate::raw::RawImage;
use crate::storage::host::HostStorage;

const MIB: u64 = 1 << 20;

fn raw(dir: &Path, name: &str, size_bytes: u64) -> RawImage {
    RawImage::create(&HostStorage::new(), &dir.join(name), size_bytes).unwrap()
}

#[test]
fn the_first_difference_is_told_however_many_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (
        raw(dir.path(), "a", 64 * MIB),
        raw(dir.path(), "b", 64 * MIB),
    );
    // The same in both, and zeros against a hole.
    a.write_at(&[7; 8192], MIB, false).unwrap();
    b.write_at(&[7; 8192], MIB, false).unwrap();
    a.write_at(&[0; 8192], 5 * MIB, false).unwrap();
    b.write_at(&[0; 8192], 6 * MIB, false).unwrap();
    let find = || compare(&a, &b, &Progress::new()).unwrap().difference;
    assert_eq!(find(), None);
    for at in (10..60).rev() {
        // Its bytes 3 to 511 differ.
        let mut sector = [9; 512];
        sector[..3].fill(0);
        a.write_at(&sector, at * MIB, false).unwrap();
        let found = find().unwrap();
        assert_eq!(found.offset, at * MIB + 3);
        assert_eq!(found.first, [9; 16]);
        assert_eq!(found.second, [0; 16]);
    }
    // The other way round, and at the very end of what is read at once.
    b.write_at(&[1; 512], 9 * MIB - 512, false).unwrap();
    let found = find().unwrap();
    assert_eq!(found.offset, 9 * MIB - 512);
    assert_eq!((found.first, found.second), (vec![0; 16], vec![1; 16]));
}

#[test]
fn a_longer_image_is_compared_with_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (raw(dir.path(), "a", MIB), raw(dir.path(), "b", 3 * MIB));
    b.write_at(&[0; 4096], 2 * MIB, false).unwrap();
    let progress = Progress::new();
    let same = compare(&a, &b, &progress).unwrap();
    assert_eq!(same.difference, None);
    assert_eq!((same.first_bytes, same.second_bytes), (MIB, 3 * MIB));
    assert_eq!(progress.done_bytes(), 3 * MIB);
    b.write_at(&[5; 512], 3 * MIB - 512, false).unwrap();
    let expected = Difference {
        offset: 3 * MIB - 512,
        first: vec![],
        second: vec![5; 16],
    };
    let found = compare(&a, &b, &Progress::new()).unwrap();
    assert_eq!(found.difference, Some(expected));
    let turned = compare(&b, &a, &Progress::new()).unwrap();
    assert!(turned.difference.unwrap().second.is_empty());
}

#[test]
fn a_stop_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (raw(dir.path(), "a", MIB), raw(dir.path(), "b", MIB));
    let progress = Progress::new();
    progress.stop();
    let stopped = compare(&a, &b, &progress);
    assert!(matches!(stopped, Err(CompareError::Stopped)));
}
