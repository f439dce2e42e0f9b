//! Disks of virtual machines: image files made and filled as an administrator would have them.
//!
//! Gives out paths and the hash of what was put there. Does not keep an image open: the agents lock
//! what they serve.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sitepair_disk::open::{Format, OpenOptions, open_image};
use sitepair_disk::parent::Parents;
use sitepair_disk::qcow2::Qcow2Image;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use sitepair_disk::{ErrorKind, Image};

use crate::{data, wait};

/// Unit of allocation of the VHDX files that are made here: small, so that small disks have holes.
const VHDX_BLOCK_BYTES: u32 = 1 << 20;

/// Bytes written at once when a disk is filled.
const FILL_BYTES: usize = 1 << 20;

/// Longest time for which an image that we have closed can stay locked.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// A disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The file's bytes are the disk's.
    Raw,
    /// VHDX that takes space as it is written.
    VhdxDynamic,
    /// qcow2.
    Qcow2,
}

impl DiskFormat {
    /// As QEMU's tools call it.
    #[must_use]
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::VhdxDynamic => "vhdx",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The usual end of a file's name.
    #[must_use]
    pub fn extension(self) -> &'static str {
        self.qemu_name()
    }
}

/// Makes an empty disk.
///
/// # Errors
/// When the file exists or cannot be made.
pub fn create(path: &Path, format: DiskFormat, size_bytes: u64) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    let image: Box<dyn Image> = match format {
        DiskFormat::Raw => Box::new(RawImage::create(&*storage, path, size_bytes)?),
        DiskFormat::VhdxDynamic => {
            let options = CreateOptions {
                size_bytes,
                block_bytes: VHDX_BLOCK_BYTES,
                logical_sector_bytes: 512,
                physical_sector_bytes: 4096,
                kind: Kind::Dynamic,
                disk_id: None,
            };
            Box::new(VhdxImage::create(storage, path, &options)?)
        }
        DiskFormat::Qcow2 => Box::new(Qcow2Image::create(&*storage, path, size_bytes)?),
    };
    image
        .close()
        .with_context(|| format!("close {}", path.display()))
}

/// Fills `length` bytes from `offset` with the mixed content of `seed`; both are multiples of 1 MiB.
/// Gives the BLAKE3 of those bytes.
///
/// # Errors
/// When the image cannot be written.
pub fn fill(path: &Path, offset: u64, length: u64, seed: u64) -> Result<blake3::Hash> {
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    let format = match path.extension() {
        Some(end) if end == "vhdx" => Format::Vhdx,
        Some(end) if end == "qcow2" => Format::Qcow2,
        _ => Format::Raw,
    };
    let options = OpenOptions {
        format: Some(format),
        read_only: false,
        parents: Parents::Refused,
    };
    // A process that another thread starts holds our earlier lock until it becomes its program.
    let image = wait::until(
        "nobody has the image open",
        LOCK_LIMIT,
        || match open_image(&storage, path, options.clone()) {
            Err(error) if error.kind() == ErrorKind::Locked => Ok(None),
            opened => Ok(Some(opened?)),
        },
    )?;
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; FILL_BYTES];
    for at in (offset..offset + length).step_by(FILL_BYTES) {
        data::fill_mixed(seed, at, &mut buf);
        hasher.update(&buf);
        image.write_at(&buf, at, false)?;
    }
    image
        .close()
        .with_context(|| format!("close {}", path.display()))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    #[test]
    fn both_formats_hold_the_same_content_for_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let [raw, vhdx] = [DiskFormat::Raw, DiskFormat::VhdxDynamic].map(|format| {
            let path = dir.path().join(format!("disk.{}", format.extension()));
            create(&path, format, 8 << 20).unwrap();
            fill(&path, 2 << 20, 3 << 20, 5).unwrap();
            path.to_str().unwrap().to_owned()
        });
        tools::compare((&raw, "raw"), (&vhdx, "vhdx")).unwrap();
    }
}
