//! Facts of a change log's header, for people.

use std::fmt;
use std::path::Path;

use super::format::{self, Header};
use super::{HrlId, HrlTime};
use crate::error::DiskError;
use crate::storage::{BlockFile, OpenMode, Storage};

/// What a header says. Sizes are in bytes. Nothing but the cookie was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HrlInfo {
    /// Format version: major in the upper 16 bits. We read 2.0.
    pub version: u32,
    /// When the file was created.
    pub created: HrlTime,
    /// Who created it: printable characters only. `ct` for change tracking.
    pub creator: String,
    /// The creator's version: major in the upper 16 bits.
    pub creator_version: u32,
    /// Size at creation.
    pub original_size: u64,
    /// Size now.
    pub current_size: u64,
    /// End of the log; `None`: it was not closed cleanly.
    pub end: Option<u64>,
    /// An error of the creator's.
    pub error_code: i32,
    /// Bytes of one metadata block.
    pub metadata_bytes: u32,
    /// This file.
    pub unique_id: HrlId,
    /// The file before it in the chain.
    pub previous_id: HrlId,
    /// When it was closed.
    pub last_modified: HrlTime,
    /// Entries in all.
    pub total_entries: u64,
    /// Content of the VHDX that it belongs to.
    pub data_write_id: HrlId,
    /// Whether the header's checksum holds. Windows' own may not.
    pub header_checksum_holds: bool,
}

impl HrlInfo {
    /// Reads the header of a file, closed or not.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] when it is not a change log; the storage's.
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let file = storage
            .open(path, OpenMode::Read)
            .map_err(|e| DiskError::io(format!("open change log {name}"), e))?;
        let (header, holds) = read_header(&*file, &name)?;
        Ok(Self::of(&header, holds))
    }

    pub(super) fn of(header: &Header, header_checksum_holds: bool) -> Self {
        let printable = header.creator.iter().filter(|byte| byte.is_ascii_graphic());
        Self {
            version: header.version,
            created: header.created,
            creator: printable.map(|byte| char::from(*byte)).collect(),
            creator_version: header.creator_version,
            original_size: header.original_size,
            current_size: header.current_size,
            end: (header.eol != 0).then_some(header.eol),
            error_code: header.error_code,
            metadata_bytes: header.metadata_bytes,
            unique_id: header.unique_id,
            previous_id: header.previous_id,
            last_modified: header.last_modified,
            total_entries: header.total_entries,
            data_write_id: header.data_write_id,
            header_checksum_holds,
        }
    }
}

/// Reads and decodes the header; checks the length and the cookie.
pub(super) fn read_header(file: &dyn BlockFile, name: &str) -> Result<(Header, bool), DiskError> {
    let mut bytes = [0; format::HEADER_BYTES];
    file.read_at(&mut bytes, 0).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(0, format!("{name} is too short")),
        _ => DiskError::io(format!("read the header of change log {name}"), e),
    })?;
    let (header, holds) = Header::decode(&bytes);
    if header.cookie != *format::COOKIE {
        return Err(damaged(0, format!("{name} is not a change log")));
    }
    Ok((header, holds))
}

fn damaged(offset: u64, detail: String) -> DiskError {
    DiskError::Corrupt {
        structure: "change log header",
        offset,
        detail,
    }
}

impl fmt::Display for HrlInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let halves = |version: u32| format!("{}.{}", version >> 16, version & 0xffff);
        writeln!(f, "version          {}", halves(self.version))?;
        writeln!(
            f,
            "creator          {} {}",
            self.creator,
            halves(self.creator_version)
        )?;
        writeln!(f, "created          {}", self.created)?;
        match self.end {
            Some(end) => writeln!(f, "closed           {}, {end} bytes", self.last_modified)?,
            None => writeln!(f, "closed           no")?,
        }
        writeln!(f, "entries          {}", self.total_entries)?;
        writeln!(f, "id               {}", self.unique_id)?;
        writeln!(f, "previous id      {}", self.previous_id)?;
        writeln!(f, "data-write id    {}", self.data_write_id)?;
        writeln!(f, "metadata block   {} bytes", self.metadata_bytes)?;
        writeln!(f, "error code       {}", self.error_code)?;
        let checksum = if self.header_checksum_holds {
            "holds"
        } else {
            "does not hold"
        };
        write!(f, "header checksum  {checksum}")
    }
}
