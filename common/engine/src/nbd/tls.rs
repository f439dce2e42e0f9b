//! TCP, behind TLS only.
//!
//! The runtime accepts, refuses everything but STARTTLS, does the TLS handshake, lets the client choose
//! an export, and then carries bytes between the TLS stream and a socket pair, whose other end is served
//! like a unix socket.
//!
//! Does not do: requests. What a client sent before TLS is read byte by byte as needed, and
//! forgotten; bytes that were injected behind STARTTLS fail the TLS handshake.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use sitepair_certs::{SeenPeer, TlsError, describe};
use sitepair_model::cause::chain;
use sitepair_model::nbd::negotiate::{ClientFlags, OPTION_HEADER_BYTES, OptionHeader, greeting};
use sitepair_model::nbd::{ExportFacts, Negotiation, Next, ProtocolError, Session, TlsPhase};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::HANDSHAKE_TIME_MAX;
use super::handshake::{OPTIONS_MAX, Start};
use super::listener::Listener;
use super::registry::Registry;
use super::unix::ACCEPT_PAUSE;

/// Gives the TLS configuration for the next connection, and where its handshake notes who the client is. The
/// configuration decides which clients are let in, so it must demand client certificates.
pub type TlsSource =
    Arc<dyn Fn() -> Result<(Arc<rustls::ServerConfig>, SeenPeer), TlsError> + Send + Sync>;

/// Bytes carried at once in either direction.
const CARRY_BYTES: usize = 256 << 10;
/// Clients that may be on their way through TLS, besides those that are served: strangers who never
/// finish must not keep out those who do.
const PENDING_MAX: usize = 64;
/// How long replies may take to leave after the connection is over.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("talk to the client")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("{}", describe(.0))]
    Handshake(io::Error),
    #[error("our own TLS settings")]
    Own(#[from] TlsError),
    #[error("the client did not finish negotiating in time")]
    TooSlow,
    #[error("the client left without TLS")]
    NoTls,
    #[error("the client left without choosing an export")]
    NoExport,
}

impl ClientError {
    /// Whether somebody was kept out, rather than went away.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Handshake(_) | Self::Own(_))
    }
}

/// A client that may be served.
struct Ready {
    stream: TlsStream<TcpStream>,
    listener: Arc<Listener>,
    session: Session,
}

/// Takes clients to the exports of `registry` until it closes; then waits a little for the last replies.
pub(super) async fn accept(socket: TcpListener, tls: TlsSource, registry: Arc<Registry>) {
    let mut clients = JoinSet::new();
    let pending = Arc::new(Semaphore::new(PENDING_MAX));
    loop {
        let accepted = tokio::select! {
            () = registry.closed() => break,
            Some(_) = clients.join_next() => continue,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept an NBD client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
            tracing::warn!(%peer, "too many NBD clients negotiate: one is dropped");
            continue;
        };
        let (tls, registry) = (Arc::clone(&tls), Arc::clone(&registry));
        clients.spawn(async move {
            let ready = introduce(stream, peer, &tls, &registry).await;
            // The permit is for the negotiation only; those who are served are counted by their export.
            drop(permit);
            if let Some(ready) = ready
                && let Err(error) = carry(ready).await
            {
                tracing::debug!(%peer, %error, "NBD client over TLS ended");
            }
        });
    }
    drop(socket);
    let all = async { while clients.join_next().await.is_some() {} };
    // Those that are left after this are aborted with the set.
    let _ = tokio::time::timeout(2 * LINGER, all).await;
}

/// Negotiates, and says in the log who comes or why not.
async fn introduce(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &TlsSource,
    registry: &Registry,
) -> Option<Ready> {
    let mut seen = SeenPeer::default();
    let negotiated = async {
        let (config, noted) = tls()?;
        seen = noted;
        negotiate(stream, config, registry).await
    };
    let result = tokio::time::timeout(HANDSHAKE_TIME_MAX, negotiated)
        .await
        .unwrap_or(Err(ClientError::TooSlow));
    let who = match seen.claimed() {
        Some(Ok(identity)) => format!("{identity} (serial {})", identity.serial),
        Some(Err(nobody)) => format!("nobody: {nobody}"),
        None => "no certificate".to_owned(),
    };
    match result {
        Ok(ready) => {
            let export = &ready.listener.facts().name;
            tracing::info!(%peer, who, export, "NBD client comes over TLS");
            return Some(ready);
        }
        Err(error) if error.is_refusal() => {
            tracing::warn!(%peer, who, "NBD client refused: {}", chain(&error));
        }
        Err(error) => {
            tracing::debug!(%peer, who, "NBD client left: {}", chain(&error));
        }
    }
    None
}

/// Goes through the option phase up to STARTTLS, the TLS handshake, and the option phase behind it.
async fn negotiate(
    mut stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    registry: &Registry,
) -> Result<Ready, ClientError> {
    stream.set_nodelay(true)?;
    stream.write_all(&greeting()).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    let client = ClientFlags::parse(flags)?;
    let before = Negotiation::new(&[], TlsPhase::Required, client);
    match options(&mut stream, before).await? {
        Next::StartTls => {}
        Next::Option | Next::Close | Next::Transmit(_) => return Err(ClientError::NoTls),
    }
    let accepted = TlsAcceptor::from(config).accept(stream).await;
    let mut stream = accepted.map_err(ClientError::Handshake)?;
    // One picture of the exports for the whole phase: a session names its export by its place in there. One
    // that closes meanwhile admits nobody.
    let listeners = registry.listeners();
    let facts: Vec<ExportFacts> = listeners.iter().map(|l| l.facts().clone()).collect();
    let behind = Negotiation::new(&facts, TlsPhase::Done, client).by_name_only();
    match options(&mut stream, behind).await? {
        Next::Transmit(session) => Ok(Ready {
            stream,
            listener: Arc::clone(&listeners[session.export]),
            session,
        }),
        Next::Option | Next::Close | Next::StartTls => Err(ClientError::NoExport),
    }
}

/// Answers options until one of them ends the phase; `Next::Option` when there were too many.
async fn options<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut phase: Negotiation<'_>,
) -> Result<Next, ClientError> {
    for _ in 0..OPTIONS_MAX {
        let mut header = [0; OPTION_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = OptionHeader::parse(&header)?;
        let mut payload = vec![0; usize::try_from(header.length).expect("at most 64 KiB")];
        stream.read_exact(&mut payload).await?;
        let mut answer = Vec::new();
        let next = phase.option(header.code, &payload, &mut answer);
        stream.write_all(&answer).await?;
        stream.flush().await?;
        match next {
            Next::Option => {}
            end => return Ok(end),
        }
    }
    Ok(Next::Option)
}

/// Serves the decrypted bytes, until the server's side is done.
async fn carry(ready: Ready) -> io::Result<()> {
    let (served, ours) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    ready.listener.admit(served, Start::Agreed(ready.session))?;
    let (from_client, mut to_client) = tokio::io::split(ready.stream);
    let (from_server, mut to_server) = ours.into_split();
    let requests = async {
        let mut from_client = BufReader::with_capacity(CARRY_BYTES, from_client);
        let carried = tokio::io::copy_buf(&mut from_client, &mut to_server).await;
        // The server sees the end of the stream either way.
        let _ = to_server.shutdown().await;
        carried
    };
    let replies = async {
        let mut from_server = BufReader::with_capacity(CARRY_BYTES, from_server);
        tokio::io::copy_buf(&mut from_server, &mut to_client).await?;
        let _ = tokio::time::timeout(LINGER, to_client.shutdown()).await;
        io::Result::Ok(())
    };
    tokio::pin!(replies);
    tokio::select! {
        ended = &mut replies => ended,
        carried = requests => {
            replies.await?;
            carried.map(|_| ())
        }
    }
}
