//! The pair's private CA: makes itself, and the certificates of agents and people.
//!
//! Gives out PEM text; writing it is [`files`](crate::files)' part. Does not do: signing what somebody
//! else asks for. Every field of a certificate is chosen here.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::ServerName;
use sitepair_model::ids::PairName;
use time::OffsetDateTime;

use crate::identity::{Holder, Identity, IdentityError, dns_name};

/// Days that a CA is valid.
pub const CA_DAYS: u32 = 3650;
/// Days that an agent's certificate is valid.
pub const AGENT_DAYS: u32 = 90;
/// Days that a person's certificate is valid.
pub const OPERATOR_DAYS: u32 = 30;
/// Days after which a revocation list asks to be replaced. Its age never cuts the sites off.
pub const CRL_DAYS: u32 = 30;

/// Certificates begin this long before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY_SECONDS: u64 = 86_400;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The library refused.
    #[error("make the {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Its reason.
        #[source]
        source: rcgen::Error,
    },
    /// The CA's certificate or key cannot be used.
    #[error("read the CA's {what}: is it the PEM file that was made with the pair?")]
    Load {
        /// Which of the two.
        what: &'static str,
        /// The library's reason.
        #[source]
        source: rcgen::Error,
    },
    /// The pair's name cannot be part of a DNS name.
    #[error("pair name {pair} cannot be part of a DNS name: use letters, digits and '-'")]
    PairName {
        /// The pair.
        pair: PairName,
    },
    /// The certificate that was made does not read as it should.
    #[error("check the certificate that was made")]
    Check(#[source] IdentityError),
    /// A time out of range.
    #[error("the dates of the certificate are out of range")]
    Dates,
    /// A serial number that is not hexadecimal.
    #[error("serial number {given:?} is not hexadecimal")]
    Serial {
        /// What was given.
        given: String,
    },
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First instant.
    pub not_before: SystemTime,
    /// Last instant.
    pub not_after: SystemTime,
}

impl Validity {
    /// From one hour before `now` until `days` after it.
    #[must_use]
    pub fn days(now: SystemTime, days: u32) -> Self {
        Self {
            not_before: now - BACKDATED,
            not_after: now + Duration::from_secs(u64::from(days) * DAY_SECONDS),
        }
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
    /// Who it speaks for.
    pub identity: Identity,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A pair's certificate authority, with its key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new CA for `pair`.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn create(pair: &PairName, validity: Validity) -> Result<Self, IssueError> {
        let failed = |source| IssueError::Make { what: "CA", source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = base_params(&format!("sitepair CA of {pair}"), validity)?;
        // It signs leaves and nothing that signs in turn.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate_pem,
        })
    }

    /// Takes up a CA made earlier.
    ///
    /// # Errors
    /// [`IssueError::Load`] when the texts are not a CA's certificate and key.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, IssueError> {
        let key = KeyPair::from_pem(key_pem).map_err(|source| IssueError::Load {
            what: "key",
            source,
        })?;
        let issuer =
            Issuer::from_ca_cert_pem(certificate_pem, key).map_err(|source| IssueError::Load {
                what: "certificate",
                source,
            })?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
        })
    }

    /// The CA's certificate: what both agents and all operators trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key. Whoever has it can be anybody in the pair.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a key, and a certificate for it that speaks for `holder` of `pair`.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(
        &self,
        pair: &PairName,
        holder: &Holder,
        validity: Validity,
    ) -> Result<Issued, IssueError> {
        let failed = |source| IssueError::Make {
            what: "certificate",
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = base_params(&format!("{holder} of {pair}"), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        // QEMU refuses to use a certificate without the second, although TLS 1.3 has no need of it.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.subject_alt_names = vec![SanType::URI(holder.uri(pair).try_into().map_err(failed)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Holder::Agent(site) = holder {
            let dns = dns_name(pair, *site);
            if ServerName::try_from(dns.as_str()).is_err() || dns.ends_with('.') {
                return Err(IssueError::PairName { pair: pair.clone() });
            }
            params
                .subject_alt_names
                .push(SanType::DnsName(dns.try_into().map_err(failed)?));
            // Both uses, because either agent dials the other.
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued {
            identity: Identity::from_der(certificate.der()).map_err(IssueError::Check)?,
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Makes the list of revoked certificates: all of them each time, by serial number (hexadecimal).
    ///
    /// # Errors
    /// [`IssueError::Serial`] for a number that is none; [`IssueError::Make`].
    pub fn revocation_list(
        &self,
        serials: &[String],
        now: SystemTime,
    ) -> Result<String, IssueError> {
        let validity = Validity::days(now, CRL_DAYS);
        let this_update = to_offset(validity.not_before)?;
        let seconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| IssueError::Dates)?;
        let revoked_certs = serials
            .iter()
            .map(|serial| {
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&parse_hex(serial)?),
                    revocation_time: this_update,
                    reason_code: Some(RevocationReason::Unspecified),
                    invalidity_date: None,
                })
            })
            .collect::<Result<Vec<_>, IssueError>>()?;
        let params = CertificateRevocationListParams {
            this_update,
            next_update: to_offset(validity.not_after)?,
            // Grows with time, as the standard wants it.
            crl_number: SerialNumber::from_slice(&seconds.as_secs().to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(|source| IssueError::Make {
                what: "revocation list",
                source,
            })
    }
}

fn base_params(common_name: &str, validity: Validity) -> Result<CertificateParams, IssueError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = to_offset(validity.not_before)?;
    params.not_after = to_offset(validity.not_after)?;
    Ok(params)
}

fn to_offset(instant: SystemTime) -> Result<OffsetDateTime, IssueError> {
    let since = instant
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| IssueError::Dates)?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| IssueError::Dates)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| IssueError::Dates)
}

fn parse_hex(text: &str) -> Result<Vec<u8>, IssueError> {
    let wrong = || IssueError::Serial {
        given: text.chars().take(48).collect(),
    };
    if text.is_empty() || text.len() > 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let even = if text.len().is_multiple_of(2) {
        text.to_owned()
    } else {
        format!("0{text}")
    };
    (0..even.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&even[i..i + 2], 16).map_err(|_| wrong()))
        .collect()
}
