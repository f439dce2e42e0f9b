//! Making a new image.
//!
//! The file is written beside its place, synced, and only then gets its name: a crash leaves no
//! file or a whole one. The layout is that of Windows: copy of the footer, dynamic header, names of the parent, BAT,
//! blocks with their data on pages, footer in the last sector of a page.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::core::write_zeros;
use super::layout::{
    BLOCK_BYTES_RANGE, DiskType, Footer, Header, MAX_DISK_BYTES, NewFooter, SECTOR, Shape,
    bat_bytes, footer_after, to_u64, to_usize,
};
use super::locator::NewParent;
use super::{CreateOptions, Kind};
use crate::error::DiskError;
use crate::open;
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};

/// 2000-01-01 in seconds since 1970.
const YEAR_2000: u64 = 946_684_800;
/// What the format's header takes before anything else: copy, dynamic header.
const HEAD_BYTES: u64 = 1536;
/// The BAT is written in pieces of this.
const BAT_STEP: u64 = 1 << 20;

/// Writes a new image at `path`, where there must be nothing. Gives out its file, locked.
pub(super) fn create(
    storage: &dyn Storage,
    path: &Path,
    options: &CreateOptions,
    parent: Option<&NewParent>,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    check(options, parent)?;
    let failed = |e| DiskError::io(format!("create {}", path.display()), e);
    if storage.exists(path).map_err(failed)? {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let aside = aside(path);
    match storage.remove(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let file = storage.open(&aside, OpenMode::CreateNew).map_err(failed)?;
    open::lock(&*file, LockKind::Exclusive, &aside)?;
    if let Err(e) = fill(file.as_ref(), options, parent).and_then(|()| file.sync()) {
        drop(file);
        // The caller wants to know why it failed, not that something was left behind.
        if let Err(left) = storage.remove(&aside) {
            tracing::warn!(file = %aside.display(), error = %left, "half-made file left behind");
        }
        return Err(failed(e));
    }
    // Synced before it is renamed: the name never stands for less than the whole file.
    storage.rename(&aside, path).map_err(failed)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    storage
        .sync_dir(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    Ok(file)
}

fn check(options: &CreateOptions, parent: Option<&NewParent>) -> Result<(), DiskError> {
    let size = options.size_bytes;
    let block = options.block_bytes;
    let fault = if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_DISK_BYTES {
        format!("{size} bytes: whole sectors of 512 bytes, at most 2040 GiB")
    } else if options.kind != Kind::Fixed
        && (!block.is_power_of_two() || !BLOCK_BYTES_RANGE.contains(&block))
    {
        format!("blocks of {block} bytes: a power of two from 64 KiB to 256 MiB")
    } else if let Some(fault) = parent.and_then(NewParent::fault) {
        fault.to_owned()
    } else if parent.is_some() != (options.kind == Kind::Differencing) {
        "a parent if it is not differencing, or none if it is".to_owned()
    } else {
        return Ok(());
    };
    Err(DiskError::Invalid {
        what: format!("a VHD cannot have {fault}"),
    })
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

fn now() -> u32 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since_1970.map_or(0, |time| time.as_secs());
    u32::try_from(seconds.saturating_sub(YEAR_2000)).unwrap_or(u32::MAX)
}

fn fill(
    file: &dyn BlockFile,
    options: &CreateOptions,
    parent: Option<&NewParent>,
) -> io::Result<()> {
    let kind = match options.kind {
        Kind::Fixed => DiskType::Fixed,
        Kind::Dynamic => DiskType::Dynamic,
        Kind::Differencing => DiskType::Differencing,
    };
    let size_bytes = options.size_bytes;
    let footer = Footer::new(&NewFooter {
        kind,
        size_bytes,
        unique_id: options
            .disk_id
            .unwrap_or_else(|| *Uuid::new_v4().as_bytes()),
        created: now(),
    });
    if kind == DiskType::Fixed {
        file.set_length(size_bytes)?;
        reserve(file, 0, size_bytes)?;
        return file.write_at(footer.bytes(), size_bytes);
    }
    let entries = Shape::new(options.block_bytes).blocks(size_bytes);
    let count = u32::try_from(entries).map_err(io::Error::other)?;
    let mut header = Header::new(HEAD_BYTES, count, options.block_bytes);
    let mut bat_offset = HEAD_BYTES;
    if let Some(parent) = parent {
        for (offset, text) in parent.put(&mut header, HEAD_BYTES) {
            file.write_at(&text, offset)?;
            bat_offset = offset + to_u64(text.len());
        }
        header = header.with_bat(bat_offset, count);
    }
    file.write_at(footer.bytes(), 0)?;
    file.write_at(&header.bytes[..], Footer::HEADER_OFFSET)?;
    let end = bat_offset + bat_bytes(entries);
    let absent = vec![0xFF; to_usize(BAT_STEP.min(end - bat_offset))];
    let mut at = bat_offset;
    while at < end {
        let step = BAT_STEP.min(end - at);
        file.write_at(&absent[..to_usize(step)], at)?;
        at += step;
    }
    file.write_at(footer.bytes(), footer_after(end))
}

/// Takes the host's space for a range that reads as zeros; written as zeros where the host cannot.
pub(super) fn reserve(file: &dyn BlockFile, offset: u64, length: u64) -> io::Result<()> {
    match file.allocate(offset, length) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => write_zeros(file, offset, length),
        other => other,
    }
}
