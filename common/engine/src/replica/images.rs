//! Image files by format: created and opened as a disk's row in the catalogue says.

use std::sync::Arc;

use sitepair_disk::qcow2::Qcow2Image;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::Storage;
use sitepair_disk::vhd::{self, VhdImage};
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use sitepair_disk::{DiskError, Image};
use sitepair_model::peer::ImageFormat;

use super::ReplicaError;
use crate::catalog::DiskRow;

/// Block size of new VHDX images where the source's image has none: the format's own default.
const VHDX_BLOCK_BYTES: u32 = 32 << 20;
/// The same for VHD images.
const VHD_BLOCK_BYTES: u32 = 2 << 20;

/// Creates an image that reads as zeros; there must be no file of its name.
pub(super) fn create(
    storage: &Arc<dyn Storage>,
    row: &DiskRow,
) -> Result<Arc<dyn Image>, ReplicaError> {
    let created = match row.format {
        ImageFormat::Raw => RawImage::create(&**storage, &row.path, row.size_bytes).map(shared),
        ImageFormat::VhdxDynamic => create_vhdx(storage, row, Kind::Dynamic),
        ImageFormat::VhdxFixed => create_vhdx(storage, row, Kind::Fixed),
        ImageFormat::VhdDynamic => create_vhd(storage, row, vhd::Kind::Dynamic),
        ImageFormat::VhdFixed => create_vhd(storage, row, vhd::Kind::Fixed),
        // A new qcow2 is for filling only: opened anew, it is one to rely on.
        ImageFormat::Qcow2 => Qcow2Image::create(&**storage, &row.path, row.size_bytes)
            .and_then(|new| new.close())
            .and_then(|()| Qcow2Image::open(&**storage, &row.path, false))
            .map(shared),
    };
    created.map_err(|e| ReplicaError::disk(format!("create image {}", row.path.display()), e))
}

fn create_vhdx(
    storage: &Arc<dyn Storage>,
    row: &DiskRow,
    kind: Kind,
) -> Result<Arc<dyn Image>, DiskError> {
    let options = CreateOptions {
        size_bytes: row.size_bytes,
        block_bytes: match row.format_block_bytes {
            0 => VHDX_BLOCK_BYTES,
            bytes => bytes,
        },
        logical_sector_bytes: row.logical_sector_bytes,
        physical_sector_bytes: 4096,
        kind,
        disk_id: None,
    };
    VhdxImage::create(Arc::clone(storage), &row.path, &options).map(shared)
}

fn create_vhd(
    storage: &Arc<dyn Storage>,
    row: &DiskRow,
    kind: vhd::Kind,
) -> Result<Arc<dyn Image>, DiskError> {
    let options = vhd::CreateOptions {
        size_bytes: row.size_bytes,
        block_bytes: match row.format_block_bytes {
            0 => VHD_BLOCK_BYTES,
            bytes => bytes,
        },
        kind,
        disk_id: None,
    };
    VhdImage::create(Arc::clone(storage), &row.path, &options).map(shared)
}

/// Opens a disk's image for writing, and checks its size.
pub(super) fn open(
    storage: &Arc<dyn Storage>,
    row: &DiskRow,
) -> Result<Arc<dyn Image>, ReplicaError> {
    open_as(storage, row, false)
}

/// Checks that a file could be a disk's image, without changing it.
pub(super) fn check(storage: &Arc<dyn Storage>, row: &DiskRow) -> Result<(), ReplicaError> {
    open_as(storage, row, true).map(drop)
}

fn open_as(
    storage: &Arc<dyn Storage>,
    row: &DiskRow,
    read_only: bool,
) -> Result<Arc<dyn Image>, ReplicaError> {
    let opened = match row.format {
        // The format is on record, and a guest may write what looks like another one.
        ImageFormat::Raw => {
            RawImage::open_whatever_it_holds(&**storage, &row.path, read_only).map(shared)
        }
        ImageFormat::VhdxDynamic | ImageFormat::VhdxFixed => {
            VhdxImage::open(Arc::clone(storage), &row.path, read_only).map(shared)
        }
        ImageFormat::VhdDynamic | ImageFormat::VhdFixed => {
            VhdImage::open(Arc::clone(storage), &row.path, read_only).map(shared)
        }
        ImageFormat::Qcow2 => Qcow2Image::open(&**storage, &row.path, read_only).map(shared),
    };
    let image =
        opened.map_err(|e| ReplicaError::disk(format!("open image {}", row.path.display()), e))?;
    let has_bytes = image.geometry().size_bytes;
    if has_bytes != row.size_bytes {
        return Err(ReplicaError::WrongSize {
            disk: row.name.clone(),
            path: row.path.clone(),
            has_bytes,
            needs_bytes: row.size_bytes,
        });
    }
    Ok(image)
}

fn shared(image: impl Image + 'static) -> Arc<dyn Image> {
    Arc::new(image)
}
