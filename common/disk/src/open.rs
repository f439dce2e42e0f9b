//! Opening an image file of whatever format.
//!
//! Receives a path and, better, the format. Gives out an [`Image`].
//!
//! Does not do: trust in content. [`probe`] reads bytes that a guest may have written: a raw disk whose guest wrote
//! a VHDX into its first sectors, or the end of a VHD into its last, probes as one. Probe once, when an
//! operator names a file, keep the answer, and open with it from then on.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::DiskError;
use crate::image::Image;
use crate::parent::{Chain, ParentLink, Parents};
use crate::raw::RawImage;
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};
use crate::vhd::VhdImage;
use crate::vhdx::VhdxImage;

/// Formats of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// VHD: fixed, dynamic or differencing.
    Vhd,
    /// VHDX, version 1.
    Vhdx,
    /// qcow2, versions 2 and 3; opened only with this crate's feature `qcow2`.
    Qcow2,
}

impl Format {
    /// The format that a file's name ends with; `avhd` and `avhdx` are what Windows calls differencing disks.
    #[must_use]
    pub fn by_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "raw" | "img" => Some(Self::Raw),
            "vhd" | "avhd" => Some(Self::Vhd),
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// How an image is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// The format, where it is known. `None` probes, and refuses what looks like a format that we do not have.
    pub format: Option<Format>,
    /// Refuse writes, and let others read too.
    pub read_only: bool,
    /// Which parents of a differencing disk may be opened. They are always opened read-only, with a shared lock.
    pub parents: Parents,
}

/// Tells a file's format from its first and last bytes. Takes a shared lock for the time it reads.
///
/// # Errors
/// [`DiskError::Unsupported`] for a format that we do not have, [`DiskError::Corrupt`] where the name tells a format that
/// the content does not have, [`DiskError::Locked`] while a writer has it open.
pub fn probe(storage: &dyn Storage, path: &Path) -> Result<Format, DiskError> {
    let file = open_locked(storage, path, true)?;
    match foreign_format(&*file, path)? {
        None => raw_unless_named(path),
        Some(VHD) => Ok(Format::Vhd),
        Some(VHDX) => Ok(Format::Vhdx),
        Some(QCOW2) => Ok(Format::Qcow2),
        Some(other) => Err(DiskError::Unsupported {
            what: format!("{}: {other}", path.display()),
        }),
    }
}

/// The format of a file that looks like none. One that is named otherwise has lost its beginning, or is not what its owner
/// believes; served as raw, its guest would see, and change, whatever is left of the structure.
fn raw_unless_named(path: &Path) -> Result<Format, DiskError> {
    let named = match Format::by_name(path) {
        None | Some(Format::Raw) => return Ok(Format::Raw),
        Some(Format::Vhd) => VHD,
        Some(Format::Vhdx) => VHDX,
        Some(Format::Qcow2) => QCOW2,
    };
    let name = path.display();
    Err(DiskError::Corrupt {
        structure: "file",
        offset: 0,
        detail: format!(
            "{name} is named as {named} and does not begin as one; if it is a raw image, name that format"
        ),
    })
}

/// Opens an image, locked: exclusively, or shared with other readers.
///
/// # Errors
/// Those of [`probe`] and of the format.
pub fn open_image(
    storage: &Arc<dyn Storage>,
    path: &Path,
    options: OpenOptions,
) -> Result<Arc<dyn Image>, DiskError> {
    let read_only = options.read_only;
    let mut chain = Chain::new(&**storage, &options.parents);
    let image: Arc<dyn Image> = match options.format {
        Some(Format::Raw) => Arc::new(RawImage::open_whatever_it_holds(
            &**storage, path, read_only,
        )?),
        Some(Format::Vhd) => Arc::new(open_vhd(storage, &mut chain, path, read_only)?),
        Some(Format::Vhdx) => Arc::new(open_vhdx(storage, &mut chain, path, read_only)?),
        Some(Format::Qcow2) => open_qcow2(storage, path, read_only)?,
        None => match probe(&**storage, path)? {
            // Looked at again, now under the lock that stays.
            Format::Raw => Arc::new(RawImage::open(&**storage, path, read_only)?),
            Format::Vhd => Arc::new(open_vhd(storage, &mut chain, path, read_only)?),
            Format::Vhdx => Arc::new(open_vhdx(storage, &mut chain, path, read_only)?),
            Format::Qcow2 => open_qcow2(storage, path, read_only)?,
        },
    };
    chain.finish(path)?;
    Ok(image)
}

/// Opens a VHDX and its parents, for what only a VHDX can do.
pub(crate) fn vhdx_chain(
    storage: &Arc<dyn Storage>,
    path: &Path,
    read_only: bool,
    parents: &Parents,
) -> Result<VhdxImage, DiskError> {
    let mut chain = Chain::new(&**storage, parents);
    let image = open_vhdx(storage, &mut chain, path, read_only)?;
    chain.finish(path)?;
    Ok(image)
}

/// As [`vhdx_chain`].
pub(crate) fn vhd_chain(
    storage: &Arc<dyn Storage>,
    path: &Path,
    read_only: bool,
    parents: &Parents,
) -> Result<VhdImage, DiskError> {
    let mut chain = Chain::new(&**storage, parents);
    let image = open_vhd(storage, &mut chain, path, read_only)?;
    chain.finish(path)?;
    Ok(image)
}

/// Opens the next file of a chain, and those under it.
fn open_vhdx(
    storage: &Arc<dyn Storage>,
    chain: &mut Chain<'_>,
    path: &Path,
    read_only: bool,
) -> Result<VhdxImage, DiskError> {
    chain.enter(path)?;
    let mut find = |link: &ParentLink| -> Result<Arc<dyn Image>, DiskError> {
        let parent = chain.parent_of(path, link)?;
        let opened = open_vhdx(storage, chain, &parent, true);
        Ok(Arc::new(opened.map_err(|e| in_parent(&parent, e))?))
    };
    VhdxImage::open_with(Arc::clone(storage), path, read_only, &mut find)
}

/// As [`open_vhdx`].
fn open_vhd(
    storage: &Arc<dyn Storage>,
    chain: &mut Chain<'_>,
    path: &Path,
    read_only: bool,
) -> Result<VhdImage, DiskError> {
    chain.enter(path)?;
    let mut find = |link: &ParentLink| -> Result<Arc<dyn Image>, DiskError> {
        let parent = chain.parent_of(path, link)?;
        let opened = open_vhd(storage, chain, &parent, true);
        Ok(Arc::new(opened.map_err(|e| in_parent(&parent, e))?))
    };
    VhdImage::open_with(Arc::clone(storage), path, read_only, &mut find)
}

/// Says in which file of a chain the damage is.
fn in_parent(parent: &Path, error: DiskError) -> DiskError {
    match error {
        DiskError::Corrupt {
            structure,
            offset,
            detail,
        } => DiskError::Corrupt {
            structure,
            offset,
            detail: format!("in parent {}: {detail}", parent.display()),
        },
        other => other,
    }
}

/// Opens a qcow2, which has no parents here.
#[cfg(feature = "qcow2")]
pub(crate) fn open_qcow2(
    storage: &Arc<dyn Storage>,
    path: &Path,
    read_only: bool,
) -> Result<Arc<dyn Image>, DiskError> {
    let image = crate::qcow2::Qcow2Image::open(&**storage, path, read_only)?;
    Ok(Arc::new(image))
}

/// Refuses: this was built without qcow2.
#[cfg(not(feature = "qcow2"))]
pub(crate) fn open_qcow2(
    _storage: &Arc<dyn Storage>,
    path: &Path,
    _read_only: bool,
) -> Result<Arc<dyn Image>, DiskError> {
    Err(DiskError::Unsupported {
        what: format!("{}: {QCOW2}", path.display()),
    })
}

/// Opens a file and takes the lock of the mode before anything is read from it.
pub(crate) fn open_locked(
    storage: &dyn Storage,
    path: &Path,
    read_only: bool,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    let (mode, kind) = if read_only {
        (OpenMode::Read, LockKind::Shared)
    } else {
        (OpenMode::ReadWrite, LockKind::Exclusive)
    };
    let file = storage
        .open(path, mode)
        .map_err(|e| DiskError::io(format!("open {}", path.display()), e))?;
    lock(&*file, kind, path)?;
    Ok(file)
}

/// Takes a lock, or tells that somebody else has the file.
pub(crate) fn lock(file: &dyn BlockFile, kind: LockKind, path: &Path) -> Result<(), DiskError> {
    file.lock(kind).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => DiskError::Locked {
            what: path.display().to_string(),
        },
        _ => DiskError::io(format!("lock {}", path.display()), e),
    })
}

const VHDX: &str = "a VHDX image";
const VHD: &str = "a VHD image";
const QCOW2: &str = "a qcow2 image";

/// Bytes by which formats are known: offset from the start, bytes, name.
const SIGNATURES: [(usize, &[u8], &str); 10] = [
    (0, b"vhdxfile", VHDX),
    (0, b"conectix", VHD),
    (0, b"QFI\xfb\0\0\0\x02", QCOW2),
    (0, b"QFI\xfb\0\0\0\x03", QCOW2),
    (0, b"QFI\xfb", "a qcow image"),
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK description"),
    (0, b"msctlog\0", "a change log"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
];
const LOOKED_AT_BYTES: u64 = 512;

/// The format, other than raw, that a file looks like. A fixed VHD shows itself in its last sector only.
pub(crate) fn foreign_format(
    file: &dyn BlockFile,
    path: &Path,
) -> Result<Option<&'static str>, DiskError> {
    let failed = |e| DiskError::io(format!("look for a format in {}", path.display()), e);
    let length = file.length().map_err(failed)?;
    let mut sector = [0; 512];
    let there = usize::try_from(length.min(LOOKED_AT_BYTES)).expect("at most a sector");
    file.read_at(&mut sector[..there], 0).map_err(failed)?;
    for (offset, bytes, name) in SIGNATURES {
        if sector[offset..].starts_with(bytes) {
            return Ok(Some(name));
        }
    }
    // Old VHD footers are a byte shorter, so that they begin at 511 before the end.
    if length >= LOOKED_AT_BYTES {
        file.read_at(&mut sector, length - LOOKED_AT_BYTES)
            .map_err(failed)?;
        if sector.starts_with(b"conectix") || sector[1..].starts_with(b"conectix") {
            return Ok(Some(VHD));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
