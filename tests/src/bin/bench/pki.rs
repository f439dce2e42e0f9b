//! Certificates for the copies that sitepair has no part in: a CA, and one leaf for "localhost".
//!
//! The files have the names that QEMU wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in the leaf.
pub(crate) const HOST: &str = "localhost";

/// The certificates.
pub(crate) struct Pki {
    folder: PathBuf,
    ca: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: KeyPair,
}

impl Pki {
    /// Makes them in a new folder.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "bench CA");
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);
        let mut params = CertificateParams::new(vec![HOST.to_owned()])?;
        // QEMU asks for encipherment, which no key exchange of ours needs.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.distinguished_name.push(DnType::CommonName, HOST);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?;
        fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
        for (name, text) in [
            ("ca-cert.pem", ca.pem()),
            ("server-cert.pem", leaf.pem()),
            ("client-cert.pem", leaf.pem()),
            ("server-key.pem", key.serialize_pem()),
            ("client-key.pem", key.serialize_pem()),
        ] {
            fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            ca: ca.der().clone(),
            leaf: leaf.der().clone(),
            key,
        })
    }

    /// Where the files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>> {
        let provider = provider();
        let roots = Arc::new(self.roots()?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.leaf.clone()], self.private_key()?)?;
        Ok(Arc::new(config))
    }

    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![self.leaf.clone()], self.private_key()?)?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(roots)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.key.serialize_der())
            .map_err(|why| anyhow::anyhow!("use the leaf's key: {why}"))
    }
}

/// The fastest cipher on machines with AES instructions, and no other.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    })
}
