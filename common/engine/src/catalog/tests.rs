use super::*;

fn group(n: u8) -> GroupRow {
    GroupRow {
        group: GroupId::from_bytes([n; 16]),
        name: format!("group-{n}").parse().unwrap(),
        interval_ms: 5000,
        retention: Retention {
            policy: "all:1h,1m:4h".parse().unwrap(),
            cap_bytes: (n == 1).then_some(1 << 40),
            min_free_bytes: 1 << 20,
            revision: u64::from(n),
        },
        created_at: UnixMillis(1_700_000_000_000),
        settings: "{}".to_owned(),
        disks: vec![disk(1, ImageFormat::Raw), disk(2, ImageFormat::VhdxDynamic)],
    }
}

fn disk(n: u8, format: ImageFormat) -> DiskRow {
    DiskRow {
        disk: DiskId::from_bytes([n; 16]),
        name: format!("disk{n}").parse().unwrap(),
        path: PathBuf::from(format!("/images/disk{n}")),
        size_bytes: 1 << 30,
        format,
        logical_sector_bytes: 512,
        format_block_bytes: 0,
        owned: n == 1,
    }
}

fn point(cycle: u64, disks: &[u8]) -> PointRow {
    PointRow {
        cycle: Cycle(cycle),
        generation: GenId::from_bytes([9; 16]),
        cut_at: UnixMillis(-5),
        consistency: Consistency::Application,
        label: Some("before the upgrade".to_owned()),
        pinned: cycle == 4,
        digest: Digest::from_bytes([7; 32]),
        logs: disks.iter().map(|d| log(cycle, *d)).collect(),
    }
}

fn log(cycle: u64, disk: u8) -> LogRow {
    LogRow {
        disk: DiskId::from_bytes([disk; 16]),
        cycle: Cycle(cycle),
        file_name: format!("disk{disk}.{cycle}.hrl"),
        file_bytes: 100,
        file_hash: Digest::from_bytes([3; 32]),
        covered_bytes: 4096,
    }
}

fn cycles(catalog: &dyn Catalog, group: GroupId) -> Vec<u64> {
    catalog
        .points(group)
        .unwrap()
        .iter()
        .map(|p| p.cycle.0)
        .collect()
}

#[test]
fn what_was_written_is_there_after_opening_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let catalog = SqliteCatalog::open(&path).unwrap();
    catalog.put_group(&group(2), b"seeding").unwrap();
    catalog.put_group(&group(1), b"other").unwrap();
    catalog
        .commit_cycle(group(2).group, &point(1, &[1, 2]), b"one")
        .unwrap();
    catalog
        .commit_cycle(group(2).group, &point(4, &[]), b"four")
        .unwrap();
    catalog.put_meta("key", b"value").unwrap();
    drop(catalog);

    let catalog = SqliteCatalog::open(&path).unwrap();
    assert_eq!(catalog.groups().unwrap(), vec![group(1), group(2)]);
    assert_eq!(
        catalog.role(group(2).group).unwrap().as_deref(),
        Some(&b"four"[..])
    );
    assert_eq!(
        catalog.points(group(2).group).unwrap(),
        vec![point(1, &[1, 2]), point(4, &[])]
    );
    assert_eq!(catalog.meta("key").unwrap().as_deref(), Some(&b"value"[..]));
    catalog.put_meta("other", b"").unwrap();
    assert_eq!(catalog.meta_keys("k").unwrap(), ["key"]);
    assert_eq!(catalog.meta_keys("").unwrap(), ["key", "other"]);
    catalog.remove_meta("key").unwrap();
    assert_eq!(catalog.meta("key").unwrap(), None);
}

#[test]
fn a_cycle_is_committed_whole_or_not_at_all() {
    let catalog = SqliteCatalog::in_memory().unwrap();
    let id = group(1).group;
    catalog.put_group(&group(1), b"zero").unwrap();
    catalog.commit_cycle(id, &point(3, &[1]), b"three").unwrap();
    // Cycle 3 again, a cycle of the past, and a log of a disk that is not the group's.
    for bad in [point(3, &[2]), point(2, &[1]), point(4, &[1, 5])] {
        let error = catalog.commit_cycle(id, &bad, b"bad").unwrap_err();
        assert!(matches!(error, CatalogError::Conflict { .. }), "{error}");
        assert!(error.changed_nothing());
    }
    assert_eq!(cycles(&catalog, id), [3]);
    assert_eq!(catalog.logs(id).unwrap(), vec![log(3, 1)]);
    assert_eq!(catalog.role(id).unwrap().as_deref(), Some(&b"three"[..]));
    let unknown = GroupId::from_bytes([8; 16]);
    assert!(catalog.commit_cycle(unknown, &point(1, &[]), b"x").is_err());
    assert!(catalog.put_role(unknown, b"x").is_err());
}

#[test]
fn a_merge_drops_points_first_and_logs_at_its_end() {
    let catalog = SqliteCatalog::in_memory().unwrap();
    let id = group(1).group;
    catalog.put_group(&group(1), b"").unwrap();
    for cycle in 1..=4 {
        catalog.commit_cycle(id, &point(cycle, &[1]), b"").unwrap();
    }
    assert!(catalog.drop_points(id, Cycle(7)).is_err());
    assert!(
        catalog.merged(id, Cycle(3)).is_err(),
        "older points are still there"
    );
    catalog.drop_points(id, Cycle(3)).unwrap();
    assert_eq!(cycles(&catalog, id), [3, 4]);
    assert_eq!(catalog.logs(id).unwrap().len(), 4);
    catalog.merged(id, Cycle(3)).unwrap();
    catalog.merged(id, Cycle(3)).unwrap();
    assert_eq!(catalog.logs(id).unwrap(), vec![log(4, 1)]);
    assert_eq!(
        catalog.points(id).unwrap(),
        vec![point(3, &[]), point(4, &[1])]
    );

    assert!(catalog.reset_journal(id, &point(9, &[1])).is_err());
    assert_eq!(cycles(&catalog, id), [3, 4]);
    catalog.reset_journal(id, &point(2, &[])).unwrap();
    assert_eq!(catalog.points(id).unwrap(), vec![point(2, &[])]);
    assert!(catalog.logs(id).unwrap().is_empty());
}

#[test]
fn a_removed_group_leaves_nothing_but_the_audit_log() {
    let catalog = SqliteCatalog::in_memory().unwrap();
    let id = group(1).group;
    catalog.put_group(&group(1), b"role").unwrap();
    assert!(catalog.put_group(&group(1), b"again").is_err());
    catalog.commit_cycle(id, &point(1, &[1]), b"role").unwrap();
    let job = JobRow {
        id: OpId::from_bytes([5; 16]),
        group: Some(id),
        kind: "seed".to_owned(),
        state: "running".to_owned(),
        outcome: None,
        started: UnixMillis(1),
        ended: None,
        detail: "{}".to_owned(),
    };
    catalog.put_job(&job).unwrap();
    let done = JobRow {
        outcome: Some("done".to_owned()),
        ended: Some(UnixMillis(9)),
        ..job.clone()
    };
    catalog.put_job(&done).unwrap();
    assert_eq!(catalog.jobs(Some(id)).unwrap(), vec![done.clone()]);
    assert_eq!(catalog.jobs(None).unwrap(), vec![done]);
    let line = |what: &str| AuditRow {
        at: UnixMillis(3),
        who: "operator/ann".to_owned(),
        serial: "01ff".to_owned(),
        what: what.to_owned(),
        group: Some(id),
        result: "changed".to_owned(),
    };
    catalog.append_audit(&line("protect")).unwrap();
    catalog.append_audit(&line("unprotect")).unwrap();

    catalog.remove_group(id).unwrap();
    catalog.remove_group(id).unwrap();
    assert!(catalog.groups().unwrap().is_empty());
    assert_eq!(catalog.role(id).unwrap(), None);
    assert!(catalog.points(id).unwrap().is_empty());
    assert!(catalog.logs(id).unwrap().is_empty());
    assert!(catalog.jobs(None).unwrap().is_empty());
    assert_eq!(catalog.audit(1).unwrap(), vec![line("unprotect")]);
    assert_eq!(catalog.audit(u32::MAX).unwrap().len(), 2);
}

#[test]
fn settings_change_without_the_rest() {
    let catalog = SqliteCatalog::in_memory().unwrap();
    let mut row = group(1);
    assert!(catalog.put_settings(&row).is_err());
    catalog.put_group(&row, b"").unwrap();
    (row.interval_ms, row.settings) = (1000, "{\"paused\":true}".to_owned());
    row.retention = Retention::newest(3);
    catalog.put_settings(&row).unwrap();
    assert_eq!(catalog.groups().unwrap(), vec![row.clone()]);
    row.interval_ms = u64::MAX;
    assert!(matches!(
        catalog.put_settings(&row),
        Err(CatalogError::TooLarge { .. })
    ));
}

#[test]
fn a_point_is_noted_about_where_it_is() {
    let (catalog, id) = (SqliteCatalog::in_memory().unwrap(), group(1).group);
    catalog.put_group(&group(1), b"").unwrap();
    catalog.commit_cycle(id, &point(1, &[1]), b"").unwrap();
    catalog.commit_cycle(id, &point(2, &[1]), b"").unwrap();
    let noted = PointRow {
        label: None,
        pinned: true,
        ..point(1, &[1])
    };
    catalog.note_point(id, &noted).unwrap();
    assert_eq!(catalog.points(id).unwrap(), [noted, point(2, &[1])]);
    assert!(matches!(
        catalog.note_point(id, &point(3, &[])),
        Err(CatalogError::Conflict { .. })
    ));
}

/// The second version knew a number of points to keep, and no pins.
#[test]
fn a_catalogue_of_version_2_becomes_a_current_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    schema::as_of(&old, 2);
    old.execute_batch(
        "INSERT INTO groups VALUES (x'07070707070707070707070707070707', 'web', 1000, 5, 1, '{}');
         INSERT INTO points VALUES (x'07070707070707070707070707070707', 3,
         x'09090909090909090909090909090909', 7, 1, 'old', zeroblob(32));",
    )
    .unwrap();
    drop(old);
    let catalog = SqliteCatalog::open(&path).unwrap();
    let row = catalog.groups().unwrap().remove(0);
    assert_eq!(row.retention, Retention::newest(5));
    assert_eq!(row.interval_ms, 1000);
    let points = catalog.points(row.group).unwrap();
    assert_eq!(points[0].cycle, Cycle(3));
    assert_eq!(points[0].label.as_deref(), Some("old"));
    assert!(!points[0].pinned);
}

#[test]
fn a_damaged_newer_or_foreign_database_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    std::fs::write(
        &path,
        b"not a database, but long enough to be looked at as one",
    )
    .unwrap();
    assert!(matches!(
        SqliteCatalog::open(&path),
        Err(CatalogError::Damaged { .. })
    ));
    std::fs::remove_file(&path).unwrap();

    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    assert!(matches!(
        SqliteCatalog::open(&path),
        Err(CatalogError::Foreign { .. })
    ));
    std::fs::remove_file(&path).unwrap();

    drop(SqliteCatalog::open(&path).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    assert!(matches!(
        SqliteCatalog::open(&path),
        Err(CatalogError::Newer { found: 99, .. })
    ));

    let missing = dir.path().join("nowhere").join("catalog.db");
    assert!(matches!(
        SqliteCatalog::open(&missing),
        Err(CatalogError::Open { .. })
    ));
}

#[test]
fn a_row_that_does_not_parse_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let catalog = SqliteCatalog::open(&path).unwrap();
    catalog.put_group(&group(1), b"").unwrap();
    drop(catalog);
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("UPDATE groups SET name = '../etc'", [])
        .unwrap();
    drop(raw);
    let catalog = SqliteCatalog::open(&path).unwrap();
    assert!(matches!(
        catalog.groups(),
        Err(CatalogError::Damaged { .. })
    ));
}
