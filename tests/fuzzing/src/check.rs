//! The checker and the repair, over files of all formats that they know.

use std::path::Path;
use std::sync::Arc;

use sitepair_disk::ErrorKind;
use sitepair_disk::check::{CheckOptions, check, repair};
use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::parent::Parents;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::FakeStorage;

use crate::file::PATH;
use crate::{vhd, vhdx};

/// Files of a VHDX, or of anything else.
pub fn vhdx(input: &[u8]) {
    both(&vhdx::file_of(input));
}

/// Files of a VHD, or of anything else.
pub fn vhd(input: &[u8]) {
    both(&vhd::file_of(input));
}

/// A check says something of every file and changes none. What the driver calls damaged it has found, too. A repair leaves
/// nothing to be repaired, and no more errors than there were.
fn both(storage: &FakeStorage) {
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let path = Path::new(PATH);
    let before = storage.operation_count();
    let report = match check(storage, path, CheckOptions::default()) {
        Ok(report) => report,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
            return;
        }
    };
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    if let Err(e) = open_image(&shared, path, options)
        && e.kind() == ErrorKind::Corrupt
    {
        assert!(
            report.counts.errors > 0,
            "the driver: {e}; the check: {report:#?}"
        );
    }
    assert_eq!(storage.operation_count(), before, "looking has written");
    match repair(&shared, path, &report, &Parents::Refused) {
        Ok(done) => {
            assert!(
                done.after.counts.errors <= report.counts.errors,
                "{done:#?}"
            );
            if report.counts.errors > 0 {
                assert_eq!(storage.operation_count(), before, "errors are not touched");
            }
            let again = repair(&shared, path, &done.after, &Parents::Refused).unwrap();
            assert!(again.done.is_empty(), "{done:#?} {again:#?}");
        }
        // The log could not be replayed, or what is at the parent's place could not be read.
        Err(e) => assert!(
            matches!(
                e.kind(),
                ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Io
            ),
            "{e}"
        ),
    }
}
