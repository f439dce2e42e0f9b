//! What an agent tells about itself: plain values, built on demand, converted by the wire.

use sitepair_model::ids::{
    Cycle, DiskName, Generation, GroupId, GroupName, OpId, Site, TestName, UnixMillis,
};
use sitepair_model::peer::{ImageFormat, RoleName};
use sitepair_model::point::RecoveryPoint;
use sitepair_model::retention::{Policy, Reason, Retention};

use crate::replica::Room;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Everything is as it should be.
    Ok,
    /// Works, but somebody should look.
    Warning,
    /// Not protected, or not served.
    Critical,
}

/// The agent as a whole.
#[derive(Debug, Clone)]
pub struct AgentStatus {
    /// The pair's name.
    pub pair: String,
    /// Where it runs.
    pub site: Site,
    /// When it started.
    pub started_at: UnixMillis,
    /// The link to the other agent.
    pub link: LinkStatus,
    /// Its certificate.
    pub certificate: CertificateStatus,
    /// Its groups, by name.
    pub groups: Vec<GroupStatus>,
    /// Those that did not answer in time, by name.
    pub silent: Vec<GroupName>,
    /// Worst of all.
    pub health: Health,
}

/// The link to the other agent.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// Its address.
    pub peer: String,
    /// Whether it is up.
    pub connected: bool,
    /// When it came up or went down.
    pub since: UnixMillis,
    /// Why it is down.
    pub last_error: String,
    /// Attempts since it went down.
    pub attempts: u32,
}

/// The agent's own certificate.
#[derive(Debug, Clone)]
pub struct CertificateStatus {
    /// The name in it.
    pub identity: String,
    /// Its end.
    pub not_after: UnixMillis,
    /// Why others refuse it now, and what to do.
    pub problem: Option<String>,
}

/// One group at this site.
#[derive(Debug, Clone)]
pub struct GroupStatus {
    /// Its name.
    pub name: GroupName,
    /// Its id.
    pub id: GroupId,
    /// What this site is to it.
    pub role: RoleName,
    /// Its generation.
    pub generation: Generation,
    /// Last cycle that both sites have.
    pub cycle: Cycle,
    /// Whether guests are served here.
    pub open: bool,
    /// What goes on, in words.
    pub activity: String,
    /// How well it is.
    pub health: Health,
    /// What an operator should know.
    pub messages: Vec<String>,
    /// Commands that would be accepted.
    pub allowed_operations: Vec<&'static str>,
    /// Its disks.
    pub disks: Vec<DiskStatus>,
    /// While source.
    pub source: Option<SourceStatus>,
    /// While replica.
    pub replica: Option<ReplicaStatus>,
    /// The job that runs, or the last one.
    pub job: Option<JobStatus>,
    /// Points that are served.
    pub exports: Vec<ExportStatus>,
    /// Test failovers.
    pub tests: Vec<TestStatus>,
    /// Milliseconds between two cuts.
    pub interval_ms: u64,
    /// What is kept.
    pub retention: Retention,
}

/// One disk of a group at this site.
#[derive(Debug, Clone)]
pub struct DiskStatus {
    /// Its name.
    pub name: DiskName,
    /// Its image.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its format.
    pub format: ImageFormat,
    /// Where a hypervisor attaches, while the group is open here.
    pub nbd_uri: Option<String>,
    /// Where a hypervisor of another host attaches, if the agent has a port for that.
    pub nbd_tls_uri: Option<String>,
    /// NBD connections now.
    pub clients: u32,
}

/// Replication from here.
#[derive(Debug, Clone, Default)]
pub struct SourceStatus {
    /// Initial replication: all of it.
    pub seed_total_bytes: u64,
    /// And what is left.
    pub seed_left_bytes: u64,
    /// Written and in no cycle yet.
    pub open_dirty_bytes: u64,
    /// In the cycle that is being sent.
    pub sealed_bytes: u64,
    /// Content handed to the link since the agent started.
    pub sent_bytes: u64,
    /// What a disaster now would lose, in milliseconds of work.
    pub lag_ms: u64,
    /// Old blocks kept for the cycle that is being sent.
    pub preserved_bytes: u64,
    /// Zones that a crash would make us send again.
    pub hot_zones: u32,
    /// Written by guests since the agent started.
    pub guest_written_bytes: u64,
}

/// Replication to here.
#[derive(Debug, Clone, Default)]
pub struct ReplicaStatus {
    /// Recovery points.
    pub points: u32,
    /// The oldest.
    pub oldest: Cycle,
    /// The newest.
    pub newest: Cycle,
    /// When the newest was cut.
    pub newest_cut_at: UnixMillis,
    /// Space of the journal, and what it may take.
    pub room: Option<Room>,
    /// Of a transfer that is arriving.
    pub receiving_bytes: u64,
}

/// A recovery point.
#[derive(Debug, Clone)]
pub struct PointStatus {
    /// What it is.
    pub point: RecoveryPoint,
    /// Held by an export, a test, or somebody who reads it.
    pub in_use: bool,
    /// Why it would go, if it would.
    pub goes: Option<Reason>,
}

/// The recovery points that a site keeps, and what retention makes of them.
#[derive(Debug, Clone)]
pub struct PointList {
    /// Oldest first.
    pub points: Vec<PointStatus>,
    /// The policy that says which go.
    pub policy: Policy,
    /// Bytes that are freed when they go.
    pub frees_bytes: u64,
    /// Bytes that merging of change logs between points that stay frees at most.
    pub merges_bytes: u64,
}

/// A point that is served read-only.
#[derive(Debug, Clone)]
pub struct ExportStatus {
    /// The point.
    pub cycle: Cycle,
    /// The disk.
    pub disk: DiskName,
    /// Where a client attaches.
    pub nbd_uri: String,
}

/// A test failover.
#[derive(Debug, Clone)]
pub struct TestStatus {
    /// Its name.
    pub name: TestName,
    /// The point that it started from.
    pub cycle: Cycle,
    /// Who started it.
    pub who: String,
    /// When.
    pub started_at: UnixMillis,
    /// When it ends by itself.
    pub expires_at: UnixMillis,
    /// Space that its writes take.
    pub used_bytes: u64,
    /// And may take.
    pub cap_bytes: u64,
    /// Where guests attach.
    pub disks: Vec<TestDiskStatus>,
    /// Why it is not served, and what to do.
    pub problem: Option<String>,
}

/// A disk of a test failover.
#[derive(Debug, Clone)]
pub struct TestDiskStatus {
    /// The disk.
    pub disk: DiskName,
    /// Where a hypervisor attaches.
    pub nbd_uri: String,
    /// Where a hypervisor of another host attaches, if the agent has a port for that.
    pub nbd_tls_uri: Option<String>,
    /// NBD connections now.
    pub clients: u32,
}

/// A long operation.
#[derive(Debug, Clone)]
pub struct JobStatus {
    /// Its id: the operation's.
    pub id: OpId,
    /// What it does: `planned-failover`.
    pub kind: &'static str,
    /// What it is doing.
    pub step: String,
    /// Of this step.
    pub done_bytes: u64,
    /// Of this step.
    pub total_bytes: u64,
    /// Whether it goes on.
    pub state: JobState,
    /// Why it failed, or what is true now.
    pub message: String,
    /// Its begin.
    pub started_at: UnixMillis,
    /// Its end.
    pub ended_at: Option<UnixMillis>,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Goes on.
    Running,
    /// Did what it was for.
    Done,
    /// Did not, and left things as they were before.
    Failed,
}

/// How a format is called in status and in requests.
#[must_use]
pub fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "raw",
        ImageFormat::VhdxDynamic => "vhdx-dynamic",
        ImageFormat::VhdxFixed => "vhdx-fixed",
        ImageFormat::VhdDynamic => "vhd-dynamic",
        ImageFormat::VhdFixed => "vhd-fixed",
        ImageFormat::Qcow2 => "qcow2",
    }
}
