//! A TCP link that tests can cut, silence, delay and slow down.
//!
//! Owns a loopback listener and, for each connection, two threads in each direction: one reads,
//! one writes, with a bounded queue between them so that delay does not limit the rate.
//!
//! # Invariants
//! 1. Bytes leave in the order in which they came, and none is lost unless the connection is cut.
//! 2. While the link is silent, nothing leaves in either direction and connections stay open.
//! 3. Dropping the proxy ends all its threads.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks under way in one direction of one connection: 16 MiB, more than a long link holds.
const QUEUE_CHUNKS: usize = 256;

/// How the link treats bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections are closed, new ones too.
    Cut,
    /// Connections are accepted and kept, but nothing passes.
    Silent,
}

#[derive(Debug)]
struct Link {
    mode: Mode,
    delay: Duration,
    /// Bytes per second in each direction; `None` is as fast as can be.
    rate: Option<u64>,
    stopped: bool,
    streams: Vec<TcpStream>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    link: Mutex<Link>,
    changed: Condvar,
    to_target: AtomicU64,
    from_target: AtomicU64,
    connections: AtomicU64,
}

/// A proxy in front of one address.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `target`, which may come up later.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the proxy")?;
        let address = listener.local_addr().context("ask for the proxy's port")?;
        let shared = Arc::new(Shared {
            target,
            link: Mutex::new(Link {
                mode: Mode::Pass,
                delay: Duration::ZERO,
                rate: None,
                stopped: false,
                streams: Vec::new(),
            }),
            changed: Condvar::new(),
            to_target: AtomicU64::new(0),
            from_target: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &for_acceptor));
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and refuses new ones.
    pub fn cut(&self) {
        let mut link = self.shared.lock();
        link.mode = Mode::Cut;
        close_all(&mut link);
        self.shared.changed.notify_all();
    }

    /// Accepts, and never lets a byte through: a peer that is half open.
    pub fn black_hole(&self) {
        self.set(|link| link.mode = Mode::Silent);
    }

    /// Lets everything pass again. What a silent link held back is delivered now.
    pub fn heal(&self) {
        self.set(|link| link.mode = Mode::Pass);
    }

    /// Delays each direction by `delay`.
    pub fn delay(&self, delay: Duration) {
        self.set(|link| link.delay = delay);
    }

    /// Lets at most this many bytes a second pass in each direction of each connection.
    pub fn limit_rate(&self, bytes_per_second: Option<u64>) {
        self.set(|link| link.rate = bytes_per_second);
    }

    /// Bytes that were passed on from clients to the target.
    #[must_use]
    pub fn bytes_to_target(&self) -> u64 {
        self.shared.to_target.load(Ordering::Relaxed)
    }

    /// Bytes that were passed on from the target to clients.
    #[must_use]
    pub fn bytes_from_target(&self) -> u64 {
        self.shared.from_target.load(Ordering::Relaxed)
    }

    /// Connections that were accepted and not refused by a cut.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    fn set(&self, change: impl FnOnce(&mut Link)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut link = self.shared.lock();
            link.stopped = true;
            close_all(&mut link);
        }
        self.shared.changed.notify_all();
        // Wakes the acceptor, which sees that it is to stop.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the link is silent. Says how fast it is then, or `None` when it is over.
    fn passable(&self) -> Option<Option<u64>> {
        let link = self
            .changed
            .wait_while(self.lock(), |link| {
                !link.stopped && link.mode == Mode::Silent
            })
            .unwrap_or_else(PoisonError::into_inner);
        (!link.stopped && link.mode == Mode::Pass).then_some(link.rate)
    }
}

fn close_all(link: &mut Link) {
    for stream in link.streams.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut pumps: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept() else {
            break;
        };
        pumps.retain(|pump| !pump.is_finished());
        let mut link = shared.lock();
        if link.stopped {
            break;
        }
        if link.mode == Mode::Cut {
            continue;
        }
        // A target on the same host answers or refuses at once, so the lock is not held for long.
        let Ok(target) = TcpStream::connect(shared.target) else {
            continue;
        };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        match connect_ends(&mut link, &client, &target) {
            Ok(()) => {}
            Err(_) => continue,
        }
        drop(link);
        for (from, to, upward) in [(&client, &target, true), (&target, &client, false)] {
            if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                pumps.extend(pump(shared, from, to, upward));
            }
        }
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// Registers both ends, so that a cut finds them.
fn connect_ends(link: &mut Link, client: &TcpStream, target: &TcpStream) -> std::io::Result<()> {
    for stream in [client, target] {
        stream.set_nodelay(true)?;
        link.streams.push(stream.try_clone()?);
    }
    Ok(())
}

/// One direction of one connection: a thread that reads and one that writes.
fn pump(shared: &Arc<Shared>, from: TcpStream, to: TcpStream, upward: bool) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = sync_channel(QUEUE_CHUNKS);
    let (for_reader, for_writer) = (Arc::clone(shared), Arc::clone(shared));
    [
        thread::spawn(move || read_side(&for_reader, from, &sender)),
        thread::spawn(move || write_side(&for_writer, to, &receiver, upward)),
    ]
}

type Chunk = (Instant, Vec<u8>);

fn read_side(shared: &Shared, mut from: TcpStream, queue: &SyncSender<Chunk>) {
    let mut buf = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        let due = Instant::now() + shared.lock().delay;
        if queue.send((due, buf[..n].to_vec())).is_err() {
            break;
        }
    }
}

fn write_side(shared: &Shared, mut to: TcpStream, queue: &Receiver<Chunk>, upward: bool) {
    let counter = if upward {
        &shared.to_target
    } else {
        &shared.from_target
    };
    while let Ok((due, bytes)) = queue.recv() {
        // Invariant 2: the link is asked after the delay, or silence would begin late.
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let Some(rate) = shared.passable() else { break };
        // Counted before they are through: whoever has them finds them counted.
        let n = bytes.len() as u64;
        counter.fetch_add(n, Ordering::SeqCst);
        if to.write_all(&bytes).is_err() {
            break;
        }
        if let Some(rate) = rate {
            thread::sleep(Duration::from_nanos(
                n.saturating_mul(1_000_000_000) / rate.max(1),
            ));
        }
    }
    // The end of the stream passes too, once all bytes have.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests;
