//! What a VHDX file says of itself beyond what every image tells.
//!
//! Receives a path; gives out [`Facts`]. Parents are not needed, as no content is read.
//!
//! Does not do: reading anything that opening does not check, other than the creator's name, which is free text.

use std::path::Path;

use super::layout::NO_GUID;
use super::{Kind, open};
use crate::error::DiskError;
use crate::flush::lock;
use crate::gate::Guarded;
use crate::image::{Geometry, Identity};
use crate::parent::ParentLink;
use crate::storage::{OpenMode, Storage};

/// Where the file's maker left its name, and how long that may be.
const CREATOR_OFFSET: u64 = 8;
const CREATOR_BYTES: usize = 512;

/// A VHDX file's own facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Sizes.
    pub geometry: Geometry,
    /// What tells that it was changed.
    pub identity: Identity,
    /// How it takes space.
    pub kind: Kind,
    /// The disk's own id as stored.
    pub disk_id: [u8; 16],
    /// What a differencing disk says of its parent.
    pub parent: Option<ParentLink>,
    /// Who made the file. Free text of whoever that was: it may hold anything but NULs.
    pub creator: String,
    /// Room for the log, in bytes.
    pub log_bytes: u64,
    /// The file names a log: somebody has it open for writing, or stopped without closing it. An image that
    /// is open for reading has the log's changes applied in memory.
    pub log_in_use: bool,
}

impl Facts {
    /// Reads them. The file is locked as for reading meanwhile, and not changed.
    ///
    /// # Errors
    /// Those of opening for reading, other than those of parents.
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Self, DiskError> {
        let file = open::open_locked(storage, path, OpenMode::Read)?;
        let core = open::look(file, path, true)?;
        let mut creator = [0; CREATOR_BYTES];
        core.view.read(&mut creator, CREATOR_OFFSET)?;
        let header = lock(&core.headers).current.clone();
        Ok(Self {
            geometry: core.geometry(),
            identity: core.identity()?,
            kind: core.kind(),
            disk_id: core.parameters.disk_id,
            parent: core.parameters.parent.clone(),
            creator: text(&creator),
            log_bytes: header.log.length,
            log_in_use: header.log_guid != NO_GUID,
        })
    }
}

/// UTF-16 up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}
