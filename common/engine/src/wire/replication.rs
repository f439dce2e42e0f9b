//! The `Replication` service: checks what the other agent sends, and calls our endpoint.
//!
//! Each transfer has a task of its own, which ends with its stream, with an error, or when the agent
//! stops. Dropping the endpoint's transfer without commit abandons it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request as HttpRequest, Response as HttpResponse};
use sitepair_model::ids::OpId;
use sitepair_model::peer::{Grant, GroupOffer, Hello, TransferBegin};
use sitepair_proto::convert::TransferStep;
use sitepair_proto::v1::replication_server::{Replication, ReplicationServer, SERVICE_NAME};
use sitepair_proto::v1::transfer_reply::Kind as ReplyKind;
use sitepair_proto::v1::transfer_request::Kind as RequestKind;
use sitepair_proto::{Invalid, Version, negotiate, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::MESSAGE_BYTES_MAX;
use super::codec::{ReceiverCodec, TRANSFER_MESSAGE_BYTES_MAX};
use super::frame;
use super::status::{invalid, status_of};
use crate::endpoint::{PeerEndpoint, PeerError, Transfer};

const TRANSFER_PATH: &str = "/sitepair.v1.Replication/Transfer";
/// Longest wait for a transfer's first message.
const BEGIN_WAIT: Duration = Duration::from_secs(10);
/// How often a sender hears that we still work on what it asked. Well below its patience.
const WORKING_INTERVAL: Duration = Duration::from_secs(5);
/// Replies that wait for a sender that does not read; then its frames wait too.
const REPLIES_MAX: usize = 64;

/// The generated service, with our own codec for `Transfer`.
#[derive(Clone)]
pub(super) struct ReplicationService {
    handler: Arc<Handler>,
    others: ReplicationServer<Handler>,
}

impl ReplicationService {
    pub(super) fn new(peer: Arc<dyn PeerEndpoint>, stop: CancellationToken) -> Self {
        let handler = Arc::new(Handler {
            peer,
            stop,
            transfers: TaskTracker::new(),
        });
        let others = ReplicationServer::from_arc(Arc::clone(&handler))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { handler, others }
    }

    /// Waits until every transfer's task has ended. Call it after `stop`.
    pub(super) async fn finished(&self) {
        self.handler.transfers.close();
        self.handler.transfers.wait().await;
    }
}

impl NamedService for ReplicationService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<HttpRequest<Body>> for ReplicationService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        if request.uri().path() != TRANSFER_PATH {
            return Box::pin(self.others.call(request));
        }
        let method = TransferMethod(Arc::clone(&self.handler));
        Box::pin(async move {
            let mut grpc =
                Grpc::new(ReceiverCodec).max_decoding_message_size(TRANSFER_MESSAGE_BYTES_MAX);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct TransferMethod(Arc<Handler>);

impl StreamingService<v1::TransferRequest> for TransferMethod {
    type Response = v1::TransferReply;
    type ResponseStream = Replies;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Replies>, Status>> + Send + 'static>>;

    fn call(&mut self, request: Request<Streaming<v1::TransferRequest>>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move { handler.transfer(request).await })
    }
}

type Replies = ReceiverStream<Result<v1::TransferReply, Status>>;

struct Handler {
    peer: Arc<dyn PeerEndpoint>,
    stop: CancellationToken,
    transfers: TaskTracker,
}

#[tonic::async_trait]
impl Replication for Handler {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let request = request.into_inner();
        let version = negotiate(request.versions).map_err(|e| invalid(&e))?;
        let hello = Hello::try_from(request).map_err(|e| invalid(&e))?;
        let answer = self.peer.hello(hello).await.map_err(|e| status_of(&e))?;
        Ok(Response::new(v1::HelloReply::of(answer, version)))
    }

    async fn offer(
        &self,
        request: Request<v1::OfferRequest>,
    ) -> Result<Response<v1::OfferReply>, Status> {
        let request = request.into_inner();
        let version = negotiate(request.versions).map_err(|e| invalid(&e))?;
        let offer = GroupOffer::try_from(request).map_err(|e| invalid(&e))?;
        self.peer.offer(offer).await.map_err(|e| status_of(&e))?;
        Ok(Response::new(v1::OfferReply {
            version: version.number(),
        }))
    }

    async fn settle(
        &self,
        request: Request<v1::SettleRequest>,
    ) -> Result<Response<v1::SettleReply>, Status> {
        let request = request.into_inner();
        let version = negotiate(request.versions).map_err(|e| invalid(&e))?;
        let (group, theirs) = request.settled().map_err(|e| invalid(&e))?;
        let settled = self.peer.settle(group, theirs).await;
        let settled = settled.map_err(|e| status_of(&e))?;
        Ok(Response::new(v1::SettleReply {
            version: version.number(),
            retention: Some(settled.into()),
        }))
    }

    async fn withdraw(
        &self,
        request: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawReply>, Status> {
        let request = request.into_inner();
        let version = negotiate(request.versions).map_err(|e| invalid(&e))?;
        let group = request.group_id().map_err(|e| invalid(&e))?;
        self.peer
            .withdraw(group, request.delete_replica)
            .await
            .map_err(|e| status_of(&e))?;
        Ok(Response::new(v1::WithdrawReply {
            version: version.number(),
        }))
    }

    async fn grant(
        &self,
        request: Request<v1::GrantRequest>,
    ) -> Result<Response<v1::GrantReply>, Status> {
        let request = request.into_inner();
        let version = negotiate(request.versions).map_err(|e| invalid(&e))?;
        let grant = Grant::try_from(request).map_err(|e| invalid(&e))?;
        let answered: OpId = self.peer.grant(grant).await.map_err(|e| status_of(&e))?;
        Ok(Response::new(v1::GrantReply::of(answered, version)))
    }

    type TransferStream = Replies;

    async fn transfer(
        &self,
        request: Request<Streaming<v1::TransferRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let (replies, stream) = mpsc::channel(REPLIES_MAX);
        let receiver = Receiver {
            peer: Arc::clone(&self.peer),
            requests: request.into_inner(),
            replies,
            frames: 0,
        };
        let stop = self.stop.clone();
        self.transfers.spawn(receiver.run(stop));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Why a transfer's task ends early.
enum End {
    /// The sender is to be told.
    Tell(Status),
    /// The sender is gone, or has abandoned the transfer.
    Gone,
}

impl From<Invalid> for End {
    fn from(error: Invalid) -> Self {
        Self::Tell(invalid(&error))
    }
}

impl From<PeerError> for End {
    fn from(error: PeerError) -> Self {
        Self::Tell(status_of(&error))
    }
}

/// One transfer, at the receiving end.
struct Receiver {
    peer: Arc<dyn PeerEndpoint>,
    requests: Streaming<v1::TransferRequest>,
    replies: mpsc::Sender<Result<v1::TransferReply, Status>>,
    frames: u64,
}

impl Receiver {
    async fn run(mut self, stop: CancellationToken) {
        let end = match self.begin().await {
            Ok(transfer) => self.receive(transfer, &stop).await,
            Err(end) => Err(end),
        };
        match end {
            Ok(()) => {}
            Err(End::Tell(status)) => {
                tracing::debug!("transfer ended: {}", status.message());
                // Fails only if the sender is gone: then nobody needs to be told.
                let _ = self.replies.send(Err(status)).await;
            }
            Err(End::Gone) => tracing::debug!("transfer abandoned by the sender"),
        }
    }

    async fn begin(&mut self) -> Result<Box<dyn Transfer>, End> {
        let first = tokio::time::timeout(BEGIN_WAIT, self.next())
            .await
            .map_err(|_| {
                End::Tell(Status::invalid_argument(
                    "a transfer begins with its begin message",
                ))
            })??;
        let Some(RequestKind::Begin(begin)) = first.kind else {
            return Err(Invalid::Missing { field: "begin" }.into());
        };
        let version: Version = negotiate(begin.versions)?;
        let begin = TransferBegin::try_from(begin)?;
        let peer = Arc::clone(&self.peer);
        let transfer = self.while_working(peer.begin(begin)).await??;
        let started = v1::TransferStarted {
            version: version.number(),
        };
        self.reply(ReplyKind::Started(started)).await?;
        Ok(transfer)
    }

    async fn receive(
        &mut self,
        mut transfer: Box<dyn Transfer>,
        stop: &CancellationToken,
    ) -> Result<(), End> {
        loop {
            // Only between messages: what was begun is carried through.
            let message = tokio::select! {
                () = stop.cancelled() => {
                    return Err(End::Tell(Status::unavailable("the agent is stopping")));
                }
                message = self.next() => message?,
            };
            match TransferStep::try_from(message)? {
                TransferStep::Frame(frame) => {
                    transfer.send(frame::from_wire(frame)?).await?;
                    self.frames += 1;
                    let frames = self.frames;
                    self.reply(ReplyKind::Acknowledged(v1::TransferAcknowledged { frames }))
                        .await?;
                }
                TransferStep::Checkpoint { number } => {
                    self.while_working(transfer.checkpoint()).await??;
                    self.reply(ReplyKind::Checkpointed(v1::TransferCheckpointed { number }))
                        .await?;
                }
                TransferStep::Commit(commit) => {
                    let committed = self.while_working(transfer.commit(commit)).await??;
                    return self.reply(ReplyKind::Committed(committed.into())).await;
                }
            }
        }
    }

    async fn next(&mut self) -> Result<v1::TransferRequest, End> {
        match self.requests.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(End::Gone),
            Err(status) => Err(End::Tell(status)),
        }
    }

    async fn reply(&self, kind: ReplyKind) -> Result<(), End> {
        let reply = v1::TransferReply { kind: Some(kind) };
        self.replies.send(Ok(reply)).await.map_err(|_| End::Gone)
    }

    /// Waits for `work`, which is never cut short, and tells the sender meanwhile that we are alive.
    async fn while_working<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(WORKING_INTERVAL) => {
                    // A sender that is gone or does not read changes nothing here.
                    let working = ReplyKind::Working(v1::TransferWorking {});
                    let reply = v1::TransferReply { kind: Some(working) };
                    let _ = self.replies.try_send(Ok(reply));
                }
            }
        }
    }
}
