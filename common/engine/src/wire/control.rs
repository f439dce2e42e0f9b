//! The `Control` service: what operators ask, turned into our types and back.
//!
//! Receives calls that the table of roles let through, with the caller's proven identity; writes every call that
//! changes something to the log with that name. Does not do: anything itself; [`Operator`] does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sitepair_model::ids::{Cycle, DiskName, GroupName, OpId, TestName};
use sitepair_model::retention::{Policy, PolicyError};
use sitepair_proto::v1 as proto;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::Caller;
use crate::agent::status::AgentStatus;
use crate::agent::status::JobState;
use crate::agent::{
    Asker, CommandError, Done, Note, Operator, ProtectDisk, ProtectSpec, RetentionChange, TestSpec,
    Unprotect,
};

mod convert;
mod log;
mod point;

/// The service.
#[derive(Clone)]
pub struct ControlService {
    operator: Operator,
    /// One permit for each change log that is being given away.
    log_readers: Arc<Semaphore>,
    /// One for each disk at a point that is being read.
    point_readers: Arc<Semaphore>,
}

/// The service as tonic serves it.
pub type ControlServer = proto::control_server::ControlServer<ControlService>;

/// Shortest time between two messages of a watch.
const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Default time between two messages of a watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Longest: a sign of life even if nothing changed.
const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(60);

impl ControlService {
    /// The service of an agent.
    #[must_use]
    pub fn server(operator: Operator) -> ControlServer {
        proto::control_server::ControlServer::new(Self {
            operator,
            log_readers: Arc::new(Semaphore::new(log::READERS_MAX)),
            point_readers: Arc::new(Semaphore::new(point::READERS_MAX)),
        })
    }

    async fn told(&self, group: &str) -> Result<AgentStatus, Status> {
        let group = if group.is_empty() {
            None
        } else {
            Some(name(group)?)
        };
        self.operator.status(group.as_ref()).await.map_err(status)
    }
}

/// Who asks, as the audit has it.
fn who<T>(request: &Request<T>) -> Asker {
    let caller = request.extensions().get::<Caller>();
    caller.map_or_else(Asker::default, |caller| Asker {
        name: caller.identity.uri(),
        serial: caller.identity.serial.clone(),
    })
}

fn name(text: &str) -> Result<GroupName, Status> {
    text.parse()
        .map_err(|e| Status::invalid_argument(format!("{e}")))
}

fn test_name(text: &str) -> Result<TestName, Status> {
    text.parse()
        .map_err(|e| Status::invalid_argument(format!("{e}")))
}

fn policy(text: &str) -> Result<Option<Policy>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map(Some);
    parsed.map_err(|e: PolicyError| Status::invalid_argument(format!("retention: {e}")))
}

fn label(text: String) -> Result<Option<String>, Status> {
    if text.len() > LABEL_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "a label has at most {LABEL_BYTES_MAX} bytes"
        )));
    }
    Ok((!text.is_empty()).then_some(text))
}

fn disk_name(text: &str) -> Result<DiskName, Status> {
    text.parse()
        .map_err(|e| Status::invalid_argument(format!("{e}")))
}

fn operation(text: &str) -> Result<OpId, Status> {
    convert::unhex(text).map(OpId::from_bytes).ok_or_else(|| {
        Status::invalid_argument(format!(
            "{text:?} is not an operation id of 32 hexadecimal digits"
        ))
    })
}

fn status(error: CommandError) -> Status {
    let text = error.to_string();
    match error {
        CommandError::Refused(_) => Status::failed_precondition(text),
        CommandError::NotFound(_) => Status::not_found(text),
        CommandError::Invalid(_) => Status::invalid_argument(text),
        CommandError::Unreachable(_) => Status::unavailable(text),
        CommandError::Failed(_) => Status::internal(text),
    }
}

impl ControlService {
    /// Writes a command with its caller and what became of it to the log and to the audit.
    async fn audited<T>(
        &self,
        who: &Asker,
        what: &str,
        group: &str,
        result: Result<T, CommandError>,
    ) -> Result<T, Status> {
        let told = match &result {
            Ok(_) => {
                tracing::info!(target: "audit", who = who.name, what, group, "done");
                "done".to_owned()
            }
            Err(e) => {
                tracing::warn!(target: "audit", who = who.name, what, group, "not done: {e}");
                format!("not done: {e}")
            }
        };
        self.operator
            .audit(who.clone(), format!("{what} {group}"), told)
            .await;
        result.map_err(status)
    }
}

fn reply(done: Done) -> Response<proto::CommandReply> {
    Response::new(proto::CommandReply {
        changed: done.changed,
        message: done.message,
    })
}

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl proto::control_server::Control for ControlService {
    async fn status(&self, request: Request<proto::StatusRequest>) -> Answer<proto::StatusReply> {
        let told = self.told(&request.into_inner().group).await?;
        Ok(Response::new(convert::status_reply(
            told,
            self.operator.now(),
        )))
    }

    type WatchStream = BoxStream<proto::StatusReply>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        let request = request.into_inner();
        let asked = Duration::from_millis(u64::from(request.interval_ms));
        let interval = if asked.is_zero() {
            WATCH_INTERVAL
        } else {
            asked
        };
        let interval = interval.clamp(WATCH_INTERVAL_MIN, WATCH_INTERVAL_MAX);
        let first = self.told(&request.group).await?;
        let service = self.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut told = Ok(first);
            loop {
                let ended = told.is_err();
                let message = told.map(|t| convert::status_reply(t, service.operator.now()));
                // Ends with whoever listens.
                if sender.send(message).await.is_err() || ended {
                    return;
                }
                tokio::time::sleep(interval).await;
                told = service.told(&request.group).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_points(
        &self,
        request: Request<proto::ListPointsRequest>,
    ) -> Answer<proto::ListPointsReply> {
        let r = request.into_inner();
        let (group, policy) = (name(&r.group)?, policy(&r.policy)?);
        let points = self.operator.points(&group, policy).await;
        Ok(Response::new(convert::points(points.map_err(status)?)))
    }

    type WatchJobStream = BoxStream<proto::JobProgress>;

    async fn watch_job(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Answer<Self::WatchJobStream> {
        let id = operation(&request.into_inner().job_id)?;
        let changes = self.operator.job(id).map_err(status)?;
        let mut ended = false;
        let stream = tokio_stream::wrappers::WatchStream::new(changes)
            .take_while(move |job| {
                let goes_on = !ended;
                ended = job.state != JobState::Running;
                goes_on
            })
            .map(|job| Ok(convert::job(job)));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn protect(
        &self,
        request: Request<proto::ProtectRequest>,
    ) -> Answer<proto::ProtectReply> {
        let who = who(&request);
        let request = request.into_inner();
        let group = request.group.clone();
        let spec = protect_spec(request)?;
        let protected = self.operator.protect(spec).await;
        let (id, disks) = self.audited(&who, "protect", &group, protected).await?;
        let disks = disks.into_iter().map(convert::disk).collect();
        Ok(Response::new(proto::ProtectReply {
            group_id: id.to_string(),
            disks,
        }))
    }

    async fn unprotect(
        &self,
        request: Request<proto::UnprotectRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let done = self
            .operator
            .unprotect(
                &group,
                Unprotect {
                    delete_replica: r.delete_replica,
                    force: r.force,
                    disconnect: r.disconnect,
                },
            )
            .await;
        self.audited(&who, "unprotect", &r.group, done)
            .await
            .map(reply)
    }

    async fn pause(&self, request: Request<proto::PauseRequest>) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let group = name(&request.into_inner().group)?;
        self.audited(
            &who,
            "pause",
            group.as_str(),
            self.operator.pause(&group).await,
        )
        .await
        .map(reply)
    }

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let group = name(&request.into_inner().group)?;
        self.audited(
            &who,
            "resume",
            group.as_str(),
            self.operator.resume(&group).await,
        )
        .await
        .map(reply)
    }

    async fn cut(&self, request: Request<proto::CutRequest>) -> Answer<proto::CutReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let label = label(r.label)?;
        let cut = self.operator.cut(&group, label).await;
        let cycle = self.audited(&who, "cut", group.as_str(), cut).await?;
        Ok(Response::new(proto::CutReply { cycle: cycle.0 }))
    }

    async fn planned_failover(
        &self,
        request: Request<proto::PlannedFailoverRequest>,
    ) -> Answer<proto::JobRef> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let op = if r.operation_id.is_empty() {
            None
        } else {
            Some(operation(&r.operation_id)?)
        };
        let begun = self
            .operator
            .planned_failover(&group, op, r.disconnect, !r.no_reverse)
            .await;
        let id = self
            .audited(&who, "planned failover", group.as_str(), begun)
            .await?;
        Ok(Response::new(proto::JobRef {
            job_id: id.to_string(),
        }))
    }

    async fn reverse(
        &self,
        request: Request<proto::ReverseRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let group = name(&request.into_inner().group)?;
        self.audited(
            &who,
            "reverse",
            group.as_str(),
            self.operator.reverse(&group).await,
        )
        .await
        .map(reply)
    }

    async fn force_open(
        &self,
        request: Request<proto::ForceOpenRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let done = self
            .operator
            .force_open(
                &group,
                who.name.clone(),
                r.reason,
                &r.typed_name,
                r.peer_is_stopped,
            )
            .await;
        self.audited(&who, "force open", group.as_str(), done)
            .await
            .map(reply)
    }

    async fn export_point(
        &self,
        request: Request<proto::ExportPointRequest>,
    ) -> Answer<proto::ExportPointReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let served = self.operator.export(&group, Cycle(r.cycle)).await;
        let exports = self.audited(&who, "export", group.as_str(), served).await?;
        let exports = exports.into_iter().map(convert::export).collect();
        Ok(Response::new(proto::ExportPointReply { exports }))
    }

    async fn unexport_point(
        &self,
        request: Request<proto::UnexportPointRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let done = self.operator.unexport(&group, Cycle(r.cycle)).await;
        self.audited(&who, "unexport", group.as_str(), done)
            .await
            .map(reply)
    }

    async fn start_test(
        &self,
        request: Request<proto::StartTestRequest>,
    ) -> Answer<proto::TestStatus> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let spec = TestSpec {
            cycle: (r.cycle != 0).then_some(Cycle(r.cycle)),
            name: (!r.name.is_empty())
                .then(|| test_name(&r.name))
                .transpose()?,
            ttl: (r.ttl_s != 0).then(|| Duration::from_secs(r.ttl_s)),
            space_bytes: (r.space_bytes != 0).then_some(r.space_bytes),
            who: who.name.clone(),
        };
        let begun = self.operator.start_test(&group, spec).await;
        let test = self
            .audited(&who, "start test", group.as_str(), begun)
            .await?;
        Ok(Response::new(convert::test(test)))
    }

    async fn end_test(
        &self,
        request: Request<proto::EndTestRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let (group, test) = (name(&r.group)?, test_name(&r.name)?);
        let done = self.operator.end_test(&group, test).await;
        self.audited(&who, "end test", group.as_str(), done)
            .await
            .map(reply)
    }

    type ExportLogStream = BoxStream<proto::ExportLogPart>;

    async fn export_log(
        &self,
        request: Request<proto::ExportLogRequest>,
    ) -> Answer<Self::ExportLogStream> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let disk = disk_name(&r.disk)?;
        let permit = log::permit(&self.log_readers)?;
        let opened = self
            .operator
            .change_log(&group, &disk, Cycle(r.cycle))
            .await;
        let what = format!("export change log {disk}.{} of", r.cycle);
        let log = self.audited(&who, &what, group.as_str(), opened).await?;
        Ok(Response::new(log::stream(log, permit)))
    }

    async fn set_retention(
        &self,
        request: Request<proto::SetRetentionRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let group = name(&r.group)?;
        let change = RetentionChange {
            policy: policy(&r.policy)?,
            cap_bytes: r.cap_bytes,
            min_free_bytes: r.min_free_bytes,
        };
        let what = format!("set retention {change} of");
        let done = self.operator.set_retention(&group, change).await;
        self.audited(&who, &what, group.as_str(), done)
            .await
            .map(reply)
    }

    async fn pin_point(
        &self,
        request: Request<proto::PinPointRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        self.note(&who, &r.group, r.cycle, Note::Pin).await
    }

    async fn unpin_point(
        &self,
        request: Request<proto::UnpinPointRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        self.note(&who, &r.group, r.cycle, Note::Unpin).await
    }

    async fn label_point(
        &self,
        request: Request<proto::LabelPointRequest>,
    ) -> Answer<proto::CommandReply> {
        let who = who(&request);
        let r = request.into_inner();
        let note = Note::Label(label(r.label)?);
        self.note(&who, &r.group, r.cycle, note).await
    }

    type ReadPointStream = BoxStream<proto::ReadPointPart>;

    async fn read_point(
        &self,
        request: Request<proto::ReadPointRequest>,
    ) -> Answer<Self::ReadPointStream> {
        let who = who(&request);
        let r = request.into_inner();
        let (group, disk) = (name(&r.group)?, disk_name(&r.disk)?);
        let permit = point::permit(&self.point_readers)?;
        let opened = self
            .operator
            .read_point(&group, &disk, Cycle(r.cycle))
            .await;
        let what = format!("read disk {disk} at recovery point {} of", r.cycle);
        let reader = self.audited(&who, &what, group.as_str(), opened).await?;
        Ok(Response::new(point::stream(reader, permit)))
    }
}

impl ControlService {
    async fn note(
        &self,
        who: &Asker,
        group: &str,
        cycle: u64,
        note: Note,
    ) -> Answer<proto::CommandReply> {
        let group = name(group)?;
        let what = format!("{} recovery point {cycle} of", note.verb());
        let done = self.operator.note(&group, Cycle(cycle), note).await;
        self.audited(who, &what, group.as_str(), done)
            .await
            .map(reply)
    }
}

/// Longest label of a recovery point in bytes.
const LABEL_BYTES_MAX: usize = 200;

fn protect_spec(request: proto::ProtectRequest) -> Result<ProtectSpec, Status> {
    let disks = request.disks.into_iter().map(|d| {
        Ok(ProtectDisk {
            name: d
                .name
                .parse()
                .map_err(|e| Status::invalid_argument(format!("{e}")))?,
            path: d.path.into(),
            replica_path: (!d.replica_path.is_empty()).then_some(d.replica_path),
            format: convert::format(&d.format)?,
        })
    });
    Ok(ProtectSpec {
        group: name(&request.group)?,
        disks: disks.collect::<Result<_, Status>>()?,
        policy: match policy(&request.policy)? {
            None => (request.keep_points != 0).then(|| Policy::newest(request.keep_points)),
            given => given,
        },
        interval: (request.interval_ms != 0).then(|| Duration::from_millis(request.interval_ms)),
        use_existing: request.use_existing,
    })
}
