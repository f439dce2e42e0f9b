//! The metadata region: what kind of disk this is, its size, sectors and identity.
//!
//! Receives the region through a [`View`], gives out [`Parameters`]; builds the region of a new
//! disk. Does not do: what is in a parent locator (see `locator`).

use std::collections::HashSet;

use super::layout::{
    Guid, KIB64, MAX_DISK_BYTES, MIB, Span, corrupt, guid, guid_at, put, to_u64, to_usize, u16_at,
    u32_at, u64_at,
};
use super::locator;
use super::replay::View;
use crate::error::DiskError;
use crate::image::Geometry;
use crate::parent::ParentLink;

pub(crate) const FILE_PARAMETERS: Guid = guid(0xCAA1_6737_FA36_4D43_B3B6_33F0_AA44_E76B);
pub(crate) const DISK_SIZE: Guid = guid(0x2FA5_4224_CD1B_4876_B211_5DBE_D83B_F4B8);
pub(crate) const DISK_ID: Guid = guid(0xBECA_12AB_B2E6_4523_93EF_C309_E000_C746);
pub(crate) const LOGICAL_SECTOR: Guid = guid(0x8141_BF1D_A96F_4709_BA47_F233_A8FA_AB5F);
pub(crate) const PHYSICAL_SECTOR: Guid = guid(0xCDA3_48C7_445D_4471_9CC9_E988_5251_C556);
pub(crate) const PARENT_LOCATOR: Guid = guid(0xA8D3_5F2D_B30B_454D_ABF7_D3D8_4834_AB0C);
/// First field of the item that marks a file whose making was not finished.
pub(crate) const INCOMPLETE_FILE: [u8; 4] = 0x71CC_85F0_u32.to_le_bytes();

const TABLE_BYTES: usize = 64 << 10;
const MAX_ENTRIES: usize = 2047;
const MAX_USER_ENTRIES: usize = 1024;
const FLAG_USER: u32 = 1;
const FLAG_REQUIRED: u32 = 4;
const FLAG_VIRTUAL_DISK: u32 = 2;
const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
const MIN_BLOCK_BYTES: u32 = 1 << 20;
const MAX_BLOCK_BYTES: u32 = 256 << 20;
pub(super) const REGION_BYTES: u64 = MIB;

/// What the metadata items say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) block_bytes: u32,
    /// A fixed disk: blocks keep their space.
    pub(super) leave_allocated: bool,
    pub(super) size_bytes: u64,
    pub(super) disk_id: Guid,
    pub(super) logical_sector_bytes: u32,
    pub(super) physical_sector_bytes: u32,
    /// Where in the file the disk's size stands.
    pub(super) size_at: u64,
    /// What a differencing disk says of its parent.
    pub(super) parent: Option<ParentLink>,
}

impl Parameters {
    pub(super) fn geometry(&self, read_only: bool) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_sector_bytes: self.logical_sector_bytes,
            physical_sector_bytes: self.physical_sector_bytes,
            block_bytes: self.block_bytes,
            read_only,
        }
    }

    /// What is wrong with them, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        let sector = |bytes: u32| bytes == 512 || bytes == 4096;
        let block = self.block_bytes;
        if !block.is_power_of_two() || !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block) {
            return Some(format!("blocks of {block} bytes"));
        }
        if !sector(self.logical_sector_bytes) || !sector(self.physical_sector_bytes) {
            return Some(format!(
                "sectors of {} and {} bytes",
                self.logical_sector_bytes, self.physical_sector_bytes
            ));
        }
        let whole = self
            .size_bytes
            .is_multiple_of(u64::from(self.logical_sector_bytes));
        if self.size_bytes == 0 || !whole || self.size_bytes > MAX_DISK_BYTES {
            return Some(format!("a disk of {} bytes", self.size_bytes));
        }
        None
    }
}

struct Item {
    guid: Guid,
    /// In the file.
    span: Span,
    user: bool,
    required: bool,
}

/// Reads and checks all items of the region at `region`.
pub(super) fn read(view: &View, region: Span) -> Result<Parameters, DiskError> {
    let items = read_table(view, region)?;
    let known = [
        FILE_PARAMETERS,
        DISK_SIZE,
        DISK_ID,
        LOGICAL_SECTOR,
        PHYSICAL_SECTOR,
        PARENT_LOCATOR,
    ];
    for item in &items {
        if item.guid[..4] == INCOMPLETE_FILE {
            return Err(corrupt(
                "metadata table",
                region.offset,
                "the file was never completed by whoever was making it",
            ));
        }
        if item.required && (item.user || !known.contains(&item.guid)) {
            let name = uuid::Uuid::from_bytes_le(item.guid);
            return Err(DiskError::Unsupported {
                what: format!("required metadata item {name}"),
            });
        }
    }
    let find = |guid: Guid, name: &str, bytes: usize| -> Result<(Span, Vec<u8>), DiskError> {
        let item = items
            .iter()
            .find(|item| item.guid == guid && !item.user)
            .ok_or_else(|| {
                corrupt(
                    "metadata table",
                    region.offset,
                    format!("there is no {name}"),
                )
            })?;
        if item.span.length < to_u64(bytes) {
            return Err(corrupt(
                "metadata item",
                item.span.offset,
                format!("{name} is too short"),
            ));
        }
        let mut value = vec![0; bytes];
        view.read(&mut value, item.span.offset)?;
        Ok((item.span, value))
    };
    let (parameters_at, parameters) = find(FILE_PARAMETERS, "file parameters", 8)?;
    let flags = u32_at(&parameters, 4);
    let parent = match flags & HAS_PARENT {
        0 => None,
        _ => Some(read_locator(view, region, &items)?),
    };
    let (size_at, size) = find(DISK_SIZE, "disk size", 8)?;
    let found = Parameters {
        block_bytes: u32_at(&parameters, 0),
        leave_allocated: flags & LEAVE_ALLOCATED != 0 && parent.is_none(),
        size_bytes: u64_at(&size, 0),
        disk_id: guid_at(&find(DISK_ID, "disk id", 16)?.1, 0),
        logical_sector_bytes: u32_at(&find(LOGICAL_SECTOR, "logical sector size", 4)?.1, 0),
        physical_sector_bytes: u32_at(&find(PHYSICAL_SECTOR, "physical sector size", 4)?.1, 0),
        size_at: size_at.offset,
        parent,
    };
    match found.fault() {
        Some(fault) => Err(corrupt("metadata item", parameters_at.offset, fault)),
        None => Ok(found),
    }
}

fn read_locator(view: &View, region: Span, items: &[Item]) -> Result<ParentLink, DiskError> {
    let item = items
        .iter()
        .find(|item| item.guid == PARENT_LOCATOR && !item.user)
        .ok_or_else(|| {
            corrupt(
                "metadata table",
                region.offset,
                "the disk has a parent, but does not name it",
            )
        })?;
    let mut bytes = vec![0; to_usize(item.span.length)];
    view.read(&mut bytes, item.span.offset)?;
    locator::decode(&bytes).map_err(|fault| corrupt("metadata item", item.span.offset, fault))
}

fn read_table(view: &View, region: Span) -> Result<Vec<Item>, DiskError> {
    let bad = |detail: String| corrupt("metadata table", region.offset, detail);
    let mut table = vec![0; TABLE_BYTES];
    view.read(&mut table, region.offset)?;
    let count = usize::from(u16_at(&table, 10));
    if &table[..8] != b"metadata" || count > MAX_ENTRIES {
        return Err(bad("wrong signature or entry count".to_owned()));
    }
    let mut seen = HashSet::new();
    let mut items = Vec::with_capacity(count);
    for entry in table[32..].chunks_exact(32).take(count) {
        let (guid, flags) = (guid_at(entry, 0), u32_at(entry, 24));
        let offset = u64::from(u32_at(entry, 16));
        let length = u64::from(u32_at(entry, 20));
        let inside = length == 0 || (offset >= KIB64 && offset + length <= region.length);
        if !inside || length > MIB {
            return Err(bad(format!(
                "an item of {length} bytes at {offset} is not in the region"
            )));
        }
        if !seen.insert((guid, flags & FLAG_USER)) {
            return Err(bad(format!(
                "item {} stands twice",
                uuid::Uuid::from_bytes_le(guid)
            )));
        }
        items.push(Item {
            guid,
            span: Span {
                offset: region.offset + offset,
                length,
            },
            user: flags & FLAG_USER != 0,
            required: flags & FLAG_REQUIRED != 0,
        });
    }
    if items.iter().filter(|item| item.user).count() > MAX_USER_ENTRIES {
        return Err(bad("too many user items".to_owned()));
    }
    let mut spans: Vec<Span> = items
        .iter()
        .map(|item| item.span)
        .filter(|span| span.length > 0)
        .collect();
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
        return Err(bad("two items overlap".to_owned()));
    }
    Ok(items)
}

/// The bytes of a new disk's metadata region that are not zero, from its start. `locator` names its parent.
pub(super) fn encode(parameters: &Parameters, locator: Option<&[u8]>) -> Vec<u8> {
    let mut flags = 0;
    if parameters.leave_allocated {
        flags |= LEAVE_ALLOCATED;
    }
    if locator.is_some() {
        flags |= HAS_PARENT;
    }
    let mut file_parameters = parameters.block_bytes.to_le_bytes().to_vec();
    file_parameters.extend(u32::to_le_bytes(flags));
    let disk = FLAG_REQUIRED | FLAG_VIRTUAL_DISK;
    let size = parameters.size_bytes.to_le_bytes();
    let logical = parameters.logical_sector_bytes.to_le_bytes();
    let physical = parameters.physical_sector_bytes.to_le_bytes();
    let mut items: Vec<(Guid, u32, &[u8])> = vec![
        (FILE_PARAMETERS, FLAG_REQUIRED, &file_parameters),
        (DISK_SIZE, disk, &size),
        (DISK_ID, disk, &parameters.disk_id),
        (LOGICAL_SECTOR, disk, &logical),
        (PHYSICAL_SECTOR, disk, &physical),
    ];
    items.extend(locator.map(|locator| (PARENT_LOCATOR, FLAG_REQUIRED, locator)));
    let mut bytes = vec![0; TABLE_BYTES];
    put(&mut bytes, 0, b"metadata");
    let count = u16::try_from(items.len()).expect("at most six");
    put(&mut bytes, 10, &count.to_le_bytes());
    for (index, (guid, flags, value)) in items.iter().enumerate() {
        let at = 32 + index * 32;
        let offset = u32::try_from(bytes.len()).expect("under 128 KiB");
        let length = u32::try_from(value.len()).expect("under 64 KiB");
        put(&mut bytes, at, guid);
        put(&mut bytes, at + 16, &offset.to_le_bytes());
        put(&mut bytes, at + 20, &length.to_le_bytes());
        put(&mut bytes, at + 24, &flags.to_le_bytes());
        bytes.extend_from_slice(value);
    }
    let rounded = bytes.len().next_multiple_of(super::layout::PAGE_BYTES);
    bytes.resize(rounded, 0);
    assert!(
        bytes.len() <= to_usize(REGION_BYTES),
        "the items fit the region"
    );
    bytes
}
