//! Verifiers for both ends: the library's chain check, then our own name check.
//!
//! Receives certificates during handshakes; gives out yes, or an error that names the cause. The
//! library's errors pass unchanged, so that the alert tells the other end what is wrong.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, SignatureScheme,
};
use sitepair_model::ids::{PairName, Site};

use crate::identity::{Holder, Identity, IdentityError};

/// What a server learnt of a client's certificate during one handshake, refused or not.
#[derive(Debug, Clone, Default)]
pub struct SeenPeer(Arc<OnceLock<Result<Identity, IdentityError>>>);

impl SeenPeer {
    /// What the certificate claims; `None` when none was shown. Proven only if the handshake succeeded.
    #[must_use]
    pub fn claimed(&self) -> Option<&Result<Identity, IdentityError>> {
        self.0.get()
    }
}

/// Which holders a server lets in.
#[derive(Debug, Clone, Copy)]
pub struct Admits {
    /// The rule.
    pub holder: fn(&Holder) -> bool,
    /// Who that is, for a refusal: `operators and admins`.
    pub words: &'static str,
}

impl Admits {
    /// Everybody of the pair.
    pub const EVERYBODY: Self = Self {
        holder: |_| true,
        words: "somebody of the pair",
    };
}

/// Why a certificate with a good chain is refused all the same.
#[derive(Debug, thiserror::Error)]
enum NameRefused {
    #[error("the certificate names nobody of a pair: {0}")]
    Nobody(IdentityError),
    #[error("the certificate speaks for {found}, expected {expected}")]
    Other { found: String, expected: String },
}

/// Accepts holders of the pair, those that `admits` admits; what each may do is decided per call.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) inner: Arc<dyn ClientCertVerifier>,
    pub(crate) pair: PairName,
    pub(crate) admits: Admits,
    pub(crate) seen: SeenPeer,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let identity = Identity::from_der(end_entity);
        // Set once per handshake; a handshake shows one certificate.
        let _ = self.seen.0.set(identity.clone());
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        let identity = identity.map_err(|e| refused(NameRefused::Nobody(e)))?;
        if identity.pair != self.pair {
            return Err(refused(NameRefused::Other {
                found: identity.uri(),
                expected: format!("somebody of pair {}", self.pair),
            }));
        }
        if (self.admits.holder)(&identity.holder) {
            Ok(verified)
        } else {
            Err(refused(NameRefused::Other {
                found: identity.uri(),
                expected: self.admits.words.to_owned(),
            }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts the agent of one site only: chain and DNS name by the library, then the URI name.
#[derive(Debug)]
pub(crate) struct AgentVerifier {
    pub(crate) inner: Arc<WebPkiServerVerifier>,
    pub(crate) pair: PairName,
    pub(crate) site: Site,
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let identity =
            Identity::from_der(end_entity).map_err(|e| refused(NameRefused::Nobody(e)))?;
        if identity.pair == self.pair && identity.holder == Holder::Agent(self.site) {
            Ok(verified)
        } else {
            Err(refused(NameRefused::Other {
                found: identity.uri(),
                expected: Holder::Agent(self.site).uri(&self.pair),
            }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// What went wrong on a TLS connection, and what to do, in words for the operator.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
            why.to_string()
        }
        Some(tls) => match explain(tls) {
            Some(advice) => format!("{advice} ({tls})"),
            None => tls.to_string(),
        },
        None => error.to_string(),
    }
}

/// Advice where the error's own text has none.
fn explain(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoCertificatesPresented => {
            Some("it showed no certificate: connect with one that the pair's CA issued")
        }
        Error::InvalidCertificate(cause) => explain_certificate(cause),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::PeerIncompatible(_) => {
            Some("it does not speak TLS 1.3 as we do: use a program that does")
        }
        Error::InvalidMessage(_) => Some("it does not speak TLS: check the port"),
        _ => None,
    }
}

fn explain_certificate(cause: &CertificateError) -> Option<&'static str> {
    match cause {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("its certificate expired: renew it with the pair's CA")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Some("its certificate is not valid yet: compare the clocks of both hosts")
        }
        CertificateError::Revoked => {
            Some("its certificate is revoked: issue a new one with the pair's CA")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Some("its certificate is of an unknown issuer: both ends need files of the same pair")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Some(
                "its certificate is of another site or pair: check the address and the pair's name",
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Some("its certificate is not meant for this use: agents need an agent's certificate")
        }
        _ => None,
    }
}

fn explain_alert(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateExpired => Some(
            "the other end refused our certificate as expired or not valid yet: renew it, compare the clocks",
        ),
        AlertDescription::CertificateRevoked => {
            Some("the other end refused our certificate as revoked: issue a new one")
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => Some(
            "the other end does not know the issuer of our certificate: both ends need files of the same pair",
        ),
        AlertDescription::CertificateRequired => Some("the other end wants a certificate"),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            Some("the other end refused our certificate: its log says why")
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            Some("the other end does not speak TLS 1.3 as we do")
        }
        _ => None,
    }
}

fn refused(why: NameRefused) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}
