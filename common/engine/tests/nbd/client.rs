//! A client of raw bytes, with an encoding of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    structured: bool,
}

/// A reply to one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) errno: u32,
    /// Data by offset, or the payload of a block status chunk.
    pub(crate) data: Vec<(u64, Vec<u8>)>,
}

impl Client<UnixStream> {
    /// Connects and goes through the greeting.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut client = Self {
            stream,
            structured: false,
        };
        client.greet();
        client
    }

    /// Connects and negotiates everything there is.
    pub(crate) fn ready(socket: &Path) -> Self {
        let mut client = Self::greeted(socket);
        client.negotiate();
        client
    }

    /// Connects and negotiates simple replies.
    pub(crate) fn simple(socket: &Path) -> Self {
        let mut client = Self::greeted(socket);
        client.option(7, b"\0\0\0\0\0\0");
        while client.option_reply().1 != 1 {}
        client
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            structured: false,
        }
    }

    pub(crate) fn greet(&mut self) {
        assert_eq!(self.take::<18>(), *b"NBDMAGICIHAVEOPT\0\x03");
        self.stream.write_all(&[0, 0, 0, 3]).unwrap();
    }

    pub(crate) fn negotiate(&mut self) {
        self.negotiate_named("sda");
    }

    pub(crate) fn negotiate_named(&mut self, name: &str) {
        let mut named = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        named.extend_from_slice(name.as_bytes());
        self.option(8, b"");
        assert_eq!(self.option_reply().1, 1);
        self.option(
            10,
            &[&named[..], b"\0\0\0\x01\0\0\0\x0fbase:allocation"].concat(),
        );
        assert_eq!(self.option_reply().1, 4);
        assert_eq!(self.option_reply().1, 1);
        self.option(7, &[&named[..], b"\0\0"].concat());
        while self.option_reply().1 != 1 {}
        self.structured = true;
    }

    pub(crate) fn option(&mut self, code: u32, payload: &[u8]) {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        out.extend_from_slice(payload);
        self.stream.write_all(&out).unwrap();
    }

    /// Option, kind and payload.
    pub(crate) fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(u64::from_be_bytes(self.take()), 0x0003_e889_0455_65a9);
        let option = u32::from_be_bytes(self.take());
        let kind = u32::from_be_bytes(self.take());
        let length = u32::from_be_bytes(self.take());
        (option, kind, self.bytes(length as usize))
    }

    pub(crate) fn send(&mut self, command: u16, flags: u16, cookie: u64, range: (u64, u32)) {
        self.stream
            .write_all(&request(command, flags, cookie, range))
            .unwrap();
    }

    pub(crate) fn send_write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let range = (offset, u32::try_from(data.len()).unwrap());
        let mut out = request(WRITE, flags, cookie, range);
        out.extend_from_slice(data);
        self.stream.write_all(&out).unwrap();
    }

    /// The next reply. `read_length`: bytes behind a simple reply that succeeds.
    pub(crate) fn reply_to_read(&mut self, read_length: usize) -> Reply {
        let mut reply = Reply {
            cookie: 0,
            errno: 0,
            data: Vec::new(),
        };
        loop {
            match u32::from_be_bytes(self.take()) {
                0x6744_6698 => {
                    reply.errno = u32::from_be_bytes(self.take());
                    reply.cookie = u64::from_be_bytes(self.take());
                    if reply.errno == 0 && read_length > 0 {
                        reply.data.push((0, self.bytes(read_length)));
                    }
                    return reply;
                }
                0x668e_33ef => {
                    assert!(self.structured, "a chunk without structured replies");
                    let flags = u16::from_be_bytes(self.take());
                    let kind = u16::from_be_bytes(self.take());
                    reply.cookie = u64::from_be_bytes(self.take());
                    let length = u32::from_be_bytes(self.take()) as usize;
                    let payload = self.bytes(length);
                    match kind {
                        0 => assert!(payload.is_empty()),
                        1 => {
                            let offset = u64::from_be_bytes(*payload.first_chunk().unwrap());
                            reply.data.push((offset, payload[8..].to_vec()));
                        }
                        5 => reply.data.push((0, payload)),
                        0x8001 => {
                            reply.errno = u32::from_be_bytes(*payload.first_chunk().unwrap());
                        }
                        other => panic!("chunk of kind {other}"),
                    }
                    if flags & 1 != 0 {
                        return reply;
                    }
                }
                other => panic!("a reply begins with {other:#x}"),
            }
        }
    }

    pub(crate) fn reply(&mut self) -> Reply {
        self.reply_to_read(0)
    }

    /// Sends a request and returns its error number.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, range: (u64, u32)) -> u32 {
        self.send(command, flags, 77, range);
        let reply = self.reply();
        assert_eq!(reply.cookie, 77);
        reply.errno
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.send_write(flags, 78, offset, data);
        let reply = self.reply();
        assert_eq!(reply.cookie, 78);
        reply.errno
    }

    /// Reads a range, whatever the number of chunks.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.send(READ, 0, 79, (offset, length));
        let reply = self.reply_to_read(length as usize);
        assert_eq!((reply.cookie, reply.errno), (79, 0));
        reply
            .data
            .into_iter()
            .flat_map(|(_, bytes)| bytes)
            .collect()
    }

    pub(crate) fn is_closed(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0]), Ok(1))
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.stream.read_exact(&mut out).unwrap();
        out
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        self.stream.read_exact(&mut out).unwrap();
        out
    }
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, range: (u64, u32)) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&range.0.to_be_bytes());
    out.extend_from_slice(&range.1.to_be_bytes());
    out
}
