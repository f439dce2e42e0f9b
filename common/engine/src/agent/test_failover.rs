//! Test failovers, as a group's task runs them: begun and ended on an operator's word, served, ended in time.
//!
//! Does not do: their files and pins, which are the replica's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sitepair_model::cause::chain;
use sitepair_model::ids::{Cycle, DiskName, TestName, UnixMillis};

use super::Context;
use super::command::{CommandError, Done};
use super::side::{ServedDisk, Side, nbd_uri, socket_path};
use super::status::{TestDiskStatus, TestStatus};
use super::task::GroupTask;
use crate::catalog::{GroupRow, TestRow};
use crate::nbd::{Disconnect, Export};
use crate::overlay::{Overlay, Space};
use crate::replica::{ReplicaError, ReplicaGroup, TestFailover};
use sitepair_disk::Image;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct TestSpec {
    /// The point; `None` for the newest.
    pub cycle: Option<Cycle>,
    /// Its name; `None` lets the agent choose.
    pub name: Option<TestName>,
    /// How long it may run, up to 30 days; `None` for 8 hours.
    pub ttl: Option<Duration>,
    /// What its writes may take in bytes; `None` for 16 GiB.
    pub space_bytes: Option<u64>,
    /// Name in the certificate of who asks.
    pub who: String,
}

/// How long a test runs unless the operator says otherwise.
const TTL: Duration = Duration::from_secs(8 * 3600);
/// The longest that one may run: it holds its recovery point all the time.
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a test's writes may take unless the operator says otherwise: 16 GiB.
const SPACE_BYTES: u64 = 16 << 30;

/// A test of a group that this process knows.
pub(super) struct Running {
    row: TestRow,
    /// Or why it is not served.
    open: Result<Served, String>,
}

struct Served {
    space: Arc<Space>,
    disks: Vec<(DiskName, Arc<Overlay>, ServedDisk)>,
}

impl Served {
    /// Serves a test's disks, read-write.
    fn new(context: &Context, row: &GroupRow, test: TestFailover) -> Result<Self, String> {
        let mut disks = Vec::with_capacity(test.disks.len());
        for (id, overlay) in test.disks {
            let disk = row.disks.iter().find(|d| d.disk == id);
            let disk = disk.ok_or("a disk of the test is not the group's")?;
            let shown = shown(&disk.name, &test.row.name);
            let socket = socket_path(&context.run_dir, &row.name, &shown);
            let export = Export {
                name: disk.name.to_string(),
                image: Arc::clone(&overlay) as Arc<dyn Image>,
            };
            let remote = format!("{}/{shown}", row.name);
            let served =
                ServedDisk::open(context, &socket, remote, export).map_err(|e| chain(&e))?;
            disks.push((disk.name.clone(), overlay, served));
        }
        let space = test.space;
        Ok(Self { space, disks })
    }

    /// Lets guests go. What they flushed stays for the next start. Blocks.
    fn close(self) {
        for (disk, overlay, served) in self.disks {
            served.close(Disconnect::Graceful);
            if let Err(e) = overlay.close() {
                tracing::warn!(%disk, "close a test's overlay: {}", chain(&e));
            }
        }
    }
}

/// How a test's disk is called where a group's own disk is `disk`.
fn shown(disk: &DiskName, test: &TestName) -> String {
    format!("{disk}~{test}")
}

/// Tests of one group, by name.
pub(super) type Tests = BTreeMap<TestName, Running>;

/// Ends the service of all. Blocks.
pub(super) fn close_all(tests: Tests) {
    tests
        .into_values()
        .filter_map(|test| test.open.ok())
        .for_each(Served::close);
}

impl GroupTask {
    fn tested_replica(&self) -> Result<ReplicaGroup, CommandError> {
        match &self.side {
            Side::Replica(side) if !self.promoting => Ok(side.group.clone()),
            _ => Err(CommandError::Refused(format!(
                "this site keeps no replica of group {}; tests run where its recovery points are",
                self.core.name
            ))),
        }
    }

    pub(super) async fn start_test(&mut self, spec: TestSpec) -> Result<TestStatus, CommandError> {
        let replica = self.tested_replica()?;
        let row = self.test_row(&replica, spec)?;
        let (context, group_row) = (Arc::clone(&self.context), self.core.row());
        let begun = tokio::task::spawn_blocking(move || {
            let test = replica.start_test(row).map_err(|e| match e {
                ReplicaError::NoSuchPoint { .. } => CommandError::NotFound(format!(
                    "{e}; `sitepair points` lists those that are kept"
                )),
                ReplicaError::TestExists { .. } => CommandError::Refused(e.to_string()),
                other => CommandError::Failed(chain(&other)),
            })?;
            let row = test.row.clone();
            match Served::new(&context, &group_row, test) {
                Ok(served) => Ok(Running {
                    row,
                    open: Ok(served),
                }),
                Err(why) => {
                    // What was served is gone with the error.
                    if let Err(e) = replica.end_test(&row.name) {
                        tracing::warn!(test = %row.name, "end a test that was not served: {}", chain(&e));
                    }
                    Err(CommandError::Failed(why))
                }
            }
        })
        .await
        .map_err(|e| CommandError::Failed(e.to_string()))??;
        let status = self.test_status(&begun);
        self.tests.insert(begun.row.name.clone(), begun);
        Ok(status)
    }

    fn test_row(&self, replica: &ReplicaGroup, spec: TestSpec) -> Result<TestRow, CommandError> {
        let newest = replica.committed().map(|(cycle, _)| cycle);
        let cycle = spec.cycle.or(newest).ok_or_else(|| {
            CommandError::Refused(format!(
                "group {} has no recovery point yet; wait for the end of initial replication",
                self.core.name
            ))
        })?;
        let ttl = spec.ttl.unwrap_or(TTL);
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(CommandError::Invalid(format!(
                "a test runs for up to {} days",
                TTL_MAX.as_secs() / (24 * 3600)
            )));
        }
        let cap_bytes = spec.space_bytes.unwrap_or(SPACE_BYTES);
        let (storage, folder) = (&self.context.storage, &self.context.state_dir);
        let free = storage.free_bytes(folder).map_err(|e| {
            CommandError::Failed(format!("look for space in {}: {e}", folder.display()))
        })?;
        if free < cap_bytes {
            return Err(CommandError::Refused(format!(
                "the test's writes may take {cap_bytes} bytes, and {} has {free} left; allow it less \
                 with --space",
                folder.display()
            )));
        }
        let taken: Vec<TestName> = replica.tests().into_iter().map(|t| t.name).collect();
        let started_at = self.context.env.now();
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        Ok(TestRow {
            name: spec.name.unwrap_or_else(|| free_name(cycle, &taken)),
            cycle,
            cap_bytes,
            who: spec.who,
            started_at,
            expires_at: UnixMillis(started_at.0.saturating_add(ttl_ms)),
            whole: false,
        })
    }

    pub(super) async fn end_test(&mut self, name: &TestName) -> Result<Done, CommandError> {
        let replica = self.tested_replica()?;
        let running = self.tests.remove(name);
        let group = self.core.name.clone();
        let ended = {
            let name = name.clone();
            tokio::task::spawn_blocking(move || {
                if let Some(served) = running.and_then(|test| test.open.ok()) {
                    served.close();
                }
                replica.end_test(&name)
            })
            .await
            .map_err(|e| CommandError::Failed(e.to_string()))?
        };
        match ended {
            Ok(()) => Ok(Done {
                changed: true,
                message: format!("group {group}: test {name} has ended, and what it wrote is gone"),
            }),
            Err(e @ ReplicaError::NoSuchTest { .. }) => Err(CommandError::NotFound(e.to_string())),
            Err(e) => Err(CommandError::Failed(chain(&e))),
        }
    }

    /// Serves tests that a restart found, and ends those whose time is over.
    pub(super) async fn look_after_tests(&mut self) {
        let Ok(replica) = self.tested_replica() else {
            return;
        };
        let now = self.context.env.now();
        for row in replica.tests() {
            if row.expires_at <= now {
                tracing::info!(group = %self.core.name, test = %row.name, "the test's time is over");
                if let Err(e) = self.end_test(&row.name).await {
                    tracing::error!(group = %self.core.name, test = %row.name, "end the test: {e}");
                    return;
                }
            } else if !self.tests.contains_key(&row.name) {
                self.reopen_test(replica.clone(), row).await;
            }
        }
    }

    async fn reopen_test(&mut self, replica: ReplicaGroup, row: TestRow) {
        let (context, group_row, name) =
            (Arc::clone(&self.context), self.core.row(), row.name.clone());
        let open = tokio::task::spawn_blocking(move || {
            let test = replica.open_test(&name).map_err(|e| chain(&e))?;
            Served::new(&context, &group_row, test)
        })
        .await
        .unwrap_or_else(|e| Err(e.to_string()));
        if let Err(why) = &open {
            tracing::error!(group = %self.core.name, test = %row.name, "not served: {why}");
        }
        self.tests.insert(row.name.clone(), Running { row, open });
    }

    /// Ends the service of all tests; they go on after the next start.
    pub(super) async fn close_tests(&mut self) {
        let tests = std::mem::take(&mut self.tests);
        // A panic in there was logged.
        let _ = tokio::task::spawn_blocking(move || close_all(tests)).await;
    }

    /// All tests, for operators.
    pub(super) fn tests_status(&self) -> Vec<TestStatus> {
        self.tests
            .values()
            .map(|test| self.test_status(test))
            .collect()
    }

    fn test_status(&self, test: &Running) -> TestStatus {
        let (group, row) = (&self.core.name, &test.row);
        let served = test.open.as_ref();
        let disks = served.map_or(&[][..], |s| &s.disks).iter();
        let disks = disks.map(|(disk, _, served)| {
            let shown = shown(disk, &row.name);
            let socket = socket_path(&self.context.run_dir, group, &shown);
            TestDiskStatus {
                disk: disk.clone(),
                nbd_uri: nbd_uri(disk, &socket),
                nbd_tls_uri: self.context.nbd_tls().map(|tls| tls.uri(group, &shown)),
                clients: u32::try_from(served.connections()).unwrap_or(u32::MAX),
            }
        });
        TestStatus {
            name: row.name.clone(),
            cycle: row.cycle,
            who: row.who.clone(),
            started_at: row.started_at,
            expires_at: row.expires_at,
            used_bytes: served.map_or(0, |s| s.space.used_bytes()),
            cap_bytes: row.cap_bytes,
            problem: served.err().map(|why| {
                format!(
                    "{why}; end it with `sitepair test end {group} {}`",
                    row.name
                )
            }),
            disks: disks.collect(),
        }
    }
}

/// `test-CYCLE`, or that with a number.
fn free_name(cycle: Cycle, taken: &[TestName]) -> TestName {
    let numbered = (2_u32..).map(|n| format!("test-{cycle}-{n}"));
    std::iter::once(format!("test-{cycle}"))
        .chain(numbered)
        .filter_map(|name| name.parse().ok())
        .find(|name| !taken.contains(name))
        .expect("there are more numbers than tests")
}
