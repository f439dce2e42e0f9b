//! What a differencing disk says of its parent: id, name, and places in the words of Windows.
//!
//! Two locators are read and written: `W2ru`, relative to the child's folder, and `W2ku`, absolute; both UTF-16,
//! little-endian. Others mean nothing on this host.
//!
//! Does not do: opening parents, trust in paths (see [`crate::parent`]).

use std::path::{Path, PathBuf};

use super::bat::Used;
use super::layout::{Header, SECTOR, corrupt, put, to_u64, to_usize, u32_at, u64_at};
use crate::error::DiskError;
use crate::parent::{ParentLink, host_path, windows_paths};
use crate::storage::{BlockFile, Storage};

const ID_AT: usize = 40;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;
const LOCATORS_AT: usize = 576;
const LOCATOR_BYTES: usize = 24;
const LOCATORS: usize = 8;
const RELATIVE: &[u8; 4] = b"W2ru";
const ABSOLUTE: &[u8; 4] = b"W2ku";
/// Windows has no longer paths.
const PATH_BYTES_MAX: u32 = 64 << 10;

struct Locator {
    code: [u8; 4],
    space: u32,
    length: u32,
    offset: u64,
    named_at: u64,
}

fn locators(header: &Header, header_offset: u64) -> impl Iterator<Item = Locator> + '_ {
    (0..LOCATORS)
        .map(move |index| {
            let at = LOCATORS_AT + index * LOCATOR_BYTES;
            let bytes = &header.bytes[at..at + LOCATOR_BYTES];
            Locator {
                code: bytes[..4].try_into().expect("four bytes"),
                space: u32_at(bytes, 4),
                length: u32_at(bytes, 8),
                offset: u64_at(bytes, 16),
                named_at: header_offset + to_u64(at),
            }
        })
        .filter(|locator| locator.code != [0; 4])
}

/// The file's ranges that locators use. Space beyond their text is counted as far as it is free.
pub(super) fn used(
    header: &Header,
    header_offset: u64,
    file_bytes: u64,
) -> Result<Vec<Used>, DiskError> {
    let mut used = Vec::new();
    for locator in locators(header, header_offset) {
        let range = Used {
            offset: locator.offset,
            length: u64::from(locator.length),
            named_by: "parent locator",
            named_at: locator.named_at,
        };
        if locator.length > PATH_BYTES_MAX || range.end() > file_bytes {
            let detail = format!("{} bytes at {}", locator.length, locator.offset);
            return Err(corrupt("parent locator", locator.named_at, detail));
        }
        if locator.length > 0 {
            used.push(range);
        }
    }
    Ok(used)
}

/// Where the last locator's reserved space ends. Some programs count it in sectors, Windows in bytes.
pub(super) fn reserved_end(header: &Header, header_offset: u64, file_bytes: u64) -> u64 {
    locators(header, header_offset)
        .map(|locator| {
            let space = u64::from(locator.space);
            let bytes = if space < SECTOR {
                space * SECTOR
            } else {
                space
            };
            locator.offset.saturating_add(bytes).min(file_bytes)
        })
        .max()
        .unwrap_or(0)
}

/// The link to the parent of a differencing disk, whose locators were checked.
pub(super) fn link(
    file: &dyn BlockFile,
    file_name: &str,
    header: &Header,
    header_offset: u64,
) -> Result<ParentLink, DiskError> {
    let id: [u8; 16] = header.bytes[ID_AT..ID_AT + 16]
        .try_into()
        .expect("sixteen bytes");
    if id == [0; 16] {
        let at = header_offset + to_u64(ID_AT);
        return Err(corrupt("dynamic header", at, "it names no parent"));
    }
    let mut relative: Vec<PathBuf> = Vec::new();
    let mut absolute = Vec::new();
    for locator in locators(header, header_offset) {
        let places = match &locator.code {
            RELATIVE => &mut relative,
            ABSOLUTE => &mut absolute,
            _ => continue,
        };
        let mut bytes = vec![0; to_usize(u64::from(locator.length))];
        file.read_at(&mut bytes, locator.offset).map_err(|e| {
            let at = locator.offset;
            DiskError::io(format!("read the parent locator at {at} of {file_name}"), e)
        })?;
        places.extend(text(&bytes, u16::from_le_bytes).and_then(|text| host_path(&text)));
    }
    let name = &header.bytes[NAME_AT..NAME_AT + NAME_BYTES];
    let name = text(name, u16::from_be_bytes).and_then(|text| host_path(&text));
    relative.append(&mut absolute);
    relative.extend(name.filter(|name| !relative.contains(name)));
    Ok(ParentLink {
        id,
        also: None,
        paths: relative,
    })
}

/// UTF-16 up to its first NUL.
fn text(bytes: &[u8], unit: impl Fn([u8; 2]) -> u16) -> Option<String> {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| unit([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16(&units).ok()
}

/// What a new child says of its parent.
pub(super) struct NewParent {
    pub(super) id: [u8; 16],
    pub(super) relative: String,
    pub(super) absolute: String,
}

impl NewParent {
    /// Of the disk with `id` at `parent`, for a child at `child`.
    pub(super) fn of(
        storage: &dyn Storage,
        child: &Path,
        parent: &Path,
        id: [u8; 16],
    ) -> Result<Self, DiskError> {
        let resolve = |path: &Path| {
            let failed = |e| DiskError::io(format!("resolve {}", path.display()), e);
            storage.canonical(path).map_err(failed)
        };
        let folder = child.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = resolve(folder.unwrap_or(Path::new(".")))?;
        let child = folder.join(child.file_name().unwrap_or_default());
        match windows_paths(&child, &resolve(parent)?) {
            Some((relative, absolute)) => Ok(Self {
                id,
                relative,
                absolute,
            }),
            None => Err(DiskError::Unsupported {
                what: format!("{} in the words of Windows", parent.display()),
            }),
        }
    }

    /// Puts it into the header. Gives out the texts and where they go: from `at` on, in whole sectors.
    pub(super) fn put(&self, header: &mut Header, at: u64) -> Vec<(u64, Vec<u8>)> {
        put(&mut header.bytes[..], ID_AT, &self.id);
        let name = self.absolute.rsplit('\\').next().unwrap_or_default();
        let room = NAME_BYTES / 2 - 1;
        let mut name_bytes: Vec<u8> = Vec::new();
        if name.encode_utf16().count() <= room {
            name_bytes.extend(name.encode_utf16().flat_map(u16::to_be_bytes));
        }
        put(&mut header.bytes[..], NAME_AT, &name_bytes);
        let mut texts = Vec::new();
        let mut offset = at;
        for (index, (code, path)) in [(ABSOLUTE, &self.absolute), (RELATIVE, &self.relative)]
            .into_iter()
            .enumerate()
        {
            let mut bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let length = u32::try_from(bytes.len()).expect("was limited");
            let space = length.next_multiple_of(512);
            bytes.resize(to_usize(u64::from(space)), 0);
            let slot = LOCATORS_AT + index * LOCATOR_BYTES;
            put(&mut header.bytes[..], slot, code);
            put(&mut header.bytes[..], slot + 4, &space.to_be_bytes());
            put(&mut header.bytes[..], slot + 8, &length.to_be_bytes());
            put(&mut header.bytes[..], slot + 16, &offset.to_be_bytes());
            texts.push((offset, bytes));
            offset += u64::from(space);
        }
        header.seal();
        texts
    }

    pub(super) fn fault(&self) -> Option<&'static str> {
        let too_long =
            |path: &str| path.encode_utf16().count() * 2 > to_usize(PATH_BYTES_MAX.into());
        if self.id == [0; 16] {
            Some("a parent without an id")
        } else if too_long(&self.relative) || too_long(&self.absolute) {
            Some("a parent with so long a path")
        } else {
            None
        }
    }
}
