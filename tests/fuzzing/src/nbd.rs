//! The NBD codec: options, and requests.

use sitepair_model::nbd::negotiate::{
    ClientFlags, ExportFacts, Negotiation, Next, OPTION_HEADER_BYTES, OptionHeader, TlsPhase,
};
use sitepair_model::nbd::request::{REQUEST_BYTES, Request, RequestLimits};
use sitepair_model::nbd::{Command, PAYLOAD_BYTES_MAX};

const EXPORTS: usize = 8;
/// An answer to one option is no longer than this.
const ANSWER_BYTES_MAX: usize = 16 << 10;

fn exports() -> Vec<ExportFacts> {
    (0..EXPORTS)
        .map(|number| ExportFacts {
            name: format!("disk{number}"),
            size_bytes: (number as u64 + 1) << 20,
            block_bytes_min: if number % 2 == 0 { 512 } else { 4096 },
            read_only: number % 3 == 0,
        })
        .collect()
}

/// A client's bytes from its flags to the transmission phase.
pub fn options(input: &[u8]) {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let Some((flags, mut rest)) = input.split_first_chunk::<4>() else {
        return;
    };
    let Ok(client) = ClientFlags::parse(*flags) else {
        return;
    };
    let exports = exports();
    let tls = if choice & 1 == 1 {
        TlsPhase::Required
    } else {
        TlsPhase::Done
    };
    let mut negotiation = Negotiation::new(&exports, tls, client);
    if choice & 2 == 2 {
        negotiation = negotiation.by_name_only();
    }
    while let Some((header, after)) = rest.split_first_chunk::<OPTION_HEADER_BYTES>() {
        let Ok(header) = OptionHeader::parse(header) else {
            return;
        };
        let length = usize::try_from(header.length).unwrap();
        let (payload, after) = after.split_at(length.min(after.len()));
        let mut answer = Vec::new();
        let next = negotiation.option(header.code, payload, &mut answer);
        assert!(answer.len() <= ANSWER_BYTES_MAX + 4 * payload.len());
        match next {
            Next::Option => {}
            Next::Close => return,
            Next::StartTls => {
                assert_eq!(tls, TlsPhase::Required, "TLS where it was not asked for");
                return;
            }
            Next::Transmit(session) => {
                assert_eq!(tls, TlsPhase::Done, "data without TLS");
                assert!(session.export < exports.len());
                let export = &exports[session.export];
                assert_eq!(session.limits.size_bytes, export.size_bytes);
                assert_eq!(session.limits.read_only, export.read_only);
                return;
            }
        }
        rest = after;
    }
}

/// Requests, one after the other. One that is not refused lies within the disk and does what its export allows.
pub fn requests(input: &[u8]) {
    let Some((choice, mut rest)) = input.split_first() else {
        return;
    };
    let limits = RequestLimits {
        size_bytes: 1 << (9 + u32::from(choice >> 4) * 3),
        block_bytes_min: if choice & 1 == 1 { 4096 } else { 512 },
        read_only: choice & 2 == 2,
        structured: choice & 4 == 4,
        base_allocation: choice & 8 == 8,
    };
    while let Some((bytes, after)) = rest.split_first_chunk::<REQUEST_BYTES>() {
        let Ok(request) = Request::parse(bytes) else {
            return;
        };
        assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
        if request.refusal(&limits).is_none() {
            check(&request, &limits);
        }
        let payload = usize::try_from(request.payload_bytes()).unwrap();
        rest = &after[payload.min(after.len())..];
    }
}

fn check(request: &Request, limits: &RequestLimits) {
    let end = request.offset.checked_add(u64::from(request.length));
    match request.command {
        Command::Unknown(_) => panic!("an unknown command is served"),
        Command::Disconnect | Command::Flush => return,
        Command::Write | Command::Trim | Command::WriteZeroes => {
            assert!(!limits.read_only, "a write to what is read-only");
        }
        Command::Read => assert!(request.length <= PAYLOAD_BYTES_MAX),
        Command::BlockStatus => assert!(limits.base_allocation && request.length > 0),
        Command::Cache => {}
    }
    assert!(end.is_some_and(|end| end <= limits.size_bytes));
    assert!(
        request
            .offset
            .is_multiple_of(u64::from(limits.block_bytes_min))
    );
    assert!(request.length.is_multiple_of(limits.block_bytes_min));
}
