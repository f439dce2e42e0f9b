//! Parents of differencing disks: what a child says of its parent, and which file that may be.
//!
//! Owns: the words ([`Parents`], [`ParentLink`]), the reading and writing of Windows paths, the walk down
//! a chain with its limits. Gives out paths only; formats open them and check that they are the
//! parent that was meant.
//!
//! Does not do: trust in paths. They stand in files that a guest's owner may have made: none is
//! followed unless the caller named it, or a folder that it must be in.
//!
//! # Invariants
//! 1. A file stands in a chain once, whatever names it has, and a chain is at most [`CHAIN_MAX`] files long.
//! 2. With [`Parents::Inside`] no file is opened whose resolved path is not below the resolved folder.
//! 3. Parents have the format of their child: none is probed.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::error::DiskError;
use crate::image::Image;
use crate::storage::{FileId, Storage};

/// Most files in a chain, the disk itself counted. Hyper-V keeps up to 50 checkpoints of a VM; each file
/// costs a read of an absent range another level, an open file, and its table in memory.
pub const CHAIN_MAX: usize = 64;

/// Which parents may be opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Parents {
    /// None: a disk that has a parent is refused.
    #[default]
    Refused,
    /// These, nearest first, as many as the chain has.
    Given(Vec<PathBuf>),
    /// Those that the files name, if they are inside this folder once symbolic links are resolved.
    Inside(PathBuf),
}

/// What a child says of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// What the parent's [`data_write_id`](crate::Identity::data_write_id) must be.
    pub id: [u8; 16],
    /// It may be this, too: written by whoever was about to change the parent, and to take the change into the child.
    pub also: Option<[u8; 16]>,
    /// Where the parent may be, in the order to be tried: relative to the child's folder, then
    /// absolute ones. Paths that mean nothing on this host are left out.
    pub paths: Vec<PathBuf>,
}

impl ParentLink {
    /// Whether a parent with this id is the one that was meant, unchanged.
    #[must_use]
    pub fn accepts(&self, data_write_id: [u8; 16]) -> bool {
        data_write_id == self.id || self.also == Some(data_write_id)
    }
}

/// Opens the parent that a link means; what drivers ask for it.
pub type Find<'a> = dyn FnMut(&ParentLink) -> Result<Arc<dyn Image>, DiskError> + 'a;

/// A [`Find`] that refuses every parent of `path`.
pub(crate) fn refuse(path: &Path) -> impl FnMut(&ParentLink) -> Result<Arc<dyn Image>, DiskError> {
    let image = path.display().to_string();
    move |link| {
        Err(DiskError::Parent {
            image: image.clone(),
            why: format!(
                "it is a differencing disk{}; its parents must be named",
                told(link)
            ),
        })
    }
}

/// The first place that the link names, for messages.
fn told(link: &ParentLink) -> String {
    match link.paths.first() {
        Some(path) => format!(" over {}", path.display()),
        None => String::new(),
    }
}

/// A chain while it is being opened.
pub(crate) struct Chain<'a> {
    storage: &'a dyn Storage,
    parents: &'a Parents,
    /// The files so far; the disk itself is first.
    files: Vec<FileId>,
}

impl<'a> Chain<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, parents: &'a Parents) -> Self {
        Self {
            storage,
            parents,
            files: Vec::new(),
        }
    }

    /// Takes the next file into the chain, before it is opened (invariant 1).
    pub(crate) fn enter(&mut self, path: &Path) -> Result<(), DiskError> {
        let id = self
            .storage
            .file_id(path)
            .map_err(|e| DiskError::io(format!("open {}", path.display()), e))?;
        if self.files.contains(&id) {
            return Err(refused(
                path,
                "it is its own parent, directly or through others",
            ));
        }
        if self.files.len() == CHAIN_MAX {
            return Err(refused(
                path,
                format!("the chain is longer than {CHAIN_MAX} files"),
            ));
        }
        self.files.push(id);
        Ok(())
    }

    /// Where the parent of `child`, the file that was entered last, is.
    pub(crate) fn parent_of(&self, child: &Path, link: &ParentLink) -> Result<PathBuf, DiskError> {
        match self.parents {
            Parents::Refused => Err(refuse(child)(link).err().expect("it refuses everything")),
            Parents::Given(given) => given.get(self.files.len() - 1).cloned().ok_or_else(|| {
                let why = format!("it has a parent, too{}; name that as well", told(link));
                refused(child, why)
            }),
            Parents::Inside(folder) => self.inside(folder, child, link),
        }
    }

    /// Refuses parents that were given and that the chain has no place for.
    pub(crate) fn finish(&self, path: &Path) -> Result<(), DiskError> {
        let found = self.files.len().saturating_sub(1);
        match self.parents {
            Parents::Given(given) if given.len() > found => Err(refused(
                path,
                format!(
                    "{} parents were named, but its chain has {found}",
                    given.len()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The first named file that exists. Resolved, so that what is opened is what was looked at.
    fn inside(&self, folder: &Path, child: &Path, link: &ParentLink) -> Result<PathBuf, DiskError> {
        let failed = |path: &Path, e| DiskError::io(format!("resolve {}", path.display()), e);
        let resolve = |path: &Path| self.storage.canonical(path).map_err(|e| failed(path, e));
        let folder = resolve(folder)?;
        let child_file = resolve(child)?;
        let beside = child_file.parent().unwrap_or(Path::new("/"));
        let mut tried = Vec::new();
        for path in &link.paths {
            // An absolute path replaces the folder.
            let path = beside.join(path);
            match self.storage.canonical(&path) {
                // Invariant 2.
                Ok(real) if real.starts_with(&folder) => return Ok(real),
                Ok(_) => tried.push(format!("{} (outside {})", path.display(), folder.display())),
                Err(e) if is_missing(&e) => tried.push(format!("{} (missing)", path.display())),
                Err(e) => return Err(failed(&path, e)),
            }
        }
        let why = if tried.is_empty() {
            "it names its parent in no way that means anything on this host; name the parent"
                .to_owned()
        } else {
            format!("its parent is not where it says: {}", tried.join(", "))
        };
        Err(refused(child, why))
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

pub(crate) fn refused(image: &Path, why: impl Into<String>) -> DiskError {
    DiskError::Parent {
        image: image.display().to_string(),
        why: why.into(),
    }
}

/// Checks a parent that was opened against its child.
pub(crate) fn check(
    child: &Path,
    link: &ParentLink,
    parent: &dyn Image,
    wanted: &crate::Geometry,
) -> Result<(), DiskError> {
    let found = parent.identity()?.data_write_id;
    if !link.accepts(found) {
        let [wanted, found] = [link.id, found].map(uuid::Uuid::from_bytes_le);
        return Err(refused(
            child,
            format!(
                "the parent was changed since, or is another disk: its id is {found} and should be {wanted}; \
                 put the unchanged parent back"
            ),
        ));
    }
    let geometry = parent.geometry();
    if geometry.logical_sector_bytes != wanted.logical_sector_bytes {
        return Err(refused(
            child,
            format!(
                "its sectors are of {} bytes and the parent's of {}",
                wanted.logical_sector_bytes, geometry.logical_sector_bytes
            ),
        ));
    }
    if geometry.size_bytes > wanted.size_bytes {
        return Err(refused(
            child,
            format!(
                "it has {} bytes and the parent more, {}",
                wanted.size_bytes, geometry.size_bytes
            ),
        ));
    }
    Ok(())
}

/// A path as Windows writes it, on this host. `None` where it means nothing here: drives, volumes, shares.
#[must_use]
pub fn host_path(windows: &str) -> Option<PathBuf> {
    let path = windows.strip_prefix(LONG_PATH).unwrap_or(windows);
    let is_drive = path.chars().nth(1) == Some(':');
    let is_volume =
        path.starts_with("Volume{") || path.starts_with("UNC\\") || path.starts_with("\\\\");
    if path.is_empty() || path.contains('\0') || is_drive || is_volume {
        return None;
    }
    Some(PathBuf::from(path.replace('\\', "/")))
}

/// Prefix by which Windows knows an absolute path of any length.
const LONG_PATH: &str = r"\\?\";

/// Both ways in which a child names its parent: relative to its folder, and absolute. The paths are resolved.
/// `None` where Windows has no way to write them.
#[must_use]
pub fn windows_paths(child: &Path, parent: &Path) -> Option<(String, String)> {
    let names = |path: &Path| -> Option<Vec<String>> {
        path.components()
            .filter(|part| !matches!(part, Component::RootDir))
            .map(|part| {
                let name = part.as_os_str().to_str()?;
                (!name.contains('\\')).then(|| name.to_owned())
            })
            .collect()
    };
    let (from, to) = (names(child.parent()?)?, names(parent)?);
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let ups = from.len() - common;
    let mut relative = if ups == 0 { vec!["."] } else { vec![".."; ups] };
    relative.extend(to[common..].iter().map(String::as_str));
    Some((
        relative.join("\\"),
        format!("{LONG_PATH}\\{}", to.join("\\")),
    ))
}

#[cfg(test)]
mod tests;
