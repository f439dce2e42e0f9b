//! Who may call what: one row for each method, everything else denied.
//!
//! # Invariants
//! 1. A method without a row is denied to everybody.
//! 2. `Replication` is open to the agent of the other site of our own pair, and to nobody else.
//! 3. Disks are open over TLS to those that [`may_attach`] names, and to nobody else.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use sitepair_certs::{Admits, Holder, Identity};
use sitepair_model::ids::{PairName, Site};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::accept::Caller;

/// Which holders may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The agent of the other site.
    Peer,
    /// Viewers, operators, admins.
    Read,
    /// Operators, admins.
    Operate,
    /// Every holder of a certificate of the pair.
    Everybody,
}

/// The rows. A test compares them with the contract.
const ROWS: &[(&str, Access)] = &[
    ("/sitepair.v1.Replication/Hello", Access::Peer),
    ("/sitepair.v1.Replication/Offer", Access::Peer),
    ("/sitepair.v1.Replication/Settle", Access::Peer),
    ("/sitepair.v1.Replication/Withdraw", Access::Peer),
    ("/sitepair.v1.Replication/Grant", Access::Peer),
    ("/sitepair.v1.Replication/Transfer", Access::Peer),
    ("/sitepair.v1.Control/Status", Access::Read),
    ("/sitepair.v1.Control/Watch", Access::Read),
    ("/sitepair.v1.Control/ListPoints", Access::Read),
    ("/sitepair.v1.Control/WatchJob", Access::Read),
    ("/sitepair.v1.Control/Protect", Access::Operate),
    ("/sitepair.v1.Control/Unprotect", Access::Operate),
    ("/sitepair.v1.Control/Pause", Access::Operate),
    ("/sitepair.v1.Control/Resume", Access::Operate),
    ("/sitepair.v1.Control/Cut", Access::Operate),
    ("/sitepair.v1.Control/PlannedFailover", Access::Operate),
    ("/sitepair.v1.Control/Reverse", Access::Operate),
    ("/sitepair.v1.Control/ForceOpen", Access::Operate),
    ("/sitepair.v1.Control/ExportPoint", Access::Operate),
    ("/sitepair.v1.Control/UnexportPoint", Access::Operate),
    ("/sitepair.v1.Control/StartTest", Access::Operate),
    ("/sitepair.v1.Control/EndTest", Access::Operate),
    ("/sitepair.v1.Control/ExportLog", Access::Operate),
    ("/sitepair.v1.Control/SetRetention", Access::Operate),
    ("/sitepair.v1.Control/PinPoint", Access::Operate),
    ("/sitepair.v1.Control/UnpinPoint", Access::Operate),
    ("/sitepair.v1.Control/LabelPoint", Access::Operate),
    ("/sitepair.v1.Control/ReadPoint", Access::Operate),
    ("/grpc.health.v1.Health/Check", Access::Everybody),
    ("/grpc.health.v1.Health/Watch", Access::Everybody),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Access::Everybody,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Access::Everybody,
    ),
];

/// Whom the NBD port lets in: holders of our own pair, of these kinds.
pub const ATTACH: Admits = Admits {
    holder: may_attach,
    words: "an operator, an admin or an agent of the pair",
};

/// Decides whether a holder may attach to disks over TLS, to read and write them: those who may move a group
/// between the sites, and the agents. A viewer may look at status, not at a guest's data.
#[must_use]
pub fn may_attach(holder: &Holder) -> bool {
    match holder {
        Holder::Operator(_) | Holder::Admin(_) | Holder::Agent(_) => true,
        Holder::Viewer(_) => false,
    }
}

/// The row of a method, by its path.
#[must_use]
pub fn access(path: &str) -> Option<Access> {
    ROWS.iter()
        .find(|(row, _)| *row == path)
        .map(|(_, access)| *access)
}

/// Which agent decides.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its pair.
    pub pair: PairName,
    /// Its site.
    pub site: Site,
}

/// Decides whether `caller` may call the method at `path`.
///
/// # Errors
/// The refusal, in words for the operator.
pub fn authorize(own: &Own, caller: &Identity, path: &str) -> Result<(), String> {
    let shown: String = path.chars().take(100).collect();
    let Some(access) = access(path) else {
        return Err(format!(
            "{shown} is not a method that anybody may call here"
        ));
    };
    if caller.pair != own.pair {
        return Err(format!("{caller} does not belong to pair {}", own.pair));
    }
    let (allowed, whom) = match access {
        Access::Everybody => (true, "everybody"),
        Access::Peer => (
            caller.holder == Holder::Agent(own.site.other()),
            "the other site's agent",
        ),
        Access::Read => (
            matches!(
                caller.holder,
                Holder::Viewer(_) | Holder::Operator(_) | Holder::Admin(_)
            ),
            "viewers, operators and admins",
        ),
        Access::Operate => (
            matches!(caller.holder, Holder::Operator(_) | Holder::Admin(_)),
            "operators and admins",
        ),
    };
    if allowed {
        Ok(())
    } else {
        Err(format!(
            "{caller} may not call {shown}: it is for {whom}; use a certificate of theirs"
        ))
    }
}

/// Puts [`authorize`] in front of every service.
#[derive(Debug, Clone)]
pub(super) struct AuthorizeLayer {
    own: Arc<Own>,
}

impl AuthorizeLayer {
    pub(super) fn new(own: Own) -> Self {
        Self { own: Arc::new(own) }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            own: Arc::clone(&self.own),
            inner,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Authorize<S> {
    own: Arc<Own>,
    inner: S,
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let path = request.uri().path();
        let refusal = match request.extensions().get::<Caller>() {
            Some(caller) => match authorize(&self.own, &caller.identity, path) {
                Ok(()) => return Box::pin(self.inner.call(request)),
                Err(why) => {
                    tracing::warn!(address = %caller.address, identity = %caller.identity,
                        serial = caller.identity.serial, "call refused: {why}");
                    why
                }
            },
            // Only our acceptor makes connections, and it always names the caller.
            None => "the connection has no identity".to_owned(),
        };
        Box::pin(async move { Ok(Status::permission_denied(refusal).into_http()) })
    }
}

#[cfg(test)]
mod tests;
