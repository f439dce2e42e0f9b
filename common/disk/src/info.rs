//! What a disk file is, for people: everything that can be told without reading the disk's content.
//!
//! Receives a path and, where it is known, the format. Gives out [`Info`]. The file is opened for reading only and
//! closed again; a log left behind by a crash is applied in memory.
//!
//! Does not do: checking the content (an image that opens may still have damaged data).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::create::Kind;
use crate::error::DiskError;
use crate::image::{Geometry, Identity, Image};
use crate::open::{self, Format};
use crate::raw::RawImage;
use crate::storage::Storage;
use crate::{vhd, vhdx};

/// What a disk file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The file's format.
    pub format: Format,
    /// How it takes space; `None` where the format leaves that to the host's file system (raw).
    pub kind: Option<Kind>,
    /// Sizes, as every image tells them.
    pub geometry: Geometry,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// The disk's own id, where the format has one.
    pub disk_id: Option<Uuid>,
    /// Changes whenever somebody writes to the disk, where the format has one.
    pub data_write_id: Option<Uuid>,
    /// Who made the file, where it says so. Free text of whoever that was.
    pub creator: Option<String>,
    /// The file's log, where the format has one.
    pub log: Option<Log>,
    /// What a differencing disk says of its parent, which is not looked at.
    pub parent: Option<Parent>,
}

/// The parent of a differencing disk, as its child names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// What the parent's `data_write_id` must be, or a VHD's `disk_id`.
    pub id: Uuid,
    /// Where it may be: relative to the child's folder, then absolute.
    pub paths: Vec<PathBuf>,
}

/// The log that a format keeps in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Its room in bytes.
    pub bytes: u64,
    /// Whether it may hold changes that are not in their places: whoever wrote to the file stopped
    /// without closing it. Reading applies them in memory, the next writer applies them in the file.
    pub dirty: bool,
}

/// Tells what the file at `path` is. `format` `None` probes, as [`open::open_image`] does.
///
/// # Errors
/// Those of [`open::open_image`] for reading.
pub fn inspect(
    storage: &Arc<dyn Storage>,
    path: &Path,
    format: Option<Format>,
) -> Result<Info, DiskError> {
    let probed = match format {
        Some(format) => format,
        None => open::probe(&**storage, path)?,
    };
    match probed {
        Format::Raw => {
            let image = match format {
                // Looked at again, now under the lock that stays.
                None => RawImage::open(&**storage, path, true)?,
                Some(_) => RawImage::open_whatever_it_holds(&**storage, path, true)?,
            };
            Ok(plain(Format::Raw, image.geometry(), image.identity()?))
        }
        Format::Qcow2 => {
            let image = open::open_qcow2(storage, path, true)?;
            Ok(plain(Format::Qcow2, image.geometry(), image.identity()?))
        }
        Format::Vhd => Ok(vhd(vhd::Facts::read(&**storage, path)?)),
        Format::Vhdx => Ok(vhdx(vhdx::Facts::read(&**storage, path)?)),
    }
}

/// What images of all formats tell.
fn plain(format: Format, geometry: Geometry, identity: Identity) -> Info {
    Info {
        format,
        kind: None,
        geometry,
        file_bytes: identity.file_bytes,
        disk_id: None,
        data_write_id: None,
        creator: None,
        log: None,
        parent: None,
    }
}

fn vhd(facts: vhd::Facts) -> Info {
    Info {
        kind: Some(facts.kind.into()),
        // Windows writes and shows it in the order of its bytes, unlike the ids of a VHDX.
        disk_id: Some(Uuid::from_bytes(facts.disk_id)),
        creator: Some(String::from_utf8_lossy(&facts.creator).trim().to_owned()),
        parent: facts.parent.map(|link| Parent {
            id: Uuid::from_bytes(link.id),
            paths: link.paths,
        }),
        ..plain(Format::Vhd, facts.geometry, facts.identity)
    }
}

fn vhdx(facts: vhdx::Facts) -> Info {
    let kind = match facts.parent {
        Some(_) => Kind::Differencing,
        None => facts.kind.into(),
    };
    Info {
        kind: Some(kind),
        disk_id: Some(Uuid::from_bytes_le(facts.disk_id)),
        data_write_id: Some(Uuid::from_bytes_le(facts.identity.data_write_id)),
        creator: Some(facts.creator),
        log: Some(Log {
            bytes: facts.log_bytes,
            dirty: facts.log_in_use,
        }),
        parent: facts.parent.map(|link| Parent {
            id: Uuid::from_bytes_le(link.id),
            paths: link.paths,
        }),
        ..plain(Format::Vhdx, facts.geometry, facts.identity)
    }
}
