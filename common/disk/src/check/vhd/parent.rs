//! The link of a differencing disk to its parent: names, and the parent's id.
//!
//! The format has nothing that tells whether a parent was changed, so that only its id is compared.

use std::path::Path;

use uuid::Uuid;

use super::footer::{self, footers};
use super::header::Header;
use crate::check::catalogue::vhd as found;
use crate::check::parent::{Parent, find, utf16};
use crate::check::report::Report;
use crate::check::source::Source;
use crate::error::DiskError;
use crate::storage::Storage;

const STRUCTURE: &str = "parent locator";
/// Kinds of locators that we read, best first: UTF-16, relative and absolute.
const CODES: [&[u8; 4]; 2] = [b"W2ru", b"W2ku"];
const NAME_AT: usize = 64;
const NAME_END: usize = 576;
/// Longer names are not looked at.
const NAME_BYTES_MAX: u32 = 64 << 10;

/// Gives out the path at which the parent was found.
pub(super) fn check(
    storage: &dyn Storage,
    path: &Path,
    source: &Source<'_>,
    header: &Header,
    report: &mut Report,
) -> Result<Option<String>, DiskError> {
    let at = header.at;
    let mut names = Vec::new();
    for code in CODES {
        for locator in header
            .locators
            .iter()
            .filter(|locator| locator.code == *code)
        {
            let length = u64::from(locator.length.min(NAME_BYTES_MAX));
            let text = source.bytes(locator.offset, length)?;
            names.push(utf16(&text, u16::from_le_bytes));
        }
    }
    names.push(utf16(&header.bytes[NAME_AT..NAME_END], u16::from_be_bytes));
    names.retain(|name| !name.is_empty());
    let expected = header.parent_id();
    if names.is_empty() || expected == [0; 16] {
        report.add(&found::PARENT_LOCATOR, STRUCTURE, at + 40, || {
            "expected the parent's id and a name of its file".to_owned()
        });
        return Ok(None);
    }
    let (place, file) = match find(storage, path, &names)? {
        Parent::Found(place, file) => (place, file),
        Parent::InUse(place) => {
            report.add(&found::PARENT_IN_USE, STRUCTURE, at + 40, || {
                format!("a writer has {} open", place.display())
            });
            return Ok(None);
        }
        Parent::NotFound => {
            report.add(&found::PARENT_NOT_FOUND, STRUCTURE, at + 40, || {
                format!("looked for {} in the disk's folder", names.join(", "))
            });
            return Ok(None);
        }
    };
    let name = place.display().to_string();
    let parent = Source::new(&*file, name.clone())?;
    match footer::id(&footers(&parent)?) {
        None => report.add(&found::PARENT_UNREADABLE, STRUCTURE, at + 40, || {
            format!("expected a footer in {name}")
        }),
        Some(id) if id != expected => report.add(&found::PARENT_OTHER, STRUCTURE, at + 40, || {
            format!(
                "expected id {} in {name}, found {}",
                Uuid::from_bytes(expected),
                Uuid::from_bytes(id)
            )
        }),
        Some(_) => {}
    }
    Ok(Some(name))
}
