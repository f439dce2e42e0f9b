//! Where the parent of a differencing disk may be: beside it, or below.
//!
//! Paths in disk files are untrusted: none is followed out of the disk's own folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DiskError;
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};

/// What became of a search for the parent.
pub(super) enum Parent {
    /// It is there, and locked against writers.
    Found(PathBuf, Arc<dyn BlockFile>),
    /// A writer has it.
    InUse(PathBuf),
    /// It is in none of the places that were looked at.
    NotFound,
}

/// Looks for the parent by the names that the disk gives, best first.
pub(super) fn find(
    storage: &dyn Storage,
    disk: &Path,
    names: &[String],
) -> Result<Parent, DiskError> {
    let folder = disk.parent().unwrap_or(Path::new(""));
    let mut places: Vec<PathBuf> = Vec::new();
    for name in names {
        places.extend(below(name).map(|path| folder.join(path)));
        places.extend(last(name).map(|path| folder.join(path)));
    }
    for place in places {
        let failed = |e| DiskError::io(format!("open the parent {}", place.display()), e);
        let file = match storage.open(&place, OpenMode::Read) {
            Ok(file) => file,
            Err(e) if is_not_there(&e) => continue,
            Err(e) => return Err(failed(e)),
        };
        return match file.lock(LockKind::Shared) {
            Ok(()) => Ok(Parent::Found(place, file)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Parent::InUse(place)),
            Err(e) => Err(failed(e)),
        };
    }
    Ok(Parent::NotFound)
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
    )
}

/// The name as a path that stays below its start.
fn below(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.split(['\\', '/']).filter(|part| *part != ".") {
        path.push(plain(part)?);
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

/// The last part of the name.
fn last(name: &str) -> Option<PathBuf> {
    plain(name.rsplit(['\\', '/']).next()?).map(PathBuf::from)
}

fn plain(part: &str) -> Option<&str> {
    let bad = part.is_empty() || part == ".." || part == "." || part.contains([':', '\0', '?']);
    (!bad).then_some(part)
}

/// UTF-16 text up to a NUL, in the given order of bytes; what is none is replaced.
pub(super) fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let cases = [
            (r".\parent.vhdx", Some("parent.vhdx"), Some("parent.vhdx")),
            (
                r".\sub\parent.vhdx",
                Some("sub/parent.vhdx"),
                Some("parent.vhdx"),
            ),
            (r"..\parent.vhdx", None, Some("parent.vhdx")),
            (r"\\?\C:\disks\parent.vhdx", None, Some("parent.vhdx")),
            ("/etc/passwd", None, Some("passwd")),
            (r"a\..\..\b", None, Some("b")),
            ("..", None, None),
            ("", None, None),
            ("C:x", None, None),
        ];
        for (name, expected_below, expected_last) in cases {
            assert_eq!(below(name), expected_below.map(PathBuf::from), "{name}");
            assert_eq!(last(name), expected_last.map(PathBuf::from), "{name}");
        }
    }
}
