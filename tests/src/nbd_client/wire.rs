//! NBD as a client speaks it, byte by byte.
//!
//! Written apart from the product's own codec on purpose: a misreading shared by both ends would
//! not be seen by any test.

use std::io::{self, Read, Write};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
const HANDSHAKE_NO_ZEROES: u16 = 2;

const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Command flag: answered only when durable.
pub const FLAG_FUA: u16 = 1;
/// Command flag: zeros must keep their space.
pub const FLAG_NO_HOLE: u16 = 2;

/// Transmission flag: the export cannot be written.
pub const EXPORT_READ_ONLY: u16 = 1 << 1;

/// Longest option or chunk without data that a server may send.
const SMALL_LIMIT: u32 = 64 * 1024;

/// What is asked of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's own names")]
pub enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// One request without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Command flags.
    pub flags: u16,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Request {
    /// A request without flags.
    #[must_use]
    pub fn new(command: Command, offset: u64, length: u32) -> Self {
        Self {
            command,
            flags: 0,
            offset,
            length,
        }
    }

    /// The same with flags.
    #[must_use]
    pub fn with_flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }
}

/// What the server said of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest, preferred and largest request in bytes, where the server told.
    pub block_sizes: Option<(u32, u32, u32)>,
    /// Whether replies are structured.
    pub structured: bool,
}

/// A complete reply.
#[derive(Debug)]
pub struct Reply {
    /// The request's number.
    pub cookie: u64,
    /// Bytes that were read (empty for other commands), or NBD's error number.
    pub outcome: Result<Vec<u8>, u32>,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_u16(from: &mut impl Read) -> io::Result<u16> {
    take(from).map(u16::from_be_bytes)
}

fn take_u32(from: &mut impl Read) -> io::Result<u32> {
    take(from).map(u32::from_be_bytes)
}

fn take_u64(from: &mut impl Read) -> io::Result<u64> {
    take(from).map(u64::from_be_bytes)
}

fn take_vec(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).expect("u32 fits in usize here")];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Goes from the greeting to the transmission phase.
///
/// # Errors
/// When the connection breaks, or the server refuses or breaks the protocol.
pub fn negotiate(
    from: &mut impl Read,
    to: &mut impl Write,
    export: &str,
    structured: bool,
) -> io::Result<Export> {
    if take_u64(from)? != INIT_MAGIC || take_u64(from)? != OPTION_MAGIC {
        return Err(broken("the greeting is not NBD's"));
    }
    let flags = take_u16(from)?;
    if flags & HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return Err(broken("the server does not speak fixed newstyle"));
    }
    let answer = flags & (HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
    to.write_all(&u32::from(answer).to_be_bytes())?;
    let structured = structured && ask_structured(from, to)?;
    let mut payload = Vec::new();
    let name_length = u32::try_from(export.len()).map_err(|_| broken("name too long"))?;
    payload.extend_from_slice(&name_length.to_be_bytes());
    payload.extend_from_slice(export.as_bytes());
    payload.extend_from_slice(&1_u16.to_be_bytes());
    payload.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    send_option(to, OPTION_GO, &payload)?;
    let mut told = Export {
        size_bytes: 0,
        flags: 0,
        block_sizes: None,
        structured,
    };
    let mut has_size = false;
    loop {
        match option_reply(from, OPTION_GO)? {
            (REPLY_ACK, _) if has_size => return Ok(told),
            (REPLY_INFO, info) => has_size |= read_info(&info, &mut told)?,
            (kind, text) if kind & REPLY_ERROR_BIT != 0 => {
                let text = String::from_utf8_lossy(&text).into_owned();
                return Err(io::Error::other(format!(
                    "the server refuses ({kind:#x}): {text}"
                )));
            }
            (kind, _) => return Err(broken(format!("reply {kind} to NBD_OPT_GO"))),
        }
    }
}

fn ask_structured(from: &mut impl Read, to: &mut impl Write) -> io::Result<bool> {
    send_option(to, OPTION_STRUCTURED_REPLY, &[])?;
    match option_reply(from, OPTION_STRUCTURED_REPLY)? {
        (REPLY_ACK, _) => Ok(true),
        (kind, _) if kind & REPLY_ERROR_BIT != 0 => Ok(false),
        (kind, _) => Err(broken(format!("reply {kind} to NBD_OPT_STRUCTURED_REPLY"))),
    }
}

fn send_option(to: &mut impl Write, option: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| broken("option too long"))?;
    to.write_all(&OPTION_MAGIC.to_be_bytes())?;
    to.write_all(&option.to_be_bytes())?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(payload)?;
    to.flush()
}

fn option_reply(from: &mut impl Read, option: u32) -> io::Result<(u32, Vec<u8>)> {
    if take_u64(from)? != OPTION_REPLY_MAGIC || take_u32(from)? != option {
        return Err(broken("an option reply that belongs to nothing"));
    }
    let kind = take_u32(from)?;
    let length = take_u32(from)?;
    if length > SMALL_LIMIT {
        return Err(broken("an option reply that is far too long"));
    }
    Ok((kind, take_vec(from, length)?))
}

/// Takes one NBD_REP_INFO; says whether it was the one with the size.
fn read_info(mut info: &[u8], told: &mut Export) -> io::Result<bool> {
    let from = &mut info;
    match take_u16(from)? {
        INFO_EXPORT => {
            told.size_bytes = take_u64(from)?;
            told.flags = take_u16(from)?;
            Ok(true)
        }
        INFO_BLOCK_SIZE => {
            told.block_sizes = Some((take_u32(from)?, take_u32(from)?, take_u32(from)?));
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Sends one request. The caller flushes `to` before it waits for an answer.
///
/// # Errors
/// When the connection breaks.
pub fn send(to: &mut impl Write, cookie: u64, request: Request, data: &[u8]) -> io::Result<()> {
    let mut header = [0; 28];
    header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&request.flags.to_be_bytes());
    header[6..8].copy_from_slice(&(request.command as u16).to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&request.offset.to_be_bytes());
    header[24..28].copy_from_slice(&request.length.to_be_bytes());
    to.write_all(&header)?;
    to.write_all(data)
}

/// Takes one whole reply. `wanted` gives the request of a cookie.
///
/// # Errors
/// `InvalidData` when the server breaks the protocol; otherwise the connection broke.
pub fn receive(
    from: &mut impl Read,
    wanted: impl Fn(u64) -> io::Result<Request>,
) -> io::Result<Reply> {
    match take_u32(from)? {
        SIMPLE_REPLY_MAGIC => {
            let error = take_u32(from)?;
            let cookie = take_u64(from)?;
            let request = wanted(cookie)?;
            let outcome = match (error, request.command) {
                (0, Command::Read) => Ok(take_vec(from, request.length)?),
                (0, _) => Ok(Vec::new()),
                (code, _) => Err(code),
            };
            Ok(Reply { cookie, outcome })
        }
        STRUCTURED_REPLY_MAGIC => receive_chunks(from, wanted),
        magic => Err(broken(format!("reply magic {magic:#x}"))),
    }
}

/// Takes the chunks of one reply. Chunks of different replies may not interleave with ours only
/// because this client takes a server that does so for broken; ours and qemu-nbd do not.
fn receive_chunks(
    from: &mut impl Read,
    wanted: impl Fn(u64) -> io::Result<Request>,
) -> io::Result<Reply> {
    let mut reply: Option<(u64, Request, Vec<u8>)> = None;
    let mut error = None;
    let mut covered = 0_u64;
    loop {
        let flags = take_u16(from)?;
        let kind = take_u16(from)?;
        let cookie = take_u64(from)?;
        let length = take_u32(from)?;
        let (ours, request, data) = match &mut reply {
            Some(begun) => begun,
            none => {
                let request = wanted(cookie)?;
                let n = if request.command == Command::Read {
                    request.length
                } else {
                    0
                };
                none.insert((cookie, request, vec![0; n as usize]))
            }
        };
        if *ours != cookie || length > request.length.max(SMALL_LIMIT) + 8 {
            return Err(broken("a chunk that fits no reply"));
        }
        let body = take_vec(from, length)?;
        match kind {
            CHUNK_NONE => {}
            CHUNK_OFFSET_DATA | CHUNK_OFFSET_HOLE => {
                covered += place(kind, &body, *request, data)?;
            }
            kind if kind & CHUNK_ERROR_BIT != 0 => error = Some(take_u32(&mut &body[..])?),
            kind => return Err(broken(format!("chunk type {kind}"))),
        }
        if flags & CHUNK_DONE != 0 {
            break;
        }
        if take_u32(from)? != STRUCTURED_REPLY_MAGIC {
            return Err(broken("a reply that stops half-way"));
        }
    }
    let (cookie, _, data) = reply.expect("the loop ran once");
    if error.is_none() && covered != data.len() as u64 {
        return Err(broken(format!(
            "{covered} bytes answered of {}",
            data.len()
        )));
    }
    Ok(Reply {
        cookie,
        outcome: error.map_or(Ok(data), Err),
    })
}

/// Puts a data or hole chunk in its place; gives the number of bytes it covers.
fn place(kind: u16, mut body: &[u8], request: Request, data: &mut [u8]) -> io::Result<u64> {
    let offset = take_u64(&mut body)?;
    let n = match kind {
        CHUNK_OFFSET_DATA => body.len(),
        _ => take_u32(&mut &body[..])? as usize,
    };
    let outside = || broken("a chunk outside the range that was asked for");
    let at = offset.checked_sub(request.offset).ok_or_else(outside)?;
    let at = usize::try_from(at).map_err(|_| outside())?;
    let end = at.checked_add(n).ok_or_else(outside)?;
    let there = data.get_mut(at..end).ok_or_else(outside)?;
    if kind == CHUNK_OFFSET_DATA {
        there.copy_from_slice(body);
    } else {
        there.fill(0);
    }
    Ok(n as u64)
}
