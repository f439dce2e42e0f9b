//! Answers and failures, as gRPC statuses and back.
//!
//! | meaning | code |
//! |---|---|
//! | refused | `FAILED_PRECONDITION`, and whatever else only a server says: `PERMISSION_DENIED`, `INVALID_ARGUMENT`, ... |
//! | tried and failed | `ABORTED` (the transport never uses it) |
//! | the link failed | every other code |

use std::error::Error as _;

use sitepair_model::cause::chain;
use sitepair_proto::Invalid;
use tonic::{Code, Status};

use crate::endpoint::PeerError;

/// Longest text sent with a status, in bytes: it travels in a header.
const WHY_BYTES_MAX: usize = 2000;

/// What a peer's server answers for an error of its endpoint.
#[must_use]
pub fn status_of(error: &PeerError) -> Status {
    match error {
        PeerError::Refused { why } => Status::failed_precondition(shortened(why)),
        PeerError::Failed { why } => Status::aborted(shortened(why)),
        PeerError::Link { why } => Status::unavailable(shortened(why)),
    }
}

/// A message that breaks the contract.
pub(super) fn invalid(error: &Invalid) -> Status {
    match error {
        Invalid::Version { .. } => Status::failed_precondition(error.to_string()),
        _ => Status::invalid_argument(shortened(&format!("malformed request: {error}"))),
    }
}

/// An answer of the peer that breaks the contract.
pub(super) fn bad_answer(error: &Invalid) -> PeerError {
    PeerError::Link {
        why: format!("the peer's answer is malformed: {error}"),
    }
}

/// What the caller of a peer's server learns.
pub(super) fn peer_error(status: &Status) -> PeerError {
    match status.code() {
        Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented
        | Code::NotFound
        | Code::AlreadyExists => PeerError::Refused {
            why: status.message().to_owned(),
        },
        Code::Aborted => PeerError::Failed {
            why: status.message().to_owned(),
        },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => PeerError::Link {
            why: with_causes(status),
        },
    }
}

/// A status with all its causes: the outermost says "transport error", the innermost what happened.
fn with_causes(status: &Status) -> String {
    match status.source() {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(WHY_BYTES_MAX.min(text.len()));
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_their_kind_over_the_wire() {
        let refused = PeerError::Refused { why: "no".into() };
        assert!(
            matches!(peer_error(&status_of(&refused)), PeerError::Refused { why } if why == "no")
        );
        let failed = PeerError::Failed { why: "full".into() };
        assert!(
            matches!(peer_error(&status_of(&failed)), PeerError::Failed { why } if why == "full")
        );
        let link = PeerError::Link { why: "gone".into() };
        assert!(matches!(
            peer_error(&status_of(&link)),
            PeerError::Link { .. }
        ));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = PeerError::Refused {
            why: "ä".repeat(WHY_BYTES_MAX),
        };
        assert_eq!(status_of(&long).message().len(), WHY_BYTES_MAX);
    }
}
