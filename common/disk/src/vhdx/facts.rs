//! What a VHDX file says of itself beyond what every image tells.
//!
//! Receives an open [`VhdxImage`]; gives out [`Facts`]. Does not do: reading anything that opening did not check,
//! other than the creator's name, which is free text.

use super::layout::NO_GUID;
use super::{CLOSED, Gate, Kind, VhdxImage, durable};
use crate::error::DiskError;

/// Where the file's maker left its name, and how long that may be.
const CREATOR_OFFSET: u64 = 8;
const CREATOR_BYTES: usize = 512;

/// A VHDX file's own facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// How it takes space.
    pub kind: Kind,
    /// The disk's own id as stored.
    pub disk_id: [u8; 16],
    /// Changes whenever somebody writes to the disk, as stored.
    pub data_write_id: [u8; 16],
    /// Who made the file. Free text of whoever that was: it may hold anything but NULs.
    pub creator: String,
    /// Room for the log, in bytes.
    pub log_bytes: u64,
    /// The file names a log: somebody has it open for writing, or stopped without closing it. An image that
    /// is open for reading has the log's changes applied in memory.
    pub log_in_use: bool,
}

impl VhdxImage {
    /// The file's own facts.
    ///
    /// # Errors
    /// When it is closed, or its creator's name cannot be read.
    pub fn facts(&self) -> Result<Facts, DiskError> {
        let gate = self.share();
        let Gate::Open(core) = &*gate else {
            return Err(CLOSED);
        };
        let mut creator = [0; CREATOR_BYTES];
        core.view.read(&mut creator, CREATOR_OFFSET)?;
        let header = durable::lock(&core.headers).current.clone();
        Ok(Facts {
            kind: core.kind(),
            disk_id: core.parameters.disk_id,
            data_write_id: header.data_write,
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
