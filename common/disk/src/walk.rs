//! Walking over images with several threads: what copies and compares have in common.
//!
//! Owns: [`Progress`], through which a caller watches and stops long work; the runs of an image, fetched in portions;
//! the sharing out of pieces among threads. Does not do: reading content.
//!
//! # Invariants
//! 1. Pieces are handed out in ascending order, each once.
//! 2. Once a worker has failed or has enough, no further piece is handed out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::DiskError;
use crate::image::{ExtentKind, Image};

/// Most bytes that are read or written at once: large enough that a request's own cost does not count, small
/// enough that several fit the processor's cache.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
/// Zeros are looked for in units of this: a page, and the block of most file systems.
pub(crate) const GRAIN_BYTES: usize = 4096;
/// Most runs that are fetched at a time.
const PORTION_RUNS: usize = 1024;
/// Requests in flight. Copies into the page cache are bound by memory; more threads only wait for each other.
const THREADS_MAX: usize = 4;
const THREADS_MIN: usize = 2;

static ZEROS: [u8; GRAIN_BYTES] = [0; GRAIN_BYTES];

/// How far long work has come, and whether it is to stop. Shared between who works and who watches.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the disk that need no more work, holes among them.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Asks the work to stop; it removes what it made and ends soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked the work to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells that so much more is done.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A range of a disk that is data, or zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) is_data: bool,
}

impl Stretch {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The runs of an image up to some end, in ascending order, neighbours of a kind joined within a portion.
pub(crate) struct Runs<'a> {
    image: &'a dyn Image,
    /// How far the portions reach.
    at: u64,
    end: u64,
    portion: VecDeque<Stretch>,
}

impl<'a> Runs<'a> {
    pub(crate) fn new(image: &'a dyn Image, end: u64) -> Self {
        Self {
            image,
            at: 0,
            end,
            portion: VecDeque::new(),
        }
    }

    /// The run that `next` will give.
    pub(crate) fn peek(&mut self) -> Result<Option<Stretch>, DiskError> {
        if self.portion.is_empty() && self.at < self.end {
            self.fetch()?;
        }
        Ok(self.portion.front().copied())
    }

    /// Gives out the first `length` bytes of the next run, if there are so many.
    pub(crate) fn take(&mut self, length: u64) -> Result<Option<Stretch>, DiskError> {
        let Some(run) = self.peek()? else {
            return Ok(None);
        };
        let taken = Stretch {
            length: run.length.min(length),
            ..run
        };
        self.portion.pop_front();
        if taken.length < run.length {
            self.portion.push_front(Stretch {
                offset: taken.end(),
                length: run.length - taken.length,
                ..run
            });
        }
        Ok(Some(taken))
    }

    fn fetch(&mut self) -> Result<(), DiskError> {
        let (image, portion) = (self.image, &mut self.portion);
        let mut at = self.at;
        image.extents(at, self.end - at, &mut |run| {
            let is_data = run.kind == ExtentKind::Data;
            at = run.end();
            match portion.back_mut() {
                Some(last) if last.is_data == is_data => last.length += run.length,
                _ => portion.push_back(Stretch {
                    offset: run.offset,
                    length: run.length,
                    is_data,
                }),
            }
            portion.len() < PORTION_RUNS
        })?;
        assert!(at > self.at, "extents cover what was asked for");
        self.at = at;
        Ok(())
    }
}

/// How much of a run from `offset` is one piece: up to the next multiple of the piece's size, so that a piece
/// lies in one block of whatever format.
pub(crate) fn piece_length(offset: u64) -> u64 {
    PIECE_BYTES - offset % PIECE_BYTES
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(GRAIN_BYTES)
        .all(|grain| *grain == ZEROS[..grain.len()])
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Go {
    On,
    Enough,
}

/// Has several threads work on the pieces that `next` gives. Each has a state of its own, from `start`; all of
/// them are returned.
pub(crate) fn share_out<P, S, E>(
    next: impl FnMut() -> Result<Option<P>, E> + Send,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, P) -> Result<Go, E> + Sync,
) -> Result<Vec<S>, E>
where
    S: Send,
    E: Send,
{
    let source = Mutex::new(Some(next));
    let draw = || {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = source.as_mut().map_or(Ok(None), |next| next());
        if !matches!(piece, Ok(Some(_))) {
            *source = None;
        }
        piece
    };
    let worker = || {
        let mut state = start();
        loop {
            let outcome = draw().and_then(|piece| match piece {
                Some(piece) => work(&mut state, piece),
                None => Ok(Go::Enough),
            });
            match outcome {
                Ok(Go::On) => {}
                Ok(Go::Enough) => break,
                Err(error) => {
                    // Nobody draws another piece: invariant 2.
                    *source.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return Err(error);
                }
            }
        }
        *source.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(state)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let count = cores.clamp(THREADS_MIN, THREADS_MAX);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        let ends = threads.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are joined before the first failure is told.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}
