//! A guest: a small blocking NBD client over unix sockets.
//!
//! Owns one connection, and the requests that are not answered yet, with their data. When the
//! connection breaks it connects again and sends those once more, as QEMU does with
//! `reconnect-delay`; so a caller sees an agent's restart as a slow answer.
//!
//! Speaks fixed newstyle with GO, and structured or simple replies. Does not do TLS, block status,
//! or anything a hypervisor would not do in its data path.
//!
//! # Invariants
//! 1. A request leaves `pending` only when its answer is complete.
//! 2. Requests are sent again in the order in which they were first sent.

pub mod wire;

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::wait;
use wire::{Command, Export, Reply, Request};

/// How long the server may leave a request unanswered.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How a client treats its server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
    /// Ask for structured replies.
    pub structured: bool,
    /// How long to try to connect again when the connection breaks; zero gives up at once.
    pub reconnect_for: Duration,
}

impl Options {
    /// Structured replies, and no second connection.
    #[must_use]
    pub fn new(socket: &Path, export: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            export: export.to_owned(),
            structured: true,
            reconnect_for: Duration::ZERO,
        }
    }

    /// Takes socket and export from a URI such as `nbd+unix:///data?socket=/run/x.sock`.
    ///
    /// # Errors
    /// When the URI has another form.
    pub fn from_uri(uri: &str) -> Result<Self> {
        let rest = uri
            .strip_prefix("nbd+unix:///")
            .with_context(|| format!("read URI {uri}"))?;
        let (export, socket) = rest
            .split_once("?socket=")
            .with_context(|| format!("find the socket in {uri}"))?;
        Ok(Self::new(Path::new(socket), export))
    }

    /// The same, but connecting again for up to `limit`.
    #[must_use]
    pub fn reconnecting(mut self, limit: Duration) -> Self {
        self.reconnect_for = limit;
        self
    }
}

/// What one request came to.
#[derive(Debug)]
pub struct Answer {
    /// As [`Client::submit`] numbered the request.
    pub cookie: u64,
    /// What was asked.
    pub request: Request,
    /// The bytes that were read, or NBD's error number.
    pub outcome: std::result::Result<Vec<u8>, u32>,
}

/// A connection to one export, for one thread.
#[derive(Debug)]
pub struct Client {
    options: Options,
    link: Option<Link>,
    export: Export,
    pending: BTreeMap<u64, (Request, Vec<u8>)>,
    next_cookie: u64,
    reconnects: u32,
}

#[derive(Debug)]
struct Link {
    reader: BufReader<UnixStream>,
    writer: BufWriter<UnixStream>,
}

impl Client {
    /// Connects and negotiates; waits up to `reconnect_for` for the server to be there.
    ///
    /// # Errors
    /// When nobody listens, or the server refuses the export.
    pub fn connect(options: Options) -> Result<Self> {
        let (link, export) = dial_patiently(&options)?;
        Ok(Self {
            options,
            link: Some(link),
            export,
            pending: BTreeMap::new(),
            next_cookie: 1,
            reconnects: 0,
        })
    }

    /// What the server said of the export.
    #[must_use]
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// How often the connection was made anew.
    #[must_use]
    pub fn reconnects(&self) -> u32 {
        self.reconnects
    }

    /// Requests that wait for an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request and does not wait. `data` is what a write carries, otherwise empty.
    ///
    /// # Errors
    /// When the connection is lost for good.
    pub fn submit(&mut self, request: Request, data: &[u8]) -> Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.pending.insert(cookie, (request, data.to_vec()));
        let sent = match &mut self.link {
            Some(link) => wire::send(&mut link.writer, cookie, request, data),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if sent.is_err() {
            self.reconnect()?;
        }
        Ok(cookie)
    }

    /// Waits for any answer.
    ///
    /// # Errors
    /// When the connection is lost for good, when nothing is in flight, or when the server breaks the protocol.
    pub fn complete(&mut self) -> Result<Answer> {
        ensure!(!self.pending.is_empty(), "no request is in flight");
        loop {
            match self.receive() {
                Ok(answer) => return Ok(answer),
                Err(broken) if broken.kind() == io::ErrorKind::InvalidData => {
                    return Err(broken).context("read an NBD reply");
                }
                Err(_) => self.reconnect()?,
            }
        }
    }

    fn receive(&mut self) -> io::Result<Answer> {
        let link = self.link.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        link.writer.flush()?;
        let pending = &self.pending;
        let wanted = |cookie: u64| {
            pending
                .get(&cookie)
                .map(|(request, _)| *request)
                .ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a reply to a request never made",
                    )
                })
        };
        let Reply { cookie, outcome } = wire::receive(&mut link.reader, wanted)?;
        // Invariant 1: only a whole answer comes this far.
        let (request, _) = self
            .pending
            .remove(&cookie)
            .expect("`wanted` found it just now");
        Ok(Answer {
            cookie,
            request,
            outcome,
        })
    }

    fn reconnect(&mut self) -> Result<()> {
        self.link = None;
        let limit = self.options.reconnect_for;
        if limit.is_zero() {
            bail!("the connection to {} broke", self.options.socket.display());
        }
        wait::until("the NBD server is back", limit, || {
            let Ok((mut link, export)) = dial(&self.options) else {
                return Ok(None);
            };
            ensure!(
                export.size_bytes == self.export.size_bytes,
                "the export changed its size"
            );
            // Invariant 2: a map ordered by cookie is ordered by first sending.
            let again = self
                .pending
                .iter()
                .try_for_each(|(cookie, (request, data))| {
                    wire::send(&mut link.writer, *cookie, *request, data)
                });
            if again.is_err() {
                return Ok(None);
            }
            self.reconnects += 1;
            self.link = Some(link);
            Ok(Some(()))
        })
    }

    fn one(&mut self, request: Request, data: &[u8]) -> Result<Vec<u8>> {
        ensure!(
            self.pending.is_empty(),
            "answers of earlier requests are still to be taken"
        );
        self.submit(request, data)?;
        match self.complete()?.outcome {
            Ok(bytes) => Ok(bytes),
            Err(code) => bail!("{request:?}: NBD error {code}"),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// When the server answers with an error, or the connection is lost for good.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.one(Request::new(Command::Read, offset, length), &[])
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).context("length of a write")?;
        self.one(Request::new(Command::Write, offset, length), data)
            .map(drop)
    }

    /// Writes, and is answered when the bytes are durable.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_durable(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).context("length of a write")?;
        let request = Request::new(Command::Write, offset, length).with_flags(wire::FLAG_FUA);
        self.one(request, data).map(drop)
    }

    /// Makes durable what was answered before.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn flush(&mut self) -> Result<()> {
        self.one(Request::new(Command::Flush, 0, 0), &[]).map(drop)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn zero(&mut self, offset: u64, length: u32) -> Result<()> {
        self.one(Request::new(Command::WriteZeroes, offset, length), &[])
            .map(drop)
    }

    /// Gives the space of a range back.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<()> {
        self.one(Request::new(Command::Trim, offset, length), &[])
            .map(drop)
    }

    /// Says good-bye. Dropping a client without this is a hypervisor that crashed.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub fn disconnect(mut self) -> Result<()> {
        let mut link = self.link.take().context("the connection is gone already")?;
        let request = Request::new(Command::Disconnect, 0, 0);
        wire::send(&mut link.writer, 0, request, &[]).context("send NBD_CMD_DISC")?;
        link.writer.flush().context("send NBD_CMD_DISC")
    }
}

fn dial_patiently(options: &Options) -> Result<(Link, Export)> {
    if options.reconnect_for.is_zero() {
        return dial(options);
    }
    let mut last = None;
    let dialled = wait::until("an NBD server answers", options.reconnect_for, || {
        let attempt = dial(options);
        Ok(attempt.map_err(|error| last = Some(error)).ok())
    });
    dialled.map_err(|late| last.map_or(late, |error| error.context("connect again and again")))
}

fn dial(options: &Options) -> Result<(Link, Export)> {
    let stream = UnixStream::connect(&options.socket)
        .with_context(|| format!("connect to {}", options.socket.display()))?;
    stream
        .set_read_timeout(Some(ANSWER_LIMIT))
        .context("set a time limit")?;
    let mut link = Link {
        reader: BufReader::with_capacity(256 << 10, stream.try_clone().context("clone a socket")?),
        writer: BufWriter::with_capacity(256 << 10, stream),
    };
    let export = wire::negotiate(
        &mut link.reader,
        &mut link.writer,
        &options.export,
        options.structured,
    )
    .with_context(|| format!("negotiate export {:?}", options.export))?;
    Ok((link, export))
}

#[cfg(test)]
mod tests;
