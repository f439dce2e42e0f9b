//! Requests off a socket, several per system call.
//!
//! Owns: the bytes that were received and not yet used. Gives out requests and payloads. Does not
//! decide what to do with them.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use sitepair_model::nbd::request::REQUEST_BYTES;
use sitepair_model::nbd::{ProtocolError, Request};

use super::STALL_TIME_MAX;

/// Bytes received ahead. A payload that fits is used where it lies.
const BUFFER_BYTES: usize = 256 << 10;

/// Why no more requests come.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("talk to the client")]
    Io(#[from] io::Error),
    #[error("the client stopped in the middle of a request")]
    Stalled,
    #[error("the client closed its end in the middle of a request")]
    Torn,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// What came of waiting for a request.
#[derive(Debug)]
pub(super) enum Incoming {
    Request(Request),
    /// Nothing for a while.
    Idle,
    /// The client closed its end between two requests.
    End,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Reader {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    /// The stream must have [`STALL_TIME_MAX`] as its read timeout.
    pub(super) fn new(stream: Arc<UnixStream>) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Whether a whole request, payload included, can be had without waiting.
    pub(super) fn has_request(&self) -> bool {
        let Some(header) = self.buffer[self.start..self.end].first_chunk() else {
            return false;
        };
        Request::parse(header)
            .is_ok_and(|next| self.end - self.start >= REQUEST_BYTES + payload_len(&next))
    }

    /// Waits for the fixed part of the next request.
    pub(super) fn request(&mut self) -> Result<Incoming, ReadError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            match receive(&self.stream, &mut self.buffer) {
                Ok(0) => return Ok(Incoming::End),
                Ok(count) => self.end = count,
                Err(error) if is_timeout(&error) => return Ok(Incoming::Idle),
                Err(error) => return Err(error.into()),
            }
        }
        self.fill(REQUEST_BYTES)?;
        let header = self.buffer[self.start..]
            .first_chunk()
            .expect("filled above");
        let request = Request::parse(header)?;
        self.start += REQUEST_BYTES;
        Ok(Incoming::Request(request))
    }

    /// Whether a payload of this request can be used where it is received.
    pub(super) fn holds(request: &Request) -> bool {
        payload_len(request) <= BUFFER_BYTES
    }

    /// The payload of `request`, which [`Reader::holds`].
    pub(super) fn payload(&mut self, request: &Request) -> Result<&[u8], ReadError> {
        let length = payload_len(request);
        self.fill(length)?;
        let from = self.start;
        self.start += length;
        Ok(&self.buffer[from..self.start])
    }

    /// Copies the next bytes of a payload into `into`, whole.
    pub(super) fn payload_into(&mut self, into: &mut [u8]) -> Result<(), ReadError> {
        let buffered = into.len().min(self.end - self.start);
        into[..buffered].copy_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        receive_exact(&self.stream, &mut into[buffered..])
    }

    /// Passes over a payload.
    pub(super) fn skip(&mut self, request: &Request) -> Result<(), ReadError> {
        let mut left = payload_len(request);
        while left > 0 {
            let piece = left.min(BUFFER_BYTES);
            self.fill(piece)?;
            self.start += piece;
            left -= piece;
        }
        Ok(())
    }

    /// Receives until `wanted` bytes are there.
    fn fill(&mut self, wanted: usize) -> Result<(), ReadError> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        if self.start + wanted > BUFFER_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let began = Instant::now();
        while self.end - self.start < wanted {
            self.end += receive_more(&self.stream, &mut self.buffer[self.end..], began)?;
        }
        Ok(())
    }
}

fn payload_len(request: &Request) -> usize {
    usize::try_from(request.payload_bytes()).expect("payloads are at most 32 MiB")
}

fn receive_exact(stream: &UnixStream, mut into: &mut [u8]) -> Result<(), ReadError> {
    let began = Instant::now();
    while !into.is_empty() {
        let count = receive_more(stream, into, began)?;
        into = &mut into[count..];
    }
    Ok(())
}

/// Receives some bytes of a request that began to arrive at `began`. Drop by drop counts as a stall.
fn receive_more(stream: &UnixStream, into: &mut [u8], began: Instant) -> Result<usize, ReadError> {
    match receive(stream, into) {
        Ok(0) => Err(ReadError::Torn),
        Ok(_) if began.elapsed() > 2 * STALL_TIME_MAX => Err(ReadError::Stalled),
        Ok(count) => Ok(count),
        Err(error) if is_timeout(&error) => Err(ReadError::Stalled),
        Err(error) => Err(error.into()),
    }
}

fn receive(mut stream: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(into) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
