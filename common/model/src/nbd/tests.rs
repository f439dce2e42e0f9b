use super::negotiate::{ClientFlags, OptionHeader, greeting};
use super::request::{
    FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE, REQUEST_MAGIC, RequestLimits,
};
use super::*;

const SIZE: u64 = 1 << 20;
const LIMITS: RequestLimits = RequestLimits {
    size_bytes: SIZE,
    block_bytes_min: 512,
    read_only: false,
    structured: true,
    base_allocation: true,
};

fn exports() -> Vec<ExportFacts> {
    vec![ExportFacts {
        name: "sda".into(),
        size_bytes: SIZE,
        block_bytes_min: 512,
        read_only: false,
    }]
}

fn negotiation(exports: &[ExportFacts]) -> Negotiation<'_> {
    Negotiation::new(exports, TlsPhase::Done, ClientFlags { no_zeroes: true })
}

/// The (option, kind, payload) triples of a run of option replies.
fn replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut fields = Fields(bytes);
        assert_eq!(fields.u64(), Some(0x0003_e889_0455_65a9));
        let option = fields.u32().unwrap();
        let kind = fields.u32().unwrap();
        let length = fields.u32().unwrap() as usize;
        found.push((option, kind, fields.0[..length].to_vec()));
        bytes = &fields.0[length..];
    }
    found
}

fn string(text: &str) -> Vec<u8> {
    let mut out = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

fn go(name: &str) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&0u16.to_be_bytes());
    out
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries
        .iter()
        .for_each(|query| out.extend_from_slice(&string(query)));
    out
}

fn request(command: Command, offset: u64, length: u32) -> Request {
    Request {
        flags: 0,
        command,
        cookie: 7,
        offset,
        length,
    }
}

/// A small generator of reproducible bytes (xorshift64*).
fn random_bytes(state: &mut u64, length: usize) -> Vec<u8> {
    (0..length)
        .map(|_| {
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
        })
        .collect()
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_padding() {
    assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(
        ClientFlags::parse([0, 0, 0, 1]),
        Ok(ClientFlags { no_zeroes: false })
    );
    assert_eq!(
        ClientFlags::parse([0, 0, 0, 3]),
        Ok(ClientFlags { no_zeroes: true })
    );
    assert!(ClientFlags::parse([0, 0, 0, 2]).is_err());
    assert!(ClientFlags::parse([1, 0, 0, 3]).is_err());
}

#[test]
fn go_tells_size_flags_and_block_sizes_then_transmits() {
    let exports = exports();
    let mut out = Vec::new();
    let next = negotiation(&exports).option(7, &go("sda"), &mut out);
    let Next::Transmit(session) = next else {
        panic!("{next:?}")
    };
    assert!(!session.limits.structured && !session.limits.base_allocation);
    let replies = replies(&out);
    assert_eq!(replies.len(), 3);
    assert_eq!(replies[0].1, 3);
    assert_eq!(replies[0].2[..2], [0, 0]);
    assert_eq!(replies[0].2[2..10], SIZE.to_be_bytes());
    assert_eq!(replies[0].2[10..], 0x0ded_u16.to_be_bytes());
    assert_eq!(replies[1].2[2..6], 512u32.to_be_bytes());
    assert_eq!(replies[2].1, 1);
}

#[test]
fn the_empty_name_is_the_only_export_and_unknown_names_are_refused() {
    let mut exports = exports();
    let mut out = Vec::new();
    assert!(matches!(
        negotiation(&exports).option(7, &go(""), &mut out),
        Next::Transmit(_)
    ));
    exports.push(ExportFacts {
        name: "sdb".into(),
        ..exports[0].clone()
    });
    for name in ["", "../sda", "sd"] {
        out.clear();
        assert_eq!(
            negotiation(&exports).option(7, &go(name), &mut out),
            Next::Option
        );
        assert_eq!(replies(&out)[0].1, (1 << 31) | 6);
    }
}

#[test]
fn export_name_is_padded_unless_agreed_otherwise() {
    let exports = exports();
    for (no_zeroes, length) in [(true, 10), (false, 134)] {
        let mut out = Vec::new();
        let mut phase = Negotiation::new(&exports, TlsPhase::Done, ClientFlags { no_zeroes });
        assert!(matches!(
            phase.option(1, b"sda", &mut out),
            Next::Transmit(_)
        ));
        assert_eq!(out.len(), length);
        assert_eq!(phase.option(1, b"other", &mut out), Next::Close);
    }
}

#[test]
fn base_allocation_needs_structured_replies_and_the_same_export() {
    let mut exports = exports();
    exports.push(ExportFacts {
        name: "sdb".into(),
        ..exports[0].clone()
    });
    let mut phase = negotiation(&exports);
    let mut out = Vec::new();
    phase.option(10, &meta("sda", &["base:allocation"]), &mut out);
    assert_eq!(replies(&out)[0].1, (1 << 31) | 3);
    out.clear();
    phase.option(8, &[], &mut out);
    phase.option(
        10,
        &meta("sda", &["x-other:y", "base:allocation"]),
        &mut out,
    );
    assert_eq!(
        replies(&out)
            .iter()
            .map(|reply| reply.1)
            .collect::<Vec<_>>(),
        [1, 4, 1]
    );
    let Next::Transmit(same) = phase.option(7, &go("sda"), &mut out) else {
        panic!()
    };
    assert!(same.limits.base_allocation);
    let Next::Transmit(other) = phase.option(7, &go("sdb"), &mut out) else {
        panic!()
    };
    assert!(!other.limits.base_allocation);
    phase.option(10, &meta("sda", &[]), &mut out);
    let Next::Transmit(none) = phase.option(7, &go("sda"), &mut out) else {
        panic!()
    };
    assert!(!none.limits.base_allocation);
}

#[test]
fn listing_contexts_knows_the_namespace() {
    let exports = exports();
    for (queries, replied) in [(vec![], 2), (vec!["base:"], 2), (vec!["other:"], 1)] {
        let mut out = Vec::new();
        negotiation(&exports).option(9, &meta("sda", &queries), &mut out);
        assert_eq!(replies(&out).len(), replied, "{queries:?}");
    }
}

#[test]
fn before_tls_only_starttls_and_abort_are_answered() {
    let exports = exports();
    for code in (0..16).chain([u32::MAX]) {
        let client = ClientFlags { no_zeroes: true };
        let mut phase = Negotiation::new(&exports, TlsPhase::Required, client);
        let mut out = Vec::new();
        let next = phase.option(code, &[], &mut out);
        match code {
            1 => assert_eq!((next, out.len()), (Next::Close, 0)),
            2 => assert_eq!((next, replies(&out)[0].1), (Next::Close, 1)),
            5 => assert_eq!((next, replies(&out)[0].1), (Next::StartTls, 1)),
            _ => assert_eq!((next, replies(&out)[0].1), (Next::Option, (1 << 31) | 5)),
        }
    }
}

#[test]
fn unknown_options_extended_headers_and_late_starttls_are_unsupported() {
    let exports = exports();
    for code in [0, 4, 5, 11, 12, u32::MAX] {
        let mut out = Vec::new();
        assert_eq!(
            negotiation(&exports).option(code, b"any", &mut out),
            Next::Option
        );
        assert_eq!(replies(&out)[0].1, (1 << 31) | 1);
    }
}

#[test]
fn random_options_never_panic() {
    let exports = exports();
    let mut state = 0x5117_e9a1;
    for round in 0..20_000u32 {
        let mut phase = negotiation(&exports);
        let mut out = Vec::new();
        let length = usize::try_from(round % 64).unwrap();
        let mut payload = random_bytes(&mut state, length);
        if let Some(head) = payload.first_chunk_mut::<4>() {
            // Mostly lengths that nearly fit, so that the fields behind them are reached.
            *head = (u32::from(head[0]) % 24).to_be_bytes();
        }
        phase.option(round % 13, &payload, &mut out);
        let header = random_bytes(&mut state, 16);
        let _ = OptionHeader::parse(header.first_chunk().unwrap());
    }
}

#[test]
fn oversized_options_and_wrong_magic_end_the_connection() {
    let mut header = *b"IHAVEOPT\0\0\0\x07\0\x01\0\x01";
    assert!(matches!(
        OptionHeader::parse(&header),
        Err(ProtocolError::OptionTooLarge { .. })
    ));
    header[13] = 0;
    assert_eq!(
        OptionHeader::parse(&header),
        Ok(OptionHeader { code: 7, length: 1 })
    );
    header[0] = b'X';
    assert!(matches!(
        OptionHeader::parse(&header),
        Err(ProtocolError::OptionMagic(_))
    ));
}

#[test]
fn a_request_is_parsed_field_by_field() {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[5] = 1;
    bytes[7] = 1;
    bytes[15] = 9;
    bytes[22] = 2;
    bytes[26] = 4;
    let parsed = Request::parse(&bytes).unwrap();
    let expected = Request {
        flags: 1,
        command: Command::Write,
        cookie: 9,
        offset: 512,
        length: 1024,
    };
    assert_eq!(parsed, expected);
    assert_eq!(parsed.payload_bytes(), 1024);
    bytes[24] = 0xff;
    assert!(matches!(
        Request::parse(&bytes),
        Err(ProtocolError::WriteTooLarge(_))
    ));
    bytes[0] = 0;
    assert!(matches!(
        Request::parse(&bytes),
        Err(ProtocolError::RequestMagic(_))
    ));
}

#[test]
fn ranges_and_alignment_are_checked_before_the_disk_is_asked() {
    use Command::{BlockStatus, Cache, Flush, Read, Trim, Unknown, Write, WriteZeroes};
    let last = SIZE - 512;
    for command in [Read, Write, Trim, Cache, WriteZeroes, BlockStatus] {
        assert_eq!(
            request(command, last, 512).refusal(&LIMITS),
            None,
            "{command:?}"
        );
        assert_eq!(
            request(command, 1, 512).refusal(&LIMITS),
            Some(Errno::Inval)
        );
        assert_eq!(
            request(command, 0, 511).refusal(&LIMITS),
            Some(Errno::Inval)
        );
        let beyond = match command {
            Write | WriteZeroes => Errno::NoSpc,
            _ => Errno::Inval,
        };
        assert_eq!(request(command, last, 1024).refusal(&LIMITS), Some(beyond));
        assert_eq!(
            request(command, u64::MAX - 511, 512).refusal(&LIMITS),
            Some(beyond)
        );
    }
    assert_eq!(
        request(Read, 0, PAYLOAD_BYTES_MAX + 1).refusal(&LIMITS),
        Some(Errno::Overflow)
    );
    assert_eq!(
        request(BlockStatus, 0, 0).refusal(&LIMITS),
        Some(Errno::Inval)
    );
    assert_eq!(request(Flush, 3, 3).refusal(&LIMITS), None);
    assert_eq!(
        request(Unknown(99), 0, 0).refusal(&LIMITS),
        Some(Errno::Inval)
    );
}

#[test]
fn flags_belong_to_their_commands() {
    let flagged = |command, flags| Request {
        flags,
        ..request(command, 0, 512)
    };
    let ok = [
        (Command::Read, FLAG_DF),
        (Command::Write, FLAG_FUA),
        (
            Command::WriteZeroes,
            FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
        ),
        (Command::BlockStatus, FLAG_REQ_ONE),
    ];
    for (command, flags) in ok {
        assert_eq!(flagged(command, flags).refusal(&LIMITS), None);
    }
    let bad = [
        (Command::Read, FLAG_REQ_ONE),
        (Command::Write, FLAG_DF),
        (Command::Trim, FLAG_NO_HOLE),
        (Command::WriteZeroes, 1 << 15),
    ];
    for (command, flags) in bad {
        assert_eq!(flagged(command, flags).refusal(&LIMITS), Some(Errno::Inval));
    }
    let simple = RequestLimits {
        structured: false,
        base_allocation: false,
        ..LIMITS
    };
    assert_eq!(
        flagged(Command::Read, FLAG_DF).refusal(&simple),
        Some(Errno::Inval)
    );
    assert_eq!(
        flagged(Command::BlockStatus, 0).refusal(&simple),
        Some(Errno::Inval)
    );
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let limits = RequestLimits {
        read_only: true,
        ..LIMITS
    };
    for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
        assert_eq!(request(command, 0, 512).refusal(&limits), Some(Errno::Perm));
    }
    assert_eq!(request(Command::Read, 0, 512).refusal(&limits), None);
    let facts = ExportFacts {
        read_only: true,
        ..exports()[0].clone()
    };
    assert_eq!(facts.transmission_flags(), 0x058f);
}

#[test]
fn random_requests_never_panic() {
    let mut state = 0xdead_beef;
    for _ in 0..50_000 {
        let mut bytes = random_bytes(&mut state, 28);
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6] = 0;
        bytes[7] %= 10;
        if let Ok(request) = Request::parse(bytes.first_chunk().unwrap()) {
            let _ = request.refusal(&LIMITS);
        }
    }
}

#[test]
fn replies_have_the_published_layout() {
    assert_eq!(
        reply::simple(0x0102, Some(Errno::Io)),
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 2]
    );
    let data = reply::data_chunk(1, 2, 512, reply::More::Follows);
    assert_eq!(data[..8], [0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 1]);
    assert_eq!(data[16..20], 520u32.to_be_bytes());
    assert_eq!(data[20..], 2u64.to_be_bytes());
    let error = reply::error_chunk(1, Errno::Shutdown);
    assert_eq!(error[4..8], [0, 1, 0x80, 1]);
    assert_eq!(error[16..], [0, 0, 0, 6, 0, 0, 0, 108, 0, 0]);
    let mut status = Vec::new();
    reply::push_block_status(
        &mut status,
        1,
        &[reply::StatusRun {
            length: 4096,
            state: 3,
        }],
    );
    assert_eq!(
        status[16..],
        [0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3]
    );
    assert_eq!(reply::none_chunk(1)[4..8], [0, 1, 0, 0]);
}
