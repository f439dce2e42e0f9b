//! The option phase over a blocking stream.
//!
//! Drives [`Negotiation`] with a deadline and a limit on the number of options. Receives exactly the
//! bytes of the option phase, so that requests sent right behind it stay in the socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use sitepair_model::nbd::negotiate::{ClientFlags, OPTION_HEADER_BYTES, OptionHeader, greeting};
use sitepair_model::nbd::{ExportFacts, Negotiation, Next, ProtocolError, Session, TlsPhase};

use super::HANDSHAKE_TIME_MAX;

/// Options in one negotiation; real clients need about six, and two for each export they ask about.
pub(super) const OPTIONS_MAX: usize = 256;

/// Where a connection is when it is handed over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// At the very beginning.
    Greeting,
    /// At the first request: the negotiation took place elsewhere.
    Agreed(Session),
}

/// A negotiation that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("negotiate with the client")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error("the client did not finish negotiating in time")]
    TooSlow,
}

/// Negotiates, if that was not done. `None` when the client went away in good order.
pub(super) fn negotiate(
    stream: &UnixStream,
    exports: &[ExportFacts],
    start: Start,
) -> Result<Option<Session>, HandshakeError> {
    let mut wire = Wire {
        stream,
        deadline: Instant::now() + HANDSHAKE_TIME_MAX,
    };
    let client = match start {
        Start::Agreed(session) => return Ok(Some(session)),
        Start::Greeting => {
            wire.send(&greeting())?;
            let mut flags = [0; 4];
            wire.receive(&mut flags)?;
            ClientFlags::parse(flags)?
        }
    };
    let mut phase = Negotiation::new(exports, TlsPhase::Done, client);
    let mut answer = Vec::new();
    for _ in 0..OPTIONS_MAX {
        let mut header = [0; OPTION_HEADER_BYTES];
        wire.receive(&mut header)?;
        let header = OptionHeader::parse(&header)?;
        let length = usize::try_from(header.length).expect("options are at most 64 KiB");
        let mut payload = vec![0; length];
        wire.receive(&mut payload)?;
        answer.clear();
        let next = phase.option(header.code, &payload, &mut answer);
        wire.send(&answer)?;
        match next {
            Next::Option => {}
            Next::Transmit(session) => return Ok(Some(session)),
            Next::Close | Next::StartTls => return Ok(None),
        }
    }
    Err(HandshakeError::TooManyOptions)
}

/// A stream with one deadline for everything.
struct Wire<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Wire<'_> {
    fn receive(&mut self, mut into: &mut [u8]) -> Result<(), HandshakeError> {
        while !into.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(into) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => into = &mut into[count..],
                Err(error) => retry(error)?,
            }
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), HandshakeError> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => retry(error)?,
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<std::time::Duration, HandshakeError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(HandshakeError::TooSlow)
        } else {
            Ok(left)
        }
    }
}

/// Time-outs and interruptions lead back to the check of the deadline.
fn retry(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(()),
        _ => Err(error),
    }
}
