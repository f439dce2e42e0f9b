//! Why a command did not do what it was asked, and the exit code that says so.

use sitepair_model::cause::chain;
use std::fmt;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Anything else.
    Failed(anyhow::Error),
    /// The arguments make no sense.
    Usage(String),
    /// An agent said no.
    Refused(String),
    /// There is nothing of that name.
    NotFound(String),
    /// No agent could be asked.
    Unreachable(String),
    /// Two things that were compared are different; where was printed.
    Different,
    /// A check found warnings, which were printed.
    FoundWarnings,
    /// A check found errors, which were printed.
    FoundErrors,
    /// A question whose answer can be a failure was not answered.
    Unanswered(anyhow::Error),
}

impl Failure {
    /// The exit code, as `sitepair --help` lists them.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Different => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) | Self::NotFound(_) | Self::Unanswered(_) => 3,
            Self::Unreachable(_) => 4,
            Self::FoundWarnings => 5,
            Self::FoundErrors => 6,
        }
    }
}

impl Failure {
    /// The same as a plain failure.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Failed(error) => error,
            other => anyhow::anyhow!("{other}"),
        }
    }

    /// The same, told apart from [`Failure::Different`] by its code.
    pub(crate) fn into_unanswered(self) -> Self {
        match self {
            Self::Failed(error) => Self::Unanswered(error),
            other => other,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) | Self::Unanswered(e) => write!(f, "{e:#}"),
            Self::Different => f.write_str("they are different"),
            Self::FoundWarnings => f.write_str("there are warnings"),
            Self::FoundErrors => f.write_str("there are errors"),
            Self::Usage(text) | Self::NotFound(text) => f.write_str(text),
            Self::Refused(text) => write!(f, "refused: {text}"),
            Self::Unreachable(text) => write!(f, "not reachable: {text}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Self::Failed(e)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::Failed(e.into())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        if let Some(why) = broken_by_tls(&status) {
            return Self::Unreachable(why);
        }
        match status.code() {
            Code::FailedPrecondition | Code::PermissionDenied => {
                Self::Refused(status.message().to_owned())
            }
            Code::NotFound => Self::NotFound(status.message().to_owned()),
            Code::InvalidArgument => Self::Usage(status.message().to_owned()),
            Code::Unavailable | Code::DeadlineExceeded => Self::Unreachable(told(&status)),
            _ => Self::Failed(anyhow::anyhow!("{}", told(&status))),
        }
    }
}

/// What broke the connection below a call, with advice. In TLS 1.3 a client learns only at its first read that the
/// agent refused its certificate.
fn broken_by_tls(status: &tonic::Status) -> Option<String> {
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::InvalidData
        {
            return Some(sitepair_certs::describe(io));
        }
        next = error.source();
    }
    None
}

/// What the agent said, or why it could not be asked, without gRPC's own words around it.
fn told(status: &tonic::Status) -> String {
    let message = status.message().to_owned();
    match std::error::Error::source(status).map(chain) {
        None if message.is_empty() => chain(status),
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn exit_codes_follow_the_answers() {
        for (code, exit) in [
            (Code::FailedPrecondition, 3),
            (Code::NotFound, 3),
            (Code::PermissionDenied, 3),
            (Code::InvalidArgument, 2),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::Internal, 1),
            (Code::Unknown, 1),
        ] {
            let failure = Failure::from(Status::new(code, "why"));
            assert_eq!(failure.code(), exit, "{code:?}");
            assert!(failure.to_string().contains("why"), "{failure}");
        }
        assert_eq!(Failure::from(std::io::Error::other("x")).code(), 1);
    }
}
