//! Making a new image of any format: the one place that knows what each format can hold.
//!
//! Receives a [`NewImage`]; gives out an open [`Image`] that reads as zeros. What a format cannot hold is refused
//! before anything is made, with the nearest that it can.
//!
//! Does not do: writing over a file, whatever it is.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::DiskError;
use crate::image::{Geometry, Image, ZeroMode};
use crate::open::{self, Format};
use crate::parent::Parents;
use crate::raw::RawImage;
use crate::storage::Storage;
use crate::vhd::{self, VhdImage};
use crate::vhdx::{self, VhdxImage};

const MIB: u32 = 1 << 20;
const TIB: u64 = 1 << 40;
/// Sectors where nobody asks for others.
const USUAL_SECTOR_BYTES: u32 = 512;
const USUAL_PHYSICAL_SECTOR_BYTES: u32 = 4096;
const VHDX_SIZE_MAX: u64 = 64 * TIB;
/// Hyper-V's own choice.
const VHDX_BLOCK_BYTES: u32 = 32 * MIB;
/// Hyper-V's own choice for differencing disks.
const VHDX_CHILD_BLOCK_BYTES: u32 = 2 * MIB;
const VHDX_BLOCK_MIN: u32 = MIB;
const VHDX_BLOCK_MAX: u32 = 256 * MIB;
/// What Windows takes.
const VHD_SIZE_MAX: u64 = 2040 << 30;
/// More than anybody has, and its tables stay small enough to be checked.
const QCOW2_SIZE_MAX: u64 = 64 * TIB;
/// Windows' own choice.
const VHD_BLOCK_BYTES: u32 = 2 * MIB;
const VHD_BLOCK_MIN: u32 = 64 << 10;
const VHD_BLOCK_MAX: u32 = 256 * MIB;
/// What a signed file offset can address.
const RAW_SIZE_MAX: u64 = i64::MAX.cast_unsigned() - 511;

/// How an image takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is written.
    Dynamic,
    /// All at once.
    Fixed,
    /// As it is written, over a parent that shows through; see [`create_over`].
    Differencing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Differencing => "differencing",
        })
    }
}

impl From<vhd::Kind> for Kind {
    fn from(kind: vhd::Kind) -> Self {
        match kind {
            vhd::Kind::Dynamic => Self::Dynamic,
            vhd::Kind::Fixed => Self::Fixed,
            vhd::Kind::Differencing => Self::Differencing,
        }
    }
}

impl From<vhdx::Kind> for Kind {
    fn from(kind: vhdx::Kind) -> Self {
        match kind {
            vhdx::Kind::Dynamic => Self::Dynamic,
            vhdx::Kind::Fixed => Self::Fixed,
        }
    }
}

/// What a new image is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// The file's format.
    pub format: Format,
    /// How it takes space.
    pub kind: Kind,
    /// Size of the disk in bytes: a multiple of the sector.
    pub size_bytes: u64,
    /// Unit of allocation in bytes; `None` for the format's usual one. Raw images have none.
    pub block_bytes: Option<u32>,
    /// Logical sector, 512 or 4096 bytes; `None` for 512. Raw images do not tell theirs, those of a VHD have 512.
    pub sector_bytes: Option<u32>,
    /// Physical sector, 512 or 4096 bytes; `None` for 4096.
    pub physical_sector_bytes: Option<u32>,
}

impl NewImage {
    /// One that can hold what an image of this geometry holds: of its size, and where the format tells them, of its
    /// sectors.
    #[must_use]
    pub fn like(geometry: &Geometry, format: Format, kind: Kind) -> Self {
        Self {
            format,
            kind,
            size_bytes: geometry.size_bytes,
            block_bytes: None,
            // A 4 KiB disk in a format that cannot say so would be misread by its guest: `check` refuses it.
            sector_bytes: (format != Format::Raw).then_some(geometry.logical_sector_bytes),
            physical_sector_bytes: (format == Format::Vhdx)
                .then_some(geometry.physical_sector_bytes),
        }
    }

    /// Tells whether the format can hold it.
    ///
    /// # Errors
    /// [`DiskError::Invalid`], with the nearest that it can hold.
    pub fn check(&self) -> Result<(), DiskError> {
        if self.kind == Kind::Differencing {
            return Err(invalid("a differencing image without a parent"));
        }
        match self.format {
            Format::Raw => self.check_raw(),
            Format::Vhd => self.check_vhd(),
            Format::Qcow2 => self.check_qcow2(),
            Format::Vhdx => self.check_vhdx(),
        }
    }

    fn check_raw(&self) -> Result<(), DiskError> {
        if self.block_bytes.is_some() {
            return Err(invalid("a raw image has no blocks to give a size to"));
        }
        if self.sector_bytes.is_some_and(|sector| sector != 512) {
            return Err(invalid(
                "a raw image cannot tell the size of its sectors; make a vhdx, or say it where the image is attached",
            ));
        }
        check_size("a raw image", self.size_bytes, 512, RAW_SIZE_MAX)
    }

    fn check_vhd(&self) -> Result<(), DiskError> {
        if self.sector_bytes.is_some_and(|sector| sector != 512) {
            return Err(invalid("a vhd has sectors of 512 bytes; make a vhdx"));
        }
        if let Some(bytes) = self.block_bytes {
            check_block(bytes, VHD_BLOCK_MIN, VHD_BLOCK_MAX)?;
        }
        check_size("a vhd", self.size_bytes, 512, VHD_SIZE_MAX)
    }

    fn check_qcow2(&self) -> Result<(), DiskError> {
        if self.kind == Kind::Fixed {
            return Err(invalid("a qcow2 takes space as it is written; make a vhdx"));
        }
        if self.block_bytes.is_some() {
            return Err(invalid(
                "the clusters of a new qcow2 are of 64 KiB; leave the block out",
            ));
        }
        if self.sector_bytes.is_some_and(|sector| sector != 512) {
            return Err(invalid(
                "a qcow2 cannot tell the size of its sectors; make a vhdx, or say it where the image is attached",
            ));
        }
        check_size("a qcow2", self.size_bytes, 512, QCOW2_SIZE_MAX)
    }

    fn check_vhdx(&self) -> Result<(), DiskError> {
        let sector = self.sector_bytes.unwrap_or(USUAL_SECTOR_BYTES);
        let physical = self.physical_sector();
        for bytes in [sector, physical] {
            if bytes != 512 && bytes != 4096 {
                let what = format!("sectors of {bytes} bytes: a vhdx has 512 or 4096");
                return Err(DiskError::Invalid { what });
            }
        }
        if let Some(bytes) = self.block_bytes {
            check_block(bytes, VHDX_BLOCK_MIN, VHDX_BLOCK_MAX)?;
        }
        check_size("a vhdx", self.size_bytes, u64::from(sector), VHDX_SIZE_MAX)
    }

    fn physical_sector(&self) -> u32 {
        self.physical_sector_bytes
            .unwrap_or(USUAL_PHYSICAL_SECTOR_BYTES)
    }
}

/// Makes a new image and opens it for writing, locked. It reads as zeros. Durable on return, its name too; a crash or
/// a failure leaves nothing under this name.
///
/// # Errors
/// Those of [`NewImage::check`]; `AlreadyExists` where there is something at `path`; the storage's.
pub fn create(
    storage: &Arc<dyn Storage>,
    path: &Path,
    new: &NewImage,
) -> Result<Arc<dyn Image>, DiskError> {
    new.check()?;
    match new.format {
        Format::Raw => raw(&**storage, path, new),
        Format::Qcow2 => qcow2(&**storage, path, new),
        Format::Vhd => {
            let options = vhd::CreateOptions {
                size_bytes: new.size_bytes,
                block_bytes: new.block_bytes.unwrap_or(VHD_BLOCK_BYTES),
                kind: match new.kind {
                    Kind::Dynamic | Kind::Differencing => vhd::Kind::Dynamic,
                    Kind::Fixed => vhd::Kind::Fixed,
                },
                disk_id: None,
            };
            let image = VhdImage::create(Arc::clone(storage), path, &options)?;
            Ok(Arc::new(image))
        }
        Format::Vhdx => {
            let options = vhdx::CreateOptions {
                size_bytes: new.size_bytes,
                block_bytes: new.block_bytes.unwrap_or(VHDX_BLOCK_BYTES),
                logical_sector_bytes: new.sector_bytes.unwrap_or(USUAL_SECTOR_BYTES),
                physical_sector_bytes: new.physical_sector(),
                kind: match new.kind {
                    Kind::Dynamic | Kind::Differencing => vhdx::Kind::Dynamic,
                    Kind::Fixed => vhdx::Kind::Fixed,
                },
                disk_id: None,
            };
            let image = VhdxImage::create(Arc::clone(storage), path, &options)?;
            Ok(Arc::new(image))
        }
    }
}

/// Makes a new differencing image over the one at `parent`, of its size, sectors and id, and opens it for writing, locked.
/// It reads as the parent does. The parent must not change from then on. `parents` says which parents the
/// parent itself may have. Durable on return.
///
/// # Errors
/// A format that has no parents; a block that the format cannot have; those of opening the parent for reading;
/// `AlreadyExists` where there is something at `path`; the storage's.
pub fn create_over(
    storage: &Arc<dyn Storage>,
    path: &Path,
    format: Format,
    block_bytes: Option<u32>,
    parent: &Path,
    parents: &Parents,
) -> Result<Arc<dyn Image>, DiskError> {
    match format {
        Format::Raw | Format::Qcow2 => Err(invalid(
            "such an image cannot have a parent here; make a vhdx over a vhdx",
        )),
        Format::Vhd => {
            let block_bytes = block_bytes.unwrap_or(VHD_BLOCK_BYTES);
            check_block(block_bytes, VHD_BLOCK_MIN, VHD_BLOCK_MAX)?;
            let over = Arc::new(open::vhd_chain(storage, parent, true, parents)?);
            let options = vhd::ChildOptions {
                parent_path: parent.to_owned(),
                block_bytes,
            };
            let image = VhdImage::create_child(Arc::clone(storage), path, &over, &options)?;
            Ok(Arc::new(image))
        }
        Format::Vhdx => {
            let block_bytes = block_bytes.unwrap_or(VHDX_CHILD_BLOCK_BYTES);
            check_block(block_bytes, VHDX_BLOCK_MIN, VHDX_BLOCK_MAX)?;
            let over = Arc::new(open::vhdx_chain(storage, parent, true, parents)?);
            let options = vhdx::ChildOptions {
                parent_path: parent.to_owned(),
                block_bytes,
            };
            let image = VhdxImage::create_child(Arc::clone(storage), path, &over, &options)?;
            Ok(Arc::new(image))
        }
    }
}

#[cfg(feature = "qcow2")]
fn qcow2(storage: &dyn Storage, path: &Path, new: &NewImage) -> Result<Arc<dyn Image>, DiskError> {
    let image = crate::qcow2::Qcow2Image::create(storage, path, new.size_bytes)?;
    Ok(Arc::new(image))
}

#[cfg(not(feature = "qcow2"))]
fn qcow2(_: &dyn Storage, path: &Path, _: &NewImage) -> Result<Arc<dyn Image>, DiskError> {
    let what = format!("{}: a qcow2 image", path.display());
    Err(DiskError::Unsupported { what })
}

fn raw(storage: &dyn Storage, path: &Path, new: &NewImage) -> Result<Arc<dyn Image>, DiskError> {
    let image = RawImage::create(storage, path, new.size_bytes)?;
    if new.kind == Kind::Fixed {
        let taken = image
            .write_zeroes(0, new.size_bytes, ZeroMode::KeepAllocated, false)
            .and_then(|()| image.flush());
        if let Err(error) = taken {
            drop(image);
            // The caller wants to know why it failed, not that something was left behind.
            if let Err(left) = storage.remove(path) {
                tracing::warn!(file = %path.display(), error = %left, "half-made file left behind");
            }
            return Err(error);
        }
    }
    Ok(Arc::new(image))
}

/// Refuses a size that is no whole number of `unit`s or more than `most` bytes, with the nearest that would do.
fn check_size(what: &str, bytes: u64, unit: u64, most: u64) -> Result<(), DiskError> {
    if bytes == 0 {
        return Err(invalid("a disk of 0 bytes: it needs a sector at least"));
    }
    if bytes > most {
        let what = format!("a disk of {bytes} bytes: {what} holds {most} at most");
        return Err(DiskError::Invalid { what });
    }
    if bytes.is_multiple_of(unit) {
        return Ok(());
    }
    let (below, above) = (bytes - bytes % unit, bytes.next_multiple_of(unit));
    let nearest = if below == 0 {
        above.to_string()
    } else {
        format!("{below} or {above}")
    };
    let what = format!(
        "a disk of {bytes} bytes: {what} has whole sectors of {unit}; the nearest size is {nearest}"
    );
    Err(DiskError::Invalid { what })
}

fn check_block(bytes: u32, least: u32, most: u32) -> Result<(), DiskError> {
    if bytes.is_power_of_two() && (least..=most).contains(&bytes) {
        return Ok(());
    }
    let nearest = match bytes {
        _ if bytes <= least => least.to_string(),
        _ if bytes >= most => most.to_string(),
        _ => format!(
            "{} or {}",
            bytes.next_power_of_two() / 2,
            bytes.next_power_of_two()
        ),
    };
    let what = format!(
        "blocks of {bytes} bytes: they are a power of two from {least} to {most}; the nearest is {nearest}"
    );
    Err(DiskError::Invalid { what })
}

fn invalid(what: &str) -> DiskError {
    DiskError::Invalid {
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vhdx(size_bytes: u64) -> NewImage {
        NewImage {
            format: Format::Vhdx,
            kind: Kind::Dynamic,
            size_bytes,
            block_bytes: None,
            sector_bytes: None,
            physical_sector_bytes: None,
        }
    }

    fn refusal(new: &NewImage) -> String {
        new.check().unwrap_err().to_string()
    }

    #[test]
    fn wrong_sizes_are_refused_with_the_nearest_right_ones() {
        assert!(refusal(&vhdx(10_000)).contains("9728 or 10240"));
        assert!(refusal(&vhdx(100)).ends_with("the nearest size is 512"));
        assert!(refusal(&vhdx(0)).contains("0 bytes"));
        assert!(refusal(&vhdx(65 << 40)).contains("70368744177664 at most"));
        let large_sectors = NewImage {
            sector_bytes: Some(4096),
            ..vhdx(10_240)
        };
        assert!(refusal(&large_sectors).contains("8192 or 12288"));
        assert!(vhdx(64 << 40).check().is_ok());
        let raw = NewImage {
            format: Format::Raw,
            ..vhdx(u64::MAX)
        };
        assert!(refusal(&raw).contains("at most"));
    }

    #[test]
    fn wrong_blocks_and_sectors_are_refused() {
        let block = |bytes| NewImage {
            block_bytes: Some(bytes),
            ..vhdx(1 << 30)
        };
        assert!(refusal(&block(3 * MIB)).contains("2097152 or 4194304"));
        assert!(refusal(&block(5)).ends_with("the nearest is 1048576"));
        assert!(refusal(&block(512 * MIB)).ends_with("the nearest is 268435456"));
        assert!(block(2 * MIB).check().is_ok());
        let raw = NewImage {
            format: Format::Raw,
            ..block(MIB)
        };
        assert!(refusal(&raw).contains("no blocks"));
        let odd = NewImage {
            sector_bytes: Some(1024),
            ..vhdx(1 << 30)
        };
        assert!(refusal(&odd).contains("512 or 4096"));
    }

    #[test]
    fn every_format_and_kind_is_made_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(crate::storage::host::HostStorage::new());
        for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
            for kind in [Kind::Dynamic, Kind::Fixed] {
                let path = dir.path().join(format!("{kind}.{format}"));
                let new = NewImage {
                    format,
                    kind,
                    ..vhdx(8 << 20)
                };
                let image = create(&storage, &path, &new).unwrap();
                assert_eq!(image.geometry().size_bytes, 8 << 20);
                image.close().unwrap();
                drop(image);
                // Nothing is written over.
                assert!(create(&storage, &path, &new).is_err());
                let info = crate::info::inspect(&storage, &path, None).unwrap();
                assert_eq!(info.format, format);
                assert_eq!(info.geometry.size_bytes, 8 << 20);
                if format == Format::Vhdx {
                    assert_eq!(info.kind, Some(kind));
                    assert_eq!(info.creator.as_deref(), Some("sitepair"));
                    assert!(!info.log.unwrap().dirty);
                }
            }
        }
        let taken = |name: &str| {
            let facts = std::fs::metadata(dir.path().join(name)).unwrap();
            std::os::unix::fs::MetadataExt::blocks(&facts) * 512
        };
        assert!(taken("dynamic.raw") < 64 << 10);
        assert!(taken("fixed.raw") >= 8 << 20);
    }

    #[test]
    fn a_child_is_made_over_a_parent_and_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(crate::storage::host::HostStorage::new());
        let path = |name: &str| dir.path().join(name);
        let base = create(&storage, &path("base.vhdx"), &vhdx(8 << 20)).unwrap();
        base.write_at(&[7; 512], 4096, false).unwrap();
        base.close().unwrap();
        drop(base);
        let inside = Parents::Inside(dir.path().to_owned());
        let over = |name, parent| {
            let parent = path(parent);
            create_over(&storage, &path(name), Format::Vhdx, None, &parent, &inside)
        };
        over("child.vhdx", "base.vhdx").unwrap().close().unwrap();
        let grandchild = over("grandchild.vhdx", "child.vhdx").unwrap();
        let mut sector = [0; 512];
        grandchild.read_at(&mut sector, 4096).unwrap();
        assert_eq!(sector, [7; 512]);
        grandchild.close().unwrap();
        drop(grandchild);
        // Its parents are not opened for this.
        std::fs::rename(path("base.vhdx"), path("away.vhdx")).unwrap();
        let told = crate::info::inspect(&storage, &path("child.vhdx"), None).unwrap();
        assert_eq!(told.kind, Some(Kind::Differencing));
        assert_eq!(told.parent.unwrap().paths[0], Path::new("./base.vhdx"));
        assert!(over("other.vhdx", "child.vhdx").is_err());
        std::fs::rename(path("away.vhdx"), path("base.vhdx")).unwrap();
        let options = open::OpenOptions {
            parents: inside,
            ..open::OpenOptions::default()
        };
        let grown = crate::resize::NewSize::By(1 << 20);
        let grown = crate::resize::resize(&storage, &path("grandchild.vhdx"), &options, grown);
        assert_eq!(grown.unwrap().to_bytes, 9 << 20);
        let raw = create_over(
            &storage,
            &path("c.raw"),
            Format::Raw,
            None,
            &path("base.vhdx"),
            &Parents::Refused,
        );
        assert!(
            raw.err()
                .unwrap()
                .to_string()
                .contains("cannot have a parent")
        );
    }
}
