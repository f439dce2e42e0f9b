//! What can be wrong with an agent's or operator's certificates, and what to do about it.

use std::path::PathBuf;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::identity::IdentityError;

/// Why the TLS files cannot be used. A reload that fails with one of these changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or cannot be read.
    #[error("read the {what} {}: check the [tls] paths of the configuration", .path.display())]
    Read {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("write {}", .path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is there but holds no PEM section of the kind that belongs there.
    #[error("{} holds no PEM {what}: copy the file again from where the pair was made", .path.display())]
    NotPem {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A file is larger than any of ours.
    #[error("{} is larger than {} bytes: it is no {what} of a pair", .path.display(), crate::PEM_BYTES_MAX)]
    TooLarge {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// Others than the owner may read the private key.
    #[error("key {} has mode {mode:04o}: others may read it; run chmod 0600 on it, and renew it if they did", .path.display())]
    KeyModeTooWide {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file holds something that is no usable key.
    #[error("use key {}", .path.display())]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// The library's reason.
        #[source]
        source: rustls::Error,
    },
    /// Key and certificate are of different pairs of keys.
    #[error("key {} does not match certificate {}: put the two files that were issued together", .key.display(), .certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// The certificate names nobody.
    #[error("certificate {} was not made by sitepair; issue one with the pair's CA", .path.display())]
    Identity {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with its names.
        #[source]
        source: IdentityError,
    },
    /// The certificate speaks for somebody else than this program needs.
    #[error("certificate {} speaks for {found}, not for {expected}: put the certificate issued for {expected} there", .path.display())]
    WrongRole {
        /// The certificate file.
        path: PathBuf,
        /// Whom it speaks for.
        found: String,
        /// Whom it should.
        expected: String,
    },
    /// The certificate belongs to another pair.
    #[error("certificate {} belongs to pair {found}, this is pair {expected}: check `pair` in the configuration and the [tls] paths", .path.display())]
    WrongPair {
        /// The certificate file.
        path: PathBuf,
        /// Its pair.
        found: String,
        /// The configured pair.
        expected: String,
    },
    /// The certificate is past its end.
    #[error("certificate {} expired on {}: renew it with the pair's CA", .path.display(), date(*.at))]
    Expired {
        /// The certificate file.
        path: PathBuf,
        /// When it ended.
        at: SystemTime,
    },
    /// The certificate is not valid yet.
    #[error("certificate {} is valid only from {}: check this host's clock", .path.display(), date(*.from))]
    NotYetValid {
        /// The certificate file.
        path: PathBuf,
        /// When it begins.
        from: SystemTime,
    },
    /// The certificate was signed by another CA than the one that is trusted here.
    #[error("certificate {} was not issued by the CA in {}: use files of the same pair", .path.display(), .ca.display())]
    WrongCa {
        /// The certificate file.
        path: PathBuf,
        /// The CA file.
        ca: PathBuf,
    },
    /// The certificate is on the revocation list.
    #[error("certificate {} (serial {serial}) is revoked: issue a new one with the pair's CA", .path.display())]
    Revoked {
        /// The certificate file.
        path: PathBuf,
        /// Its serial number.
        serial: String,
    },
    /// The certificate fails verification for another reason.
    #[error("certificate {} does not pass verification", .path.display())]
    Unverified {
        /// The certificate file.
        path: PathBuf,
        /// The library's reason.
        #[source]
        source: rustls::Error,
    },
    /// A revocation list is configured, but the file holds none.
    #[error("{} holds no revocation list: write a list made by the pair's CA, or take `crl` out of the configuration", .path.display())]
    EmptyCrl {
        /// The list's file.
        path: PathBuf,
    },
    /// The revocation list is damaged or of another CA.
    #[error("revocation list {} is damaged or was not made by the CA in use: {why}", .path.display())]
    BadCrl {
        /// The list's file.
        path: PathBuf,
        /// What the library says.
        why: String,
    },
    /// The CA file cannot be used.
    #[error("use CA {}: {why}", .path.display())]
    BadCa {
        /// The CA file.
        path: PathBuf,
        /// What the library says.
        why: String,
    },
    /// The TLS library refused our settings.
    #[error("configure TLS")]
    Configure(#[source] rustls::Error),
}

/// A date and time for people, in UTC.
pub(crate) fn date(instant: SystemTime) -> String {
    let t = OffsetDateTime::from(instant);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute()
    )
}
