//! qcow2: our checks of the header, and what crate imago makes of what they let through.
//!
//! The input is the file, folded. Content is not compared: a file whose tables lead to one cluster twice is damaged in
//! a way that only a check of the whole file finds.

use std::path::Path;

use sitepair_disk::Image as _;
use sitepair_disk::qcow2::Qcow2Image;

use crate::file::{PATH, unfold};
use crate::image::{check_error, look_at};

/// Opens a file for reading, then for writing.
pub fn open(input: &[u8]) {
    let (storage, file) = unfold(input);
    drop(file);
    let before = storage.operation_count();
    match Qcow2Image::open(&storage, Path::new(PATH), true) {
        Ok(image) => look_at(&image),
        Err(e) => check_error(&e),
    }
    assert_eq!(storage.operation_count(), before, "reading has written");
    let image = match Qcow2Image::open(&storage, Path::new(PATH), false) {
        Ok(image) => image,
        Err(e) => return check_error(&e),
    };
    let size = image.geometry().size_bytes;
    for at in [0, size / 2 / 512 * 512, size - 512] {
        // Damage may show itself only here.
        if image.write_at(&[0x5a; 512], at, false).is_err() {
            return;
        }
    }
    if image.discard(0, size.min(1 << 20)).is_ok() && image.flush().is_ok() {
        let _ = image.close();
    }
}
