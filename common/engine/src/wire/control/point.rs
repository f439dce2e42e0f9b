//! A disk at a recovery point as a stream of messages.
//!
//! Memory is bounded: a chunk is read only when the one before is on its way. Who does not listen for a while is let go,
//! and with him the point.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sitepair_disk::chunks::ChunkHash;
use sitepair_proto::v1 as proto;
use sitepair_proto::v1::read_point_part::Part;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::BoxStream;
use crate::replica::{PointReader, ReplicaError};

/// Most disks that are read at the same time: each holds a point, its change logs open, and some chunks in memory.
pub(super) const READERS_MAX: usize = 8;
/// How long a chunk may wait for its reader. The point cannot go as long as it is read.
const LISTEN_MAX: Duration = Duration::from_secs(120);
/// Chunks that wait for the network.
const CHUNKS_AHEAD: usize = 4;

pub(super) fn permit(readers: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(readers).try_acquire_owned().map_err(|_| {
        Status::failed_precondition(format!(
            "{READERS_MAX} disks are being read at recovery points already; try again when one is done"
        ))
    })
}

/// The messages of a disk. The permit goes with the last one.
pub(super) fn stream(
    reader: PointReader,
    permit: OwnedSemaphorePermit,
) -> BoxStream<proto::ReadPointPart> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    // Ends with the disk or with whoever listens.
    tokio::spawn(async move {
        send(Arc::new(reader), &sender).await;
        drop(permit);
    });
    Box::pin(ReceiverStream::new(receiver))
}

type To = mpsc::Sender<Result<proto::ReadPointPart, Status>>;

async fn send(reader: Arc<PointReader>, to: &To) {
    let geometry = reader.geometry();
    let head = Part::Head(proto::PointHead {
        size_bytes: geometry.size_bytes,
        logical_sector_bytes: geometry.logical_sector_bytes,
        physical_sector_bytes: geometry.physical_sector_bytes,
    });
    let (mut hash, mut at) = (ChunkHash::default(), 0);
    let mut message = Ok(part(head));
    loop {
        let ends = !matches!(
            &message,
            Ok(proto::ReadPointPart {
                part: Some(Part::Head(_) | Part::Chunk(_))
            })
        );
        match timeout(LISTEN_MAX, to.send(message)).await {
            Ok(Ok(())) if !ends => {}
            Ok(_) => return,
            Err(_) => {
                tracing::warn!("nobody reads the recovery point's disk; let go");
                return;
            }
        }
        message = match next(&reader, at, &mut hash).await {
            Ok(Some((offset, data))) => {
                at = offset + data.len() as u64;
                Ok(part(Part::Chunk(proto::PointChunk { offset, data })))
            }
            Ok(None) => Ok(part(Part::Hash(hash.digest().to_vec().into()))),
            Err(status) => Err(status),
        };
    }
}

/// Reads and hashes off the runtime.
async fn next(
    reader: &Arc<PointReader>,
    at: u64,
    hash: &mut ChunkHash,
) -> Result<Option<(u64, Bytes)>, Status> {
    let (reader, mut hashed) = (Arc::clone(reader), std::mem::take(hash));
    let read = tokio::task::spawn_blocking(move || {
        let chunk = reader.next(at);
        if let Ok(Some((offset, data))) = &chunk {
            hashed.add(*offset, data);
        }
        (chunk, hashed)
    });
    let (chunk, hashed) = read.await.map_err(|e| Status::internal(e.to_string()))?;
    *hash = hashed;
    chunk.map_err(|error| match error {
        ReplicaError::Closed { .. } => Status::failed_precondition(error.sentence()),
        other => Status::internal(other.sentence()),
    })
}

fn part(part: Part) -> proto::ReadPointPart {
    proto::ReadPointPart { part: Some(part) }
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
