//! The parent locator: how a differencing disk names its parent.
//!
//! ```text
//! 0   16  type, always the one of VHDX parents
//! 16  2   0
//! 18  2   entries
//! 20  12  each: offset of the key u32, of the value u32, length of the key u16, of the value u16
//! ...     keys and values, UTF-16, without an end mark; offsets are from the item's start
//! ```
//! Receives the item's bytes, gives out a [`ParentLink`], and the reverse. Pure. Liberal in reading: braces and
//! case of ids, prefixes of paths, unknown keys; strict in writing.
//!
//! Does not do: opening the parent (see `parent`); a place in the region (see `metadata`).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::layout::{Guid, NO_GUID, guid, guid_at, put, to_u64, u16_at, u32_at};
use crate::parent::{ParentLink, host_path};

const VHDX_PARENT: Guid = guid(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);
const HEADER_BYTES: usize = 20;
const ENTRY_BYTES: usize = 12;
/// Windows writes five.
const MAX_ENTRIES: usize = 64;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE: &str = "relative_path";
/// Those that stand alone, in the order in which they are to be tried.
const ABSOLUTE: [&str; 2] = ["volume_path", "absolute_win32_path"];

/// Reads the item. The error says what is wrong with it.
pub(super) fn decode(bytes: &[u8]) -> Result<ParentLink, String> {
    if bytes.len() < HEADER_BYTES {
        return Err("the parent locator is too short".to_owned());
    }
    let kind = guid_at(bytes, 0);
    if kind != VHDX_PARENT {
        let kind = Uuid::from_bytes_le(kind);
        return Err(format!("the parent locator is of the unknown type {kind}"));
    }
    let entries = entries(bytes)?;
    let id = entries
        .get(LINKAGE)
        .and_then(|text| parse_guid(text))
        .ok_or_else(|| format!("the parent locator has no good {LINKAGE}"))?;
    let mut paths = Vec::new();
    // A relative path that is absolute after all is tried with its like.
    let relative = entries.get(RELATIVE).and_then(|path| host_path(path));
    paths.extend(relative.filter(|path| path.is_relative()));
    let absolute = ABSOLUTE
        .iter()
        .filter_map(|key| host_path(entries.get(*key)?));
    paths.extend(absolute.filter(|path| path.is_absolute()));
    Ok(ParentLink {
        id,
        // Windows writes zeros where it is not in use.
        also: entries
            .get(LINKAGE2)
            .and_then(|text| parse_guid(text))
            .filter(|id| *id != NO_GUID),
        paths,
    })
}

fn entries(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let count = usize::from(u16_at(bytes, 18));
    let table = &bytes[HEADER_BYTES..];
    if count > MAX_ENTRIES || table.len() < count * ENTRY_BYTES {
        return Err(format!("the parent locator cannot have {count} entries"));
    }
    let mut found = BTreeMap::new();
    for entry in table.chunks_exact(ENTRY_BYTES).take(count) {
        let key = text(bytes, u32_at(entry, 0), u16_at(entry, 8))?;
        let value = text(bytes, u32_at(entry, 4), u16_at(entry, 10))?;
        if found.insert(key.clone(), value).is_some() {
            return Err(format!("the parent locator has {key} twice"));
        }
    }
    Ok(found)
}

fn text(bytes: &[u8], offset: u32, length: u16) -> Result<String, String> {
    let bad = |what: &str| format!("the parent locator's text at {offset} {what}");
    let end = u64::from(offset) + u64::from(length);
    if length == 0 || !length.is_multiple_of(2) || end > to_u64(bytes.len()) {
        return Err(bad("is not inside it"));
    }
    let from = usize::try_from(offset).map_err(|_| bad("is not inside it"))?;
    let units: Vec<u16> = bytes[from..from + usize::from(length)]
        .chunks_exact(2)
        .map(|unit| u16_at(unit, 0))
        .collect();
    let text = String::from_utf16(&units).map_err(|_| bad("is no text"))?;
    // Some writers count an end mark in.
    Ok(text.trim_end_matches('\0').to_owned())
}

fn parse_guid(text: &str) -> Option<Guid> {
    Some(Uuid::try_parse(text.trim()).ok()?.to_bytes_le())
}

/// The item of a new child: its parent's id and the two ways to it.
pub(super) fn encode(parent: Guid, relative: &str, absolute: &str) -> Vec<u8> {
    let id = Uuid::from_bytes_le(parent).braced().to_string();
    let entries = [
        (LINKAGE, id.as_str()),
        (RELATIVE, relative),
        (ABSOLUTE[1], absolute),
    ];
    let mut bytes = vec![0; HEADER_BYTES + entries.len() * ENTRY_BYTES];
    put(&mut bytes, 0, &VHDX_PARENT);
    let narrow = |value: usize| u16::try_from(value).expect("paths were checked to be short");
    put(&mut bytes, 18, &narrow(entries.len()).to_le_bytes());
    for (index, (key, value)) in entries.into_iter().enumerate() {
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        for (text, offset_at, length_at) in [(key, at, at + 8), (value, at + 4, at + 10)] {
            let encoded: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let offset = u32::from(narrow(bytes.len()));
            put(&mut bytes, offset_at, &offset.to_le_bytes());
            put(&mut bytes, length_at, &narrow(encoded.len()).to_le_bytes());
            bytes.extend(encoded);
        }
    }
    bytes
}

/// Longest path, in UTF-16 units, that a locator of ours takes; Linux knows none longer.
pub(super) const MAX_PATH_UNITS: usize = 4096;

#[cfg(test)]
mod tests;
