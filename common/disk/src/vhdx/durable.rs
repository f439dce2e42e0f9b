//! What makes changes durable, in which order.
//!
//! Owns: which pages of the BAT and of bitmaps were changed and not yet logged, space trimmed and not yet free.
//! A flush with changed pages is
//!
//! ```text
//! [sync]          only if bytes hide others: in space that is not known to be zero, or a parent's
//! entry -> log    all changed pages of the BAT and of bitmaps
//! sync            now data, entry and file length are durable
//! pages -> place  not synced: the next entry's tail keeps this entry until a sync has covered them
//! ```
//! Between flushes a changed page is also noted: written to the log, not synced. A process that is killed
//! leaves its notes to the next one, so that no answered write is lost with a block's place. A host that goes
//! down may lose them, as it may lose the bytes. It may also keep them and lose the bytes, so where these
//! must go first a sync precedes the note; writers that wait for it share it.
//!
//! A block put into known-zero space needs no order between its bytes and the entry: before the
//! sync returned nothing was promised, and lost bytes read as zeros, as the block did before. Bytes that hide
//! those of a parent do need it: lost, they must be the parent's again.
//!
//! Does not do: choosing space, moving data.
//!
//! # Invariants
//! 1. BAT entries and bits change only under the lock of `Pending`, so that a batch is consistent.
//! 2. Space is given back after the entry that no longer names it is durable, never before.
//! 3. `changes_durable == changes_made` only when every BAT change made so far is durable.
//! 4. Any failed sync or metadata write is final: every later call fails.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::bitmap::BitmapPage;
use super::core::Core;
use super::entry::Page;
use super::journal::{FileLength, Journal};
use super::layout::{BatEntry, NO_GUID, PAGE, Span, random_guid, to_usize};
use crate::error::DiskError;
use crate::flush::{Sequencer, lock};
use crate::poison::Poison;

/// A page that changes through the log. Bitmaps come first: where a batch needs more than one entry, no entry of
/// the BAT makes a block partially present before its bits are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MetaPage {
    Bitmap(BitmapPage),
    /// By its number in the BAT.
    Bat(u64),
}

/// Changes of metadata that are not logged.
#[derive(Default)]
pub(super) struct Pending {
    pages: BTreeSet<MetaPage>,
    /// Those of them whose newest content no note holds.
    unnoted: BTreeSet<MetaPage>,
    /// Those of them that a note holds, with this content or an older one.
    noted: BTreeSet<MetaPage>,
    freed: Vec<u64>,
    /// Bytes go first: a block lies in space that may have held something else, or hides a parent's.
    data_first: bool,
}

impl Pending {
    /// The page changed.
    pub(super) fn touch(&mut self, page: MetaPage) {
        self.pages.insert(page);
        self.unnoted.insert(page);
    }

    /// What was written until now goes first.
    pub(super) fn data_first(&mut self) {
        self.data_first = true;
    }
}

/// What belongs together in one flush.
struct Batch {
    pages: Vec<(u64, Page)>,
    /// Those of bitmaps among them, and as of which change.
    bitmaps: Vec<(BitmapPage, u64)>,
    freed: Vec<u64>,
    data_first: bool,
    changes: u64,
}

/// State of the durable side of an open image.
pub(super) struct Durable {
    pub(super) poison: Poison,
    pending: Mutex<Pending>,
    pub(super) journal: Mutex<Journal>,
    sequencer: Sequencer,
    /// Some page may be unnoted. Changes under the lock of `pending` only.
    to_note: AtomicBool,
    changes_made: AtomicU64,
    changes_durable: AtomicU64,
    /// The session's log and DataWriteGuid are in the headers.
    armed: AtomicBool,
    /// Something was written since the last sync began.
    wrote: AtomicBool,
    /// Length of the file at the start of the last good sync.
    flushed_length: AtomicU64,
}

impl Durable {
    pub(super) fn new(log: Span, length: u64) -> Self {
        Self {
            poison: Poison::default(),
            pending: Mutex::default(),
            journal: Mutex::new(Journal::new(log)),
            sequencer: Sequencer::default(),
            to_note: AtomicBool::new(false),
            changes_made: AtomicU64::new(0),
            changes_durable: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            wrote: AtomicBool::new(false),
            flushed_length: AtomicU64::new(length),
        }
    }

    pub(super) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// Bytes or length of the file changed: the next flush must sync.
    pub(super) fn note_write(&self) {
        self.wrote.store(true, Ordering::Release);
    }

    /// Whether every BAT change made before this call is durable (invariant 3).
    pub(super) fn is_clean(&self) -> bool {
        self.changes_made.load(Ordering::Acquire) == self.changes_durable.load(Ordering::Acquire)
    }

    /// Changes metadata; all or nothing of it gets into a batch (invariant 1).
    pub(super) fn change(
        &self,
        work: impl FnOnce(&mut Pending) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut pending = lock(&self.pending);
        // Counted before the change can be seen: whoever sees it, sees that it is not durable.
        self.changes_made.fetch_add(1, Ordering::AcqRel);
        self.to_note.store(true, Ordering::Release);
        work(&mut pending)
    }
}

impl Core {
    /// Before the first change of a session: begins the log, then changes DataWriteGuid and names
    /// the log in both headers.
    pub(super) fn arm(&self) -> Result<(), DiskError> {
        if self.durable.is_armed() {
            return Ok(());
        }
        let mut headers = lock(&self.headers);
        self.durable.poison.check()?;
        if self.durable.is_armed() {
            return Ok(());
        }
        let mut journal = lock(&self.durable.journal);
        let length = self.file_length();
        let begun = journal
            .begin(self.file(), length)
            .and_then(|()| self.file().sync());
        begun.map_err(|e| self.fatal("begin the log", e))?;
        journal.all_settled();
        // The entry is durable: now the headers may name its log.
        let log_guid = journal.guid();
        let data_write = random_guid();
        headers
            .update(self.file(), |header| {
                (header.log_guid, header.data_write) = (log_guid, data_write);
            })
            .map_err(|e| self.fatal("write the headers", e))?;
        self.durable.armed.store(true, Ordering::Release);
        Ok(())
    }

    /// Changes the BAT entry of `block`, whose bytes are in place. `data_first`: see the module.
    pub(super) fn publish(
        &self,
        block: u64,
        entry: BatEntry,
        data_first: bool,
    ) -> Result<(), DiskError> {
        let page = self.bat.load(&self.view, block)?;
        self.durable.change(|pending| {
            let former = self.bat.replace(block, entry);
            pending.touch(MetaPage::Bat(page));
            pending.data_first |= data_first;
            if former.space() != 0 {
                pending.freed.push(former.space());
            }
            Ok(())
        })
    }

    /// Replaces entries of a page that were not part of the disk until now.
    pub(super) fn publish_fresh(&self, first: u64, end: u64) -> Result<(), DiskError> {
        let page = self.bat.load_page(&self.view, first)?;
        self.durable.change(|pending| {
            self.bat.clear(first, end);
            pending.touch(MetaPage::Bat(page));
            Ok(())
        })
    }

    /// Puts the changes of metadata of what is about to be answered where they outlive this process. Syncs
    /// only if bytes must go first, which also serves everybody who waits here meanwhile, or if the log has no room for
    /// more notes.
    pub(super) fn note_changes(&self) -> Result<(), DiskError> {
        if !self.durable.to_note.load(Ordering::Acquire) {
            return Ok(());
        }
        // A flush that took our changes holds this until they are logged.
        let mut journal = lock(&self.durable.journal);
        self.durable.poison.check()?;
        let mut pending = lock(&self.durable.pending);
        if pending.unnoted.len() > journal.max_pages() {
            drop(pending);
            drop(journal);
            return self.flush();
        }
        let unnoted = std::mem::take(&mut pending.unnoted);
        let data_first = std::mem::take(&mut pending.data_first);
        let pages: Vec<_> = unnoted.iter().map(|page| self.image(*page).0).collect();
        drop(pending);
        if data_first {
            self.sync()?;
            journal.all_settled();
        }
        let noted = pages.is_empty()
            || journal
                .note(self.file(), &pages, self.file_length())
                .map_err(|e| self.fatal("write a log entry", e))?;
        let mut pending = lock(&self.durable.pending);
        if noted {
            pending.noted.extend(unnoted);
            // Not before: others, whose changes these are too, would not wait for them.
            self.durable
                .to_note
                .store(!pending.unnoted.is_empty(), Ordering::Release);
            return Ok(());
        }
        pending.unnoted.extend(unnoted);
        drop(pending);
        drop(journal);
        self.flush()
    }

    /// A changed page with its offset in the file, and for a bitmap's, which change it shows.
    fn image(&self, page: MetaPage) -> ((u64, Page), Option<(BitmapPage, u64)>) {
        match page {
            MetaPage::Bat(page) => (self.bat.image(page), None),
            MetaPage::Bitmap(page) => {
                let (bits, changes) = self.bitmaps.image(page);
                let bitmap = self.bat.bitmap(page.chunk);
                let at = bitmap.expect("a bitmap is in the BAT before it changes, and stays");
                ((at + page.page * PAGE, bits), Some((page, changes)))
            }
        }
    }

    fn take_batch(&self) -> Batch {
        let mut pending = lock(&self.durable.pending);
        let taken = std::mem::take(&mut *pending);
        // Noted pages first: one entry holds them all, and outdates the notes.
        let others = taken.pages.difference(&taken.noted);
        let images = taken.noted.iter().chain(others);
        let images = images.map(|page| self.image(*page));
        let (pages, bitmaps): (Vec<_>, Vec<_>) = images.unzip();
        Batch {
            pages,
            bitmaps: bitmaps.into_iter().flatten().collect(),
            freed: taken.freed,
            data_first: taken.data_first,
            changes: self.durable.changes_made.load(Ordering::Acquire),
        }
    }

    /// Makes everything durable that was answered before the call.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        let durable = &self.durable;
        durable
            .sequencer
            .flush(&durable.poison, || self.flush_round())
    }

    fn flush_round(&self) -> Result<(), DiskError> {
        let wrote = self.durable.wrote.swap(false, Ordering::AcqRel);
        // Held until the batch is logged: see `note_changes`.
        let mut journal = lock(&self.durable.journal);
        let batch = self.take_batch();
        if batch.pages.is_empty() {
            if wrote || journal.is_unsettled() {
                self.sync()?;
                journal.all_settled();
            }
            return Ok(());
        }
        if batch.data_first {
            // Data before the entry: a reused place must not show its former content, and a sector that is
            // lost must still be the parent's.
            self.sync()?;
            journal.all_settled();
        }
        self.log_pages(&mut journal, &batch.pages)?;
        for (page, changes) in batch.bitmaps {
            self.bitmaps.placed(page, changes);
        }
        drop(journal);
        self.durable
            .changes_durable
            .store(batch.changes, Ordering::Release);
        self.release(&batch.freed);
        Ok(())
    }

    /// Logs `pages`, syncs, and puts them into their places. One sync, unless they need more entries, or one
    /// starts a lap of the ring. Pages that a note holds come first.
    pub(super) fn log_pages(
        &self,
        journal: &mut Journal,
        pages: &[(u64, Page)],
    ) -> Result<(), DiskError> {
        for entry in pages.chunks(journal.max_pages()) {
            if journal.starts_lap(entry.len()) && journal.is_unsettled() {
                self.sync()?;
                journal.all_settled();
            }
            journal
                .append(self.file(), entry, self.file_length())
                .map_err(|e| self.fatal("write a log entry", e))?;
            self.sync()?;
            // The former entry's pages were covered by this sync; ours are in place from now on,
            // and stay the tail of the next entry until a sync has covered them.
            journal
                .settle(self.file(), entry)
                .map_err(|e| self.fatal("write BAT pages", e))?;
        }
        Ok(())
    }

    /// Trimmed space whose BAT change is durable becomes free (invariant 2).
    fn release(&self, freed: &[u64]) {
        for &offset in freed {
            let span = Span {
                offset,
                length: self.bat.shape.block_bytes,
            };
            // Only to give space back to the host: it is zeroed again before it is used.
            if let Err(e) = self.file().punch_hole(span.offset, span.length) {
                tracing::debug!(file = self.view.name, offset, error = %e, "trimmed space kept");
            }
            lock(&self.space).give_back(span);
        }
    }

    /// A sync whose failure is final.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        let length = lock(&self.space).length();
        self.file().sync().map_err(|e| self.fatal("sync", e))?;
        self.durable.flushed_length.store(length, Ordering::Release);
        Ok(())
    }

    fn file_length(&self) -> FileLength {
        let last = lock(&self.space).length();
        FileLength {
            flushed: self
                .durable
                .flushed_length
                .load(Ordering::Acquire)
                .min(last),
            last,
        }
    }

    pub(super) fn fatal(&self, action: &str, source: io::Error) -> DiskError {
        self.durable
            .poison
            .set(format!("{action} of {}", self.view.name), source)
    }

    /// Leaves the file as after a clean shutdown: the log empty, the file cut to its last used mebibyte.
    pub(super) fn shut(&self) -> Result<(), DiskError> {
        self.flush()?;
        if !self.durable.is_armed() {
            return Ok(());
        }
        let mut journal = lock(&self.durable.journal);
        // Pages that are in their places become durable there.
        self.sync()?;
        journal.all_settled();
        let end = lock(&self.space).used_end();
        if end < lock(&self.space).length() {
            // The log must know of the smaller length before the file has it.
            let length = FileLength {
                flushed: end,
                last: end,
            };
            journal
                .append(self.file(), &[], length)
                .map_err(|e| self.fatal("write a log entry", e))?;
            self.sync()?;
            self.file()
                .set_length(end)
                .map_err(|e| self.fatal("shorten", e))?;
            lock(&self.space).was_cut();
            self.sync()?;
        }
        lock(&self.headers)
            .update(self.file(), |header| header.log_guid = NO_GUID)
            .map_err(|e| self.fatal("write the headers", e))
    }

    /// Pages of the log before its end.
    #[cfg(test)]
    pub(super) fn log_room(&self) -> u64 {
        lock(&self.durable.journal).room()
    }

    /// How many BAT pages one entry takes.
    #[cfg(test)]
    pub(super) fn pages_per_entry(&self) -> usize {
        lock(&self.durable.journal).max_pages()
    }

    /// Content of the page of the file at `offset`, a multiple of 4 KiB, to be changed and logged.
    pub(super) fn page_at(&self, offset: u64) -> Result<(u64, Page), DiskError> {
        let mut page: Page = Box::new([0; super::layout::PAGE_BYTES]);
        let at = offset - offset % PAGE;
        self.view.read(&mut page[..], at)?;
        assert!(
            to_usize(offset - at) < page.len(),
            "the offset is on its page"
        );
        Ok((at, page))
    }
}
