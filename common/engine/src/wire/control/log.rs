//! A change log as a stream of messages.
//!
//! Memory is bounded: a part is read only when the one before is on its way. Who does not listen for a while is let go.

use std::sync::Arc;
use std::time::Duration;

use sitepair_model::cause::chain;
use sitepair_proto::v1 as proto;
use sitepair_proto::v1::export_log_part::Part;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::BoxStream;
use crate::replica::{ChangeLog, LogPart};

/// Most change logs that are given away at the same time: each holds an open file and two parts in memory.
pub(super) const READERS_MAX: usize = 8;
/// How long a part may wait for its reader. A merged log takes its space on disk as long as it is read.
const LISTEN_MAX: Duration = Duration::from_secs(120);

pub(super) fn permit(readers: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(readers).try_acquire_owned().map_err(|_| {
        Status::failed_precondition(format!(
            "{READERS_MAX} change logs are being exported already; try again when one is done"
        ))
    })
}

/// The messages of a log. The permit goes with the last one.
pub(super) fn stream(
    log: ChangeLog,
    permit: OwnedSemaphorePermit,
) -> BoxStream<proto::ExportLogPart> {
    let (sender, receiver) = mpsc::channel(1);
    // Ends with the log or with whoever listens.
    tokio::spawn(async move {
        send(Arc::new(log), &sender).await;
        drop(permit);
    });
    Box::pin(ReceiverStream::new(receiver))
}

async fn send(log: Arc<ChangeLog>, to: &mpsc::Sender<Result<proto::ExportLogPart, Status>>) {
    let mut message = Ok(part(Part::Head(proto::LogHead {
        file_name: log.file_name().to_owned(),
        file_bytes: log.file_bytes(),
        content_hash: log.content_hash().as_bytes().to_vec().into(),
    })));
    let mut at = 0;
    loop {
        let failed = message.is_err();
        match timeout(LISTEN_MAX, to.send(message)).await {
            Ok(Ok(())) if !failed => {}
            Ok(_) => return,
            Err(_) => {
                tracing::warn!(log = log.file_name(), "nobody reads the change log; let go");
                return;
            }
        }
        let reading = Arc::clone(&log);
        let read = tokio::task::spawn_blocking(move || reading.part(at)).await;
        message = match read {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(read))) => {
                at += read.bytes();
                Ok(part(match read {
                    LogPart::Data(data) => Part::Data(data),
                    LogPart::Hole(bytes) => Part::HoleBytes(bytes),
                }))
            }
            Ok(Err(e)) => Err(Status::internal(chain(&e))),
            Err(e) => Err(Status::internal(e.to_string())),
        };
    }
}

fn part(part: Part) -> proto::ExportLogPart {
    proto::ExportLogPart { part: Some(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_limited_and_told_what_to_do() {
        let readers = Arc::new(Semaphore::new(READERS_MAX));
        let mut held: Vec<_> = (0..READERS_MAX)
            .map(|_| permit(&readers).unwrap())
            .collect();
        let why = permit(&readers).unwrap_err();
        assert_eq!(why.code(), tonic::Code::FailedPrecondition);
        assert!(why.message().contains("try again"), "{why}");
        held.pop();
        assert!(permit(&readers).is_ok());
    }
}
