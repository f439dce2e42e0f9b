//! Between our types and SQLite's columns. A value that does not parse is damage, never a panic.

use rusqlite::Row;
use rusqlite::types::Type;
use sitepair_model::ids::{GroupId, OpId, UnixMillis};
use sitepair_model::peer::ImageFormat;
use sitepair_model::point::Consistency;

use super::Fault;
use crate::catalog::{AuditRow, CatalogError, JobRow};

/// A number for a column; SQLite's are signed.
pub(super) fn small(what: &'static str, value: u64) -> Result<i64, Fault> {
    i64::try_from(value).map_err(|_| Fault::Other(CatalogError::TooLarge { what, value }))
}

/// A number from a column.
pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// A fixed number of bytes from a column.
pub(super) fn id_bytes<const N: usize>(row: &Row<'_>, column: usize) -> rusqlite::Result<[u8; N]> {
    row.get(column)
}

/// A name or word of ours from a column.
pub(super) fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

pub(super) fn format_code(format: ImageFormat) -> i64 {
    match format {
        ImageFormat::Raw => 1,
        ImageFormat::VhdxDynamic => 2,
        ImageFormat::VhdxFixed => 3,
        ImageFormat::VhdDynamic => 4,
        ImageFormat::VhdFixed => 5,
        ImageFormat::Qcow2 => 6,
    }
}

pub(super) fn format(row: &Row<'_>, column: usize) -> rusqlite::Result<ImageFormat> {
    match row.get(column)? {
        1_i64 => Ok(ImageFormat::Raw),
        2 => Ok(ImageFormat::VhdxDynamic),
        3 => Ok(ImageFormat::VhdxFixed),
        4 => Ok(ImageFormat::VhdDynamic),
        5 => Ok(ImageFormat::VhdFixed),
        6 => Ok(ImageFormat::Qcow2),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}

pub(super) fn consistency_code(consistency: Consistency) -> i64 {
    match consistency {
        Consistency::Crash => 1,
        Consistency::Application => 2,
    }
}

pub(super) fn consistency(row: &Row<'_>, column: usize) -> rusqlite::Result<Consistency> {
    match row.get(column)? {
        1_i64 => Ok(Consistency::Crash),
        2 => Ok(Consistency::Application),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}

fn optional_group(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<GroupId>> {
    Ok(row
        .get::<_, Option<[u8; 16]>>(column)?
        .map(GroupId::from_bytes))
}

pub(super) fn job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        id: OpId::from_bytes(id_bytes(row, 0)?),
        group: optional_group(row, 1)?,
        kind: row.get(2)?,
        state: row.get(3)?,
        outcome: row.get(4)?,
        started: UnixMillis(row.get(5)?),
        ended: row.get::<_, Option<i64>>(6)?.map(UnixMillis),
        detail: row.get(7)?,
    })
}

pub(super) fn audit_line(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        at: UnixMillis(row.get(0)?),
        who: row.get(1)?,
        serial: row.get(2)?,
        what: row.get(3)?,
        group: optional_group(row, 4)?,
        result: row.get(5)?,
    })
}
