//! A disk in memory that can be slow, fail, and remember what was flushed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use sitepair_disk::image::Access;
use sitepair_disk::{DiskError, ExtentKind, Geometry, Identity, Image, Run, ZeroMode};

/// Unit of allocation of the disk.
const CLUSTER: usize = 64 << 10;

pub(crate) struct Memory {
    bytes: RwLock<Vec<u8>>,
    allocated: Mutex<Vec<bool>>,
    /// What a power failure would leave.
    durable: Mutex<Vec<u8>>,
    pub(crate) delay: Duration,
    pub(crate) quick: bool,
    pub(crate) read_only: bool,
    pub(crate) sector: u32,
    pub(crate) failing: AtomicBool,
    pub(crate) running: AtomicUsize,
    pub(crate) finished: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
}

impl Memory {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: RwLock::new(vec![0; size]),
            allocated: Mutex::new(vec![false; size.div_ceil(CLUSTER)]),
            durable: Mutex::new(vec![0; size]),
            delay: Duration::ZERO,
            quick: true,
            read_only: false,
            sector: 512,
            failing: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
        }
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.read().unwrap().clone()
    }

    pub(crate) fn durable(&self) -> Vec<u8> {
        self.durable.lock().unwrap().clone()
    }

    fn enter(&self, what: &str) -> Result<Running<'_>, DiskError> {
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(now, Ordering::SeqCst);
        let running = Running(self);
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        if self.failing.load(Ordering::SeqCst) {
            return Err(DiskError::io(what, std::io::Error::from_raw_os_error(5)));
        }
        Ok(running)
    }

    fn mark(&self, offset: u64, length: usize, allocated: bool) {
        let first = usize::try_from(offset).unwrap();
        let mut map = self.allocated.lock().unwrap();
        let (from, to) = if allocated {
            (first / CLUSTER, (first + length).div_ceil(CLUSTER))
        } else {
            (first.div_ceil(CLUSTER), (first + length) / CLUSTER)
        };
        (from..to).for_each(|cluster| map[cluster] = allocated);
    }
}

struct Running<'a>(&'a Memory);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.finished.fetch_add(1, Ordering::SeqCst);
    }
}

impl Image for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.bytes.read().unwrap().len() as u64,
            logical_sector_bytes: self.sector,
            physical_sector_bytes: 4096,
            block_bytes: 0,
            read_only: self.read_only,
        }
    }

    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(Identity::default())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let _running = self.enter("read")?;
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes.read().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), DiskError> {
        let _running = self.enter("write")?;
        let at = usize::try_from(offset).unwrap();
        self.bytes.write().unwrap()[at..at + buf.len()].copy_from_slice(buf);
        self.mark(offset, buf.len(), true);
        if fua {
            self.durable.lock().unwrap()[at..at + buf.len()].copy_from_slice(buf);
        }
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        fua: bool,
    ) -> Result<(), DiskError> {
        let _running = self.enter("write zeros")?;
        if mode == ZeroMode::FastOnly && !length.is_multiple_of(CLUSTER as u64) {
            return Err(DiskError::Unsupported {
                what: "a fast zero of part of a cluster".into(),
            });
        }
        let (at, length) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(length).unwrap(),
        );
        self.bytes.write().unwrap()[at..at + length].fill(0);
        self.mark(offset, length, mode == ZeroMode::KeepAllocated);
        if fua {
            self.durable.lock().unwrap()[at..at + length].fill(0);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        let _running = self.enter("flush")?;
        let now = self.content();
        *self.durable.lock().unwrap() = now;
        Ok(())
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Run) -> bool,
    ) -> Result<(), DiskError> {
        let _running = self.enter("map")?;
        let map = self.allocated.lock().unwrap();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let cluster = at / CLUSTER as u64;
            let next = ((cluster + 1) * CLUSTER as u64).min(end);
            let kind = match map[usize::try_from(cluster).unwrap()] {
                true => ExtentKind::Data,
                false => ExtentKind::Hole,
            };
            if !visit(Run::here(at, next - at, kind)) {
                break;
            }
            at = next;
        }
        Ok(())
    }

    fn is_quick(&self, _: Access, _: u64, _: usize) -> bool {
        self.quick
    }

    fn close(&self) -> Result<(), DiskError> {
        self.flush()
    }
}
