//! Growing a disk while it is in use. "S" is a sync.
//!
//! ```text
//! fixed     footer with the old size, past the end    S   a file that ends with a footer all the time
//!           former footer's place zeroed              S   nobody sees it as the disk's bytes
//!           footer with the new size                  S   from here on the disk is larger
//! dynamic   last block's hidden rest zeroed               it may hold anything
//!           larger BAT at the end, if it has no room  S   nobody reads it yet
//!           dynamic header names it                   S   one sector; either table will do
//!           footer with the new size                  S   from here on the disk is larger
//!           copy of the footer                        S
//! ```
//! Receives the image alone (its gate is shut for others). Does not do: shrinking, growing a disk that has a parent.

use super::Kind;
use super::blocks::Blocks;
use super::core::{Core, write_zeros};
use super::create::reserve;
use super::layout::{MAX_DISK_BYTES, SECTOR, bat_bytes, footer_after, to_u64};
use super::space::Space;
use crate::error::DiskError;
use crate::flush::lock;

impl Core {
    /// Grows the disk to `size_bytes`.
    pub(super) fn grow(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        let old = self.size_bytes;
        if !size_bytes.is_multiple_of(SECTOR) || size_bytes > MAX_DISK_BYTES {
            return Err(DiskError::Invalid {
                what: format!("a VHD cannot have {size_bytes} bytes"),
            });
        }
        if size_bytes < old {
            let what = format!("making a VHD of {old} bytes smaller");
            return Err(DiskError::Unsupported { what });
        }
        if size_bytes == old {
            return Ok(());
        }
        if self.kind == Kind::Differencing {
            let what = "growing a VHD that has a parent".to_owned();
            return Err(DiskError::Unsupported { what });
        }
        self.arm()?;
        match self.blocks.take() {
            None => self.grow_fixed(size_bytes),
            Some(mut blocks) => {
                let grown = self.grow_blocks(&mut blocks, size_bytes);
                self.blocks = Some(blocks);
                grown
            }
        }
    }

    fn grow_fixed(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        let old = self.size_bytes;
        // A crash while growing may have left more room than the disk has.
        let at = size_bytes.max(self.footer_at);
        let former_end = at.min(self.footer_at + SECTOR);
        if at > self.footer_at {
            if let Err(e) = self.file.write_at(self.footer.bytes(), at) {
                // It may have become longer, and then ends with no footer.
                self.file
                    .set_length(self.footer_at + SECTOR)
                    .map_err(|e| self.fatal("cut back the end", e))?;
                return Err(self.failed("grow the file with a footer,", SECTOR, at)(e));
            }
            // The new footer before the old one goes.
            self.sync()?;
            self.footer_at = at;
        }
        reserve(&*self.file, old, at - old).map_err(self.failed(
            "find space for",
            at - old,
            old,
        ))?;
        // The former footer is in there.
        write_zeros(&*self.file, old, former_end - old).map_err(self.failed(
            "zero",
            former_end - old,
            old,
        ))?;
        // Zeros before the size that shows them.
        self.sync()?;
        self.put_size(size_bytes, at)
    }

    /// The new size, durably, in the footer at `at`.
    fn put_size(&mut self, size_bytes: u64, at: u64) -> Result<(), DiskError> {
        let footer = self.footer.resized(size_bytes);
        self.file
            .write_at(footer.bytes(), at)
            .map_err(|e| self.fatal("write the footer", e))?;
        self.sync()?;
        self.footer = footer;
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn grow_blocks(&mut self, blocks: &mut Blocks, size_bytes: u64) -> Result<(), DiskError> {
        self.zero_hidden_rest(blocks)?;
        let wanted = blocks.shape.blocks(size_bytes);
        if wanted > blocks.bat.len() {
            self.move_bat(blocks, wanted)?;
        }
        // Everything before the size that shows it.
        self.durable.note_write();
        self.flush()?;
        let at = lock(&blocks.space).footer_at;
        self.put_size(size_bytes, at)?;
        self.file
            .write_at(self.footer.bytes(), 0)
            .map_err(|e| self.fatal("write the footer's copy", e))?;
        self.sync()
    }

    /// Puts a table for `entries` blocks at the end of the file.
    fn move_bat(&mut self, blocks: &mut Blocks, entries: u64) -> Result<(), DiskError> {
        let bytes = blocks.bat.encode(entries);
        let length = to_u64(bytes.len());
        let space = blocks
            .space
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Behind the footer, so that the file ends with one all the time.
        let at = space.footer_at + SECTOR;
        let footer_at = footer_after(at + length);
        if let Err(e) = self.file.write_at(self.footer.bytes(), footer_at) {
            self.file
                .set_length(space.footer_at + SECTOR)
                .map_err(|e| self.fatal("cut back the end", e))?;
            return Err(self.failed(
                "grow the file with a footer,",
                SECTOR,
                footer_at,
            )(e));
        }
        self.file
            .write_at(&bytes, at)
            .map_err(|e| self.fatal("write the new BAT", e))?;
        assert!(length == bat_bytes(entries), "the table is whole sectors");
        // The table before the header that names it.
        self.sync()?;
        let grown = space.is_grown;
        *space = Space::new(at + length, footer_at);
        space.is_grown = grown;
        let count = u32::try_from(entries).expect("at most 2040 GiB in blocks of 64 KiB");
        let header = blocks.header.with_bat(at, count);
        self.file
            .write_at(&header.bytes[..], blocks.header_offset)
            .map_err(|e| self.fatal("write the dynamic header", e))?;
        self.sync()?;
        blocks.header = header;
        let added = entries - blocks.bat.len();
        blocks.bat.moved(at, entries);
        blocks.add_absent(added);
        Ok(())
    }
}
