//! Reads a change map as a stop or a crash left it.
//!
//! Gives out: what is dirty, or why the map cannot be trusted. Changes nothing in the file.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use sitepair_disk::Identity;
use sitepair_disk::storage::{BlockFile, FileExtent, OpenMode, Storage};
use sitepair_model::ids::{DiskId, GenId, GroupId};

use super::map_format::{Header, Layout, SLOT_BYTES};
use crate::blocks::sector::{SECTOR_BITS, SECTOR_BYTES, decode_sector};
use crate::blocks::set::BlockSet;

/// What the map must belong to.
pub(super) struct Expected {
    pub(super) disk: DiskId,
    pub(super) group: GroupId,
    pub(super) generation: GenId,
    pub(super) size_bytes: u64,
    pub(super) identity: Identity,
}

/// A map that can be trusted.
pub(super) struct Loaded {
    pub(super) file: Arc<dyn BlockFile>,
    pub(super) header: Header,
    pub(super) saved: BTreeSet<u64>,
    pub(super) hot: Vec<u64>,
    /// Blocks that are saved or in hot zones.
    pub(super) dirty: BlockSet,
    /// Sectors with a wrong checksum, taken as all ones.
    pub(super) damaged_sectors: u64,
}

/// Reads the map at `path`.
///
/// # Errors
/// Why it is of no use, for the operator: everything must then be taken as dirty.
pub(super) fn load(
    storage: &dyn Storage,
    path: &Path,
    expected: &Expected,
) -> Result<Loaded, String> {
    let file = storage
        .open(path, OpenMode::ReadWrite)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "there is no change map".to_owned(),
            _ => format!("open the change map: {error}"),
        })?;
    let header = read_header(&*file).ok_or("no header of the change map can be read")?;
    check(&header, expected)?;
    let layout = Layout::new(expected.size_bytes);
    let length = file
        .length()
        .map_err(|error| format!("read the change map: {error}"))?;
    if length != layout.file_bytes() {
        return Err(format!(
            "the change map has {length} bytes, and should have {}",
            layout.file_bytes()
        ));
    }
    let mut loaded = Loaded {
        file,
        header,
        saved: BTreeSet::new(),
        hot: Vec::new(),
        dirty: BlockSet::new(layout.blocks),
        damaged_sectors: 0,
    };
    loaded
        .read_log(layout)
        .map_err(|error| format!("read the activity log: {error}"))?;
    loaded
        .read_bitmap(layout)
        .map_err(|error| format!("read the saved bitmap: {error}"))?;
    Ok(loaded)
}

fn read_header(file: &dyn BlockFile) -> Option<Header> {
    let read = |slot: u64| {
        let mut bytes = [0; SLOT_BYTES];
        file.read_at(&mut bytes, slot * SLOT_BYTES as u64).ok()?;
        Header::decode(&bytes)
    };
    [read(0), read(1)]
        .into_iter()
        .flatten()
        .max_by_key(|header| header.sequence)
}

fn check(header: &Header, expected: &Expected) -> Result<(), String> {
    if header.disk != expected.disk || header.group != expected.group {
        return Err(format!(
            "the change map belongs to disk {} of group {}",
            header.disk, header.group
        ));
    }
    if header.generation != expected.generation {
        return Err(format!(
            "the change map is of generation {}, not {}",
            header.generation, expected.generation
        ));
    }
    if header.size_bytes != expected.size_bytes {
        return Err(format!(
            "the change map is for a disk of {} bytes",
            header.size_bytes
        ));
    }
    match header.clean {
        Some(then) if !same_content(&then, &expected.identity) => {
            Err("the image was changed by others since it was stopped cleanly".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether two identities name the same content. A data write id decides alone where there is one:
/// such a file's length and time also change when it is opened and closed.
fn same_content(then: &Identity, now: &Identity) -> bool {
    if then.data_write_id != [0; 16] {
        return then.data_write_id == now.data_write_id;
    }
    then == now
}

impl Loaded {
    fn read_log(&mut self, layout: Layout) -> io::Result<()> {
        let mut sector = [0; SECTOR_BYTES];
        for number in 0..layout.log_sectors() {
            self.file
                .read_at(&mut sector, Layout::log_sector_at(number))?;
            let first = number * SECTOR_BITS;
            match decode_sector(&sector) {
                Some(bits) => self.hot.extend(bits.map(|bit| first + bit)),
                None => {
                    self.damaged_sectors += 1;
                    self.hot.extend(first..first + SECTOR_BITS);
                }
            }
        }
        self.hot.retain(|zone| *zone < layout.zones);
        for zone in &self.hot {
            let (first, end) = layout.blocks_of_zone(*zone);
            self.dirty.insert_range(first, end);
        }
        Ok(())
    }

    fn read_bitmap(&mut self, layout: Layout) -> io::Result<()> {
        let offset = layout.bitmap_offset();
        let length = layout.file_bytes() - offset;
        let mut areas = Vec::new();
        self.file.extents(offset, length, &mut |at, length, kind| {
            if kind == FileExtent::Data {
                areas.push((at - offset, length));
            }
            true
        })?;
        let sector_bytes = SECTOR_BYTES as u64;
        for (at, length) in areas {
            let first = at / sector_bytes;
            let end = (at + length)
                .div_ceil(sector_bytes)
                .min(layout.bitmap_sectors());
            self.read_sectors(layout, first, end)?;
        }
        Ok(())
    }

    fn read_sectors(&mut self, layout: Layout, first: u64, end: u64) -> io::Result<()> {
        let mut from = first;
        while from < end {
            let count = (end - from).min(SECTORS_AT_ONCE);
            let bytes = usize::try_from(count).map_err(io::Error::other)? * SECTOR_BYTES;
            let mut buf = vec![0; bytes];
            self.file.read_at(&mut buf, layout.bitmap_sector_at(from))?;
            for (number, sector) in (from..).zip(buf.chunks_exact(SECTOR_BYTES)) {
                self.take_sector(layout, number, sector);
            }
            from += count;
        }
        Ok(())
    }

    fn take_sector(&mut self, layout: Layout, number: u64, sector: &[u8]) {
        let (first, end) = layout.blocks_of_sector(number);
        let Some(bits) = decode_sector(sector) else {
            self.damaged_sectors += 1;
            self.saved.insert(number);
            self.dirty.insert_range(first, end);
            return;
        };
        for block in bits.map(|bit| first + bit).filter(|b| *b < end) {
            self.saved.insert(number);
            self.dirty.insert_range(block, block + 1);
        }
    }
}

/// Sectors of the saved bitmap read at once: 1 MiB.
const SECTORS_AT_ONCE: u64 = 2048;
