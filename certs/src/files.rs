//! Certificates and keys as files.
//!
//! Durable order of every write: a new file beside the old one, its bytes synced, renamed over the
//! old one, the folder synced. A reader sees the old file or the new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::TlsError;

/// Largest certificate, key or revocation list that is read, in bytes.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

const KEY_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// Writes a private key, readable by its owner alone from its first instant.
///
/// # Errors
/// [`TlsError::Write`].
pub fn write_key(path: &Path, pem: &str) -> Result<(), TlsError> {
    write(path, pem, KEY_MODE)
}

/// Writes a certificate or a revocation list.
///
/// # Errors
/// [`TlsError::Write`].
pub fn write_public(path: &Path, pem: &str) -> Result<(), TlsError> {
    write(path, pem, PUBLIC_MODE)
}

/// Reads a file that anyone may read.
pub(crate) fn read_public(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let file = File::open(path).map_err(|source| read_error(what, path, source))?;
    read_limited(what, path, file)
}

/// Reads a private key, and refuses one that others may read. The mode is that of the open file, so
/// that nobody can exchange it in between.
pub(crate) fn read_key(path: &Path) -> Result<Vec<u8>, TlsError> {
    let file = File::open(path).map_err(|source| read_error("key", path, source))?;
    let mode = file
        .metadata()
        .map_err(|source| read_error("key", path, source))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(TlsError::KeyModeTooWide {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    read_limited("key", path, file)
}

fn read_limited(what: &'static str, path: &Path, file: File) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| read_error(what, path, source))?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n <= PEM_BYTES_MAX) {
        Ok(bytes)
    } else {
        Err(TlsError::TooLarge {
            what,
            path: path.to_owned(),
        })
    }
}

fn read_error(what: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    write_aside(path, text, mode).map_err(|source| TlsError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_aside(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let aside = aside_path(path)?;
    // What an interrupted write left behind; create_new below would stumble over it.
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(folder)?.sync_all()
}

fn aside_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut aside = name.to_owned();
    aside.push(".new");
    Ok(path.with_file_name(aside))
}
