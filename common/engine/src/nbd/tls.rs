//! TCP, behind TLS only.
//!
//! The runtime accepts, refuses everything but STARTTLS, does the TLS handshake, and then carries
//! bytes between the TLS stream and a socket pair, whose other end is served like a unix socket.
//!
//! Does not do: requests. What a client sent before TLS is read byte by byte as needed, and
//! forgotten; bytes that were injected behind STARTTLS fail the TLS handshake.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use sitepair_model::nbd::negotiate::{ClientFlags, OPTION_HEADER_BYTES, OptionHeader, greeting};
use sitepair_model::nbd::{Negotiation, Next, ProtocolError, TlsPhase};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::HANDSHAKE_TIME_MAX;
use super::handshake::{OPTIONS_MAX, Start};
use super::listener::Listener;
use super::unix::ACCEPT_PAUSE;

/// Gives the TLS configuration for the next connection. It decides which clients are let in, so it
/// must demand client certificates.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Bytes carried at once in either direction.
const CARRY_BYTES: usize = 256 << 10;
/// Clients that may be on their way through TLS, besides those that are served: strangers who never
/// finish must not keep out those who do.
const PENDING_MAX: usize = 64;
/// How long replies may take to leave after the connection is over.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum TlsError {
    #[error("talk to the client")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the client did not finish negotiating in time")]
    TooSlow,
    #[error("the client left without TLS")]
    Left,
}

pub(super) fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    Ok((TcpListener::from_std(listener)?, bound))
}

/// Hands connections to `listener` until it closes; then waits a little for the last replies.
pub(super) async fn accept(socket: TcpListener, tls: TlsSource, listener: Arc<Listener>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = listener.closed() => break,
            Some(_) = clients.join_next() => continue,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if clients.len() < listener.connections_max() + PENDING_MAX => {
                clients.spawn(client(stream, peer, tls(), Arc::clone(&listener)));
            }
            Ok((_, peer)) => tracing::warn!(%peer, "too many NBD clients: one is dropped"),
            Err(error) => {
                tracing::warn!(%error, "accept an NBD client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    let all = async { while clients.join_next().await.is_some() {} };
    // Those that are left after this are aborted with the set.
    let _ = tokio::time::timeout(2 * LINGER, all).await;
}

async fn client(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    listener: Arc<Listener>,
) {
    let secured = tokio::time::timeout(HANDSHAKE_TIME_MAX, secure(stream, config)).await;
    let ended = match secured.unwrap_or(Err(TlsError::TooSlow)) {
        Ok((stream, client)) => carry(stream, client, &listener)
            .await
            .map_err(TlsError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error = %super::chain(&error), "NBD client over TLS ended");
    }
}

/// Goes through the option phase up to STARTTLS, and through the TLS handshake.
async fn secure(
    mut stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
) -> Result<(TlsStream<TcpStream>, ClientFlags), TlsError> {
    stream.set_nodelay(true)?;
    stream.write_all(&greeting()).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    let client = ClientFlags::parse(flags)?;
    let mut phase = Negotiation::new(&[], TlsPhase::Required, client);
    for _ in 0..OPTIONS_MAX {
        let mut header = [0; OPTION_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = OptionHeader::parse(&header)?;
        let mut payload = vec![0; usize::try_from(header.length).expect("at most 64 KiB")];
        stream.read_exact(&mut payload).await?;
        let mut answer = Vec::new();
        let next = phase.option(header.code, &payload, &mut answer);
        stream.write_all(&answer).await?;
        match next {
            Next::Option => {}
            Next::StartTls => {
                let stream = TlsAcceptor::from(config).accept(stream).await?;
                return Ok((stream, client));
            }
            Next::Close | Next::Transmit(_) => return Err(TlsError::Left),
        }
    }
    Err(TlsError::Left)
}

/// Serves the decrypted bytes, until the server's side is done.
async fn carry(
    stream: TlsStream<TcpStream>,
    client: ClientFlags,
    listener: &Arc<Listener>,
) -> io::Result<()> {
    let (served, ours) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    listener.admit(served, Start::Options(client))?;
    let (from_client, mut to_client) = tokio::io::split(stream);
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
