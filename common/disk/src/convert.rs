//! Making a copy of an image in a file of its own, of whatever format.
//!
//! Receives an open source and a place; the copy is written aside, synced, and only then gets its name:
//!
//! ```text
//! .NAME.ID.converting made, filled, closed    a crash leaves this, which the next conversion to NAME removes
//! renamed to NAME, folder synced              a crash leaves the file that was there before, or the whole copy
//! ```
//! Does not do: choosing the new image's format (see [`create`](crate::create)).
//!
//! # Invariants
//! 1. Under the final name there is never less than the whole copy.
//! 2. A file under the final name is replaced only if the caller said so, and if nobody has it open.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::copy::{Copied, CopyError, copy};
use crate::create::{NewImage, create};
use crate::error::DiskError;
use crate::image::Image;
use crate::open;
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};
use crate::walk::Progress;

/// End of the names of files that are being written.
const ASIDE_SUFFIX: &str = ".converting";

/// What to do with a file that is in the copy's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone, and fail.
    Keep,
    /// Put the copy in its place, unless somebody has it open.
    Replace,
}

/// A conversion that did not come to its end. Nothing was changed under the copy's name, unless by
/// [`Finish`](Self::Finish): there the whole copy may have it, although a power loss may take that back.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// There is something in the copy's place.
    #[error("{} is there already", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// What is in the copy's place cannot be replaced.
    #[error("replace {}", path.display())]
    Replace {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// The format cannot hold it, or the file cannot be made.
    #[error("make {}", path.display())]
    Make {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// The content.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The whole copy could not be made durable or named.
    #[error("finish {}", path.display())]
    Finish {
        /// The place.
        path: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
}

/// Copies `from` to a new file at `path`. Durable on return. After a failure or a stop nothing of it is left.
///
/// # Errors
/// [`ConvertError`].
pub fn convert(
    storage: &Arc<dyn Storage>,
    from: &dyn Image,
    path: &Path,
    new: &NewImage,
    existing: Existing,
    progress: &Progress,
) -> Result<Copied, ConvertError> {
    make(storage, path, new, existing, progress, |image| {
        copy(from, image, progress).map_err(ConvertError::from)
    })
}

/// Makes a new file at `path`, whose content `fill` writes: it gets an image that reads as zeros. Durable on return. After a
/// failure or a stop nothing of it is left.
///
/// # Errors
/// Those of `fill`, and [`ConvertError`].
pub fn make<T, E: From<ConvertError>>(
    storage: &Arc<dyn Storage>,
    path: &Path,
    new: &NewImage,
    existing: Existing,
    progress: &Progress,
    fill: impl FnOnce(&dyn Image) -> Result<T, E>,
) -> Result<T, E> {
    let make = |source| ConvertError::Make {
        path: path.to_owned(),
        source,
    };
    new.check().map_err(make)?;
    // Held to the end, so that nobody opens what is about to be replaced.
    let _replaced = look_at_place(&**storage, path, existing)?;
    remove_leftovers(&**storage, path);
    let aside = aside(path).map_err(make)?;
    let image = create(storage, &aside, new).map_err(make)?;
    let filled = fill(&*image).and_then(|value| {
        finish(&**storage, &*image, &aside, path, existing, progress)?;
        Ok(value)
    });
    drop(image);
    if filled.is_err() {
        match storage.remove(&aside) {
            // It has its name already, and only that may not be durable.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(()) => {}
            // The caller wants to know why it failed, not that something was left behind.
            Err(left) => {
                tracing::warn!(file = %aside.display(), error = %left, "half-made file left behind");
            }
        }
    }
    filled
}

/// Refuses what is in the copy's place, or locks it.
fn look_at_place(
    storage: &dyn Storage,
    path: &Path,
    existing: Existing,
) -> Result<Option<Arc<dyn BlockFile>>, ConvertError> {
    let failed = |source| ConvertError::Replace {
        path: path.to_owned(),
        source,
    };
    let there = storage
        .exists(path)
        .map_err(|e| failed(DiskError::io(format!("look at {}", path.display()), e)))?;
    match existing {
        _ if !there => Ok(None),
        Existing::Keep => Err(ConvertError::Exists {
            path: path.to_owned(),
        }),
        Existing::Replace => open::open_locked(storage, path, false)
            .map(Some)
            .map_err(failed),
    }
}

/// The whole copy gets its name.
fn finish(
    storage: &dyn Storage,
    image: &dyn Image,
    aside: &Path,
    path: &Path,
    existing: Existing,
    progress: &Progress,
) -> Result<(), ConvertError> {
    let failed = |source| ConvertError::Finish {
        path: path.to_owned(),
        source,
    };
    // Synced before it is renamed: invariant 1.
    image.close().map_err(failed)?;
    if progress.is_stopped() {
        return Err(CopyError::Stopped.into());
    }
    let renamed = match existing {
        // Somebody may have put a file there meanwhile: invariant 2.
        Existing::Keep => storage.rename_new(aside, path),
        Existing::Replace => storage.rename(aside, path),
    };
    match renamed {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(ConvertError::Exists {
            path: path.to_owned(),
        }),
        other => other
            .and_then(|()| storage.sync_dir(folder(path)))
            .map_err(|e| failed(DiskError::io("give the copy its name", e))),
    }
}

/// A name beside the copy's that nobody else uses.
fn aside(path: &Path) -> Result<PathBuf, DiskError> {
    let name = path.file_name().ok_or_else(|| DiskError::Invalid {
        what: format!("{} names no file", path.display()),
    })?;
    let mut own = aside_prefix(name);
    own.push(Uuid::new_v4().simple().to_string());
    own.push(ASIDE_SUFFIX);
    Ok(folder(path).join(own))
}

fn aside_prefix(name: &OsStr) -> std::ffi::OsString {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// Removes what crashed conversions to `path` left behind: files that nobody has locked. A running one keeps
/// its file locked until it is whole; if it loses it after that, it fails.
fn remove_leftovers(storage: &dyn Storage, path: &Path) {
    let Some(name) = path.file_name() else {
        return;
    };
    let prefix = aside_prefix(name);
    let Ok(files) = storage.list(folder(path)) else {
        return;
    };
    for file in files.iter().filter(|file| is_aside(file, &prefix)) {
        let free = storage
            .open(file, OpenMode::ReadWrite)
            .and_then(|open| open.lock(LockKind::Exclusive));
        if free.is_ok() && storage.remove(file).is_ok() {
            tracing::info!(file = %file.display(), "removed what a crashed conversion left behind");
        }
    }
}

fn is_aside(file: &Path, prefix: &OsStr) -> bool {
    let id = file
        .file_name()
        .map(OsStr::as_encoded_bytes)
        .and_then(|name| name.strip_prefix(prefix.as_encoded_bytes()))
        .and_then(|rest| {
            // A format may write aside, too, while it makes its file.
            let rest = rest.strip_suffix(b".new").unwrap_or(rest);
            rest.strip_suffix(ASIDE_SUFFIX.as_bytes())
        });
    id.is_some_and(|id| id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit))
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
