//! The TLS files in use: loaded, checked, and exchanged without a restart.
//!
//! # Invariants
//! 1. What is in use was checked as a whole: certificate, key, CA and revocation list fit together.
//! 2. A reload that fails changes nothing: the old state stays in use.
//! 3. A configured revocation list is in force, or there is no state at all: zero lists is an error.
//! 4. A person's certificate is within its dates when it is loaded. An agent's may be outside of them, and only that:
//!    guests are served all the same, while others refuse the agent until it is renewed.
//!
//! Does not do: closing connections of identities that a new list revokes. The server asks
//! [`TlsState::is_revoked`] and does.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig, version,
};
use sitepair_model::ids::{PairName, Site};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::error::TlsError;
use crate::files::{read_key, read_public};
use crate::identity::{Holder, Identity, dns_name, serial_text};
use crate::verify::{Admits, AgentVerifier, ClientVerifier, SeenPeer};

const ALPN: &[u8] = b"h2";

/// Where the TLS files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// Certificate of the pair's CA.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Our private key, mode 0600.
    pub key: PathBuf,
    /// Revocation list, if one is used.
    pub crl: Option<PathBuf>,
}

/// Whom our own certificate must speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The agent of this site.
    Agent(Site),
    /// A person: admin, operator or viewer.
    Person,
}

impl Expected {
    fn admits(&self, holder: &Holder) -> bool {
        match (self, holder) {
            (Self::Agent(site), Holder::Agent(found)) => site == found,
            (Self::Person, Holder::Admin(_) | Holder::Operator(_) | Holder::Viewer(_)) => true,
            (Self::Agent(_) | Self::Person, _) => false,
        }
    }

    fn words(&self, pair: &PairName) -> String {
        match self {
            Self::Agent(site) => Holder::Agent(*site).uri(pair),
            Self::Person => "an operator, admin or viewer".to_owned(),
        }
    }
}

/// The TLS files of one process, and the state made of them.
#[derive(Debug)]
pub struct TlsStore {
    paths: TlsPaths,
    pair: PairName,
    expected: Expected,
    current: ArcSwap<TlsState>,
    /// How the files looked when they were last read, successfully or not.
    stamps: Mutex<Stamps>,
}

impl TlsStore {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`], with what to do.
    pub fn load(paths: TlsPaths, pair: PairName, expected: Expected) -> Result<Self, TlsError> {
        let stamps = Stamps::of(&paths);
        let state = TlsState::load(&paths, &pair, &expected)?;
        Ok(Self {
            paths,
            pair,
            expected,
            current: ArcSwap::from_pointee(state),
            stamps: Mutex::new(stamps),
        })
    }

    /// What is in use now. Take it anew for every connection.
    #[must_use]
    pub fn current(&self) -> Arc<TlsState> {
        self.current.load_full()
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> &PairName {
        &self.pair
    }

    /// Reads and checks the files again; new connections use them from then on.
    ///
    /// # Errors
    /// [`TlsError`]; the old state stays in use (invariant 2).
    pub fn reload(&self) -> Result<(), TlsError> {
        // The look of the files is taken before they are read: a change during the read is seen next time.
        let stamps = Stamps::of(&self.paths);
        *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) = stamps;
        let state = TlsState::load(&self.paths, &self.pair, &self.expected)?;
        self.current.store(Arc::new(state));
        Ok(())
    }

    /// Reloads if a file looks different from when it was last read; `true` when it did. Cheap: call it
    /// every few seconds. Files that are wrong are reported once, and again when they change.
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let now = Stamps::of(&self.paths);
        if *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) == now {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }
}

/// Files that fit together, and the verifiers made of them.
#[derive(Debug)]
pub struct TlsState {
    identity: Identity,
    pair: PairName,
    provider: Arc<CryptoProvider>,
    own: Arc<SingleCertAndKey>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    revoked: HashSet<String>,
    /// For messages.
    certificate: PathBuf,
}

impl TlsState {
    fn load(paths: &TlsPaths, pair: &PairName, expected: &Expected) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let roots = Arc::new(read_roots(&paths.ca)?);
        let chain = read_certificates("certificate", &paths.certificate)?;
        let own = read_own_key(paths, chain.clone(), &provider)?;
        let identity = check_names(paths, &chain, pair, expected)?;
        let crls = paths
            .crl
            .as_deref()
            .map(read_crls)
            .transpose()?
            .unwrap_or_default();
        let bad_ca = |why: String| TlsError::BadCa {
            path: paths.ca.clone(),
            why,
        };
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .with_crls(crls.clone())
                .only_check_end_entity_revocation()
                .build()
                .map_err(|e| bad_ca(e.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(crls.clone())
            .only_check_end_entity_revocation()
            .build()
            .map_err(|e| bad_ca(e.to_string()))?;
        let at = match expected {
            Expected::Agent(_) => nearest(&identity, SystemTime::now()),
            Expected::Person => SystemTime::now(),
        };
        check_chain(paths, &chain, &identity, (&*clients, &servers), at)?;
        Ok(Self {
            // Only now, after the CA's signature on the lists was checked.
            revoked: revoked_serials(paths, &crls)?,
            own: Arc::new(SingleCertAndKey::from(own)),
            pair: pair.clone(),
            identity,
            provider,
            clients,
            servers,
            certificate: paths.certificate.clone(),
        })
    }

    /// Why others refuse our certificate at `now`, if its dates are the reason: [`TlsError::Expired`] or
    /// [`TlsError::NotYetValid`].
    #[must_use]
    pub fn out_of_date(&self, now: SystemTime) -> Option<TlsError> {
        let (path, identity) = (self.certificate.clone(), &self.identity);
        if now > identity.not_after {
            let at = identity.not_after;
            Some(TlsError::Expired { path, at })
        } else if now < identity.not_before {
            let from = identity.not_before;
            Some(TlsError::NotYetValid { path, from })
        } else {
            None
        }
    }

    /// Whom our certificate speaks for, and until when.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a serial number is on the revocation list.
    #[must_use]
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.contains(serial)
    }

    /// Configuration for one connection that a client opened; `SeenPeer` tells what its certificate said.
    ///
    /// # Errors
    /// [`TlsError::Configure`].
    pub fn server(&self) -> Result<(Arc<ServerConfig>, SeenPeer), TlsError> {
        let (mut config, seen) = self.server_for(Admits::EVERYBODY)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok((Arc::new(config), seen))
    }

    /// The same for a protocol that has no name in TLS (no ALPN), and for those that `admits` admits only.
    ///
    /// # Errors
    /// [`TlsError::Configure`].
    pub fn plain_server(&self, admits: Admits) -> Result<(Arc<ServerConfig>, SeenPeer), TlsError> {
        let (config, seen) = self.server_for(admits)?;
        Ok((Arc::new(config), seen))
    }

    fn server_for(&self, admits: Admits) -> Result<(ServerConfig, SeenPeer), TlsError> {
        let seen = SeenPeer::default();
        let verifier = ClientVerifier {
            inner: Arc::clone(&self.clients),
            pair: self.pair.clone(),
            admits,
            seen: seen.clone(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Configure)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.own) as _);
        config.ignore_client_order = true;
        // A resumed session would skip the certificate, and with it expiry and revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok((config, seen))
    }

    /// Configuration for one connection to the agent of `site`.
    ///
    /// # Errors
    /// [`TlsError::Configure`].
    pub fn client(&self, site: Site) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = AgentVerifier {
            inner: Arc::clone(&self.servers),
            pair: self.pair.clone(),
            site,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Configure)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.own) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Arc::new(config))
    }
}

/// aws-lc with AES-128-GCM first: the fastest on hosts with AES instructions, and strong enough.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("CA certificate", path)? {
        roots.add(certificate).map_err(|e| TlsError::BadCa {
            path: path.to_owned(),
            why: e.to_string(),
        })?;
    }
    Ok(roots)
}

fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = || TlsError::NotPem {
        what,
        path: path.to_owned(),
    };
    let chain = CertificateDer::pem_slice_iter(&read_public(what, path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| not_pem())?;
    if chain.is_empty() {
        Err(not_pem())
    } else {
        Ok(chain)
    }
}

fn read_own_key(
    paths: &TlsPaths,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let key =
        PrivateKeyDer::from_pem_slice(&read_key(&paths.key)?).map_err(|_| TlsError::NotPem {
            what: "private key",
            path: paths.key.clone(),
        })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| match source {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            key: paths.key.clone(),
            certificate: paths.certificate.clone(),
        },
        source => TlsError::BadKey {
            path: paths.key.clone(),
            source,
        },
    })
}

/// Zero lists would let every revoked certificate in: an error (invariant 3).
fn read_crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let crls = CertificateRevocationListDer::pem_slice_iter(&read_public("revocation list", path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::NotPem {
            what: "revocation list",
            path: path.to_owned(),
        })?;
    if crls.is_empty() {
        return Err(TlsError::EmptyCrl {
            path: path.to_owned(),
        });
    }
    Ok(crls)
}

fn revoked_serials(
    paths: &TlsPaths,
    crls: &[CertificateRevocationListDer<'_>],
) -> Result<HashSet<String>, TlsError> {
    let bad = |why: String| TlsError::BadCrl {
        path: paths.crl.clone().unwrap_or_default(),
        why,
    };
    let mut serials = HashSet::new();
    for der in crls {
        let (_, list) = CertificateRevocationList::from_der(der).map_err(|e| bad(e.to_string()))?;
        for entry in list.iter_revoked_certificates() {
            serials.insert(serial_text(entry.raw_serial()).map_err(|e| bad(e.to_string()))?);
        }
    }
    Ok(serials)
}

fn check_names(
    paths: &TlsPaths,
    chain: &[CertificateDer<'_>],
    pair: &PairName,
    expected: &Expected,
) -> Result<Identity, TlsError> {
    let path = || paths.certificate.clone();
    let identity = Identity::from_der(&chain[0]).map_err(|source| TlsError::Identity {
        path: path(),
        source,
    })?;
    if identity.pair != *pair {
        return Err(TlsError::WrongPair {
            path: path(),
            found: identity.pair.to_string(),
            expected: pair.to_string(),
        });
    }
    if !expected.admits(&identity.holder) {
        return Err(TlsError::WrongRole {
            path: path(),
            found: identity.uri(),
            expected: expected.words(pair),
        });
    }
    Ok(identity)
}

/// The instant nearest to `now` at which the certificate is valid, so that everything else about it can be checked.
fn nearest(identity: &Identity, now: SystemTime) -> SystemTime {
    // Not `clamp`: a certificate whose end is before its begin must not panic; no instant suits it.
    now.min(identity.not_after).max(identity.not_before)
}

/// Verifies our own certificate as the other end will: better told here than by its alert.
fn check_chain(
    paths: &TlsPaths,
    chain: &[CertificateDer<'_>],
    identity: &Identity,
    (clients, servers): (&dyn ClientCertVerifier, &WebPkiServerVerifier),
    at: SystemTime,
) -> Result<(), TlsError> {
    use rustls::client::danger::ServerCertVerifier;
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let now = UnixTime::since_unix_epoch(since.unwrap_or_default());
    let as_client = clients.verify_client_cert(&chain[0], &chain[1..], now);
    as_client.map_err(|e| chain_error(paths, identity, e))?;
    if let Holder::Agent(site) = identity.holder {
        let name = ServerName::try_from(dns_name(&identity.pair, site)).map_err(|_| {
            TlsError::Configure(Error::General(
                "the pair's name is no part of a DNS name".into(),
            ))
        })?;
        servers
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
            .map_err(|e| chain_error(paths, identity, e))?;
    }
    Ok(())
}

fn chain_error(paths: &TlsPaths, identity: &Identity, error: Error) -> TlsError {
    let path = paths.certificate.clone();
    let Error::InvalidCertificate(cause) = &error else {
        return TlsError::Unverified {
            path,
            source: error,
        };
    };
    match cause {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired {
            path,
            at: identity.not_after,
        },
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsError::NotYetValid {
                path,
                from: identity.not_before,
            }
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::WrongCa {
            path,
            ca: paths.ca.clone(),
        },
        CertificateError::Revoked => TlsError::Revoked {
            path,
            serial: identity.serial.clone(),
        },
        CertificateError::UnknownRevocationStatus => TlsError::BadCrl {
            path: paths.crl.clone().unwrap_or_default(),
            why: "it says nothing about certificates of this CA".to_owned(),
        },
        _ => TlsError::Unverified {
            path,
            source: error,
        },
    }
}

/// How the files look: enough to notice that one was exchanged.
#[derive(Debug, PartialEq, Eq)]
struct Stamps(Vec<Option<Stamp>>);

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size_bytes: u64,
    changed: (i64, i64),
    modified: Option<SystemTime>,
}

impl Stamps {
    fn of(paths: &TlsPaths) -> Self {
        let stamp = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some(Stamp {
                inode: meta.ino(),
                size_bytes: meta.size(),
                changed: (meta.ctime(), meta.ctime_nsec()),
                modified: meta.modified().ok(),
            })
        };
        let all = [&paths.ca, &paths.certificate, &paths.key]
            .into_iter()
            .chain(&paths.crl);
        Self(all.map(stamp).collect())
    }
}
