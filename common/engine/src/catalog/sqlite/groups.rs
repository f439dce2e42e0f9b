//! Rows of groups, disks and role records.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rusqlite::{Connection, Row, Transaction, params};
use sitepair_model::ids::{DiskId, GroupId, UnixMillis};
use sitepair_model::retention::Retention;

use super::Fault;
use super::convert::{format, format_code, id_bytes, number, parsed, small};
use crate::catalog::{DiskRow, GroupRow};

pub(super) fn put(tx: &Transaction<'_>, group: &GroupRow, role: &[u8]) -> Result<(), Fault> {
    let retention = &group.retention;
    tx.execute(
        "INSERT INTO groups (group_id, name, interval_ms, created_at, settings, retain, cap_bytes,
         min_free_bytes, retention_revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            group.group.as_bytes(),
            group.name.as_str(),
            small("interval", group.interval_ms)?,
            group.created_at.0,
            group.settings,
            retention.policy.to_string(),
            cap(retention)?,
            small("free space", retention.min_free_bytes)?,
            small("revision", retention.revision)?
        ],
    )?;
    for disk in &group.disks {
        put_disk(tx, group.group, disk)?;
    }
    put_role(tx, group.group, role)
}

fn put_disk(tx: &Transaction<'_>, group: GroupId, disk: &DiskRow) -> Result<(), Fault> {
    tx.execute(
        "INSERT INTO disks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            group.as_bytes(),
            disk.disk.as_bytes(),
            disk.name.as_str(),
            disk.path.as_os_str().as_bytes(),
            small("disk size", disk.size_bytes)?,
            format_code(disk.format),
            disk.logical_sector_bytes,
            disk.format_block_bytes,
            disk.owned
        ],
    )?;
    Ok(())
}

fn cap(retention: &Retention) -> Result<Option<i64>, Fault> {
    let cap = retention.cap_bytes;
    cap.map(|bytes| small("cap", bytes)).transpose()
}

pub(super) fn put_settings(tx: &Transaction<'_>, group: &GroupRow) -> Result<(), Fault> {
    let retention = &group.retention;
    let changed = tx.execute(
        "UPDATE groups SET interval_ms = ?2, settings = ?3, retain = ?4, cap_bytes = ?5,
         min_free_bytes = ?6, retention_revision = ?7 WHERE group_id = ?1",
        params![
            group.group.as_bytes(),
            small("interval", group.interval_ms)?,
            group.settings,
            retention.policy.to_string(),
            cap(retention)?,
            small("free space", retention.min_free_bytes)?,
            small("revision", retention.revision)?
        ],
    )?;
    if changed == 1 {
        Ok(())
    } else {
        Err(unknown(group.group))
    }
}

pub(super) fn put_role(tx: &Transaction<'_>, group: GroupId, record: &[u8]) -> Result<(), Fault> {
    if !exists(tx, group)? {
        return Err(unknown(group));
    }
    tx.execute(
        "INSERT INTO roles VALUES (?1, ?2) ON CONFLICT (group_id) DO UPDATE SET record = ?2",
        params![group.as_bytes(), record],
    )?;
    Ok(())
}

pub(super) fn exists(connection: &Connection, group: GroupId) -> Result<bool, Fault> {
    let sql = "SELECT count(*) FROM groups WHERE group_id = ?1";
    let count: i64 = connection.query_row(sql, [group.as_bytes()], |row| row.get(0))?;
    Ok(count == 1)
}

pub(super) fn unknown(group: GroupId) -> Fault {
    Fault::Conflict(format!("group {group} is not known"))
}

pub(super) fn all(connection: &Connection) -> Result<Vec<GroupRow>, Fault> {
    let mut statement = connection.prepare(
        "SELECT group_id, name, interval_ms, created_at, settings, retain, cap_bytes, min_free_bytes,
         retention_revision FROM groups ORDER BY name",
    )?;
    let mut groups: Vec<GroupRow> = statement.query_map([], group)?.collect::<Result<_, _>>()?;
    for group in &mut groups {
        group.disks = disks(connection, group.group)?;
    }
    Ok(groups)
}

fn disks(connection: &Connection, group: GroupId) -> Result<Vec<DiskRow>, Fault> {
    let mut statement = connection.prepare(
        "SELECT disk_id, name, path, size_bytes, format, logical_sector_bytes, format_block_bytes,
         owned FROM disks WHERE group_id = ?1 ORDER BY disk_id",
    )?;
    Ok(statement
        .query_map([group.as_bytes()], disk)?
        .collect::<Result<_, _>>()?)
}

fn group(row: &Row<'_>) -> rusqlite::Result<GroupRow> {
    Ok(GroupRow {
        group: GroupId::from_bytes(id_bytes(row, 0)?),
        name: parsed(row, 1)?,
        interval_ms: number(row, 2)?,
        created_at: UnixMillis(row.get(3)?),
        settings: row.get(4)?,
        retention: Retention {
            policy: parsed(row, 5)?,
            cap_bytes: match row.get::<_, Option<i64>>(6)? {
                Some(_) => Some(number(row, 6)?),
                None => None,
            },
            min_free_bytes: number(row, 7)?,
            revision: number(row, 8)?,
        },
        disks: Vec::new(),
    })
}

fn disk(row: &Row<'_>) -> rusqlite::Result<DiskRow> {
    Ok(DiskRow {
        disk: DiskId::from_bytes(id_bytes(row, 0)?),
        name: parsed(row, 1)?,
        path: PathBuf::from(OsString::from_vec(row.get(2)?)),
        size_bytes: number(row, 3)?,
        format: format(row, 4)?,
        logical_sector_bytes: row.get(5)?,
        format_block_bytes: row.get(6)?,
        owned: row.get(7)?,
    })
}
