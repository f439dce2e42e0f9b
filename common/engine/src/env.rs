//! Time, randomness and free space, behind a trait so that tests own them.
//!
//! Waiting is done with tokio's timers, which tests pause; this trait only tells the time.

use std::io;
use std::path::Path;

use sitepair_model::ids::UnixMillis;

/// Where an agent gets times and random values from.
pub trait Env: Send + Sync {
    /// Wall clock. Shown to people; no decision of safety depends on it.
    fn now(&self) -> UnixMillis;

    /// Milliseconds since the host booted, sleep included (`CLOCK_BOOTTIME`).
    fn boot_millis(&self) -> u64;

    /// Identity of this boot of the host (`/proc/sys/kernel/random/boot_id`).
    fn boot_id(&self) -> [u8; 16];

    /// 16 bytes that nobody can guess.
    fn random_id(&self) -> [u8; 16];

    /// Bytes that may still be written to the file system of `folder`, which exists.
    ///
    /// # Errors
    /// The operating system's.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
}

/// The host's clocks and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostEnv;

impl Env for HostEnv {
    fn now(&self) -> UnixMillis {
        UnixMillis(jiff::Timestamp::now().as_millisecond())
    }

    fn boot_millis(&self) -> u64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let secs = u64::try_from(t.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
        secs * 1000 + nanos / 1_000_000
    }

    fn boot_id(&self) -> [u8; 16] {
        // Without a boot id no two runs count as the same boot: the safe reading.
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| uuid::Uuid::parse_str(text.trim()).ok())
            .map_or_else(|| self.random_id(), uuid::Uuid::into_bytes)
    }

    fn random_id(&self) -> [u8; 16] {
        uuid::Uuid::new_v4().into_bytes()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}
