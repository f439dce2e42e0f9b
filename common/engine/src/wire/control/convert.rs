//! Status and jobs as messages.

use sitepair_disk::open::Format;
use sitepair_model::ids::UnixMillis;
use sitepair_model::peer::RoleName;
use sitepair_model::point::Consistency;
use sitepair_model::retention::{Policy, Reason};
use sitepair_proto::v1 as proto;
use tonic::Status;

use crate::agent::status::{
    AgentStatus, DiskStatus, ExportStatus, GroupStatus, Health, JobState, JobStatus, PointList,
    PointStatus, ReplicaStatus, SourceStatus, TestStatus, format_name,
};
use crate::replica::{Room, RoomState};

/// 16 bytes from 32 hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0_u8; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// A format as operators name it; empty leaves it to a look at the file.
pub(super) fn format(text: &str) -> Result<Option<Format>, Status> {
    match text {
        "" => Ok(None),
        "raw" => Ok(Some(Format::Raw)),
        "vhd" => Ok(Some(Format::Vhd)),
        "vhdx" => Ok(Some(Format::Vhdx)),
        "qcow2" => Ok(Some(Format::Qcow2)),
        _ => Err(Status::invalid_argument(format!(
            "format {text:?} is not known: use raw, vhd, vhdx or qcow2"
        ))),
    }
}

const DAY_MS: i64 = 24 * 3600 * 1000;

pub(super) fn status_reply(s: AgentStatus, now: UnixMillis) -> proto::StatusReply {
    proto::StatusReply {
        pair: s.pair,
        site: s.site.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: s.started_at.0,
        link: Some(proto::LinkStatus {
            peer: s.link.peer,
            connected: s.link.connected,
            since_ms: s.link.since.0,
            last_error: s.link.last_error,
            attempts: s.link.attempts,
        }),
        certificate: Some(proto::CertificateStatus {
            identity: s.certificate.identity,
            not_after_ms: s.certificate.not_after.0,
            days_left: s
                .certificate
                .not_after
                .0
                .saturating_sub(now.0)
                .div_euclid(DAY_MS),
            message: s.certificate.problem.unwrap_or_default(),
        }),
        groups: s.groups.into_iter().map(group).collect(),
        health: health(s.health).into(),
        silent_groups: s.silent.iter().map(ToString::to_string).collect(),
    }
}

fn health(health: Health) -> proto::Health {
    match health {
        Health::Ok => proto::Health::Ok,
        Health::Warning => proto::Health::Warning,
        Health::Critical => proto::Health::Critical,
    }
}

fn role(role: RoleName) -> proto::Role {
    match role {
        RoleName::Unpaired => proto::Role::Unspecified,
        RoleName::Source => proto::Role::Source,
        RoleName::Quiescing => proto::Role::Quiescing,
        RoleName::HandedOver => proto::Role::HandedOver,
        RoleName::Fenced => proto::Role::Fenced,
        RoleName::Seeding => proto::Role::Seeding,
        RoleName::Replica => proto::Role::Replica,
        RoleName::Resyncing => proto::Role::Resyncing,
    }
}

fn group(g: GroupStatus) -> proto::GroupStatus {
    proto::GroupStatus {
        name: g.name.to_string(),
        id: g.id.to_string(),
        role: role(g.role).into(),
        generation: g.generation.to_string(),
        cycle: g.cycle.0,
        open: g.open,
        activity: g.activity,
        health: health(g.health).into(),
        messages: g.messages,
        allowed_operations: g
            .allowed_operations
            .into_iter()
            .map(str::to_owned)
            .collect(),
        disks: g.disks.into_iter().map(disk).collect(),
        source: g.source.map(source),
        replica: g.replica.map(replica),
        job: g.job.map(job),
        exports: g.exports.into_iter().map(export).collect(),
        interval_ms: g.interval_ms,
        keep_points: match &g.retention.policy {
            Policy::Newest(count) => count.get(),
            Policy::Grid(_) => 0,
        },
        retention: Some(g.retention.into()),
        tests: g.tests.into_iter().map(test).collect(),
    }
}

pub(super) fn disk(d: DiskStatus) -> proto::DiskStatus {
    proto::DiskStatus {
        name: d.name.to_string(),
        path: d.path,
        size_bytes: d.size_bytes,
        format: format_name(d.format).to_owned(),
        nbd_uri: d.nbd_uri.unwrap_or_default(),
        nbd_tls_uri: d.nbd_tls_uri.unwrap_or_default(),
        clients: d.clients,
    }
}

fn source(s: SourceStatus) -> proto::SourceStatus {
    proto::SourceStatus {
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

fn replica(r: ReplicaStatus) -> proto::ReplicaStatus {
    proto::ReplicaStatus {
        points: r.points,
        oldest_cycle: r.oldest.0,
        newest_cycle: r.newest.0,
        newest_cut_at_ms: r.newest_cut_at.0,
        journal_bytes: r.room.map_or(0, |room| room.used_bytes),
        journal_allowed_bytes: r.room.and_then(|room| room.allowed_bytes),
        room: r.room.map_or(proto::JournalRoom::Unspecified, room).into(),
        receiving_bytes: r.receiving_bytes,
    }
}

pub(super) fn export(e: ExportStatus) -> proto::ExportStatus {
    proto::ExportStatus {
        cycle: e.cycle.0,
        disk: e.disk.to_string(),
        nbd_uri: e.nbd_uri,
    }
}

pub(super) fn test(t: TestStatus) -> proto::TestStatus {
    let disks = t.disks.into_iter().map(|d| proto::TestDisk {
        disk: d.disk.to_string(),
        nbd_uri: d.nbd_uri,
        nbd_tls_uri: d.nbd_tls_uri.unwrap_or_default(),
        clients: d.clients,
    });
    proto::TestStatus {
        name: t.name.to_string(),
        cycle: t.cycle.0,
        who: t.who,
        started_at_ms: t.started_at.0,
        expires_at_ms: t.expires_at.0,
        used_bytes: t.used_bytes,
        cap_bytes: t.cap_bytes,
        disks: disks.collect(),
        problem: t.problem.unwrap_or_default(),
    }
}

fn room(room: Room) -> proto::JournalRoom {
    match room.state {
        RoomState::Enough => proto::JournalRoom::Enough,
        RoomState::Low => proto::JournalRoom::Low,
        RoomState::Making => proto::JournalRoom::Making,
        RoomState::Full => proto::JournalRoom::Full,
    }
}

pub(super) fn points(list: PointList) -> proto::ListPointsReply {
    proto::ListPointsReply {
        points: list.points.into_iter().map(point).collect(),
        policy: list.policy.to_string(),
        frees_bytes: list.frees_bytes,
        merges_bytes: list.merges_bytes,
    }
}

fn point(status: PointStatus) -> proto::Point {
    let p = status.point;
    proto::Point {
        cycle: p.cycle.0,
        cut_at_ms: p.cut_at.0,
        consistency: match p.consistency {
            Consistency::Crash => "crash",
            Consistency::Application => "application",
        }
        .to_owned(),
        label: p.label.unwrap_or_default(),
        journal_bytes: p.journal_bytes,
        in_use: status.in_use,
        pinned: p.pinned,
        goes: status.goes.map_or("", Reason::as_str).to_owned(),
    }
}

pub(super) fn job(j: JobStatus) -> proto::JobProgress {
    proto::JobProgress {
        job_id: j.id.to_string(),
        kind: j.kind.to_owned(),
        step: j.step,
        done_bytes: j.done_bytes,
        total_bytes: j.total_bytes,
        state: match j.state {
            JobState::Running => proto::JobState::Running,
            JobState::Done => proto::JobState::Done,
            JobState::Failed => proto::JobState::Failed,
        }
        .into(),
        message: j.message,
        started_at_ms: j.started_at.0,
        ended_at_ms: j.ended_at.map_or(0, |t| t.0),
    }
}
