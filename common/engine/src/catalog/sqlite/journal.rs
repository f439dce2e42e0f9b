//! Rows of recovery points and change logs.

use rusqlite::{Connection, Row, Transaction, params};
use sitepair_model::ids::{Cycle, Digest, DiskId, GenId, GroupId, UnixMillis};

use super::Fault;
use super::convert::{consistency, consistency_code, id_bytes, number, small};
use super::groups::{exists, unknown};
use crate::catalog::{CatalogError, LogRow, PointRow};

/// Adds a point after the newest one, and its change logs.
pub(super) fn append_point(
    tx: &Transaction<'_>,
    group: GroupId,
    point: &PointRow,
) -> Result<(), Fault> {
    if let Some(newest) = edge(tx, group, "max")?
        && point.cycle <= newest
    {
        let why = format!("cycle {} is not after cycle {newest}", point.cycle);
        return Err(Fault::Conflict(why));
    }
    if let Some(log) = point.logs.iter().find(|l| l.cycle != point.cycle) {
        let why = format!(
            "change log {} is not of cycle {}",
            log.file_name, point.cycle
        );
        return Err(Fault::Conflict(why));
    }
    put_point(tx, group, point)?;
    point
        .logs
        .iter()
        .try_for_each(|log| put_log(tx, group, log))
}

fn put_point(tx: &Transaction<'_>, group: GroupId, point: &PointRow) -> Result<(), Fault> {
    if !exists(tx, group)? {
        return Err(unknown(group));
    }
    tx.execute(
        "INSERT INTO points (group_id, cycle, generation, cut_at, consistency, label, digest, pinned)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            group.as_bytes(),
            small("cycle", point.cycle.0)?,
            point.generation.as_bytes(),
            point.cut_at.0,
            consistency_code(point.consistency),
            point.label,
            point.digest.as_bytes(),
            point.pinned
        ],
    )?;
    Ok(())
}

pub(super) fn note_point(
    tx: &Transaction<'_>,
    group: GroupId,
    point: &PointRow,
) -> Result<(), Fault> {
    check_point(tx, group, point.cycle)?;
    tx.execute(
        "UPDATE points SET label = ?3, pinned = ?4 WHERE group_id = ?1 AND cycle = ?2",
        params![
            group.as_bytes(),
            small("cycle", point.cycle.0)?,
            point.label,
            point.pinned
        ],
    )?;
    Ok(())
}

fn put_log(tx: &Transaction<'_>, group: GroupId, log: &LogRow) -> Result<(), Fault> {
    tx.execute(
        "INSERT INTO logs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            group.as_bytes(),
            small("cycle", log.cycle.0)?,
            log.disk.as_bytes(),
            log.file_name,
            small("file size", log.file_bytes)?,
            log.file_hash.as_bytes(),
            small("covered bytes", log.covered_bytes)?
        ],
    )?;
    Ok(())
}

/// The oldest (`min`) or newest (`max`) point.
fn edge(
    connection: &Connection,
    group: GroupId,
    which: &'static str,
) -> Result<Option<Cycle>, Fault> {
    let sql = format!("SELECT {which}(cycle) FROM points WHERE group_id = ?1");
    let cycle: Option<i64> = connection.query_row(&sql, [group.as_bytes()], |row| row.get(0))?;
    let damaged = |c| {
        Fault::Other(CatalogError::Damaged {
            detail: format!("cycle {c}"),
        })
    };
    cycle
        .map(|c| u64::try_from(c).map(Cycle).map_err(|_| damaged(c)))
        .transpose()
}

pub(super) fn drop_points(
    tx: &Transaction<'_>,
    group: GroupId,
    oldest: Cycle,
) -> Result<(), Fault> {
    check_point(tx, group, oldest)?;
    tx.execute(
        "DELETE FROM points WHERE group_id = ?1 AND cycle < ?2",
        params![group.as_bytes(), small("cycle", oldest.0)?],
    )?;
    Ok(())
}

fn check_point(tx: &Transaction<'_>, group: GroupId, cycle: Cycle) -> Result<(), Fault> {
    let sql = "SELECT count(*) FROM points WHERE group_id = ?1 AND cycle = ?2";
    let wanted = params![group.as_bytes(), small("cycle", cycle.0)?];
    let found: i64 = tx.query_row(sql, wanted, |row| row.get(0))?;
    if found == 1 {
        Ok(())
    } else {
        Err(Fault::Conflict(format!("cycle {cycle} is not a point")))
    }
}

pub(super) fn thinned(
    tx: &Transaction<'_>,
    group: GroupId,
    after: Cycle,
    point: Cycle,
    logs: &[LogRow],
) -> Result<(), Fault> {
    check_point(tx, group, after)?;
    check_point(tx, group, point)?;
    if let Some(log) = logs.iter().find(|l| l.cycle != point) {
        let why = format!("change log {} is not of cycle {point}", log.file_name);
        return Err(Fault::Conflict(why));
    }
    let (from, to) = (small("cycle", after.0)?, small("cycle", point.0)?);
    tx.execute(
        "DELETE FROM points WHERE group_id = ?1 AND cycle > ?2 AND cycle < ?3",
        params![group.as_bytes(), from, to],
    )?;
    tx.execute(
        "DELETE FROM logs WHERE group_id = ?1 AND cycle > ?2 AND cycle <= ?3",
        params![group.as_bytes(), from, to],
    )?;
    logs.iter().try_for_each(|log| put_log(tx, group, log))
}

pub(super) fn merged(tx: &Transaction<'_>, group: GroupId, through: Cycle) -> Result<(), Fault> {
    let oldest = edge(tx, group, "min")?;
    if oldest != Some(through) {
        return Err(Fault::Conflict(format!(
            "cycle {through} is not the oldest point"
        )));
    }
    tx.execute(
        "DELETE FROM logs WHERE group_id = ?1 AND cycle <= ?2",
        params![group.as_bytes(), small("cycle", through.0)?],
    )?;
    Ok(())
}

pub(super) fn reset(tx: &Transaction<'_>, group: GroupId, base: &PointRow) -> Result<(), Fault> {
    if !base.logs.is_empty() {
        return Err(Fault::Conflict("the base point has change logs".to_owned()));
    }
    tx.execute("DELETE FROM logs WHERE group_id = ?1", [group.as_bytes()])?;
    tx.execute("DELETE FROM points WHERE group_id = ?1", [group.as_bytes()])?;
    put_point(tx, group, base)
}

pub(super) fn points(connection: &Connection, group: GroupId) -> Result<Vec<PointRow>, Fault> {
    let mut statement = connection.prepare(
        "SELECT cycle, generation, cut_at, consistency, label, digest, pinned FROM points
         WHERE group_id = ?1 ORDER BY cycle",
    )?;
    let mut points: Vec<PointRow> = statement
        .query_map([group.as_bytes()], point)?
        .collect::<Result<_, _>>()?;
    for log in logs(connection, group)? {
        // Change logs of dropped points wait for their merge; they belong to no point any more.
        if let Ok(at) = points.binary_search_by_key(&log.cycle, |p| p.cycle) {
            points[at].logs.push(log);
        }
    }
    Ok(points)
}

pub(super) fn logs(connection: &Connection, group: GroupId) -> Result<Vec<LogRow>, Fault> {
    let mut statement = connection.prepare(
        "SELECT disk_id, cycle, file_name, file_bytes, file_hash, covered_bytes FROM logs
         WHERE group_id = ?1 ORDER BY cycle, disk_id",
    )?;
    Ok(statement
        .query_map([group.as_bytes()], log)?
        .collect::<Result<_, _>>()?)
}

fn point(row: &Row<'_>) -> rusqlite::Result<PointRow> {
    Ok(PointRow {
        cycle: Cycle(number(row, 0)?),
        generation: GenId::from_bytes(id_bytes(row, 1)?),
        cut_at: UnixMillis(row.get(2)?),
        consistency: consistency(row, 3)?,
        label: row.get(4)?,
        digest: Digest::from_bytes(id_bytes(row, 5)?),
        pinned: row.get(6)?,
        logs: Vec::new(),
    })
}

fn log(row: &Row<'_>) -> rusqlite::Result<LogRow> {
    Ok(LogRow {
        disk: DiskId::from_bytes(id_bytes(row, 0)?),
        cycle: Cycle(number(row, 1)?),
        file_name: row.get(2)?,
        file_bytes: number(row, 3)?,
        file_hash: Digest::from_bytes(id_bytes(row, 4)?),
        covered_bytes: number(row, 5)?,
    })
}
