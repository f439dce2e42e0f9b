//! The judge, judged: it must accept every honest state and no other.

use super::*;

const DISK: u64 = 16 * SLOT_LENGTH;

/// Disks in memory.
struct Disks(Vec<Vec<u8>>);

impl Disks {
    fn new(n: usize) -> Self {
        Self(vec![vec![0; usize::try_from(DISK).unwrap()]; n])
    }

    fn slot(&mut self, write: Write) -> &mut [u8] {
        let at = usize::try_from(write.offset).unwrap();
        &mut self.0[write.disk][at..at + SLOT_BYTES]
    }

    fn read(&self) -> impl FnMut(usize, u64, &mut [u8]) -> Result<()> {
        |disk, offset, buf| {
            let at = usize::try_from(offset)?;
            buf.copy_from_slice(&self.0[disk][at..at + buf.len()]);
            Ok(())
        }
    }
}

/// A history of `n` acknowledged writes over two disks, all present.
fn history(n: u64) -> (Writer, Disks) {
    let mut writer = Writer::new(11, &[DISK, DISK]);
    let mut disks = Disks::new(2);
    for _ in 0..n {
        let (write, bytes) = writer.issue();
        disks.slot(write).copy_from_slice(&bytes);
        writer.acknowledged(write.number);
    }
    (writer, disks)
}

#[test]
fn every_prefix_is_accepted_and_tells_its_end() {
    let (writer, _) = history(100);
    let mut disks = Disks::new(2);
    for write in writer.history.clone() {
        let bytes = writer.content(write);
        disks.slot(write).copy_from_slice(&bytes);
        assert_eq!(writer.verify(&mut disks.read()).unwrap().last, write.number);
    }
    assert!(writer.verify_through(100, &mut disks.read()).is_ok());
}

#[test]
fn a_missing_earlier_write_is_found() {
    let (writer, mut disks) = history(40);
    let lost = writer.history[38];
    assert_ne!(lost.disk, writer.history[39].disk, "disks take turns");
    disks.slot(lost).fill(0);
    let failed = writer.verify(&mut disks.read()).unwrap_err().to_string();
    assert!(failed.contains("must hold write 39"), "{failed}");
}

#[test]
fn an_old_version_of_a_slot_is_found() {
    let (writer, mut disks) = history(200);
    let (older, newer) = writer
        .history
        .iter()
        .enumerate()
        .find_map(|(i, a)| {
            let same = |b: &&Write| (b.disk, b.offset) == (a.disk, a.offset);
            Some((*a, *writer.history[i + 1..].iter().find(same)?))
        })
        .expect("200 writes on 32 slots overwrite");
    // Only a slot's newest version may be there, so put the older one over it.
    let last = writer
        .history
        .iter()
        .rfind(|w| (w.disk, w.offset) == (newer.disk, newer.offset));
    assert_ne!(last, Some(&older));
    let bytes = writer.content(older);
    disks.slot(older).copy_from_slice(&bytes);
    assert!(writer.verify(&mut disks.read()).is_err());
}

#[test]
fn torn_foreign_and_misplaced_slots_are_found() {
    type Damage = fn(&mut Disks, Write, &[u8]);
    let damage: [(&str, Damage); 4] = [
        ("is torn", |disks, write, _| {
            disks.slot(write)[SLOT_BYTES - 1] ^= 1
        }),
        ("is torn", |disks, write, _| disks.slot(write)[9] ^= 1),
        ("neither zeros", |disks, write, _| disks.slot(write)[0] ^= 1),
        ("belongs to", |disks, write, bytes| {
            let other = Write {
                disk: 1 - write.disk,
                ..write
            };
            disks.slot(other).copy_from_slice(bytes);
        }),
    ];
    for (complaint, damage) in damage {
        let (writer, mut disks) = history(10);
        let write = writer.history[9];
        let bytes = writer.content(write);
        damage(&mut disks, write, &bytes);
        let failed = writer.verify(&mut disks.read()).unwrap_err().to_string();
        assert!(failed.contains(complaint), "{failed}");
    }
}

#[test]
fn a_state_that_ends_before_the_floor_is_refused() {
    let (mut writer, mut disks) = history(10);
    let (write, bytes) = writer.issue();
    assert!(writer.verify_through(10, &mut disks.read()).is_ok());
    writer.acknowledged(write.number);
    assert!(writer.verify_through(11, &mut disks.read()).is_err());
    disks.slot(write).copy_from_slice(&bytes);
    assert_eq!(
        writer.verify_through(11, &mut disks.read()).unwrap().last,
        11
    );
}
