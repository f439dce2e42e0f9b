//! The catalogue's tables, and how an older database becomes a current one.
//!
//! `user_version` counts the migrations that were applied; each runs in one transaction with its
//! count. Does not do: rows.

use std::path::Path;

use rusqlite::Connection;

use super::CatalogError;
use super::sqlite::failed;

/// Marks the database as ours: "sPCg".
const APPLICATION_ID: i64 = 0x7350_4367;

/// What to do to get from version `i` to `i + 1`. Never edited once released; only appended to.
const MIGRATIONS: [&str; 3] = [V1, V2, V3];

const V1: &str = "
CREATE TABLE groups (
    group_id BLOB PRIMARY KEY NOT NULL CHECK (length(group_id) = 16),
    name TEXT NOT NULL UNIQUE,
    interval_ms INTEGER NOT NULL,
    keep_points INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    settings TEXT NOT NULL
) STRICT;
CREATE TABLE disks (
    group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    disk_id BLOB NOT NULL CHECK (length(disk_id) = 16),
    name TEXT NOT NULL,
    path BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    format INTEGER NOT NULL,
    logical_sector_bytes INTEGER NOT NULL,
    format_block_bytes INTEGER NOT NULL,
    owned INTEGER NOT NULL,
    PRIMARY KEY (group_id, disk_id),
    UNIQUE (group_id, name)
) STRICT;
CREATE TABLE roles (
    group_id BLOB PRIMARY KEY NOT NULL REFERENCES groups ON DELETE CASCADE,
    record BLOB NOT NULL
) STRICT;
CREATE TABLE points (
    group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    cycle INTEGER NOT NULL,
    generation BLOB NOT NULL CHECK (length(generation) = 16),
    cut_at INTEGER NOT NULL,
    consistency INTEGER NOT NULL,
    label TEXT,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (group_id, cycle)
) STRICT;
CREATE TABLE logs (
    group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    cycle INTEGER NOT NULL,
    disk_id BLOB NOT NULL,
    file_name TEXT NOT NULL,
    file_bytes INTEGER NOT NULL,
    file_hash BLOB NOT NULL CHECK (length(file_hash) = 32),
    covered_bytes INTEGER NOT NULL,
    PRIMARY KEY (group_id, cycle, disk_id),
    UNIQUE (group_id, file_name),
    FOREIGN KEY (group_id, disk_id) REFERENCES disks ON DELETE CASCADE
) STRICT;
CREATE TABLE jobs (
    job_id BLOB PRIMARY KEY NOT NULL CHECK (length(job_id) = 16),
    group_id BLOB REFERENCES groups ON DELETE CASCADE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    started INTEGER NOT NULL,
    ended INTEGER,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_of_group ON jobs (group_id, started);
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    serial TEXT NOT NULL,
    what TEXT NOT NULL,
    group_id BLOB,
    result TEXT NOT NULL
) STRICT;
CREATE TABLE meta (
    key TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT;
";

const V2: &str = "
CREATE TABLE tests (
    group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    name TEXT NOT NULL,
    cycle INTEGER NOT NULL,
    cap_bytes INTEGER NOT NULL,
    who TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    whole INTEGER NOT NULL,
    PRIMARY KEY (group_id, name)
) STRICT;
";

const V3: &str = "
ALTER TABLE groups ADD COLUMN retain TEXT NOT NULL DEFAULT 'newest:1';
ALTER TABLE groups ADD COLUMN cap_bytes INTEGER;
ALTER TABLE groups ADD COLUMN min_free_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN retention_revision INTEGER NOT NULL DEFAULT 0;
UPDATE groups SET retain = 'newest:' || max(keep_points, 1);
ALTER TABLE groups DROP COLUMN keep_points;
ALTER TABLE points ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
";

/// Checks that the database is ours, whole and not newer, and brings it to the current version.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), CatalogError> {
    let pragma = |c: &Connection, name: &str| {
        c.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|e| failed("read the version", e))
    };
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    let found = pragma(connection, "user_version")?;
    let id = pragma(connection, "application_id")?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|e| failed("read the tables", e))?;
    let blank = found == 0 && id == 0 && tables == 0;
    if !blank && id != APPLICATION_ID {
        return Err(CatalogError::Foreign {
            path: path.to_owned(),
        });
    }
    if found > known {
        return Err(CatalogError::Newer { found, known });
    }
    check_whole(connection)?;
    let done = usize::try_from(found).map_err(|_| CatalogError::Damaged {
        detail: format!("its version is {found}"),
    })?;
    for (sql, version) in MIGRATIONS.iter().zip(1_i64..).skip(done) {
        migrate(connection, sql, version).map_err(|e| failed("migrate the tables", e))?;
    }
    Ok(())
}

/// Makes the tables as they were at a version.
#[cfg(test)]
pub(super) fn as_of(connection: &Connection, version: usize) {
    for sql in &MIGRATIONS[..version] {
        connection.execute_batch(sql).unwrap();
    }
    let pragma = |name, value: i64| connection.pragma_update(None, name, value).unwrap();
    pragma("application_id", APPLICATION_ID);
    pragma("user_version", i64::try_from(version).unwrap());
}

fn check_whole(connection: &Connection) -> Result<(), CatalogError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|e| failed("check the database", e))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(CatalogError::Damaged { detail: verdict })
    }
}

fn migrate(connection: &mut Connection, sql: &str, version: i64) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute_batch(sql)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", version)?;
    tx.commit()
}
