//! The link to the other agent: kept up by one task, its state visible to everybody.
//!
//! ```text
//!            dialled, TLS, probe answered
//!   Down ────────────────────────────────▶ Up
//!    │ ▲                                   │
//!    └─┘ failed: wait 1 s .. 30 s          │ connection closed, or silent for 20 s
//!    ▲                                     │
//!    └─────────────────────────────────────┘
//! ```
//!
//! Gives out a gRPC channel while the link is up. Does not do: retrying calls; whoever made them decides.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use sitepair_certs::{TlsStore, describe, dial};
use sitepair_model::cause::chain;
use sitepair_model::ids::{Site, UnixMillis};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{
    CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, HTTP2_FRAME_BYTES, KEEPALIVE,
    STREAM_WINDOW_BYTES, TLS_BUFFER_BYTES,
};
use crate::env::Env;

/// Where the other agent is.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// `HOST:PORT`.
    pub address: String,
    /// Its site: nobody else is accepted there.
    pub peer: Site,
    /// How patient the link is.
    pub timing: LinkTiming,
}

/// How patient a link is.
#[derive(Debug, Clone, Copy)]
pub struct LinkTiming {
    /// Wait after the first failed attempt; doubles with each.
    pub retry_min: Duration,
    /// Longest wait between attempts.
    pub retry_max: Duration,
    /// Longest wait for the answer to a call.
    pub call_max: Duration,
    /// Longest wait for any sign of progress in a transfer.
    pub stall_max: Duration,
    /// Silence before the other agent is asked for a sign of life, and how long that may take.
    pub keepalive: Duration,
}

impl Default for LinkTiming {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            call_max: Duration::from_secs(60),
            stall_max: Duration::from_secs(30),
            keepalive: KEEPALIVE,
        }
    }
}

/// State of the link, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Connected, and the other agent has answered.
    Up {
        /// Since when.
        since: UnixMillis,
    },
    /// Not connected.
    Down {
        /// Since when: the agent's start, or the end of the last connection.
        since: UnixMillis,
        /// Why, in words for the operator; empty before the first attempt has failed.
        last_error: String,
        /// Attempts since then.
        attempts: u32,
        /// When the next attempt begins.
        next_try: UnixMillis,
    },
}

impl LinkState {
    /// Why a call cannot be made; `None` while the link is up.
    pub(super) fn why_down(&self) -> Option<String> {
        match self {
            Self::Up { .. } => None,
            Self::Down { attempts: 0, .. } => Some("not connected yet".to_owned()),
            Self::Down { last_error, .. } => Some(last_error.clone()),
        }
    }
}

/// Longest wait for the answer to the first call on a new connection.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// More doublings than this reach any longest wait.
const DOUBLINGS_MAX: u32 = 16;

/// What the link's task publishes.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) state: LinkState,
    /// Present exactly while the state is up.
    pub(super) channel: Option<Channel>,
}

/// The task that keeps a link up.
pub(super) struct Link {
    pub(super) config: LinkConfig,
    pub(super) store: Arc<TlsStore>,
    pub(super) env: Arc<dyn Env>,
    pub(super) published: watch::Sender<Published>,
}

impl Link {
    /// What is published before the first attempt.
    pub(super) fn unborn(env: &dyn Env) -> Published {
        let now = env.now();
        let state = LinkState::Down {
            since: now,
            last_error: String::new(),
            attempts: 0,
            next_try: now,
        };
        Published {
            state,
            channel: None,
        }
    }

    /// Runs until it is aborted.
    pub(super) async fn run(self) {
        let mut since = self.env.now();
        let mut attempts = 0_u32;
        loop {
            let last_error = match self.connect().await {
                Ok((channel, watched)) => {
                    self.up(channel);
                    watched.closed.cancelled().await;
                    since = self.env.now();
                    attempts = 0;
                    watched.cause().unwrap_or_else(|| self.silence())
                }
                Err(why) => why,
            };
            attempts = attempts.saturating_add(1);
            let wait = self.wait_after(attempts);
            self.down(since, last_error, attempts, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// A connection that ends without an error was given up by the HTTP/2 layer.
    fn silence(&self) -> String {
        let seconds = 2.0 * self.config.timing.keepalive.as_secs_f32();
        format!("no sign of life from the other agent for {seconds} s, or it is stopping")
    }

    fn up(&self, channel: Channel) {
        tracing::info!(peer = self.config.address, "link to the other site is up");
        self.published.send_replace(Published {
            state: LinkState::Up {
                since: self.env.now(),
            },
            channel: Some(channel),
        });
    }

    fn down(&self, since: UnixMillis, last_error: String, attempts: u32, wait: Duration) {
        // Told once per cause, not once per attempt.
        let told = match &self.published.borrow().state {
            LinkState::Down {
                last_error: told, ..
            } => *told == last_error,
            LinkState::Up { .. } => false,
        };
        if !told {
            tracing::warn!(
                peer = self.config.address,
                "link to the other site is down: {last_error}"
            );
        }
        let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let next_try = UnixMillis(self.env.now().0.saturating_add(wait_ms));
        let state = LinkState::Down {
            since,
            last_error,
            attempts,
            next_try,
        };
        self.published.send_replace(Published {
            state,
            channel: None,
        });
    }

    /// Doubles with each attempt, less up to a quarter by chance: both sites must not dial in step.
    fn wait_after(&self, attempts: u32) -> Duration {
        let timing = &self.config.timing;
        let doubled = 1_u32 << attempts.saturating_sub(1).min(DOUBLINGS_MAX);
        let wait = timing
            .retry_min
            .saturating_mul(doubled)
            .min(timing.retry_max);
        let chance = u32::from(self.env.random_id()[0]);
        wait - wait * chance / 1024
    }

    async fn connect(&self) -> Result<(Channel, Arc<Watched>), String> {
        let state = self.store.current();
        let mut tls = dial(&state, self.config.peer, &self.config.address)
            .await
            .map_err(|error| error.to_string())?;
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        let watched = Arc::new(Watched::default());
        let stream = WatchedStream {
            tls,
            watched: Arc::clone(&watched),
        };
        let channel = match open_channel(stream, self.config.timing.keepalive).await {
            Ok(channel) => channel,
            Err(error) => return Err(watched.cause().unwrap_or_else(|| chain(&error))),
        };
        // In TLS 1.3 a refusal of our certificate arrives only after the handshake, with the first answer.
        match tokio::time::timeout(PROBE_MAX, probe(channel.clone())).await {
            Ok(Ok(())) => Ok((channel, watched)),
            Ok(Err(status)) => Err(watched.cause().unwrap_or_else(|| chain(&status))),
            Err(_) => Err(format!(
                "connected, but no answer within {} s",
                PROBE_MAX.as_secs()
            )),
        }
    }
}

async fn probe(channel: Channel) -> Result<(), tonic::Status> {
    let ask = HealthCheckRequest {
        service: String::new(),
    };
    HealthClient::new(channel).check(ask).await.map(|_| ())
}

async fn open_channel(
    stream: WatchedStream,
    keepalive: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(TokioIo::new(stream));
    // One channel, one connection: when it ends, the link's task dials again, with its own patience.
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once
            .take()
            .ok_or_else(|| io::Error::other("the link went down"));
        std::future::ready(stream)
    });
    Endpoint::from_static("http://peer")
        .origin(Uri::from_static("https://peer"))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keep_alive_interval(keepalive)
        .keep_alive_timeout(keepalive)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

/// What became of a connection.
#[derive(Debug, Default)]
struct Watched {
    closed: CancellationToken,
    cause: Mutex<Option<String>>,
}

impl Watched {
    fn cause(&self) -> Option<String> {
        self.cause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The first cause is the one that matters; later errors follow from it.
    fn note(&self, cause: impl FnOnce() -> String) {
        self.cause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(cause);
    }
}

/// A connection that remembers why it ended. The layers above it say no more than "transport error".
#[derive(Debug)]
struct WatchedStream {
    tls: TlsStream<TcpStream>,
    watched: Arc<Watched>,
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        self.watched.closed.cancel();
    }
}

impl WatchedStream {
    fn noted<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.watched.note(|| describe(error));
        }
        result
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.tls).poll_read(cx, buf);
        if matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() == before {
            self.watched
                .note(|| "the other agent closed the connection".to_owned());
        }
        self.noted(result)
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tls).poll_write(cx, buf);
        self.noted(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tls).poll_write_vectored(cx, bufs);
        self.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tls).poll_flush(cx);
        self.noted(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tls).poll_shutdown(cx);
        self.noted(result)
    }
}
