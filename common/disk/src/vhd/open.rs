//! Opening: checks a file whole, then takes it into use. Changes nothing: what is amiss and can be
//! put right is, before the first change of the session.
//!
//! Of the two footers the one at the end counts, if it is intact; otherwise the copy at the start, which fixed disks
//! do not have. All ranges that structures name must lie in the file, and none may share a byte with another.

use std::path::Path;
use std::sync::Arc;

use super::Kind;
use super::bat::{Bat, Used};
use super::blocks::{Blocks, Ends};
use super::core::Core;
use super::durable::Durable;
use super::layout::{
    DiskType, Footer, HEADER_BYTES, Header, SECTOR, SECTOR_BYTES, Shape, bat_bytes, corrupt,
    u32_at, u64_at,
};
use super::locator;
use super::space::Space;
use crate::error::DiskError;
use crate::gate::Guarded;
use crate::parent::{self, Find};
use crate::storage::{BlockFile, FileExtent};

/// Footers of old files lack their last byte.
const SHORT_FOOTER_BYTES: u64 = 511;
const HEADER_LENGTH: u64 = 1024;

/// A file while it is looked at.
struct Look<'a> {
    file: &'a dyn BlockFile,
    name: &'a str,
    length: u64,
}

/// The footer that counts.
struct Found {
    footer: Footer,
    kind: DiskType,
    /// Where it is; where the file ends, if only the copy is intact.
    at: u64,
    ends: Ends,
}

/// Checks an image whose file we have, and have locked.
pub(super) fn open_file(
    file: Arc<dyn BlockFile>,
    path: &Path,
    read_only: bool,
    find: &mut Find<'_>,
) -> Result<Core, DiskError> {
    let mut core = look(file, path, read_only)?;
    let geometry = core.geometry();
    if let (Some(link), Some(blocks)) = (&core.parent_link, &mut core.blocks) {
        let parent = find(link)?;
        parent::check(path, link, &*parent, &geometry)?;
        blocks.parent = Some(parent);
    }
    Ok(core)
}

/// As [`open_file`], without the parent that a differencing disk needs before it is read.
pub(super) fn look(
    file: Arc<dyn BlockFile>,
    path: &Path,
    read_only: bool,
) -> Result<Core, DiskError> {
    let name = path.display().to_string();
    let length = file
        .length()
        .map_err(|e| DiskError::io(format!("read the length of {name}"), e))?;
    let look = Look {
        file: &*file,
        name: &name,
        length,
    };
    let found = look.footer()?;
    let (kind, blocks) = match found.kind {
        DiskType::Fixed => {
            look.check_fixed(&found)?;
            (Kind::Fixed, None)
        }
        DiskType::Dynamic => (Kind::Dynamic, Some(look.blocks(&found)?)),
        DiskType::Differencing => (Kind::Differencing, Some(look.blocks(&found)?)),
    };
    let mut core = Core {
        name,
        read_only,
        kind,
        size_bytes: found.footer.size_bytes(),
        footer: found.footer,
        footer_at: found.at,
        fixed_end_is_bad: kind == Kind::Fixed && found.ends.footer_is_bad,
        blocks,
        parent_link: None,
        durable: Durable::new(),
        file,
    };
    if kind == Kind::Differencing {
        let blocks = core.blocks.as_ref().expect("it has blocks");
        let (header, at) = (&blocks.header, blocks.header_offset);
        core.parent_link = Some(locator::link(&*core.file, &core.name, header, at)?);
    }
    Ok(core)
}

impl Look<'_> {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.file.read_at(buf, at).map_err(|e| {
            let action = format!("read {} bytes at {at} of {}", buf.len(), self.name);
            DiskError::io(action, e)
        })
    }

    fn sector(&self, at: u64) -> Result<[u8; SECTOR_BYTES], DiskError> {
        let mut bytes = [0; SECTOR_BYTES];
        self.read(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The footer that counts; see the module.
    fn footer(&self) -> Result<Found, DiskError> {
        if self.length < SECTOR {
            let detail = "the file is too short for a footer";
            return Err(corrupt("footer", 0, detail));
        }
        let copy = Footer::decode(&self.sector(0)?);
        let fault = match self.footer_at_end()? {
            Ok((footer, at)) => return Self::with_copy(footer, at, copy),
            Err(fault) => fault,
        };
        let mut ends = Ends {
            copy_is_bad: false,
            footer_is_bad: true,
        };
        if let Ok(footer) = copy {
            let kind = footer.check(0)?;
            if kind != DiskType::Fixed {
                tracing::warn!(
                    file = self.name,
                    fault,
                    "the footer is lost; its copy is used"
                );
                return Ok(Found {
                    footer,
                    kind,
                    at: self.length,
                    ends,
                });
            }
        }
        ends.copy_is_bad = true;
        if let Some((footer, at)) = self.footer_of_cut_off_growth()? {
            let kind = footer.check(at)?;
            return Ok(Found {
                footer,
                kind,
                at,
                ends,
            });
        }
        Err(corrupt("footer", self.length - SECTOR, fault))
    }

    fn footer_at_end(&self) -> Result<Result<(Footer, u64), &'static str>, DiskError> {
        let at = self.length - SECTOR;
        let bytes = self.sector(at)?;
        let fault = match Footer::decode(&bytes) {
            Ok(footer) => return Ok(Ok((footer, at))),
            Err(fault) => fault,
        };
        let at = self.length - SHORT_FOOTER_BYTES;
        let mut short = [0; SECTOR_BYTES];
        short[..SECTOR_BYTES - 1].copy_from_slice(&bytes[1..]);
        Ok(match Footer::decode(&short) {
            Ok(footer) if at.is_multiple_of(SECTOR) => Ok((footer, at)),
            _ => Err(fault),
        })
    }

    fn with_copy(
        footer: Footer,
        at: u64,
        copy: Result<Footer, &'static str>,
    ) -> Result<Found, DiskError> {
        let kind = footer.check(at)?;
        // What a fixed disk begins with is its guest's.
        let copy_is_bad = kind != DiskType::Fixed && copy.as_ref() != Ok(&footer);
        if copy_is_bad
            && let Ok(copy) = &copy
            && !copy.is_same_disk(&footer)
        {
            let detail = format!("it is of another disk than the footer at {at}");
            return Err(corrupt("footer's copy", 0, detail));
        }
        Ok(Found {
            footer,
            kind,
            at,
            ends: Ends {
                copy_is_bad,
                footer_is_bad: false,
            },
        })
    }

    /// A fixed disk that was about to grow: the file is longer already, and has nothing behind the former footer.
    fn footer_of_cut_off_growth(&self) -> Result<Option<(Footer, u64)>, DiskError> {
        /// The former footer is at most this far before the end of the last data: a page of any host.
        const LOOK_BACK: u64 = 64 << 10;
        let mut data_end = 0;
        let mut at = 0;
        let listed = self.file.extents(0, self.length, &mut |_, length, kind| {
            at += length;
            if kind == FileExtent::Data {
                data_end = at;
            }
            true
        });
        listed.map_err(|e| DiskError::io(format!("list extents of {}", self.name), e))?;
        let end = data_end
            .next_multiple_of(SECTOR)
            .min(self.length / SECTOR * SECTOR);
        for back in 1..=LOOK_BACK.min(end) / SECTOR {
            let at = end - back * SECTOR;
            let bytes = self.sector(at)?;
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let footer = Footer::decode(&bytes).ok();
            return Ok(footer
                .filter(|footer| {
                    footer.size_bytes() == at && footer.check(at).ok() == Some(DiskType::Fixed)
                })
                .map(|footer| (footer, at)));
        }
        Ok(None)
    }

    fn check_fixed(&self, found: &Found) -> Result<(), DiskError> {
        let size = found.footer.size_bytes();
        if size > found.at {
            let detail = format!("a disk of {size} bytes does not fit before it");
            return Err(corrupt("footer", found.at, detail));
        }
        Ok(())
    }

    fn blocks(&self, found: &Found) -> Result<Blocks, DiskError> {
        // Nothing may lie on the footer.
        let limit = found.at.min(self.length);
        let (header, header_offset) = self.header(found, limit)?;
        let shape = Shape::new(header.block_bytes());
        let entries = u64::from(header.entries());
        let bat = Used {
            offset: header.bat_offset(),
            length: bat_bytes(entries),
            named_by: "dynamic header",
            named_at: header_offset,
        };
        let wrong_bat = |detail: String| Err(corrupt("dynamic header", header_offset, detail));
        if !bat.offset.is_multiple_of(SECTOR) || bat.end() > limit {
            return wrong_bat(format!("a BAT of {} bytes at {}", bat.length, bat.offset));
        }
        let size = found.footer.size_bytes();
        if entries < shape.blocks(size) {
            return wrong_bat(format!("{entries} blocks for a disk of {size} bytes"));
        }
        let span = |offset, length| Used {
            offset,
            length,
            named_by: "footer",
            named_at: offset,
        };
        let (table, mut used) =
            Bat::read(self.file, self.name, (bat.offset, entries), shape, limit)?;
        used.extend([span(0, SECTOR), span(header_offset, HEADER_LENGTH), bat]);
        let mut used_end = 0;
        if found.kind == DiskType::Differencing {
            used.extend(locator::used(&header, header_offset, limit)?);
            used_end = locator::reserved_end(&header, header_offset, limit);
        }
        check_disjoint(&mut used)?;
        used_end = used.iter().fold(used_end, |end, used| end.max(used.end()));
        if found.footer.creator() == *XEN_CREATOR {
            used_end = used_end.max(self.batmap_end(bat.end(), limit)?);
        }
        let space = Space::new(used_end, found.at);
        Ok(Blocks::new(header, header_offset, table, space, found.ends))
    }

    fn header(&self, found: &Found, limit: u64) -> Result<(Header, u64), DiskError> {
        let at = found.footer.header_offset();
        let inside = at
            .checked_add(HEADER_LENGTH)
            .is_some_and(|end| end <= limit);
        if !at.is_multiple_of(SECTOR) || at < SECTOR || !inside {
            let detail = format!("a dynamic header at {at}");
            return Err(corrupt("footer", found.at, detail));
        }
        let mut bytes = Box::new([0; HEADER_BYTES]);
        self.read(&mut bytes[..], at)?;
        Ok((Header::decode(bytes, at)?, at))
    }

    /// Where the map ends that XenServer has behind the BAT, and only XenServer reads.
    fn batmap_end(&self, bat_end: u64, limit: u64) -> Result<u64, DiskError> {
        if bat_end + SECTOR > limit {
            return Ok(0);
        }
        let bytes = self.sector(bat_end)?;
        if !bytes.starts_with(b"tdbatmap") {
            return Ok(0);
        }
        let sectors = u64::from(u32_at(&bytes, 16));
        let end = u64_at(&bytes, 8).saturating_add(sectors * SECTOR);
        Ok(end.clamp(bat_end + SECTOR, limit))
    }
}

const XEN_CREATOR: &[u8; 4] = b"tap\0";

/// Sorts the ranges and refuses any that overlap.
fn check_disjoint(used: &mut [Used]) -> Result<(), DiskError> {
    used.sort_unstable();
    for pair in used.windows(2) {
        if pair[0].end() > pair[1].offset {
            // Of two, the one that was not named by its own place.
            let (bad, other) = if pair[1].named_at == pair[1].offset {
                (pair[0], pair[1])
            } else {
                (pair[1], pair[0])
            };
            return Err(corrupt(
                bad.named_by,
                bad.named_at,
                format!(
                    "the {} bytes at {} overlap the {} bytes at {}",
                    bad.length, bad.offset, other.length, other.offset
                ),
            ));
        }
    }
    Ok(())
}
