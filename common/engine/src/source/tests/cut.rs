//! Cuts: which writes are in a cycle.

use std::sync::mpsc;
use std::time::Duration;

use sitepair_disk::storage::Storage;
use sitepair_disk::{Geometry, Identity, Run, ZeroMode};

use super::*;
use crate::locked;

/// An image whose writes to block 0 announce themselves and wait for leave to go on.
struct Held {
    inner: RawImage,
    begun: Mutex<mpsc::Sender<()>>,
    leave: Mutex<mpsc::Receiver<()>>,
}

impl Image for Held {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn identity(&self) -> Result<Identity, DiskError> {
        self.inner.identity()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        if offset == 0 {
            locked(&self.begun).send(()).unwrap();
            locked(&self.leave).recv().unwrap();
        }
        self.inner.write_at(buf, offset, fua)
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        self.inner.write_zeroes(offset, length, mode, fua)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        self.inner.extents(offset, length, visit)
    }
    fn close(&self) -> Result<(), DiskError> {
        self.inner.close()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_begun_before_the_cut_is_in_the_cycle_and_delays_nobody_else() {
    let storage = FakeStorage::new();
    let (begun, has_begun) = mpsc::channel();
    let (give_leave, leave) = mpsc::channel();
    let image = Arc::new(Held {
        inner: RawImage::create(&storage, &path(1), 1 << 20).unwrap(),
        begun: Mutex::new(begun),
        leave: Mutex::new(leave),
    });
    assert!(storage.exists(&path(1)).unwrap());
    let disk = SourceDisk {
        disk: disk_id(1),
        name: "disk1".parse().unwrap(),
        image,
        image_path: path(1),
        fresh: Fresh::InStep,
    };
    let options = options(&storage, Cycle::NONE, Limits::default());
    let group = SourceGroup::open(options, vec![disk]).unwrap();
    group.admit();
    let guest = group.tracked(disk_id(1)).unwrap();
    let slow = Arc::clone(&guest);
    let writer = std::thread::spawn(move || slow.write_at(&[1; BLOCK], 0, false).unwrap());
    has_begun.recv().unwrap();

    let info = CutInfo {
        at: UnixMillis(5),
        consistency: Consistency::Crash,
        label: None,
    };
    let mut cut = std::pin::pin!(group.cut(info));
    let early = tokio::time::timeout(Duration::from_millis(20), &mut cut).await;
    assert!(early.is_err(), "a write of the cycle is in flight");
    // The cut is made; a later write belongs to the next cycle, and does not wait.
    guest.write_at(&[2; BLOCK], 4096, false).unwrap();
    give_leave.send(()).unwrap();
    let sealed = cut.await.unwrap();
    writer.join().unwrap();
    assert_eq!(sealed.dirty_bytes, 4096);
    let peer = Peer::new(&[1 << 20]);
    group
        .ship(&peer, &sealed, &CancellationToken::new())
        .await
        .unwrap();
    let content = peer.content(1);
    assert_eq!((content[0], content[4096]), (1, 0));
}
