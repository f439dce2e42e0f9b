//! Rows of test failovers.

use rusqlite::{Connection, Row, Transaction, params};
use sitepair_model::ids::{Cycle, GroupId, UnixMillis};

use super::Fault;
use super::convert::{number, parsed, small};
use super::groups::{exists, unknown};
use crate::catalog::TestRow;

/// Adds a test or replaces its row.
pub(super) fn put(tx: &Transaction<'_>, group: GroupId, test: &TestRow) -> Result<(), Fault> {
    if !exists(tx, group)? {
        return Err(unknown(group));
    }
    tx.execute(
        "INSERT INTO tests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (group_id, name) DO UPDATE SET cycle = ?3, cap_bytes = ?4, who = ?5,
         started_at = ?6, expires_at = ?7, whole = ?8",
        params![
            group.as_bytes(),
            test.name.as_str(),
            small("cycle", test.cycle.0)?,
            small("cap", test.cap_bytes)?,
            test.who,
            test.started_at.0,
            test.expires_at.0,
            test.whole
        ],
    )?;
    Ok(())
}

/// By name.
pub(super) fn all(connection: &Connection, group: GroupId) -> Result<Vec<TestRow>, Fault> {
    let mut statement = connection.prepare(
        "SELECT name, cycle, cap_bytes, who, started_at, expires_at, whole FROM tests
         WHERE group_id = ?1 ORDER BY name",
    )?;
    Ok(statement
        .query_map([group.as_bytes()], test)?
        .collect::<Result<_, _>>()?)
}

fn test(row: &Row<'_>) -> rusqlite::Result<TestRow> {
    Ok(TestRow {
        name: parsed(row, 0)?,
        cycle: Cycle(number(row, 1)?),
        cap_bytes: number(row, 2)?,
        who: row.get(3)?,
        started_at: UnixMillis(row.get(4)?),
        expires_at: UnixMillis(row.get(5)?),
        whole: row.get(6)?,
    })
}
