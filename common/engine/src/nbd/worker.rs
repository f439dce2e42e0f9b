//! One thread of a connection: reads requests, asks the image, answers.
//!
//! Owns: the thread's buffers. Replies to quick requests are collected while more requests are at
//! hand, and sent with one system call before the thread waits for anything.

use sitepair_disk::image::Access;
use sitepair_disk::{DiskError, ErrorKind, ZeroMode};
use sitepair_model::nbd::reply::{self, More};
use sitepair_model::nbd::request::{FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE};
use sitepair_model::nbd::{Command, Errno, Request};

use super::budget::Buffer;
use super::connection::Connection;
use super::reader::{Incoming, ReadError, Reader};
use super::status::Runs;

/// A quick read is at most this long; longer ones let others read on meanwhile.
const QUICK_BYTES_MAX: usize = 256 << 10;
/// Collected replies are sent when they are this long.
const COLLECT_BYTES_MAX: usize = 256 << 10;
/// A longer read is answered in pieces, where the client allows it: the disk works on the next
/// piece while the socket carries the last, and the buffer stays small.
const PIECE_BYTES: u32 = 512 << 10;
/// Runs in one block status reply.
const STATUS_RUNS_MAX: usize = 4096;

/// A request that this thread works on without the reader; a write's payload is in its buffer.
pub(super) struct Job(Request);

/// A thread's buffers.
pub(super) struct Worker<'a> {
    connection: &'a Connection,
    /// Payload of a write that is being worked on.
    payload: Buffer,
    /// Replies, of which the first `collected` bytes are ready to be sent.
    out: Buffer,
    collected: usize,
}

impl<'a> Worker<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        let buffer = || Buffer::new(connection.listener.budgets.clone());
        Self {
            connection,
            payload: buffer(),
            out: buffer(),
            collected: 0,
        }
    }

    /// Reads and answers quick requests until one comes that may take long: it is returned, with
    /// its payload received and earlier replies sent. `None`: the connection is over.
    pub(super) fn lead(&mut self, reader: &mut Reader) -> Option<Job> {
        loop {
            match self.lead_one(reader) {
                Ok(Step::Again) => {}
                Ok(Step::Slow(job)) => return Some(job),
                Ok(Step::Over) => {
                    // What was answered before the client said goodbye is still owed to it.
                    let _ = self.send_collected();
                    return None;
                }
                Err(error) => {
                    tracing::debug!(error = %super::chain(&error), "NBD connection ended");
                    let _ = self.send_collected();
                    return None;
                }
            }
        }
    }

    fn lead_one(&mut self, reader: &mut Reader) -> Result<Step, ReadError> {
        if !reader.has_request() {
            self.send_collected()?;
            self.settle();
        }
        let request = match reader.request()? {
            Incoming::Request(request) => request,
            Incoming::End => return Ok(Step::Over),
            Incoming::Idle => {
                self.payload.release();
                self.out.release();
                return Ok(self.unless_closing(Step::Again));
            }
        };
        if request.command == Command::Disconnect || self.connection.is_over() {
            return Ok(Step::Over);
        }
        if let Some(errno) = request.refusal(&self.connection.limits) {
            reader.skip(&request)?;
            self.answer(&request, Err(errno))?;
            return Ok(Step::Again);
        }
        if request.length == 0 && matches!(request.command, Command::Read | Command::Write) {
            self.answer(&request, Ok(()))?;
            return Ok(Step::Again);
        }
        if self.is_quick(&request) {
            self.quick(&request, reader)?;
            return Ok(Step::Again);
        }
        self.send_collected()?;
        if request.command == Command::Write {
            let length = length_of(&request);
            let payload = self.payload.at_least(length, &mut self.out);
            reader.payload_into(&mut payload[..length])?;
        }
        Ok(Step::Slow(Job(request)))
    }

    fn unless_closing(&self, step: Step) -> Step {
        if self.connection.is_over() {
            Step::Over
        } else {
            step
        }
    }

    fn is_quick(&self, request: &Request) -> bool {
        let length = length_of(request);
        let access = match request.command {
            Command::Read if length <= QUICK_BYTES_MAX => Access::Read,
            Command::Write if !request.has(FLAG_FUA) && Reader::holds(request) => Access::Write,
            _ => return false,
        };
        self.connection
            .image
            .is_quick(access, request.offset, length)
    }

    /// Does a quick read or write while holding the reader.
    fn quick(&mut self, request: &Request, reader: &mut Reader) -> Result<(), ReadError> {
        if request.command == Command::Read {
            self.read_whole(request)?;
            return Ok(());
        }
        let payload = reader.payload(request)?;
        let written = self
            .connection
            .image
            .write_at(payload, request.offset, false);
        let done = self.outcome(written);
        self.answer(request, done)?;
        Ok(())
    }

    /// Does a request without the reader, and sends its reply.
    pub(super) fn finish(&mut self, job: &Job) {
        let request = &job.0;
        let sent = match request.command {
            Command::Read => self.read(request),
            Command::BlockStatus => self.block_status(request),
            _ => {
                let done = self.change(request);
                self.answer(request, done)
            }
        };
        // A client that is gone is noticed by whoever reads next.
        if sent.and_then(|()| self.send_collected()).is_err() {
            self.collected = 0;
        }
        self.settle();
    }

    /// Gives large buffers back where memory is scarce, unless replies are in them.
    fn settle(&mut self) {
        self.payload.settle();
        if self.collected == 0 {
            self.out.settle();
        }
    }

    fn change(&mut self, request: &Request) -> Result<(), Errno> {
        let image = &self.connection.image;
        let (offset, length) = (request.offset, u64::from(request.length));
        let fua = request.has(FLAG_FUA);
        let done = match request.command {
            Command::Flush => image.flush(),
            _ if length == 0 => Ok(()),
            Command::Write => {
                image.write_at(&self.payload.bytes()[..length_of(request)], offset, fua)
            }
            Command::Trim => image
                .discard(offset, length)
                .and_then(|()| if fua { image.flush() } else { Ok(()) }),
            Command::WriteZeroes => image.write_zeroes(offset, length, zero_mode(request)?, fua),
            Command::Cache => self.read_ahead(request),
            Command::Read | Command::BlockStatus | Command::Disconnect | Command::Unknown(_) => {
                return Err(Errno::Inval);
            }
        };
        self.outcome(done)
    }

    /// Reads a range and drops it, so that the page cache has it.
    fn read_ahead(&mut self, request: &Request) -> Result<(), DiskError> {
        let (mut at, end) = (request.offset, request.offset + u64::from(request.length));
        while at < end && !self.connection.is_over() {
            let piece =
                usize::try_from(end - at).map_or(QUICK_BYTES_MAX, |n| n.min(QUICK_BYTES_MAX));
            let bytes = &mut self.payload.at_least(piece, &mut self.out)[..piece];
            self.connection.image.read_at(bytes, at)?;
            at += u64::try_from(piece).expect("a piece is small");
        }
        Ok(())
    }

    fn read(&mut self, request: &Request) -> std::io::Result<()> {
        let in_pieces = self.connection.limits.structured
            && !request.has(FLAG_DF)
            && request.length > PIECE_BYTES;
        if in_pieces {
            self.read_in_pieces(request)
        } else {
            self.read_whole(request)
        }
    }

    fn read_in_pieces(&mut self, request: &Request) -> std::io::Result<()> {
        let mut done = 0;
        while done < request.length {
            let length = (request.length - done).min(PIECE_BYTES);
            let offset = request.offset + u64::from(done);
            done += length;
            let more = if done < request.length {
                More::Follows
            } else {
                More::Last
            };
            let header = reply::data_chunk(request.cookie, offset, length, more);
            if let Err(errno) = self.push_read(&header, offset, length)? {
                return self.answer(request, Err(errno));
            }
            self.send_collected()?;
        }
        Ok(())
    }

    fn read_whole(&mut self, request: &Request) -> std::io::Result<()> {
        let (cookie, offset, length) = (request.cookie, request.offset, request.length);
        let read = if self.connection.limits.structured {
            let header = reply::data_chunk(cookie, offset, length, More::Last);
            self.push_read(&header, offset, length)?
        } else {
            self.push_read(&reply::simple(cookie, None), offset, length)?
        };
        match read {
            Ok(()) => Ok(()),
            Err(errno) => self.answer(request, Err(errno)),
        }
    }

    /// Collects a header and the data behind it; on an error of the disk, neither.
    fn push_read(
        &mut self,
        header: &[u8],
        offset: u64,
        length: u32,
    ) -> std::io::Result<Result<(), Errno>> {
        let length = usize::try_from(length).expect("reads are at most 32 MiB");
        let image = &self.connection.image;
        let space = self.space(header.len() + length)?;
        let (head, rest) = space.split_at_mut(header.len());
        head.copy_from_slice(header);
        if let Err(error) = image.read_at(&mut rest[..length], offset) {
            return Ok(self.outcome(Err(error)));
        }
        self.collected += header.len() + length;
        Ok(Ok(()))
    }

    fn block_status(&mut self, request: &Request) -> std::io::Result<()> {
        let runs_max = if request.has(FLAG_REQ_ONE) {
            1
        } else {
            STATUS_RUNS_MAX
        };
        let mut runs = Runs::new(request.length, runs_max);
        let length = u64::from(request.length);
        let visited = self
            .connection
            .image
            .extents(request.offset, length, &mut |run| {
                runs.push(run.length, run.kind)
            });
        let runs = match self.outcome(visited) {
            Ok(()) => runs.into_status(),
            Err(errno) => return self.answer(request, Err(errno)),
        };
        if runs.is_empty() {
            return self.answer(request, Err(Errno::Io));
        }
        let mut out = Vec::with_capacity(64 + 8 * runs.len());
        reply::push_block_status(&mut out, request.cookie, &runs);
        self.push(&out)
    }

    /// Collects a reply without data.
    fn answer(&mut self, request: &Request, done: Result<(), Errno>) -> std::io::Result<()> {
        let cookie = request.cookie;
        let structured_read = self.connection.limits.structured
            && matches!(request.command, Command::Read | Command::BlockStatus);
        match done {
            Err(errno) if structured_read => self.push(&reply::error_chunk(cookie, errno)),
            Ok(()) if structured_read => self.push(&reply::none_chunk(cookie)),
            done => self.push(&reply::simple(cookie, done.err())),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.space(bytes.len())?[..bytes.len()].copy_from_slice(bytes);
        self.collected += bytes.len();
        Ok(())
    }

    /// Room for one more reply; sends the others first where there is not enough.
    fn space(&mut self, length: usize) -> std::io::Result<&mut [u8]> {
        let needed = self.collected + length;
        if self.collected > 0 && (needed > self.out.len() || needed > COLLECT_BYTES_MAX) {
            self.send_collected()?;
        }
        self.out
            .at_least(self.collected + length, &mut self.payload);
        Ok(&mut self.out.bytes()[self.collected..])
    }

    fn send_collected(&mut self) -> std::io::Result<()> {
        let length = std::mem::take(&mut self.collected);
        if length == 0 {
            Ok(())
        } else {
            self.connection.send(&self.out.bytes()[..length])
        }
    }

    fn outcome(&self, done: Result<(), DiskError>) -> Result<(), Errno> {
        done.map_err(|error| {
            let errno = errno_of(&error);
            if errno != Errno::NotSup {
                self.connection.report(&error);
            }
            errno
        })
    }
}

/// What the holder of the reader does next.
enum Step {
    Again,
    Slow(Job),
    Over,
}

fn length_of(request: &Request) -> usize {
    usize::try_from(request.length).expect("lengths have 32 bits")
}

/// Zeros that must keep their space are never "fast": the guest is told at once.
fn zero_mode(request: &Request) -> Result<ZeroMode, Errno> {
    match (request.has(FLAG_FAST_ZERO), request.has(FLAG_NO_HOLE)) {
        (true, true) => Err(Errno::NotSup),
        (true, false) => Ok(ZeroMode::FastOnly),
        (false, true) => Ok(ZeroMode::KeepAllocated),
        (false, false) => Ok(ZeroMode::MayUnmap),
    }
}

fn errno_of(error: &DiskError) -> Errno {
    match error.kind() {
        ErrorKind::Invalid => Errno::Inval,
        ErrorKind::Unsupported => Errno::NotSup,
        ErrorKind::NoSpace => Errno::NoSpc,
        ErrorKind::Closed => Errno::Shutdown,
        ErrorKind::Corrupt
        | ErrorKind::Parent
        | ErrorKind::Locked
        | ErrorKind::NotFound
        | ErrorKind::Poisoned
        | ErrorKind::Io => Errno::Io,
    }
}
