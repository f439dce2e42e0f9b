//! Making a new image.
//!
//! The file is written beside its place, synced, and only then gets its name: a crash leaves no
//! file or a whole one. The order is Windows': log, metadata, BAT, blocks.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bat::stretch;
use super::core::Core;
use super::layout::{
    BAT_REGION, BatEntry, FILE_SIGNATURE, HEADER_OFFSETS, Header, METADATA_REGION, MIB, NO_GUID,
    REGION_TABLE_OFFSETS, Region, Shape, Span, encode_regions, random_guid, to_u64,
};
use super::locator::{self, MAX_PATH_UNITS};
use super::metadata::{self, Parameters};
use super::open::open_locked;
use super::replay::write_zeros;
use super::{ChildOptions, CreateOptions, Kind};
use crate::error::DiskError;
use crate::gate::Guarded;
use crate::parent::windows_paths;
use crate::storage::{BlockFile, OpenMode, Storage};

const CREATOR: &str = "sitepair";
/// Four times Windows': about sixty new blocks between two syncs (see `journal`).
pub(super) const LOG: Span = Span {
    offset: MIB,
    length: 4 * MIB,
};
pub(super) const METADATA: Span = Span {
    offset: LOG.end(),
    length: metadata::REGION_BYTES,
};
pub(super) const BAT_OFFSET: u64 = METADATA.end();
/// Entries of the BAT written at a time: 1 MiB.
const BAT_STEP: u64 = MIB / 8;

/// Writes a new image at `path`, where there must be nothing. Gives out its file, locked.
pub(super) fn create(
    storage: &dyn Storage,
    path: &Path,
    options: &CreateOptions,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    let parameters = Parameters {
        block_bytes: options.block_bytes,
        leave_allocated: options.kind == Kind::Fixed,
        size_bytes: options.size_bytes,
        disk_id: options.disk_id.unwrap_or_else(random_guid),
        logical_sector_bytes: options.logical_sector_bytes,
        physical_sector_bytes: options.physical_sector_bytes,
        size_at: 0,
        parent: None,
    };
    write(storage, path, &parameters, None)
}

/// As [`create`], for a disk over the parent at `parent_path`.
pub(super) fn create_child(
    storage: &dyn Storage,
    path: &Path,
    parent: &Core,
    options: &ChildOptions,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    if !parent.read_only {
        return Err(DiskError::Invalid {
            what: format!(
                "{} is open for writing: no parent may change",
                parent.view.name
            ),
        });
    }
    let parent_path = &options.parent_path;
    let resolve = |path: &Path| {
        storage
            .canonical(path)
            .map_err(|e| DiskError::io(format!("resolve {}", path.display()), e))
    };
    let real_parent = resolve(parent_path)?;
    let real_child = match path.file_name() {
        Some(name) => resolve(folder(path))?.join(name),
        None => path.to_owned(),
    };
    let short = |path: &String| path.encode_utf16().count() <= MAX_PATH_UNITS;
    let (relative, absolute) = windows_paths(&real_child, &real_parent)
        .filter(|(relative, absolute)| short(relative) && short(absolute))
        .ok_or_else(|| DiskError::Invalid {
            what: format!(
                "Windows has no way to write the path from {} to {}",
                path.display(),
                parent_path.display()
            ),
        })?;
    let id = parent.identity()?.data_write_id;
    let parameters = Parameters {
        block_bytes: options.block_bytes,
        leave_allocated: false,
        ..parent.parameters.clone()
    };
    let locator = locator::encode(id, &relative, &absolute);
    write(storage, path, &parameters, Some(&locator))
}

fn folder(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn write(
    storage: &dyn Storage,
    path: &Path,
    parameters: &Parameters,
    locator: Option<&[u8]>,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    if let Some(fault) = parameters.fault() {
        return Err(DiskError::Invalid {
            what: format!("a VHDX cannot have {fault}"),
        });
    }
    let failed = |e| DiskError::io(format!("create {}", path.display()), e);
    if storage.exists(path).map_err(failed)? {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let aside = aside(path);
    match storage.remove(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let file = open_locked(storage, &aside, OpenMode::CreateNew)?;
    if let Err(e) = fill(file.as_ref(), parameters, locator).and_then(|()| file.sync()) {
        drop(file);
        // The caller wants to know why it failed, not that something was left behind.
        if let Err(left) = storage.remove(&aside) {
            tracing::warn!(file = %aside.display(), error = %left, "half-made file left behind");
        }
        return Err(failed(e));
    }
    // Synced before it is renamed: the name never stands for less than the whole file.
    storage.rename(&aside, path).map_err(failed)?;
    storage.sync_dir(folder(path)).map_err(failed)?;
    Ok(file)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

fn fill(file: &dyn BlockFile, parameters: &Parameters, locator: Option<&[u8]>) -> io::Result<()> {
    let shape = Shape::new(
        parameters.block_bytes,
        parameters.logical_sector_bytes,
        locator.is_some(),
    );
    let entries = shape.bat_entries(parameters.size_bytes);
    let bat = Span {
        offset: BAT_OFFSET,
        length: (entries * 8).next_multiple_of(MIB),
    };
    let payload = if parameters.leave_allocated {
        shape.blocks(parameters.size_bytes) * shape.block_bytes
    } else {
        0
    };
    file.set_length(bat.end() + payload)?;
    reserve(
        file,
        Span {
            offset: LOG.offset,
            length: bat.end() - LOG.offset,
        },
    )?;
    if payload > 0
        && !reserve(
            file,
            Span {
                offset: bat.end(),
                length: payload,
            },
        )?
    {
        write_zeros(
            file,
            Span {
                offset: bat.end(),
                length: payload,
            },
        )?;
    }
    write_fixed_parts(file, bat)?;
    file.write_at(&metadata::encode(parameters, locator), METADATA.offset)?;
    if shape.has_parent {
        // All blocks are the parent's: their entries are zeros, and so is what was reserved.
        return Ok(());
    }
    let mut from = 0;
    while from < entries {
        let step = BAT_STEP.min((entries - from).next_multiple_of(512));
        let bytes = stretch(shape, from, step, entries, |block| {
            if parameters.leave_allocated {
                BatEntry::present(bat.end() + block * shape.block_bytes)
            } else {
                BatEntry::ZERO
            }
        });
        file.write_at(&bytes, bat.offset + from * 8)?;
        from += step;
    }
    Ok(())
}

/// Takes the host's space for a range; false where the host cannot.
pub(super) fn reserve(file: &dyn BlockFile, span: Span) -> io::Result<bool> {
    match file.allocate(span.offset, span.length) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(e) => Err(e),
    }
}

fn write_fixed_parts(file: &dyn BlockFile, bat: Span) -> io::Result<()> {
    let mut identifier = FILE_SIGNATURE.to_vec();
    identifier.extend(CREATOR.encode_utf16().flat_map(u16::to_le_bytes));
    file.write_at(&identifier, 0)?;
    let mut header = Header {
        sequence: 0,
        file_write: random_guid(),
        data_write: random_guid(),
        log_guid: NO_GUID,
        log_version: 0,
        version: 1,
        log: LOG,
    };
    for (sequence, offset) in HEADER_OFFSETS.into_iter().enumerate() {
        header.sequence = to_u64(sequence);
        file.write_at(&header.encode(), offset)?;
    }
    let regions = encode_regions(&[
        Region {
            guid: BAT_REGION,
            span: bat,
            required: true,
        },
        Region {
            guid: METADATA_REGION,
            span: METADATA,
            required: true,
        },
    ]);
    for offset in REGION_TABLE_OFFSETS {
        file.write_at(&regions, offset)?;
    }
    Ok(())
}
