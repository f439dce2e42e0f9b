//! Who a certificate speaks for.
//!
//! Receives DER from the network or from files; gives out an [`Identity`], or says what is wrong.
//! Does not do: checking signatures or dates. Only certificates whose chain was verified mean anything.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use sitepair_model::ids::{PairName, Site};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest name of a person or program in a certificate, in bytes.
const PERSON_NAME_MAX: usize = 40;
/// Longest serial number in bytes, as X.509 has it.
const SERIAL_BYTES_MAX: usize = 20;

/// Who holds a certificate, and what kind of holder that is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The agent of a site.
    Agent(Site),
    /// May administer the pair.
    Admin(PersonName),
    /// May run commands.
    Operator(PersonName),
    /// May look.
    Viewer(PersonName),
}

impl Holder {
    /// The URI name of this holder in `pair`.
    #[must_use]
    pub fn uri(&self, pair: &PairName) -> String {
        format!("spiffe://{pair}/{self}")
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(site) => write!(f, "agent/{site}"),
            Self::Admin(name) => write!(f, "admin/{name}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
            Self::Viewer(name) => write!(f, "viewer/{name}"),
        }
    }
}

/// Name of a person or a program that acts for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PersonName(String);

impl PersonName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PersonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for PersonName {
    type Err = IdentityError;
    fn from_str(s: &str) -> Result<Self, IdentityError> {
        let ok = (1..=PERSON_NAME_MAX).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && s.as_bytes()[0].is_ascii_alphanumeric();
        if ok {
            Ok(Self(s.to_owned()))
        } else {
            Err(IdentityError::Name {
                given: shortened(s),
            })
        }
    }
}

/// Why a certificate names nobody we know of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no certificate.
    #[error("it is not an X.509 certificate")]
    NotACertificate,
    /// There is not exactly one URI name.
    #[error("it has {found} URI names instead of one of the form spiffe://PAIR/KIND/NAME")]
    UriNames {
        /// How many there are.
        found: usize,
    },
    /// The URI name has another form.
    #[error("its name {given:?} is not of the form spiffe://PAIR/agent|admin|operator|viewer/NAME")]
    Name {
        /// What it says, shortened.
        given: String,
    },
    /// Names beside the URI that do not belong there.
    #[error("it carries names beside {uri} that sitepair does not issue")]
    ExtraNames {
        /// The URI name.
        uri: String,
    },
    /// The serial number is empty or too long.
    #[error("its serial number is empty or longer than 20 bytes")]
    Serial,
}

/// Who a certificate speaks for, taken from its single URI name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The pair it belongs to.
    pub pair: PairName,
    /// Its holder.
    pub holder: Holder,
    /// Serial number in hexadecimal digits, without leading zeros.
    pub serial: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl Identity {
    /// Reads the identity out of a certificate.
    ///
    /// # Errors
    /// [`IdentityError`]; the bytes may be anything.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
        if !rest.is_empty() {
            return Err(IdentityError::NotACertificate);
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::NotACertificate)?
            .map_or(&[][..], |extension| &extension.value.general_names);
        let (pair, holder) = parse_names(names)?;
        let validity = certificate.validity();
        Ok(Self {
            pair,
            holder,
            serial: serial_text(certificate.raw_serial())?,
            not_before: from_unix(validity.not_before.timestamp()),
            not_after: from_unix(validity.not_after.timestamp()),
        })
    }

    /// The URI name.
    #[must_use]
    pub fn uri(&self) -> String {
        self.holder.uri(&self.pair)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

/// Reads `spiffe://PAIR/KIND/NAME`.
///
/// # Errors
/// [`IdentityError::Name`] for anything else, however close.
pub fn parse_holder(uri: &str) -> Result<(PairName, Holder), IdentityError> {
    let wrong = || IdentityError::Name {
        given: shortened(uri),
    };
    let mut parts = uri.strip_prefix("spiffe://").ok_or_else(wrong)?.split('/');
    let (Some(pair), Some(kind), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    let pair = pair.parse().map_err(|_| wrong())?;
    let holder = match kind {
        "agent" => Holder::Agent(name.parse().map_err(|_| wrong())?),
        "admin" => Holder::Admin(name.parse()?),
        "operator" => Holder::Operator(name.parse()?),
        "viewer" => Holder::Viewer(name.parse()?),
        _ => return Err(wrong()),
    };
    Ok((pair, holder))
}

/// The one DNS name of an agent's certificate; the other end verifies it together with the chain.
pub(crate) fn dns_name(pair: &PairName, site: Site) -> String {
    format!("{site}.agent.{pair}")
}

pub(crate) fn serial_text(raw: &[u8]) -> Result<String, IdentityError> {
    let start = raw
        .iter()
        .position(|b| *b != 0)
        .ok_or(IdentityError::Serial)?;
    let digits = &raw[start..];
    if digits.len() > SERIAL_BYTES_MAX {
        return Err(IdentityError::Serial);
    }
    Ok(digits.iter().map(|b| format!("{b:02x}")).collect())
}

fn parse_names(names: &[GeneralName<'_>]) -> Result<(PairName, Holder), IdentityError> {
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(IdentityError::UriNames { found: uris.len() });
    };
    let (pair, holder) = parse_holder(uri)?;
    let others: Vec<&GeneralName<'_>> = names
        .iter()
        .filter(|name| !matches!(name, GeneralName::URI(_)))
        .collect();
    let as_issued = match (&holder, &others[..]) {
        (Holder::Agent(site), [GeneralName::DNSName(dns)]) => *dns == dns_name(&pair, *site),
        (Holder::Admin(_) | Holder::Operator(_) | Holder::Viewer(_), []) => true,
        _ => false,
    };
    if as_issued {
        Ok((pair, holder))
    } else {
        Err(IdentityError::ExtraNames {
            uri: shortened(uri),
        })
    }
}

fn from_unix(seconds: i64) -> SystemTime {
    // Dates before 1970 are as good as 1970: long over.
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn shortened(text: &str) -> String {
    text.chars().take(120).collect()
}
