//! Growing an image file that nobody has open.
//!
//! Receives a path and a size; gives out what the size was and is. Durable on return.
//!
//! Does not do: shrinking (the end of the disk may hold data); telling the guest.

use std::path::Path;
use std::sync::Arc;

use crate::create::{Kind, NewImage};
use crate::error::DiskError;
use crate::image::Image;
use crate::open::{self, Format, OpenOptions};
use crate::raw::RawImage;
use crate::storage::Storage;

/// How large an image is to be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewSize {
    /// This large.
    To(u64),
    /// Larger by this.
    By(u64),
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// Size before, in bytes.
    pub from_bytes: u64,
    /// Size now, in bytes; the same if there was nothing to do.
    pub to_bytes: u64,
}

/// Grows the image at `path`. `options` are those of [`open::open_image`]; it is opened for writing whatever they say.
///
/// # Errors
/// Those of opening for writing; [`DiskError::Invalid`] for a smaller size, or one that the format cannot hold;
/// [`DiskError::Unsupported`] where this file has no room for the larger disk's tables.
pub fn resize(
    storage: &Arc<dyn Storage>,
    path: &Path,
    options: &OpenOptions,
    size: NewSize,
) -> Result<Resized, DiskError> {
    let probed = match options.format {
        Some(format) => format,
        None => open::probe(&**storage, path)?,
    };
    match probed {
        Format::Raw => {
            let image = match options.format {
                // Looked at again, now under the lock that stays.
                None => RawImage::open(&**storage, path, false)?,
                Some(_) => RawImage::open_whatever_it_holds(&**storage, path, false)?,
            };
            grow(&image, Format::Raw, size, |bytes| image.resize(bytes))
        }
        Format::Qcow2 => {
            let name = path.display();
            let what = format!("growing {name} (a qcow2 image: `qemu-img resize` does that)");
            Err(DiskError::Unsupported { what })
        }
        Format::Vhd => {
            let image = open::vhd_chain(storage, path, false, &options.parents)?;
            grow(&image, Format::Vhd, size, |bytes| image.resize(bytes))
        }
        Format::Vhdx => {
            let image = open::vhdx_chain(storage, path, false, &options.parents)?;
            grow(&image, Format::Vhdx, size, |bytes| image.resize(bytes))
        }
    }
}

fn grow(
    image: &dyn Image,
    format: Format,
    size: NewSize,
    change: impl FnOnce(u64) -> Result<(), DiskError>,
) -> Result<Resized, DiskError> {
    let geometry = image.geometry();
    let from_bytes = geometry.size_bytes;
    let checked = target(from_bytes, size).and_then(|to_bytes| {
        let wanted = NewImage {
            format,
            kind: Kind::Dynamic,
            size_bytes: to_bytes,
            block_bytes: None,
            sector_bytes: Some(geometry.logical_sector_bytes),
            physical_sector_bytes: None,
        };
        wanted.check().map(|()| to_bytes)
    });
    let changed = checked.and_then(|to_bytes| change(to_bytes).map(|()| to_bytes));
    // Closed also after a refusal: the file is left as after a clean shutdown.
    let closed = image.close();
    let to_bytes = changed?;
    closed?;
    Ok(Resized {
        from_bytes,
        to_bytes,
    })
}

fn target(from_bytes: u64, size: NewSize) -> Result<u64, DiskError> {
    let to_bytes = match size {
        NewSize::To(bytes) => bytes,
        NewSize::By(bytes) => from_bytes.checked_add(bytes).ok_or(DiskError::Invalid {
            what: format!("{from_bytes} and {bytes} bytes are more than can be counted"),
        })?,
    };
    if to_bytes < from_bytes {
        let what = format!(
            "making a disk of {from_bytes} bytes smaller, to {to_bytes}: what the guest has at the end would be lost"
        );
        return Err(DiskError::Invalid { what });
    }
    Ok(to_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::create;
    use crate::storage::host::HostStorage;

    #[test]
    fn images_grow_and_never_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
        for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
            let path = dir.path().join(format!("disk.{format}"));
            let new = NewImage {
                format,
                kind: Kind::Dynamic,
                size_bytes: 8 << 20,
                block_bytes: None,
                sector_bytes: None,
                physical_sector_bytes: None,
            };
            create(&storage, &path, &new).unwrap().close().unwrap();
            let resize = |size| resize(&storage, &path, &OpenOptions::default(), size);
            let grown = resize(NewSize::By(1 << 20)).unwrap();
            assert_eq!((grown.from_bytes, grown.to_bytes), (8 << 20, 9 << 20));
            let refused = resize(NewSize::To(1 << 20)).unwrap_err();
            assert!(refused.to_string().contains("would be lost"), "{refused}");
            let refused = resize(NewSize::By(100)).unwrap_err();
            assert!(refused.to_string().contains("nearest"), "{refused}");
            let same = resize(NewSize::To(9 << 20)).unwrap();
            assert_eq!((same.from_bytes, same.to_bytes), (9 << 20, 9 << 20));
            assert!(resize(NewSize::By(u64::MAX)).is_err());
        }
    }
}
