//! The other agent, as a [`PeerEndpoint`] over the link.
//!
//! While the link is down every call fails at once with the cause: waiting is the caller's decision.

use std::sync::Arc;

use async_trait::async_trait;
use sitepair_certs::TlsStore;
use sitepair_model::ids::{GroupId, OpId};
use sitepair_model::peer::{Grant, GroupOffer, Hello, HelloAnswer, TransferBegin};
use sitepair_model::retention::Retention;
use sitepair_proto::v1;
use sitepair_proto::v1::replication_client::ReplicationClient;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::MESSAGE_BYTES_MAX;
use super::link::{Link, LinkConfig, LinkState, LinkTiming, Published};
use super::status::{bad_answer, peer_error};
use super::transfer::RemoteTransfer;
use crate::endpoint::{PeerEndpoint, PeerError, Transfer};
use crate::env::Env;

/// The agent at the other site. Keeps its link up as long as it lives.
#[derive(Debug)]
pub struct RemotePeer {
    timing: LinkTiming,
    published: watch::Receiver<Published>,
    states: watch::Receiver<LinkState>,
    _link: AbortOnDropHandle<()>,
    _states: AbortOnDropHandle<()>,
}

impl RemotePeer {
    /// Begins to connect. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(config: LinkConfig, store: Arc<TlsStore>, env: Arc<dyn Env>) -> Self {
        let timing = config.timing;
        let (publisher, published) = watch::channel(Link::unborn(&*env));
        let (state_sender, states) = watch::channel(published.borrow().state.clone());
        let link = Link {
            config,
            store,
            env,
            published: publisher,
        };
        Self {
            timing,
            states,
            _states: AbortOnDropHandle::new(tokio::spawn(forward(published.clone(), state_sender))),
            _link: AbortOnDropHandle::new(tokio::spawn(link.run())),
            published,
        }
    }

    /// The state of the link, and every change of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.states.clone()
    }

    fn channel(&self) -> Result<Channel, PeerError> {
        let published = self.published.borrow();
        published.channel.clone().ok_or_else(|| PeerError::Link {
            why: published.state.why_down().unwrap_or_default(),
        })
    }

    fn client(&self) -> Result<ReplicationClient<Channel>, PeerError> {
        let client = ReplicationClient::new(self.channel()?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, PeerError> {
        match tokio::time::timeout(self.timing.call_max, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(peer_error(&status)),
            Err(_) => Err(PeerError::Link {
                why: format!("no answer within {} s", self.timing.call_max.as_secs()),
            }),
        }
    }
}

/// Passes on the state alone: who watches it has no business with the channel.
async fn forward(mut from: watch::Receiver<Published>, to: watch::Sender<LinkState>) {
    while from.changed().await.is_ok() {
        to.send_replace(from.borrow_and_update().state.clone());
    }
}

#[async_trait]
impl PeerEndpoint for RemotePeer {
    async fn hello(&self, hello: Hello) -> Result<HelloAnswer, PeerError> {
        let mut client = self.client()?;
        let (request, nonce) = (hello.request, hello.nonce);
        let reply = self
            .answer(client.hello(v1::HelloRequest::from(hello)))
            .await?;
        let answer = HelloAnswer::try_from(reply).map_err(|e| bad_answer(&e))?;
        // An answer counts only for the request and the process life that asked.
        if answer.request == request && answer.nonce == nonce {
            Ok(answer)
        } else {
            Err(PeerError::Link {
                why: "the peer answered another request".to_owned(),
            })
        }
    }

    async fn offer(&self, offer: GroupOffer) -> Result<(), PeerError> {
        let mut client = self.client()?;
        self.answer(client.offer(v1::OfferRequest::from(offer)))
            .await
            .map(|_| ())
    }

    async fn settle(&self, group: GroupId, retention: Retention) -> Result<Retention, PeerError> {
        let mut client = self.client()?;
        let request = v1::SettleRequest::of(group, retention);
        let reply = self.answer(client.settle(request)).await?;
        reply.settled().map_err(|e| bad_answer(&e))
    }

    async fn withdraw(&self, group: GroupId, delete_replica: bool) -> Result<(), PeerError> {
        let mut client = self.client()?;
        let request = v1::WithdrawRequest::of(group, delete_replica);
        self.answer(client.withdraw(request)).await.map(|_| ())
    }

    async fn grant(&self, grant: Grant) -> Result<OpId, PeerError> {
        let mut client = self.client()?;
        let request = grant.request;
        let reply = self
            .answer(client.grant(v1::GrantRequest::from(grant)))
            .await?;
        let answered = OpId::try_from(reply).map_err(|e| bad_answer(&e))?;
        if answered == request {
            Ok(answered)
        } else {
            Err(PeerError::Link {
                why: "the peer answered another request".to_owned(),
            })
        }
    }

    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        let transfer = RemoteTransfer::begin(self.channel()?, begin, self.timing.stall_max).await?;
        Ok(Box::new(transfer))
    }
}
