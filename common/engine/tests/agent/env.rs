//! Clocks and random numbers of one site, decided by a seed.

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sitepair_engine::env::Env;
use sitepair_model::ids::UnixMillis;

/// A small generator; the same seed gives the same schedule.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub(crate) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(u64::try_from(limit).unwrap())).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next().to_le_bytes());
        id[8..].copy_from_slice(&self.next().to_le_bytes());
        id
    }
}

/// A host's clocks. They go on by one millisecond with each look at them, and by jumps.
pub(crate) struct FakeEnv {
    millis: AtomicU64,
    boot: Mutex<[u8; 16]>,
    random: Mutex<Random>,
    /// What every file system has.
    pub(crate) free_bytes: AtomicU64,
}

impl FakeEnv {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            millis: AtomicU64::new(1_000_000),
            boot: Mutex::new(random.id()),
            random: Mutex::new(random),
            free_bytes: AtomicU64::new(1 << 40),
        }
    }

    /// The host starts anew.
    pub(crate) fn reboot(&self) {
        let boot = self.random_id();
        *self.boot.lock().unwrap() = boot;
    }
}

impl Env for FakeEnv {
    fn now(&self) -> UnixMillis {
        UnixMillis(i64::try_from(self.boot_millis()).unwrap())
    }

    fn boot_millis(&self) -> u64 {
        self.millis.fetch_add(1, Ordering::Relaxed)
    }

    fn boot_id(&self) -> [u8; 16] {
        *self.boot.lock().unwrap()
    }

    fn random_id(&self) -> [u8; 16] {
        self.random.lock().unwrap().id()
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }
}
