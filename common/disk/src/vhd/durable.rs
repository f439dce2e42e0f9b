//! What makes changes durable, and keeps the file whole around them.
//!
//! Owns: what a flush is, the first change of a session, closing.
//!
//! A flush is one sync: bytes, bitmaps and table are written before the change is answered, in an order
//! that needs no sync between them (see `blocks` and `space`). So a killed process loses nothing that was
//! answered, and a power loss what was not flushed. What a killed process left to the host's memory is not
//! durable either, and nothing tells: the first flush of a session syncs whatever was written.
//!
//! Does not do: choosing space, moving data.
//!
//! # Invariants
//! 1. `changes_durable == changes_made` only when every change of a table or bitmap made so far is durable.
//! 2. Any failed sync or metadata write is final: every later call fails.
//! 3. While the end of the file is changed, the copy of the footer at its start is right and durable.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::bitmap::Bitmap;
use super::blocks::Blocks;
use super::core::Core;
use super::layout::{PAGE, SECTOR, footer_after};
use super::space::Space;
use crate::error::DiskError;
use crate::flush::{Sequencer, lock};
use crate::poison::Poison;

/// State of the durable side of an open image.
pub(super) struct Durable {
    pub(super) poison: Poison,
    sequencer: Sequencer,
    changes_made: AtomicU64,
    changes_durable: AtomicU64,
    /// Something was written since the last sync began.
    wrote: AtomicBool,
    /// The file was found whole, or made so, since it was opened.
    armed: AtomicBool,
    arming: Mutex<()>,
}

impl Durable {
    /// Of a file that was just opened, and may have been left by a killed process.
    pub(super) fn new() -> Self {
        Self {
            poison: Poison::default(),
            sequencer: Sequencer::default(),
            changes_made: AtomicU64::new(1),
            changes_durable: AtomicU64::new(0),
            wrote: AtomicBool::new(true),
            armed: AtomicBool::new(false),
            arming: Mutex::default(),
        }
    }

    pub(super) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// Bytes of the file changed: the next flush must sync.
    pub(super) fn note_write(&self) {
        self.wrote.store(true, Ordering::Release);
    }

    /// A table or bitmap was written; call it before anybody can see the change in memory.
    pub(super) fn note_change(&self) {
        self.changes_made.fetch_add(1, Ordering::AcqRel);
        self.note_write();
    }

    /// Whether every change noted before this call is durable (invariant 1).
    pub(super) fn is_clean(&self) -> bool {
        self.changes_made.load(Ordering::Acquire) == self.changes_durable.load(Ordering::Acquire)
    }
}

impl Core {
    /// Makes everything durable that was written before the call, answered or not.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        let durable = &self.durable;
        durable
            .sequencer
            .flush(&durable.poison, || self.flush_round())
    }

    fn flush_round(&self) -> Result<(), DiskError> {
        if !self.durable.wrote.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Changes are noted after they are written: the sync covers these.
        let changes = self.durable.changes_made.load(Ordering::Acquire);
        self.sync()?;
        self.durable
            .changes_durable
            .store(changes, Ordering::Release);
        Ok(())
    }

    /// A sync whose failure is final.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        self.file.sync().map_err(|e| self.fatal("sync", e))
    }

    pub(super) fn fatal(&self, action: &str, source: io::Error) -> DiskError {
        self.durable
            .poison
            .set(format!("{action} of {}", self.name), source)
    }

    /// Before the first change of a session: makes whole what a crash or another program left behind.
    pub(super) fn arm(&self) -> Result<(), DiskError> {
        if self.durable.is_armed() {
            return Ok(());
        }
        let _arming = lock(&self.durable.arming);
        self.durable.poison.check()?;
        if self.durable.is_armed() {
            return Ok(());
        }
        match &self.blocks {
            Some(blocks) => self.settle(blocks)?,
            None if self.fixed_end_is_bad => {
                let length = self.footer_at + SECTOR;
                self.file
                    .set_length(length)
                    .map_err(self.failed("cut the file to", length, 0))?;
                self.sync()?;
            }
            None => {}
        }
        self.durable.armed.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes the footer or its copy where they are missing, and cuts off what no structure names.
    fn settle(&self, blocks: &Blocks) -> Result<(), DiskError> {
        let mut space = lock(&blocks.space);
        if blocks.ends.copy_is_bad {
            self.file
                .write_at(self.footer.bytes(), 0)
                .map_err(self.failed("write the footer's copy,", SECTOR, 0))?;
            // The copy before anything happens to the footer (invariant 3).
            self.sync()?;
        }
        let wanted = footer_after(space.used_end);
        if blocks.ends.footer_is_bad || space.footer_at >= wanted + PAGE {
            self.cut(&mut space)?;
        }
        Ok(())
    }

    /// Ends the file with a footer right after what is in use.
    fn cut(&self, space: &mut Space) -> Result<(), DiskError> {
        let at = footer_after(space.used_end);
        self.file
            .write_at(self.footer.bytes(), at)
            .map_err(self.failed("write the footer,", SECTOR, at))?;
        // The footer before the cut: the file ends with one all the time.
        self.sync()?;
        self.file.set_length(at + SECTOR).map_err(self.failed(
            "cut the file to",
            at + SECTOR,
            0,
        ))?;
        // Cut before it grows again: what was cut off never comes back.
        self.sync()?;
        *space = Space::new(space.used_end, at);
        Ok(())
    }

    /// Leaves the file as after a clean shutdown: flushed, and cut to what is in use.
    pub(super) fn shut(&self) -> Result<(), DiskError> {
        self.flush()?;
        if let Some(blocks) = &self.blocks {
            let mut space = lock(&blocks.space);
            if space.is_grown {
                self.cut(&mut space)?;
            }
        }
        Ok(())
    }

    /// Grows the file so that there is room for a block at least. One sync for many blocks; see `space`.
    pub(super) fn grow_file(&self, blocks: &Blocks, space: &mut Space) -> Result<(), DiskError> {
        let at = space.grown_footer(blocks.shape, blocks.absent());
        if at / SECTOR >= u64::from(u32::MAX) {
            return Err(DiskError::Unsupported {
                what: format!("{}: a dynamic VHD file past 2 TiB", self.name),
            });
        }
        let grown = self
            .file
            .write_at(self.footer.bytes(), at)
            .and_then(|()| self.write_bitmaps_ahead(blocks, space, at));
        if let Err(e) = grown {
            // It may have become longer, and then ends with no footer.
            self.file
                .set_length(space.footer_at + SECTOR)
                .map_err(|e| self.fatal("cut back the end", e))?;
            return Err(self.failed("grow the file with a footer,", SECTOR, at)(e));
        }
        // The room, and the bitmaps in it, before any table names a block there.
        self.sync()?;
        space.has_grown(at);
        Ok(())
    }

    /// Gives a dynamic disk's blocks to come bitmaps of ones, as their sectors will all be there.
    fn write_bitmaps_ahead(
        &self,
        blocks: &Blocks,
        space: &Space,
        footer_at: u64,
    ) -> io::Result<()> {
        if blocks.parent.is_some() {
            return Ok(());
        }
        let ones = Bitmap::Full.encode(blocks.shape);
        space
            .places(blocks.shape, footer_at)
            .try_for_each(|place| self.file.write_at(&ones, place))
    }
}
