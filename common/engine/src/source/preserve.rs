//! Old content of sealed blocks that the guest overwrites before they are sent.
//!
//! Owns: for each disk the preserved blocks, in memory while the group's budget lasts, then in the
//! file `IMAGE.spill`, up to a cap. The file holds nothing that anyone needs after a crash: it is
//! never synced, and removed when the cycle ends and when the group is opened.
//!
//! Receives: blocks from guest writes, before they are overwritten. Gives out: blocks to the
//! sender. Does not do: decide when to preserve, or what happens past the cap.
//!
//! # Invariants
//! 1. A block is kept once for a tick: the first content that comes is that of the cut.
//! 2. Nothing is kept for a tick that was closed; a late guest write cannot leave its old content
//!    to be taken for that of a later cycle.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use sitepair_disk::storage::{BlockFile, OpenMode, Storage};
use sitepair_model::extent::BLOCK_BYTES;

use crate::locked;

/// What all disks of a group may preserve together.
pub(super) struct PreserveBudget {
    memory: Room,
    spill: Room,
}

struct Room {
    limit: u64,
    used: AtomicU64,
}

/// Preserved blocks of one disk.
pub(super) struct PreserveStore {
    kept: Mutex<Kept>,
    storage: Arc<dyn Storage>,
    spill_path: PathBuf,
    budget: Arc<PreserveBudget>,
}

#[derive(Default)]
struct Kept {
    /// Ticks up to this one take nothing more.
    closed_through: u64,
    blocks: HashMap<u64, Place>,
    spill: Option<Arc<dyn BlockFile>>,
    spill_end: u64,
}

enum Place {
    Memory(Box<[u8]>),
    Spill(u64),
}

/// Why a block could not be preserved.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// Memory and spill file are at their limits.
    #[error("the guest overwrote more of the cycle being sent than may be preserved")]
    Full,
    /// The spill file failed.
    #[error("write preserved blocks to {path}")]
    Spill {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl PreserveBudget {
    pub(super) fn new(memory_bytes: u64, spill_bytes: u64) -> Self {
        let room = |limit| Room {
            limit,
            used: AtomicU64::new(0),
        };
        Self {
            memory: room(memory_bytes),
            spill: room(spill_bytes),
        }
    }

    /// Bytes preserved now.
    pub(super) fn used(&self) -> u64 {
        self.memory.used.load(Relaxed) + self.spill.used.load(Relaxed)
    }
}

impl Room {
    fn take(&self, bytes: u64) -> bool {
        let grown = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, grown).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

impl PreserveStore {
    /// An empty store. A spill file that a crash left behind is removed.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        spill_path: PathBuf,
        budget: Arc<PreserveBudget>,
    ) -> io::Result<Self> {
        remove_if_there(&*storage, &spill_path)?;
        Ok(Self {
            kept: Mutex::default(),
            storage,
            spill_path,
            budget,
        })
    }

    /// Whether `block` needs no preserving for `tick`, because it is kept or the tick is closed.
    pub(super) fn is_settled(&self, tick: u64, block: u64) -> bool {
        let kept = locked(&self.kept);
        tick <= kept.closed_through || kept.blocks.contains_key(&block)
    }

    /// Keeps `content` of `block` as it was at the cut that ended `tick`.
    pub(super) fn keep(&self, tick: u64, block: u64, content: &[u8]) -> Result<(), KeepError> {
        let mut kept = locked(&self.kept);
        if tick <= kept.closed_through || kept.blocks.contains_key(&block) {
            return Ok(());
        }
        let place = if self.budget.memory.take(BLOCK_BYTES) {
            Place::Memory(content.into())
        } else if self.budget.spill.take(BLOCK_BYTES) {
            match self.spill(&mut kept, content) {
                Ok(offset) => Place::Spill(offset),
                Err(source) => {
                    self.budget.spill.give_back(BLOCK_BYTES);
                    return Err(KeepError::Spill {
                        path: self.spill_path.clone(),
                        source,
                    });
                }
            }
        } else {
            return Err(KeepError::Full);
        };
        kept.blocks.insert(block, place);
        Ok(())
    }

    fn spill(&self, kept: &mut Kept, content: &[u8]) -> io::Result<u64> {
        let file = match &kept.spill {
            Some(file) => Arc::clone(file),
            None => {
                let file = self.storage.open(&self.spill_path, OpenMode::CreateNew)?;
                kept.spill = Some(Arc::clone(&file));
                file
            }
        };
        let offset = kept.spill_end;
        file.write_at(content, offset)?;
        kept.spill_end += BLOCK_BYTES;
        Ok(offset)
    }

    /// Puts preserved blocks of the run that begins at `first` over `buf`, its content as read.
    /// The blocks in memory are let go.
    pub(super) fn lay_over(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut kept = locked(&self.kept);
        if kept.blocks.is_empty() {
            return Ok(());
        }
        for (block, part) in (first..).zip(buf.chunks_mut(4096)) {
            match kept.blocks.get(&block) {
                None => {}
                Some(Place::Memory(content)) => {
                    part.copy_from_slice(content);
                    kept.blocks.remove(&block);
                    self.budget.memory.give_back(BLOCK_BYTES);
                }
                Some(Place::Spill(offset)) => match &kept.spill {
                    Some(file) => file.read_at(part, *offset)?,
                    None => unreachable!("a spilled block has a spill file"),
                },
            }
        }
        Ok(())
    }

    /// Lets everything go; `tick` and those before it keep nothing more.
    pub(super) fn close_tick(&self, tick: u64) {
        let mut kept = locked(&self.kept);
        kept.closed_through = kept.closed_through.max(tick);
        for (_, place) in kept.blocks.drain() {
            match place {
                Place::Memory(_) => self.budget.memory.give_back(BLOCK_BYTES),
                Place::Spill(_) => self.budget.spill.give_back(BLOCK_BYTES),
            }
        }
        kept.spill_end = 0;
        if kept.spill.take().is_some()
            && let Err(error) = remove_if_there(&*self.storage, &self.spill_path)
        {
            // Space is lost until the next start, nothing else; the next spill will fail on it,
            // and only cost that cycle.
            tracing::warn!(path = %self.spill_path.display(), %error, "remove spill file");
        }
    }
}

fn remove_if_there(storage: &dyn Storage, path: &std::path::Path) -> io::Result<()> {
    match storage.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
