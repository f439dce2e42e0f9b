//! What is printed with `-o json`: an interface that scripts rely on. Times are RFC 3339, sizes bytes.

use serde::Serialize;
use sitepair_proto::v1 as proto;

/// Version of the documents below.
pub(crate) const SCHEMA: u32 = 1;

/// `sitepair status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) schema: u32,
    pub(crate) sites: Vec<SiteStatus>,
}

/// One site, or why nothing is known of it.
#[derive(Debug, Serialize)]
pub(crate) struct SiteStatus {
    pub(crate) site: String,
    pub(crate) reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<Agent>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Agent {
    pub(crate) pair: String,
    pub(crate) version: String,
    pub(crate) started_at: String,
    pub(crate) health: &'static str,
    pub(crate) link: Link,
    pub(crate) certificate: Certificate,
    pub(crate) groups: Vec<Group>,
    /// Those that did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) silent_groups: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Link {
    pub(crate) peer: String,
    pub(crate) connected: bool,
    pub(crate) since: String,
    pub(crate) last_error: String,
    pub(crate) attempts: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Certificate {
    pub(crate) identity: String,
    pub(crate) not_after: String,
    pub(crate) days_left: i64,
    pub(crate) message: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) role: &'static str,
    pub(crate) generation: String,
    pub(crate) cycle: u64,
    pub(crate) open: bool,
    pub(crate) activity: String,
    pub(crate) health: &'static str,
    pub(crate) messages: Vec<String>,
    pub(crate) allowed_operations: Vec<String>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) source: Option<Source>,
    pub(crate) replica: Option<Replica>,
    pub(crate) job: Option<Job>,
    pub(crate) exports: Vec<Export>,
    pub(crate) tests: Vec<Test>,
    pub(crate) interval_ms: u64,
    /// Of a policy that keeps the newest; 0 for others.
    pub(crate) keep_points: u32,
    pub(crate) retention: Retention,
}

/// What is kept of a group.
#[derive(Debug, Serialize)]
pub(crate) struct Retention {
    pub(crate) policy: String,
    pub(crate) cap_bytes: Option<u64>,
    pub(crate) min_free_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) format: String,
    pub(crate) nbd_uri: Option<String>,
    pub(crate) nbd_tls_uri: Option<String>,
    pub(crate) clients: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Source {
    pub(crate) seed_total_bytes: u64,
    pub(crate) seed_left_bytes: u64,
    pub(crate) open_dirty_bytes: u64,
    pub(crate) sealed_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) lag_ms: u64,
    pub(crate) preserved_bytes: u64,
    pub(crate) hot_zones: u32,
    pub(crate) guest_written_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Replica {
    pub(crate) points: u32,
    pub(crate) oldest_cycle: u64,
    pub(crate) newest_cycle: u64,
    pub(crate) newest_cut_at: Option<String>,
    pub(crate) journal_bytes: u64,
    /// What the journal may take, by its cap and by the free space; null for any number of bytes.
    pub(crate) journal_allowed_bytes: Option<u64>,
    /// `enough`, `low`, `making` (points go early), `full` (replication waits).
    pub(crate) room: &'static str,
    pub(crate) receiving_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) step: String,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) state: &'static str,
    pub(crate) message: String,
    pub(crate) started_at: String,
    pub(crate) ended_at: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Export {
    pub(crate) cycle: u64,
    pub(crate) disk: String,
    pub(crate) nbd_uri: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) cycle: u64,
    pub(crate) who: String,
    pub(crate) started_at: String,
    pub(crate) expires_at: String,
    pub(crate) used_bytes: u64,
    pub(crate) cap_bytes: u64,
    pub(crate) disks: Vec<TestDisk>,
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TestDisk {
    pub(crate) name: String,
    pub(crate) nbd_uri: String,
    pub(crate) nbd_tls_uri: Option<String>,
    pub(crate) clients: u32,
}

/// `sitepair points`.
#[derive(Debug, Serialize)]
pub(crate) struct Points {
    pub(crate) schema: u32,
    pub(crate) site: String,
    pub(crate) group: String,
    pub(crate) points: Vec<Point>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<Plan>,
}

/// What retention would do.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) policy: String,
    pub(crate) frees_bytes: u64,
    /// At most.
    pub(crate) merges_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) cycle: u64,
    pub(crate) cut_at: String,
    pub(crate) consistency: String,
    pub(crate) label: Option<String>,
    pub(crate) journal_bytes: u64,
    pub(crate) in_use: bool,
    pub(crate) pinned: bool,
    /// Why it would go, in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goes: Option<String>,
}

/// Any command that changes something.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    pub(crate) schema: u32,
    pub(crate) changed: bool,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cycle: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) disks: Vec<Disk>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) exports: Vec<Export>,
    /// Change logs that were written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) logs: Vec<Log>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) test: Option<Test>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention: Option<Retention>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<Job>,
}

/// A change log as a file here.
#[derive(Debug, Serialize)]
pub(crate) struct Log {
    pub(crate) disk: String,
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) id: String,
    pub(crate) previous_id: String,
    /// BLAKE3 of what its entries say, in hexadecimal digits.
    pub(crate) content_hash: String,
}

impl Done {
    /// A change that needs no more words.
    pub(crate) fn new(changed: bool, message: impl Into<String>) -> Self {
        Self {
            schema: SCHEMA,
            changed,
            message: message.into(),
            cycle: None,
            disks: Vec::new(),
            exports: Vec::new(),
            test: None,
            retention: None,
            logs: Vec::new(),
            job: None,
        }
    }
}

/// `sitepair ... -o json` that failed, on standard error.
#[derive(Debug, Serialize)]
pub(crate) struct Failed {
    pub(crate) schema: u32,
    pub(crate) error: String,
    pub(crate) code: u8,
}

/// Milliseconds since 1970 as RFC 3339; empty for 0, which stands for "not known".
pub(crate) fn time(ms: i64) -> String {
    if ms == 0 {
        return String::new();
    }
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |t| t.to_string())
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A role in one word.
pub(crate) fn role(role: proto::Role) -> &'static str {
    match role {
        proto::Role::Unspecified => "none",
        proto::Role::Source => "source",
        proto::Role::Quiescing => "quiescing",
        proto::Role::HandedOver => "handed-over",
        proto::Role::Fenced => "fenced",
        proto::Role::Seeding => "seeding",
        proto::Role::Replica => "replica",
        proto::Role::Resyncing => "resyncing",
    }
}

/// A health in one word.
pub(crate) fn health(health: proto::Health) -> &'static str {
    match health {
        proto::Health::Unspecified => "unknown",
        proto::Health::Ok => "ok",
        proto::Health::Warning => "warning",
        proto::Health::Critical => "critical",
    }
}

impl From<proto::StatusReply> for Agent {
    fn from(r: proto::StatusReply) -> Self {
        let worst = health(r.health());
        let link = r.link.unwrap_or_default();
        let certificate = r.certificate.unwrap_or_default();
        Self {
            pair: r.pair,
            version: r.version,
            started_at: time(r.started_at_ms),
            health: worst,
            link: Link {
                peer: link.peer,
                connected: link.connected,
                since: time(link.since_ms),
                last_error: link.last_error,
                attempts: link.attempts,
            },
            certificate: Certificate {
                identity: certificate.identity,
                not_after: time(certificate.not_after_ms),
                days_left: certificate.days_left,
                message: optional(certificate.message),
            },
            groups: r.groups.into_iter().map(Group::from).collect(),
            silent_groups: r.silent_groups,
        }
    }
}

impl From<proto::GroupStatus> for Group {
    fn from(g: proto::GroupStatus) -> Self {
        let (role, health) = (role(g.role()), health(g.health()));
        Self {
            name: g.name,
            id: g.id,
            role,
            generation: g.generation,
            cycle: g.cycle,
            open: g.open,
            activity: g.activity,
            health,
            messages: g.messages,
            allowed_operations: g.allowed_operations,
            disks: g.disks.into_iter().map(Disk::from).collect(),
            source: g.source.map(Source::from),
            replica: g.replica.map(Replica::from),
            job: g.job.map(Job::from),
            exports: g.exports.into_iter().map(Export::from).collect(),
            tests: g.tests.into_iter().map(Test::from).collect(),
            interval_ms: g.interval_ms,
            keep_points: g.keep_points,
            retention: Retention::from(g.retention.unwrap_or_default()),
        }
    }
}

impl From<proto::DiskStatus> for Disk {
    fn from(d: proto::DiskStatus) -> Self {
        Self {
            name: d.name,
            path: d.path,
            size_bytes: d.size_bytes,
            format: d.format,
            nbd_uri: optional(d.nbd_uri),
            nbd_tls_uri: optional(d.nbd_tls_uri),
            clients: d.clients,
        }
    }
}

impl From<proto::TestStatus> for Test {
    fn from(t: proto::TestStatus) -> Self {
        let disks = t.disks.into_iter().map(|d| TestDisk {
            name: d.disk,
            nbd_uri: d.nbd_uri,
            nbd_tls_uri: optional(d.nbd_tls_uri),
            clients: d.clients,
        });
        Self {
            name: t.name,
            cycle: t.cycle,
            who: t.who,
            started_at: time(t.started_at_ms),
            expires_at: time(t.expires_at_ms),
            used_bytes: t.used_bytes,
            cap_bytes: t.cap_bytes,
            disks: disks.collect(),
            problem: optional(t.problem),
        }
    }
}

impl From<proto::SourceStatus> for Source {
    fn from(s: proto::SourceStatus) -> Self {
        Self {
            seed_total_bytes: s.seed_total_bytes,
            seed_left_bytes: s.seed_left_bytes,
            open_dirty_bytes: s.open_dirty_bytes,
            sealed_bytes: s.sealed_bytes,
            sent_bytes: s.sent_bytes,
            lag_ms: s.lag_ms,
            preserved_bytes: s.preserved_bytes,
            hot_zones: s.hot_zones,
            guest_written_bytes: s.guest_written_bytes,
        }
    }
}

impl From<proto::ReplicaStatus> for Replica {
    fn from(r: proto::ReplicaStatus) -> Self {
        let room = match r.room() {
            proto::JournalRoom::Unspecified => "unknown",
            proto::JournalRoom::Enough => "enough",
            proto::JournalRoom::Low => "low",
            proto::JournalRoom::Making => "making",
            proto::JournalRoom::Full => "full",
        };
        Self {
            points: r.points,
            oldest_cycle: r.oldest_cycle,
            newest_cycle: r.newest_cycle,
            newest_cut_at: optional(time(r.newest_cut_at_ms)),
            journal_bytes: r.journal_bytes,
            journal_allowed_bytes: r.journal_allowed_bytes,
            room,
            receiving_bytes: r.receiving_bytes,
        }
    }
}

impl From<proto::JobProgress> for Job {
    fn from(j: proto::JobProgress) -> Self {
        let state = match j.state() {
            proto::JobState::Unspecified => "unknown",
            proto::JobState::Running => "running",
            proto::JobState::Done => "done",
            proto::JobState::Failed => "failed",
        };
        Self {
            id: j.job_id,
            kind: j.kind,
            step: j.step,
            done_bytes: j.done_bytes,
            total_bytes: j.total_bytes,
            state,
            message: j.message,
            started_at: time(j.started_at_ms),
            ended_at: optional(time(j.ended_at_ms)),
        }
    }
}

impl From<proto::ExportStatus> for Export {
    fn from(e: proto::ExportStatus) -> Self {
        Self {
            cycle: e.cycle,
            disk: e.disk,
            nbd_uri: e.nbd_uri,
        }
    }
}

impl From<proto::Retention> for Retention {
    fn from(r: proto::Retention) -> Self {
        Self {
            policy: r.policy,
            cap_bytes: r.cap_bytes,
            min_free_bytes: r.min_free_bytes,
        }
    }
}

impl From<proto::Point> for Point {
    fn from(p: proto::Point) -> Self {
        Self {
            cycle: p.cycle,
            cut_at: time(p.cut_at_ms),
            consistency: p.consistency,
            label: optional(p.label),
            journal_bytes: p.journal_bytes,
            in_use: p.in_use,
            pinned: p.pinned,
            goes: None,
        }
    }
}
