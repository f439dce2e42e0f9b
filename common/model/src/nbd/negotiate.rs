//! The option phase of fixed newstyle, as a state machine without I/O.
//!
//! Receives what the client sent, option by option. Gives out the bytes to answer, and what comes
//! [`Next`]. Does not read, wait or limit the number of options: its driver does.
//!
//! ```text
//! greeting -> client flags -> option* -> EXPORT_NAME or GO -> transmission
//!                               |  STARTTLS (TCP): TLS handshake, then option* from anew
//!                               '- ABORT: answered, then closed
//! ```
//!
//! # Invariants
//! 1. While TLS is required and not there, only STARTTLS and ABORT are answered; nothing is told
//!    about any export.
//! 2. Nothing that was agreed on before TLS holds after it: the driver makes a new `Negotiation`.

use super::request::RequestLimits;
use super::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, Fields, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX,
    PREFERRED_BLOCK_BYTES, ProtocolError, STRING_BYTES_MAX,
};

/// Length of what the server sends first.
pub const GREETING_BYTES: usize = 18;
/// Length of an option without its payload.
pub const OPTION_HEADER_BYTES: usize = 16;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR: u32 = 1 << 31;
const REP_ERR_UNSUP: u32 = REP_ERR | 1;
const REP_ERR_INVALID: u32 = REP_ERR | 3;
const REP_ERR_TLS_REQD: u32 = REP_ERR | 5;
const REP_ERR_UNKNOWN: u32 = REP_ERR | 6;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

const FLAG_HAS_FLAGS: u16 = 1 << 0;
const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_SEND_FLUSH: u16 = 1 << 2;
const FLAG_SEND_FUA: u16 = 1 << 3;
const FLAG_SEND_TRIM: u16 = 1 << 5;
const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
const FLAG_SEND_DF: u16 = 1 << 7;
const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
const FLAG_SEND_CACHE: u16 = 1 << 10;
const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// Zeros after the answer to `EXPORT_NAME`, unless both sides agreed to leave them out.
const EXPORT_NAME_PADDING: usize = 124;

/// What the option phase tells about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFacts {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest unit in bytes: 512 or 4096.
    pub block_bytes_min: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl ExportFacts {
    /// The flags of this export. Multi-conn may be promised because a flush covers every write
    /// that was answered on any connection.
    #[must_use]
    pub fn transmission_flags(&self) -> u16 {
        let common = FLAG_HAS_FLAGS
            | FLAG_SEND_FLUSH
            | FLAG_SEND_FUA
            | FLAG_SEND_DF
            | FLAG_CAN_MULTI_CONN
            | FLAG_SEND_CACHE;
        if self.read_only {
            common | FLAG_READ_ONLY
        } else {
            common | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO
        }
    }
}

/// How far TLS is on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPhase {
    /// Not offered: a unix socket, or TLS is already there.
    Done,
    /// Nothing goes without it.
    Required,
}

/// What was agreed on for the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Which of the exports.
    pub export: usize,
    /// What requests are checked against.
    pub limits: RequestLimits,
}

/// What the driver does after sending the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Reads the next option.
    Option,
    /// Closes the connection.
    Close,
    /// Begins the TLS handshake, then a new negotiation.
    StartTls,
    /// Begins the transmission phase.
    Transmit(Session),
}

/// The first bytes on a connection.
#[must_use]
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES).to_be_bytes());
    out
}

/// What the client said in answer to the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// Whether the padding after `EXPORT_NAME` is left out.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Parses the client's flags.
    ///
    /// # Errors
    /// [`ProtocolError::ClientFlags`] unless they are those of fixed newstyle.
    pub fn parse(bytes: [u8; 4]) -> Result<Self, ProtocolError> {
        let flags = u32::from_be_bytes(bytes);
        let known = u32::from(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
        if flags & !known != 0 || flags & u32::from(HANDSHAKE_FIXED_NEWSTYLE) == 0 {
            return Err(ProtocolError::ClientFlags(flags));
        }
        Ok(Self {
            no_zeroes: flags & u32::from(HANDSHAKE_NO_ZEROES) != 0,
        })
    }
}

/// The fixed part of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Parses the fixed part of an option.
    ///
    /// # Errors
    /// [`ProtocolError`] when the stream cannot be followed, or the payload is larger than
    /// [`OPTION_BYTES_MAX`].
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        let magic = fields.u64().unwrap_or_default();
        let code = fields.u32().unwrap_or_default();
        let length = fields.u32().unwrap_or_default();
        if magic != OPTION_MAGIC {
            return Err(ProtocolError::OptionMagic(magic));
        }
        if length > OPTION_BYTES_MAX {
            return Err(ProtocolError::OptionTooLarge { code, length });
        }
        Ok(Self { code, length })
    }
}

/// The option phase of one connection.
#[derive(Debug)]
pub struct Negotiation<'a> {
    exports: &'a [ExportFacts],
    tls: TlsPhase,
    client: ClientFlags,
    /// Whether the empty name stands for the only export.
    has_default: bool,
    structured: bool,
    /// The export for which `base:allocation` was agreed on.
    context_for: Option<usize>,
}

impl<'a> Negotiation<'a> {
    /// The start of an option phase.
    #[must_use]
    pub fn new(exports: &'a [ExportFacts], tls: TlsPhase, client: ClientFlags) -> Self {
        Self {
            exports,
            tls,
            client,
            has_default: true,
            structured: false,
            context_for: None,
        }
    }

    /// Takes the empty name as nobody's, for servers whose exports come and go: which one is the only one
    /// would be a matter of chance.
    #[must_use]
    pub fn by_name_only(self) -> Self {
        Self {
            has_default: false,
            ..self
        }
    }

    /// Answers one option: appends to `out` what to send.
    pub fn option(&mut self, code: u32, payload: &[u8], out: &mut Vec<u8>) -> Next {
        if self.tls == TlsPhase::Required {
            return before_tls(code, payload, out);
        }
        match code {
            OPT_EXPORT_NAME => self.export_name(payload, out),
            OPT_ABORT => {
                push_reply(out, code, REP_ACK, &[]);
                Next::Close
            }
            OPT_LIST => {
                self.list(payload, out);
                Next::Option
            }
            OPT_INFO | OPT_GO => self.info_or_go(code, payload, out),
            OPT_STRUCTURED_REPLY => {
                self.structured |= payload.is_empty();
                let kind = if payload.is_empty() {
                    REP_ACK
                } else {
                    REP_ERR_INVALID
                };
                push_reply(out, code, kind, &[]);
                Next::Option
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.meta_context(code, payload, out);
                Next::Option
            }
            _ => {
                push_reply(out, code, REP_ERR_UNSUP, &[]);
                Next::Option
            }
        }
    }

    /// The export of a name. The empty name stands for the only export, unless names are needed.
    fn find(&self, name: &str) -> Option<usize> {
        if name.is_empty() && self.has_default && self.exports.len() == 1 {
            return Some(0);
        }
        self.exports.iter().position(|export| export.name == name)
    }

    fn session(&self, export: usize) -> Session {
        let facts = &self.exports[export];
        let limits = RequestLimits {
            size_bytes: facts.size_bytes,
            block_bytes_min: facts.block_bytes_min,
            read_only: facts.read_only,
            structured: self.structured,
            base_allocation: self.structured && self.context_for == Some(export),
        };
        Session { export, limits }
    }

    /// The oldest way to choose an export: there is no reply for errors, so they close.
    fn export_name(&self, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let name = std::str::from_utf8(payload)
            .ok()
            .filter(|name| name.len() <= STRING_BYTES_MAX);
        let Some(export) = name.and_then(|name| self.find(name)) else {
            return Next::Close;
        };
        let facts = &self.exports[export];
        out.extend_from_slice(&facts.size_bytes.to_be_bytes());
        out.extend_from_slice(&facts.transmission_flags().to_be_bytes());
        if !self.client.no_zeroes {
            out.resize(out.len() + EXPORT_NAME_PADDING, 0);
        }
        Next::Transmit(self.session(export))
    }

    fn list(&self, payload: &[u8], out: &mut Vec<u8>) {
        if !payload.is_empty() {
            return push_reply(out, OPT_LIST, REP_ERR_INVALID, &[]);
        }
        for export in self.exports {
            let mut entry = Vec::with_capacity(4 + export.name.len());
            entry.extend_from_slice(&length_u32(&export.name).to_be_bytes());
            entry.extend_from_slice(export.name.as_bytes());
            push_reply(out, OPT_LIST, REP_SERVER, &entry);
        }
        push_reply(out, OPT_LIST, REP_ACK, &[]);
    }

    fn info_or_go(&self, code: u32, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let Some((name, wants_name)) = parse_info(payload) else {
            push_reply(out, code, REP_ERR_INVALID, &[]);
            return Next::Option;
        };
        let Some(export) = self.find(name) else {
            push_reply(out, code, REP_ERR_UNKNOWN, &[]);
            return Next::Option;
        };
        let facts = &self.exports[export];
        let mut info = Vec::with_capacity(16 + facts.name.len());
        info.extend_from_slice(&INFO_EXPORT.to_be_bytes());
        info.extend_from_slice(&facts.size_bytes.to_be_bytes());
        info.extend_from_slice(&facts.transmission_flags().to_be_bytes());
        push_reply(out, code, REP_INFO, &info);
        if wants_name {
            info.clear();
            info.extend_from_slice(&INFO_NAME.to_be_bytes());
            info.extend_from_slice(facts.name.as_bytes());
            push_reply(out, code, REP_INFO, &info);
        }
        info.clear();
        info.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        for bytes in [
            facts.block_bytes_min,
            PREFERRED_BLOCK_BYTES,
            PAYLOAD_BYTES_MAX,
        ] {
            info.extend_from_slice(&bytes.to_be_bytes());
        }
        push_reply(out, code, REP_INFO, &info);
        push_reply(out, code, REP_ACK, &[]);
        if code == OPT_GO {
            Next::Transmit(self.session(export))
        } else {
            Next::Option
        }
    }

    fn meta_context(&mut self, code: u32, payload: &[u8], out: &mut Vec<u8>) {
        let setting = code == OPT_SET_META_CONTEXT;
        if setting {
            // Whatever comes of it, an earlier choice is gone.
            self.context_for = None;
        }
        let Some((name, matched)) = parse_meta_context(payload, setting) else {
            return push_reply(out, code, REP_ERR_INVALID, &[]);
        };
        if setting && !self.structured {
            return push_reply(out, code, REP_ERR_INVALID, &[]);
        }
        let Some(export) = self.find(name) else {
            return push_reply(out, code, REP_ERR_UNKNOWN, &[]);
        };
        if matched {
            let id = if setting { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(BASE_ALLOCATION.as_bytes());
            push_reply(out, code, REP_META_CONTEXT, &context);
            if setting {
                self.context_for = Some(export);
            }
        }
        push_reply(out, code, REP_ACK, &[]);
    }
}

/// Invariant 1.
fn before_tls(code: u32, payload: &[u8], out: &mut Vec<u8>) -> Next {
    match code {
        OPT_STARTTLS if payload.is_empty() => {
            push_reply(out, code, REP_ACK, &[]);
            Next::StartTls
        }
        OPT_STARTTLS => {
            push_reply(out, code, REP_ERR_INVALID, &[]);
            Next::Option
        }
        OPT_ABORT => {
            push_reply(out, code, REP_ACK, &[]);
            Next::Close
        }
        // This option has no reply for an error.
        OPT_EXPORT_NAME => Next::Close,
        _ => {
            push_reply(out, code, REP_ERR_TLS_REQD, &[]);
            Next::Option
        }
    }
}

/// The name asked for, and whether the client wants to hear the canonical one.
fn parse_info(payload: &[u8]) -> Option<(&str, bool)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let mut wants_name = false;
    for _ in 0..fields.u16()? {
        wants_name |= fields.u16()? == INFO_NAME;
    }
    fields.0.is_empty().then_some((name, wants_name))
}

/// The export's name, and whether a query matches `base:allocation`. Without any query LIST
/// matches all, SET none.
fn parse_meta_context(payload: &[u8], setting: bool) -> Option<(&str, bool)> {
    let mut fields = Fields(payload);
    let name = fields.string()?;
    let queries = fields.u32()?;
    let mut matched = queries == 0 && !setting;
    for _ in 0..queries {
        let query = fields.string()?;
        matched |= query == BASE_ALLOCATION || (!setting && query == "base:");
    }
    fields.0.is_empty().then_some((name, matched))
}

fn push_reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("names are shorter than 4 GiB");
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

fn length_u32(name: &str) -> u32 {
    u32::try_from(name.len()).expect("names are shorter than 4 GiB")
}
