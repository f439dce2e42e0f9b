//! Server: all services of an agent on one port, behind mutual TLS and the table of roles.
//!
//! Owns the accept loop and the look-out for changed TLS files; both end with [`serve`].
//! Does not do: listening. The caller binds, so that a port in use is told at start.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use sitepair_certs::TlsStore;
use sitepair_model::ids::Site;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tower::Service;

use super::accept::{Registry, accept_loop};
use super::replication::ReplicationService;
use super::roles::{AuthorizeLayer, Own};
use super::{
    CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, HTTP2_FRAME_BYTES, KEEPALIVE,
    STREAM_WINDOW_BYTES,
};
use crate::endpoint::PeerEndpoint;

/// Most calls at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Streams that a client opened and reset before we took them; more end the connection.
const PENDING_RESETS_MAX: usize = 20;
/// How often the TLS files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How long open calls may take to end when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Authenticated connections that wait to be served.
const READY_MAX: usize = 16;

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors in this program do not fit its services.
    #[error("set up server reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The HTTP/2 layer ended.
    #[error("serve calls")]
    Transport(#[from] tonic::transport::Error),
}

/// What an agent offers.
pub struct Services<C> {
    /// TLS files; looked at every few seconds.
    pub store: Arc<TlsStore>,
    /// The agent's own site.
    pub site: Site,
    /// What the other agent's calls reach.
    pub peer: Arc<dyn PeerEndpoint>,
    /// What operators' calls reach.
    pub control: Option<C>,
}

/// Serves until `stop`, then lets open calls end for a few seconds.
///
/// # Errors
/// [`ServeError`]; no connection's error is one.
pub async fn serve<C>(
    listener: TcpListener,
    services: Services<C>,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    C: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    C::Future: Send + 'static,
{
    let Services {
        store,
        site,
        peer,
        control,
    } = services;
    let registry = Arc::new(Registry::default());
    let (ready, connections) = mpsc::channel(READY_MAX);
    let replication = ReplicationService::new(peer, stop.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status(
            ReplicationService::NAME,
            tonic_health::ServingStatus::Serving,
        )
        .await;
    if control.is_some() {
        health
            .set_service_status(C::NAME, tonic_health::ServingStatus::Serving)
            .await;
    }
    let router = limits()
        .layer(AuthorizeLayer::new(Own {
            pair: store.pair().clone(),
            site,
        }))
        .add_service(replication.clone())
        .add_optional_service(control)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let serving = router.serve_with_incoming_shutdown(
        ReceiverStream::new(connections).map(Ok::<_, Infallible>),
        stop.clone().cancelled_owned(),
    );
    let accepting = accept_loop(
        listener,
        Arc::clone(&store),
        Arc::clone(&registry),
        ready,
        stop.clone(),
    );
    let watching = watch_files(&store, &registry, &stop);
    let ending = end_calls(&registry, &stop);
    // The last one ends the others: when all connections are closed, nothing is left to do.
    tokio::select! {
        served = serving => served?,
        ((), (), ()) = async { tokio::join!(accepting, watching, ending) } => {}
    }
    replication.finished().await;
    Ok(())
}

/// What any client may use of us, whoever it is.
fn limits() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sitepair_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Takes up changed TLS files, and closes connections of certificates that a new list revokes.
async fn watch_files(store: &Arc<TlsStore>, registry: &Registry, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RELOAD_INTERVAL) => {}
        }
        let files = Arc::clone(store);
        // File systems may hang: not on a thread that serves calls.
        match tokio::task::spawn_blocking(move || files.reload_if_changed()).await {
            Ok(Ok(true)) => {
                let state = store.current();
                tracing::info!(identity = %state.identity(), serial = state.identity().serial,
                    "TLS files changed: new connections use them");
                registry.close_revoked(&state);
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(
                    "TLS files changed and cannot be used, the old ones stay in use: {error}"
                );
            }
            Err(error) => tracing::error!("look at the TLS files: {error}"),
        }
    }
}

/// Calls such as `Watch` never end by themselves.
async fn end_calls(registry: &Registry, stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
    registry.close_all();
    // The server ends now that no connection is left.
    std::future::pending().await
}
