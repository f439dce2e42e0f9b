//! A transfer, at the sending end: a window of bytes in flight, and a watch on the receiver's progress.
//!
//! One task reads replies and publishes progress; the sender waits on that. Sending and reading never
//! wait for each other, so that full windows in both directions cannot lock up.
//!
//! # Invariants
//! 1. At most [`WINDOW_BYTES`] are unacknowledged, or a single frame.
//! 2. Every wait ends when the receiver shows no sign of life for the time allowed.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use http::uri::PathAndQuery;
use sitepair_model::cause::chain;
use sitepair_model::peer::{Committed, TransferBegin, TransferCommit};
use sitepair_proto::v1::transfer_reply::Kind as ReplyKind;
use sitepair_proto::v1::transfer_request::Kind as RequestKind;
use sitepair_proto::{Invalid, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::codec::SenderCodec;
use super::frame;
use super::status::{bad_answer, peer_error};
use crate::endpoint::{DataFrame, PeerError, Transfer};

/// Most bytes sent and not yet acknowledged: fills a link of 100 ms at 1 Gbit/s.
pub const WINDOW_BYTES: usize = 16 << 20;
/// Most frames sent and not yet acknowledged, however small.
const WINDOW_FRAMES: usize = 1024;
/// Messages that wait for the HTTP/2 layer; the window limits them before this does.
const QUEUE_MAX: usize = 8;
/// What a frame costs beside its payload, in bytes: its header, and each extent.
const FRAME_OVERHEAD_BYTES: usize = 96;
const EXTENT_BYTES: usize = 24;

/// What the receiver has said so far.
#[derive(Debug, Default)]
struct Progress {
    started: bool,
    frames: u64,
    checkpoint: u64,
    /// How the transfer ended.
    outcome: Option<Result<Committed, PeerError>>,
}

/// An open transfer to the other agent.
#[derive(Debug)]
pub(super) struct RemoteTransfer {
    requests: mpsc::Sender<v1::TransferRequest>,
    progress: watch::Receiver<Progress>,
    /// Bytes of each frame that is not acknowledged, oldest first.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    acknowledged: u64,
    checkpoints: u64,
    stall_max: Duration,
    /// Dropped with the transfer, and the stream with it: that abandons it at the other end.
    _reader: AbortOnDropHandle<()>,
}

impl RemoteTransfer {
    pub(super) async fn begin(
        channel: Channel,
        begin: TransferBegin,
        stall_max: Duration,
    ) -> Result<Self, PeerError> {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let (publisher, progress) = watch::channel(Progress::default());
        let reader = tokio::spawn(read(channel, ReceiverStream::new(queue), publisher));
        let mut transfer = Self {
            requests,
            progress,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            acknowledged: 0,
            checkpoints: 0,
            stall_max,
            _reader: AbortOnDropHandle::new(reader),
        };
        transfer.tell(RequestKind::Begin(begin.into())).await?;
        transfer.wait_until(|progress| progress.started).await?;
        Ok(transfer)
    }

    async fn tell(&mut self, kind: RequestKind) -> Result<(), PeerError> {
        let message = v1::TransferRequest { kind: Some(kind) };
        match tokio::time::timeout(self.stall_max, self.requests.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // The stream has ended; the reader knows why, or will know when it has read it.
            Ok(Err(_)) => self.wait_until(|_| false).await,
            Err(_) => Err(self.stalled()),
        }
    }

    /// Waits until the receiver's progress is `enough`. Any sign of life restarts the patience.
    async fn wait_until(&mut self, enough: impl Fn(&Progress) -> bool) -> Result<(), PeerError> {
        loop {
            {
                let progress = self.progress.borrow_and_update();
                if let Some(Err(error)) = &progress.outcome {
                    return Err(error.clone());
                }
                if enough(&progress) {
                    return Ok(());
                }
                if progress.outcome.is_some() {
                    return Err(PeerError::Link {
                        why: "the peer committed a transfer before it was asked".to_owned(),
                    });
                }
            }
            match tokio::time::timeout(self.stall_max, self.progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(PeerError::Link {
                        why: "the transfer's stream ended".to_owned(),
                    });
                }
                Err(_) => return Err(self.stalled()),
            }
        }
    }

    fn stalled(&self) -> PeerError {
        PeerError::Link {
            why: format!(
                "no progress for {} s with {} bytes on their way",
                self.stall_max.as_secs_f32(),
                self.in_flight_bytes
            ),
        }
    }

    /// Takes note of what was acknowledged.
    fn settle(&mut self) {
        let frames = self.progress.borrow().frames;
        while self.acknowledged < frames {
            let Some(bytes) = self.in_flight.pop_front() else {
                break;
            };
            self.in_flight_bytes -= bytes;
            self.acknowledged += 1;
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < WINDOW_FRAMES
                && self.in_flight_bytes + bytes <= WINDOW_BYTES)
    }
}

#[async_trait]
impl Transfer for RemoteTransfer {
    async fn send(&mut self, data: DataFrame) -> Result<(), PeerError> {
        let bytes = data.payload.len() + data.extents.len() * EXTENT_BYTES + FRAME_OVERHEAD_BYTES;
        self.settle();
        while !self.has_room(bytes) {
            let seen = self.acknowledged;
            self.wait_until(|progress| progress.frames > seen).await?;
            self.settle();
        }
        self.in_flight.push_back(bytes);
        self.in_flight_bytes += bytes;
        self.tell(RequestKind::Frame(frame::to_wire(data))).await
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        self.checkpoints += 1;
        let number = self.checkpoints;
        self.tell(RequestKind::Checkpoint(v1::TransferCheckpoint { number }))
            .await?;
        self.wait_until(|progress| progress.checkpoint >= number)
            .await
    }

    async fn commit(mut self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        self.tell(RequestKind::Commit(commit.into())).await?;
        self.wait_until(|progress| matches!(progress.outcome, Some(Ok(_))))
            .await?;
        match self.progress.borrow().outcome.clone() {
            Some(outcome) => outcome,
            None => Err(PeerError::Link {
                why: "the transfer's stream ended".to_owned(),
            }),
        }
    }
}

/// Opens the stream, and publishes what the receiver says until it ends.
async fn read(
    channel: Channel,
    requests: ReceiverStream<v1::TransferRequest>,
    publisher: watch::Sender<Progress>,
) {
    let outcome = match open(channel, requests).await {
        Ok(replies) => follow(replies, &publisher).await,
        Err(error) => Err(error),
    };
    publisher.send_modify(|progress| progress.outcome = Some(outcome));
}

async fn open(
    channel: Channel,
    requests: ReceiverStream<v1::TransferRequest>,
) -> Result<Streaming<v1::TransferReply>, PeerError> {
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|e| PeerError::Link { why: chain(&e) })?;
    let path = PathAndQuery::from_static("/sitepair.v1.Replication/Transfer");
    grpc.streaming(Request::new(requests), path, SenderCodec)
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| peer_error(&status))
}

async fn follow(
    mut replies: Streaming<v1::TransferReply>,
    publisher: &watch::Sender<Progress>,
) -> Result<Committed, PeerError> {
    loop {
        let reply = replies
            .message()
            .await
            .map_err(|status: Status| peer_error(&status))?;
        let Some(reply) = reply else {
            return Err(PeerError::Link {
                why: "the peer ended the transfer before it was committed".to_owned(),
            });
        };
        let kind = reply
            .kind
            .ok_or_else(|| bad_answer(&Invalid::Missing { field: "kind" }))?;
        match kind {
            ReplyKind::Committed(committed) => {
                return Committed::try_from(committed).map_err(|e| bad_answer(&e));
            }
            ReplyKind::Started(_) => publisher.send_modify(|progress| progress.started = true),
            ReplyKind::Acknowledged(acknowledged) => {
                publisher.send_modify(|progress| progress.frames = acknowledged.frames);
            }
            ReplyKind::Checkpointed(done) => {
                publisher.send_modify(|progress| progress.checkpoint = done.number);
            }
            // The change alone is the sign of life.
            ReplyKind::Working(_) => publisher.send_modify(|_| {}),
        }
    }
}
