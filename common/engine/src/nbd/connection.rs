//! One connection: the threads that share it, and who of them reads.
//!
//! # Invariants
//! 1. One thread at a time holds the reader. It gives it back, or ends the connection.
//! 2. Replies are sent whole under the writer's lock.
//! 3. The first thread stays to the end, and joins the others.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sitepair_disk::{DiskError, Image};
use sitepair_model::nbd::request::RequestLimits;

use super::listener::{Listener, joined};
use super::reader::Reader;
use super::worker::Worker;
use super::{FOLLOWERS_MAX, STALL_TIME_MAX, THREADS_PER_CONNECTION_MAX};

/// How long a thread without work stays.
const IDLE_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that the socket takes at once, if the system allows.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// What the threads of a connection share.
pub(super) struct Connection {
    pub(super) image: Arc<dyn Image>,
    pub(super) limits: RequestLimits,
    pub(super) listener: Arc<Listener>,
    stream: Arc<UnixStream>,
    baton: Mutex<Baton>,
    passed: Condvar,
    writer: Mutex<()>,
    /// Replies cannot be sent any more.
    broken: AtomicBool,
    failed_before: AtomicBool,
}

/// The right to read, and who waits for it.
struct Baton {
    reader: Option<Reader>,
    waiting: usize,
    threads: usize,
    ended: bool,
    joins: Vec<JoinHandle<()>>,
}

/// How long a thread stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenure {
    /// To the end of the connection.
    First,
    /// While there is work.
    Follower,
}

impl Connection {
    pub(super) fn new(
        listener: Arc<Listener>,
        stream: Arc<UnixStream>,
        image: Arc<dyn Image>,
        limits: RequestLimits,
    ) -> io::Result<Arc<Self>> {
        stream.set_read_timeout(Some(STALL_TIME_MAX))?;
        stream.set_write_timeout(Some(STALL_TIME_MAX))?;
        rustix::net::sockopt::set_socket_send_buffer_size(&*stream, SEND_BUFFER_BYTES)?;
        let baton = Baton {
            reader: Some(Reader::new(Arc::clone(&stream))),
            waiting: 0,
            threads: 1,
            ended: false,
            joins: Vec::new(),
        };
        Ok(Arc::new(Self {
            image,
            limits,
            listener,
            stream,
            baton: Mutex::new(baton),
            passed: Condvar::new(),
            writer: Mutex::new(()),
            broken: AtomicBool::new(false),
            failed_before: AtomicBool::new(false),
        }))
    }

    /// Serves to the end; returns when no thread is left.
    pub(super) fn run(self: Arc<Self>) {
        self.work(Tenure::First);
        let joins = std::mem::take(&mut self.lock().joins);
        joins.into_iter().for_each(joined);
    }

    fn work(self: &Arc<Self>, tenure: Tenure) {
        let _guard = EndOnPanic(self);
        let mut worker = Worker::new(self);
        while let Some(mut reader) = self.take_reader(tenure) {
            match worker.lead(&mut reader) {
                Some(job) => {
                    self.pass(reader);
                    worker.finish(&job);
                }
                None => return self.end(),
            }
        }
    }

    /// Waits for the reader. `None`: this thread is not needed any more.
    fn take_reader(&self, tenure: Tenure) -> Option<Reader> {
        let mut baton = self.lock();
        baton.waiting += 1;
        let mut waited = false;
        let reader = loop {
            if baton.ended {
                break None;
            }
            if let Some(reader) = baton.reader.take() {
                break Some(reader);
            }
            baton = match tenure {
                Tenure::First => self
                    .passed
                    .wait(baton)
                    .unwrap_or_else(PoisonError::into_inner),
                Tenure::Follower if waited => break None,
                Tenure::Follower => {
                    let (baton, result) = self
                        .passed
                        .wait_timeout(baton, IDLE_TIME_MAX)
                        .unwrap_or_else(PoisonError::into_inner);
                    waited = result.timed_out();
                    baton
                }
            };
        };
        baton.waiting -= 1;
        if reader.is_none() && tenure == Tenure::Follower {
            baton.threads -= 1;
        }
        reader
    }

    /// Gives the reader to another thread, a new one if all are busy. With the most threads
    /// already there, whoever is done first takes it.
    fn pass(self: &Arc<Self>, reader: Reader) {
        let mut baton = self.lock();
        baton.reader = Some(reader);
        if baton.waiting > 0 {
            drop(baton);
            self.passed.notify_one();
        } else if baton.threads < THREADS_PER_CONNECTION_MAX {
            self.spawn(&mut baton);
        }
    }

    fn spawn(self: &Arc<Self>, baton: &mut Baton) {
        let Some(place) = Place::take(&self.listener) else {
            return;
        };
        let connection = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("nbd-more".into())
            .spawn(move || {
                let _place = place;
                connection.work(Tenure::Follower);
            });
        match spawned {
            Ok(thread) => {
                baton.joins.retain(|thread| !thread.is_finished());
                baton.joins.push(thread);
                baton.threads += 1;
            }
            // The threads that there are go on alone.
            Err(error) => tracing::warn!(%error, "start a thread for an NBD client"),
        }
    }

    /// Lets all threads finish what they do, and go.
    fn end(&self) {
        let mut baton = self.lock();
        baton.ended = true;
        baton.reader = None;
        drop(baton);
        self.passed.notify_all();
    }

    /// Sends replies. Not at all, or whole: after an error the stream is cut.
    pub(super) fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut began = None;
        while !bytes.is_empty() {
            match (&*self.stream).write(bytes) {
                Ok(0) => return self.cut(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.cut(error),
            }
            // Drop by drop counts as a stall.
            let began = began.get_or_insert_with(Instant::now);
            if !bytes.is_empty() && began.elapsed() > 2 * STALL_TIME_MAX {
                return self.cut(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    fn cut(&self, error: io::Error) -> io::Result<()> {
        self.broken.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
        Err(error)
    }

    /// Whether no new request may start.
    pub(super) fn is_over(&self) -> bool {
        self.broken.load(Ordering::Acquire) || self.listener.is_closing()
    }

    /// Reports the first failure of the disk on this connection loudly, the others quietly.
    pub(super) fn report(&self, error: &DiskError) {
        let error = super::chain(error);
        if self.failed_before.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "NBD request failed");
        } else {
            tracing::warn!(%error, "NBD request failed; later failures of this client at debug level");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Baton> {
        self.baton.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A panic in one thread must not leave the others waiting for the reader it held.
struct EndOnPanic<'a>(&'a Connection);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
            let _ = self.0.stream.shutdown(Shutdown::Both);
        }
    }
}

/// A place among the threads of the process.
struct Place(Arc<Listener>);

impl Place {
    fn take(listener: &Arc<Listener>) -> Option<Self> {
        let taken =
            listener
                .followers
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < FOLLOWERS_MAX).then_some(count + 1)
                });
        taken.ok().map(|_| Self(Arc::clone(listener)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}
