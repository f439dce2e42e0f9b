//! Opening: checks a file whole, then takes it into use.
//!
//! Receives a path, gives out a [`Core`]. A writable open changes the file only after everything
//! was found to be right, in this order:
//!
//! ```text
//! headers x2   new FileWriteGuid; a log that is to be replayed stays named
//! log -> file  grown, pages in their places, synced
//! headers x2   no log
//! file cut to its last used mebibyte, synced
//! ```
//! A crash between any two leaves a file that opens the same way again.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use super::bat::Bat;
use super::bitmap::Bitmaps;
use super::core::{Core, STRIPES};
use super::durable::Durable;
use super::journal::Headers;
use super::layout::{
    BAT_REGION, FILE_SIGNATURE, FIRST_FREE, METADATA_REGION, NO_GUID, REGION_TABLE_BYTES,
    REGION_TABLE_OFFSETS, Region, Shape, Span, corrupt, decode_regions, random_guid,
};
use super::metadata;
use super::replay::View;
use super::space::Space;
use crate::error::DiskError;
use crate::parent::{self, Find};
use crate::storage::{BlockFile, LockKind, OpenMode, Storage};

const VERSION: u16 = 1;

/// Opens and locks the file.
pub(super) fn open_locked(
    storage: &dyn Storage,
    path: &Path,
    mode: OpenMode,
) -> Result<Arc<dyn BlockFile>, DiskError> {
    let name = path.display();
    let file = storage
        .open(path, mode)
        .map_err(|e| DiskError::io(format!("open {name}"), e))?;
    let kind = if mode == OpenMode::Read {
        LockKind::Shared
    } else {
        LockKind::Exclusive
    };
    match file.lock(kind) {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(DiskError::Locked {
            what: name.to_string(),
        }),
        Err(e) => Err(DiskError::io(format!("lock {name}"), e)),
    }
}

/// Opens an image; see the module.
pub(super) fn open(
    storage: &dyn Storage,
    path: &Path,
    read_only: bool,
    find: &mut Find<'_>,
) -> Result<Core, DiskError> {
    let mode = if read_only {
        OpenMode::Read
    } else {
        OpenMode::ReadWrite
    };
    let file = open_locked(storage, path, mode)?;
    open_file(file, path, read_only, find)
}

/// Opens an image whose file we have, and have locked.
pub(super) fn open_file(
    file: Arc<dyn BlockFile>,
    path: &Path,
    read_only: bool,
    find: &mut Find<'_>,
) -> Result<Core, DiskError> {
    let mut core = look(file, path, read_only)?;
    // Last of all that is looked at: the file is right as far as it goes.
    if let Some(link) = &core.parameters.parent {
        let parent = find(link)?;
        parent::check(path, link, &*parent, &core.parameters.geometry(read_only))?;
        core.parent = Some(parent);
    }
    if !read_only {
        take_into_use(&mut core)?;
    }
    Ok(core)
}

/// Checks a file whole, other than its parent: what a differencing disk holds cannot be read from this.
pub(super) fn look(
    file: Arc<dyn BlockFile>,
    path: &Path,
    read_only: bool,
) -> Result<Core, DiskError> {
    let mut view = View::new(file, path.display().to_string())?;
    if view.length < FIRST_FREE {
        return Err(corrupt(
            "file length",
            view.length,
            "the file is too short for its headers",
        ));
    }
    let mut signature = [0; 8];
    view.read(&mut signature, 0)?;
    if &signature != FILE_SIGNATURE {
        return Err(corrupt("file identifier", 0, "this is no VHDX file"));
    }
    let headers = Headers::read(&view)?;
    let header = headers.current.clone();
    if header.version != VERSION {
        return Err(DiskError::Unsupported {
            what: format!("VHDX version {}", header.version),
        });
    }
    header.log.check("log", header.log.offset, view.length)?;
    view.replay(&header)?;
    let regions = read_regions(&view, header.log)?;
    let parameters = metadata::read(&view, regions.metadata)?;
    let shape = Shape::new(
        parameters.block_bytes,
        parameters.logical_sector_bytes,
        parameters.parent.is_some(),
    );
    let (bat, owned) = Bat::read(&view, regions.bat, shape, parameters.size_bytes)?;
    let mut used = regions.all;
    used.extend(owned.iter().map(|block| block.span));
    check_disjoint(&mut used)?;
    let space = Space::new(&used);
    Ok(Core {
        durable: Durable::new(header.log, space.length()),
        view,
        read_only,
        parameters,
        parent: None,
        bat,
        bitmaps: Bitmaps::default(),
        space: Mutex::new(space),
        headers: Mutex::new(headers),
        stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
    })
}

struct Regions {
    bat: Span,
    metadata: Span,
    /// With the log, and with optional regions that we don't know.
    all: Vec<Span>,
}

/// Reads the first valid region table.
fn read_regions(view: &View, log: Span) -> Result<Regions, DiskError> {
    let mut bytes = vec![0; REGION_TABLE_BYTES];
    let mut table = None;
    for offset in REGION_TABLE_OFFSETS {
        view.read(&mut bytes, offset)?;
        if let Some(regions) = decode_regions(&bytes) {
            table = Some((offset, regions));
            break;
        }
    }
    let Some((at, table)) = table else {
        return Err(corrupt(
            "region table",
            REGION_TABLE_OFFSETS[0],
            "neither copy is valid",
        ));
    };
    let mut all = vec![log];
    for region in &table {
        region.span.check("region table", at, view.length)?;
        let known = region.guid == BAT_REGION || region.guid == METADATA_REGION;
        if region.required && !known {
            let name = uuid::Uuid::from_bytes_le(region.guid);
            return Err(DiskError::Unsupported {
                what: format!("required region {name}"),
            });
        }
        all.push(region.span);
    }
    let find = |guid, name| {
        let mut found = table.iter().filter(|region: &&Region| region.guid == guid);
        match (found.next(), found.next()) {
            (Some(region), None) => Ok(region.span),
            (None, _) => Err(corrupt(
                "region table",
                at,
                format!("there is no {name} region"),
            )),
            (Some(_), Some(_)) => Err(corrupt(
                "region table",
                at,
                format!("there are two {name} regions"),
            )),
        }
    };
    let (bat, metadata) = (find(BAT_REGION, "BAT")?, find(METADATA_REGION, "metadata")?);
    Ok(Regions { bat, metadata, all })
}

/// Sorts the spans and refuses any that overlap.
fn check_disjoint(used: &mut [Span]) -> Result<(), DiskError> {
    used.sort_unstable();
    for pair in used.windows(2) {
        if pair[0].overlaps(pair[1]) {
            return Err(corrupt(
                "file layout",
                pair[1].offset,
                format!(
                    "it overlaps the {} bytes used from {} on",
                    pair[0].length, pair[0].offset
                ),
            ));
        }
    }
    Ok(())
}

/// The writable half of opening.
fn take_into_use(core: &mut Core) -> Result<(), DiskError> {
    let failed = |what: &'static str| {
        let action = format!("{what} {}", core.view.name);
        move |e| DiskError::io(action, e)
    };
    let (headers_failed, replay_failed, cut_failed) = (
        failed("write the headers of"),
        failed("apply the log of"),
        failed("shorten"),
    );
    let file = Arc::clone(&core.view.file);
    let headers = core.headers.get_mut().expect("nobody else has it");
    let file_write = random_guid();
    let changed = headers.update(file.as_ref(), |header| header.file_write = file_write);
    changed.map_err(headers_failed)?;
    if headers.current.log_guid != NO_GUID {
        let applied = core.view.settle().and_then(|()| file.sync());
        // The log is in the file, durably: now the headers may forget it.
        applied
            .and_then(|()| headers.update(file.as_ref(), |header| header.log_guid = NO_GUID))
            .map_err(replay_failed)?;
    }
    let end = core.space.get_mut().expect("nobody else has it").length();
    if core.view.length != end {
        // What lies behind the last block was written by a session that crashed before its log
        // named it. Cut off and synced, so that the space is known to be zero when it comes back.
        // A last block that was cut short gets the rest of its space.
        file.set_length(end)
            .and_then(|()| file.sync())
            .map_err(cut_failed)?;
    }
    core.view = View::new(file, core.view.name.clone())?;
    Ok(())
}
