//! A file below crate imago: order of writes, the dirty mark, and poison.
//!
//! # Invariants
//! 1. Ordered, each write is durable before the next one begins: what a power loss leaves is what a kill would leave.
//! 2. Ordered, the dirty mark is durable in the header before the first write of a session, and goes only after all
//!    writes are durable. imago never sees it: it would refuse the file, and must not take it away.
//! 3. After the first failed write or sync nothing is written any more.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sitepair_qcow2_storage::Bytes;

use crate::storage::BlockFile;

/// The lowest byte of the incompatible features in the header, and its bit "the refcounts may be wrong".
const FEATURES_AT: u64 = 79;
const DIRTY: u8 = 1;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// When writes become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// One by one: for images that somebody relies on.
    EachWrite,
    /// All together at a flush: for new images, which are of no use until they are complete.
    AtFlush,
}

pub(super) struct OrderedFile {
    file: Arc<dyn BlockFile>,
    order: Order,
    /// Whether the dirty mark is set; invariant 2.
    marked: Mutex<bool>,
    poison: OnceLock<String>,
}

impl OrderedFile {
    /// `marked`: the file has the dirty mark from an earlier session.
    pub(super) fn new(file: Arc<dyn BlockFile>, order: Order, marked: bool) -> Self {
        Self {
            file,
            order,
            marked: Mutex::new(marked),
            poison: OnceLock::new(),
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.order == Order::EachWrite
    }

    pub(super) fn file(&self) -> &dyn BlockFile {
        &*self.file
    }

    /// The first failure, if there was one.
    pub(super) fn poison(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    /// Takes the dirty mark away. The caller has flushed.
    pub(super) fn unmark(&self) -> io::Result<()> {
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        if *marked {
            self.change(|| self.file.sync())?;
            self.change(|| self.write_mark(0))?;
            *marked = false;
        }
        Ok(())
    }

    fn mark(&self) -> io::Result<()> {
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        if !*marked {
            self.change(|| self.write_mark(DIRTY))?;
            *marked = true;
        }
        Ok(())
    }

    fn write_mark(&self, mark: u8) -> io::Result<()> {
        let mut byte = [0];
        self.file.read_at(&mut byte, FEATURES_AT)?;
        byte[0] = byte[0] & !DIRTY | mark;
        self.file.write_at_durable(&byte, FEATURES_AT)
    }

    fn change(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if let Some(first) = self.poison.get() {
            return Err(io::Error::other(format!("it failed earlier: {first}")));
        }
        act().inspect_err(|e| {
            // The first failure is the one worth telling.
            let _ = self.poison.set(e.to_string());
        })
    }
}

impl Bytes for OrderedFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)?;
        if let Some(byte) = features_in(buf, offset) {
            *byte &= !DIRTY;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.order {
            Order::EachWrite => {
                self.mark()?;
                let mut header = Vec::new();
                let mut buf = buf;
                if offset <= FEATURES_AT && offset + buf.len() as u64 > FEATURES_AT {
                    header.extend_from_slice(buf);
                    if let Some(byte) = features_in(&mut header, offset) {
                        *byte |= DIRTY;
                    }
                    buf = &header;
                }
                // Durable before imago goes on: invariant 1.
                self.change(|| self.file.write_at_durable(buf, offset))
            }
            Order::AtFlush => self.change(|| self.file.write_at(buf, offset)),
        }
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset
            .checked_add(length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = &ZEROS[..piece.min(ZEROS.len())];
            self.write_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if self.order == Order::AtFlush {
            return self.change(|| self.file.set_length(length));
        }
        self.mark()?;
        self.change(|| self.file.set_length(length).and_then(|()| self.file.sync()))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|| self.file.sync())
    }
}

/// The byte of the features in what was read or is to be written at `offset`.
fn features_in(buf: &mut [u8], offset: u64) -> Option<&mut u8> {
    let within = usize::try_from(FEATURES_AT.checked_sub(offset)?).ok()?;
    buf.get_mut(within)
}
