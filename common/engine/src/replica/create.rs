//! Begins and ends a replica: creates its images and catalogue rows, removes its files.
//!
//! What a crash could leave behind is listed in the catalogue first, under `discard/GROUP_ID`: files
//! that go at the next start unless the group is in the catalogue then. So creating writes the list, the files,
//! the group, and removing writes the list, removes the group, the files; the last step of both removes the list.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sitepair_disk::{Image, ZeroMode};
use sitepair_model::ids::{DiskName, GenId, GroupId, GroupName};
use sitepair_model::peer::ImageFormat;

use super::{
    CommitRole, Disk, Inner, RemoveImages, ReplicaError, ReplicaGroup, ReplicaSite, images,
    journal, lock,
};
use crate::catalog::{DiskRow, GroupRow};

/// What to do with files that are where images should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave them alone and refuse.
    Refuse,
    /// Write over images of the right size; they are emptied first.
    WriteOver,
}

/// Where the image of a disk goes: the offered path, or `REPLICA_DIR/GROUP/DISK.{vhdx,vhd,raw}`.
///
/// # Errors
/// `BadPath` unless an offered path is absolute and without `..`.
pub fn image_path(
    site: &ReplicaSite,
    group: &GroupName,
    disk: &DiskName,
    format: ImageFormat,
    offered: Option<&str>,
) -> Result<PathBuf, ReplicaError> {
    let Some(offered) = offered else {
        let extension = match format {
            ImageFormat::Raw => "raw",
            ImageFormat::VhdxDynamic | ImageFormat::VhdxFixed => "vhdx",
            ImageFormat::VhdDynamic | ImageFormat::VhdFixed => "vhd",
            ImageFormat::Qcow2 => "qcow2",
        };
        return Ok(site
            .replica_dir
            .join(group.as_str())
            .join(format!("{disk}.{extension}")));
    };
    let path = PathBuf::from(offered);
    if !path.is_absolute() {
        return Err(ReplicaError::BadPath {
            path,
            why: "it is not absolute",
        });
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(ReplicaError::BadPath {
            path,
            why: "it goes through '..'",
        });
    }
    Ok(path)
}

impl ReplicaGroup {
    /// Makes a replica for a new group: its images, its journal folder, and with them its rows in the
    /// catalogue. Whether a disk's image is ours (`owned`) is found out here. Blocks.
    ///
    /// # Errors
    /// `Exists`, `WrongSize`, `NoSpace` and those of files and catalogue; then nothing that was made stays.
    pub fn create(
        site: ReplicaSite,
        group: &GroupRow,
        existing: Existing,
        record: &[u8],
        generation: GenId,
        role: Arc<dyn CommitRole>,
    ) -> Result<Self, ReplicaError> {
        finish_discard(&site, group.group)?;
        let mut group = group.clone();
        for disk in &mut group.disks {
            let there = site
                .storage
                .exists(&disk.path)
                .map_err(|e| ReplicaError::file(format!("look for {}", disk.path.display()), e))?;
            if there && existing == Existing::Refuse {
                return Err(ReplicaError::Exists {
                    path: disk.path.clone(),
                });
            }
            disk.owned = !there;
        }
        let discard = Discard::new(&site, &group, RemoveImages::DeleteOwned);
        discard.announce(&site, group.group)?;
        let created = create_images(&site, &group).and_then(|disks| {
            site.catalog.put_group(&group, record)?;
            Ok(disks)
        });
        match created {
            Ok(disks) => {
                site.catalog.remove_meta(&discard_key(group.group))?;
                Self::with_disks(site, &group, disks, generation, role)
            }
            Err(error) => {
                // The first error tells what went wrong; what cannot be removed now goes at the next start.
                drop(finish_discard(&site, group.group));
                Err(error)
            }
        }
    }
}

fn create_images(site: &ReplicaSite, group: &GroupRow) -> Result<Vec<Disk>, ReplicaError> {
    let journal_dir = journal::dir(&site.state_dir, group.group);
    make_dir(site, &journal_dir)?;
    // Before anything is emptied: one file that is of no use must not cost the content of another.
    for row in group.disks.iter().filter(|row| !row.owned) {
        images::check(&site.storage, row)?;
    }
    let mut disks = Vec::with_capacity(group.disks.len());
    for row in &group.disks {
        let image = if row.owned {
            create_image(site, row)?
        } else {
            take_over(site, row)?
        };
        disks.push(Disk::new(row, image));
    }
    Ok(disks)
}

fn make_dir(site: &ReplicaSite, path: &Path) -> Result<(), ReplicaError> {
    let made = site.storage.create_dir_all(path);
    made.map_err(|e| ReplicaError::file(format!("create folder {}", path.display()), e))
}

fn create_image(site: &ReplicaSite, row: &DiskRow) -> Result<Arc<dyn Image>, ReplicaError> {
    let dir = row.path.parent().unwrap_or(Path::new("/"));
    make_dir(site, dir)?;
    let image = images::create(&site.storage, row)?;
    image
        .flush()
        .map_err(|e| ReplicaError::disk(format!("flush {}", row.path.display()), e))?;
    journal::sync_dir(&*site.storage, dir)?;
    Ok(image)
}

/// Empties an existing image of the right size. Initial replication sends no zeros, so nothing may be left of what
/// it held.
fn take_over(site: &ReplicaSite, row: &DiskRow) -> Result<Arc<dyn Image>, ReplicaError> {
    let image = images::open(&site.storage, row)?;
    image
        .write_zeroes(0, row.size_bytes, ZeroMode::MayUnmap, false)
        .and_then(|()| image.flush())
        .map_err(|e| ReplicaError::disk(format!("empty {}", row.path.display()), e))?;
    Ok(image)
}

/// See [`ReplicaGroup::remove`].
pub(super) fn remove(inner: &Inner, images: RemoveImages) -> Result<(), ReplicaError> {
    inner.end_readers();
    let _one = lock(&inner.folding);
    let _still = lock(&inner.committing);
    {
        let mut state = inner.state();
        if let Some(cycle) = state.pins.keys().next() {
            return Err(ReplicaError::InUse { cycle: *cycle });
        }
        state.closed = Some("it was removed");
        state.end_transfer();
    }
    let site = &inner.site;
    let groups = site.catalog.groups()?;
    let Some(group) = groups.iter().find(|g| g.group == inner.group) else {
        return Ok(());
    };
    Discard::new(site, group, images).announce(site, inner.group)?;
    site.catalog.remove_group(inner.group)?;
    finish_discard(site, inner.group)?;
    // Those that stay are for other programs now.
    inner.close_images()
}

/// Removes what creations and removals left behind that a crash or an error cut short. Call it at start, before any
/// replica is opened.
///
/// # Errors
/// Those of files and catalogue.
pub fn finish_discards(site: &ReplicaSite) -> Result<(), ReplicaError> {
    for key in site.catalog.meta_keys(DISCARD_PREFIX)? {
        finish(site, &key)?;
    }
    Ok(())
}

fn finish_discard(site: &ReplicaSite, group: GroupId) -> Result<(), ReplicaError> {
    finish(site, &discard_key(group))
}

fn finish(site: &ReplicaSite, key: &str) -> Result<(), ReplicaError> {
    let Some(list) = site.catalog.meta(key)? else {
        return Ok(());
    };
    let known = site
        .catalog
        .groups()?
        .iter()
        .any(|g| discard_key(g.group) == key);
    // A list that does not parse names no files that we could safely remove.
    if !known && let Ok(discard) = serde_json::from_slice::<Discard>(&list) {
        discard.carry_out(site)?;
    }
    site.catalog.remove_meta(key)?;
    Ok(())
}

const DISCARD_PREFIX: &str = "discard/";

fn discard_key(group: GroupId) -> String {
    format!("{DISCARD_PREFIX}{group}")
}

/// What goes unless the group is in the catalogue.
#[derive(Serialize, Deserialize)]
struct Discard {
    /// Image files.
    files: Vec<PathBuf>,
    /// The journal folder, with all files in it.
    journal: PathBuf,
    /// A folder of ours that goes when it is empty.
    folder: PathBuf,
}

impl Discard {
    fn new(site: &ReplicaSite, group: &GroupRow, images: RemoveImages) -> Self {
        let owned = group
            .disks
            .iter()
            .filter(|d| d.owned)
            .map(|d| d.path.clone());
        Self {
            files: match images {
                RemoveImages::Keep => Vec::new(),
                RemoveImages::DeleteOwned => owned.collect(),
            },
            journal: journal::dir(&site.state_dir, group.group),
            folder: site.replica_dir.join(group.name.as_str()),
        }
    }

    fn announce(&self, site: &ReplicaSite, group: GroupId) -> Result<(), ReplicaError> {
        let list = serde_json::to_vec(self).map_err(|_| {
            let path = self.files.first().unwrap_or(&self.journal).clone();
            ReplicaError::BadPath {
                path,
                why: "it is not UTF-8",
            }
        })?;
        Ok(site.catalog.put_meta(&discard_key(group), &list)?)
    }

    fn carry_out(&self, site: &ReplicaSite) -> Result<(), ReplicaError> {
        let storage = &*site.storage;
        let mut files = self.files.clone();
        if storage.exists(&self.journal).unwrap_or(false) {
            let listed = storage.list(&self.journal);
            files.extend(
                listed.map_err(|e| {
                    ReplicaError::file(format!("list {}", self.journal.display()), e)
                })?,
            );
        }
        for path in &files {
            match storage.remove(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ReplicaError::file(format!("remove {}", path.display()), e));
                }
                _ => {}
            }
        }
        for folder in [&self.journal, &self.folder] {
            // It may hold other files, or be gone: both are fine.
            drop(storage.remove_dir(folder));
        }
        Ok(())
    }
}
