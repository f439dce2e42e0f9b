//! A guest at work: a thread that writes a [`Writer`]'s history over NBD until it is stopped.
//!
//! Owns the thread and one reconnecting client for each disk. When a disk goes away for good (its
//! group was handed over), the guest rests with its last write unanswered and tells so;
//! [`Resting::resume`] goes on at other exports, beginning with that write, as a VM
//! that is started at the other site does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::nbd_client::{Client, Options};
use crate::wait;
use crate::writer::{Verdict, Write, Writer};

/// A flush goes to the disk that was just written after this many writes.
const FLUSH_EVERY: u64 = 64;

/// Longest wait for the first of something in a running guest.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// A guest that writes.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Progress>,
    thread: JoinHandle<Resting>,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    reconnects: AtomicU64,
}

/// A guest that rests: its history, and the write that was not answered.
#[derive(Debug)]
pub struct Resting {
    /// What was written so far.
    pub writer: Writer,
    unanswered: Option<(Write, Vec<u8>)>,
    /// Why it rests, unless it was stopped.
    pub broke: Option<anyhow::Error>,
    reconnect_for: Duration,
    pause: Duration,
}

impl Resting {
    /// A guest that has not begun, over disks that offer this many bytes each from their start.
    /// A broken connection is made anew for up to `reconnect_for`.
    #[must_use]
    pub fn new(seed: u64, disk_bytes: &[u64], reconnect_for: Duration) -> Self {
        let writer = Writer::new(seed, disk_bytes);
        Self {
            writer,
            unanswered: None,
            broke: None,
            reconnect_for,
            pause: Duration::ZERO,
        }
    }

    /// The same guest, which thinks this long before each write, so that it leaves the processor to others.
    #[must_use]
    pub fn pausing(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Writes on at these exports, one URI for each disk.
    ///
    /// # Errors
    /// When a URI has another form or an export cannot be reached.
    pub fn resume(mut self, uris: &[String]) -> Result<Guest> {
        self.broke = None;
        let mut clients = Vec::new();
        for uri in uris {
            let options = Options::from_uri(uri)?.reconnecting(self.reconnect_for);
            clients.push(Client::connect(options)?);
        }
        let shared = Arc::new(Progress::default());
        shared
            .acknowledged
            .store(self.writer.last_acknowledged(), Ordering::Release);
        let for_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || self.work(clients, &for_thread));
        Ok(Guest { shared, thread })
    }

    /// Reads all disks at these exports and checks that every acknowledged write is there.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn verify_all(&self, uris: &[String]) -> Result<Verdict> {
        self.verify_exports(self.writer.last_acknowledged(), uris)
    }

    /// Reads all disks at these exports and checks that they hold some first part of the history,
    /// and at least the writes up to `floor`.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn verify_exports(&self, floor: u64, uris: &[String]) -> Result<Verdict> {
        let mut clients = Vec::new();
        for uri in uris {
            clients.push(Client::connect(Options::from_uri(uri)?)?);
        }
        let verdict = self
            .writer
            .verify_through(floor, &mut |disk, offset, buf| {
                let length = u32::try_from(buf.len()).context("length of a read")?;
                buf.copy_from_slice(&clients[disk].read(offset, length)?);
                Ok(())
            })?;
        clients.into_iter().try_for_each(Client::disconnect)?;
        Ok(verdict)
    }

    fn work(mut self, mut clients: Vec<Client>, shared: &Progress) -> Self {
        while !shared.stop.load(Ordering::Acquire) {
            let (write, bytes) = self
                .unanswered
                .take()
                .unwrap_or_else(|| self.writer.issue());
            let client = &mut clients[write.disk];
            let mut done = client.write(write.offset, &bytes);
            if done.is_ok() && write.number.is_multiple_of(FLUSH_EVERY) {
                done = client.flush();
            }
            if let Err(error) = done {
                self.unanswered = Some((write, bytes));
                self.broke = Some(error);
                return self;
            }
            self.writer.acknowledged(write.number);
            shared.acknowledged.store(write.number, Ordering::Release);
            let reconnects = clients
                .iter()
                .map(|client| u64::from(client.reconnects()))
                .sum();
            shared.reconnects.store(reconnects, Ordering::Relaxed);
            if !self.pause.is_zero() {
                thread::sleep(self.pause);
            }
        }
        for client in clients {
            if let Err(error) = client.disconnect() {
                self.broke = Some(error);
            }
        }
        self
    }
}

impl Guest {
    /// Whether the guest has broken off, so that it only waits to be stopped.
    #[must_use]
    pub fn has_broken_off(&self) -> bool {
        self.thread.is_finished()
    }

    /// Number of the last acknowledged write now.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// How often a connection was made anew.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::Relaxed)
    }

    /// Waits until `more` further writes were acknowledged.
    ///
    /// # Errors
    /// When the guest rests before, or writes too slowly.
    pub fn wait_writes(&self, more: u64) -> Result<()> {
        let target = self.acknowledged() + more;
        wait::until("the guest has written more", PROGRESS_LIMIT, || {
            ensure!(!self.thread.is_finished(), "the guest broke off");
            Ok((self.acknowledged() >= target).then_some(()))
        })
    }

    /// Stops after the write in flight, says good-bye to the disks, and rests.
    ///
    /// # Errors
    /// When the guest had broken off before; why.
    pub fn stop(self) -> Result<Resting> {
        let mut resting = self.stop_anyway()?;
        match resting.broke.take() {
            Some(error) => Err(error.context("the guest broke off")),
            None => Ok(resting),
        }
    }

    /// As [`stop`](Self::stop), but a guest that broke off by itself is fine too.
    ///
    /// # Errors
    /// When the guest's thread panicked.
    pub fn stop_anyway(self) -> Result<Resting> {
        self.shared.stop.store(true, Ordering::Release);
        self.thread
            .join()
            .map_err(|_| anyhow!("the guest's thread panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::QemuNbd;

    const DISK_BYTES: u64 = 4 << 20;

    #[test]
    fn a_guest_moves_from_one_server_to_another_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let disks = ["a.raw", "b.raw"].map(|name| dir.path().join(name));
        let serve = |life: &str| {
            disks.each_ref().map(|disk| {
                let name = disk.file_name().unwrap().to_str().unwrap();
                let folder = dir.path().join(format!("{life}-{name}"));
                std::fs::create_dir(&folder).unwrap();
                std::fs::File::options()
                    .append(true)
                    .create(true)
                    .open(disk)
                    .unwrap();
                std::fs::File::options()
                    .write(true)
                    .open(disk)
                    .unwrap()
                    .set_len(DISK_BYTES)
                    .unwrap();
                QemuNbd::start(&folder, disk, "raw").unwrap()
            })
        };
        let uris = |servers: &[QemuNbd; 2]| servers.each_ref().map(|s| s.uri.clone());

        let mut servers = serve("first");
        let resting = Resting::new(3, &[DISK_BYTES; 2], Duration::ZERO);
        let guest = resting.resume(&uris(&servers)).unwrap();
        guest.wait_writes(200).unwrap();
        for server in &mut servers {
            server.process.kill9().unwrap();
        }
        wait::until("the guest broke off", PROGRESS_LIMIT, || {
            Ok(guest.has_broken_off().then_some(()))
        })
        .unwrap();
        let resting = guest.stop_anyway().unwrap();
        assert!(resting.broke.is_some());

        let servers = serve("second");
        resting.verify_all(&uris(&servers)).unwrap();
        let guest = resting.resume(&uris(&servers)).unwrap();
        guest.wait_writes(200).unwrap();
        let resting = guest.stop().unwrap();
        let verdict = resting.verify_all(&uris(&servers)).unwrap();
        assert_eq!(verdict.last, resting.writer.last_acknowledged());
        assert!(verdict.last >= 400);
    }
}
