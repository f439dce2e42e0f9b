//! TCP with TLS: certificates of both ends, real clients, and what happens before TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use sitepair_engine::nbd::{Disconnect, Export, ExportHandle, NbdLimits, NbdServer};

use crate::client::Client;
use crate::eventually;
use crate::image::Memory;

const SIZE: usize = 4 << 20;

/// A certificate and its key, both as PEM.
struct Pem(String, String);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test authority");
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Pem {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pem(certificate.pem(), key.serialize_pem())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

impl Pem {
    fn rustls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_slice(self.0.as_bytes()).unwrap();
        (
            vec![certificate],
            PrivateKeyDer::from_pem_slice(self.1.as_bytes()).unwrap(),
        )
    }
}

struct Secure {
    handle: Option<ExportHandle>,
    authority: Authority,
    memory: Arc<Memory>,
    _runtime: tokio::runtime::Runtime,
}

impl Secure {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let authority = Authority::new();
        let (chain, key) = authority.issue("127.0.0.1").rustls();
        let verifier = WebPkiClientVerifier::builder(authority.roots())
            .build()
            .unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        let memory = Arc::new(Memory::new(SIZE));
        let exports = ["sda", "sdb"].map(|name| Export {
            name: name.into(),
            image: memory.clone(),
        });
        let handle = {
            let _inside = runtime.enter();
            NbdServer::new(NbdLimits::default())
                .bind_tcp_tls(
                    "127.0.0.1:0".parse().unwrap(),
                    Arc::new(move || config.clone()),
                    exports.into(),
                )
                .unwrap()
        };
        Self {
            handle: Some(handle),
            authority,
            memory,
            _runtime: runtime,
        }
    }

    fn address(&self) -> SocketAddr {
        self.handle.as_ref().unwrap().address().unwrap()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn client_config(&self, authority: &Authority) -> Arc<ClientConfig> {
        let (chain, key) = authority.issue("guest").rustls();
        let config = ClientConfig::builder().with_root_certificates(self.authority.roots());
        Arc::new(config.with_client_auth_cert(chain, key).unwrap())
    }

    fn secured(&self) -> Client<StreamOwned<ClientConnection, TcpStream>> {
        let mut plain = Client::over(self.connect());
        plain.greet();
        plain.option(5, b"");
        assert_eq!(plain.option_reply(), (5, 1, vec![]));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(self.client_config(&self.authority), name).unwrap();
        Client::over(StreamOwned::new(tls, plain.stream))
    }

    /// A directory as QEMU and libnbd want their certificates.
    fn certificates(&self, directory: &Path) {
        let client = self.authority.issue("guest");
        std::fs::write(directory.join("ca-cert.pem"), self.authority.0.pem()).unwrap();
        std::fs::write(directory.join("client-cert.pem"), client.0).unwrap();
        std::fs::write(directory.join("client-key.pem"), client.1).unwrap();
    }
}

#[test]
fn a_client_with_a_certificate_reads_and_writes() {
    let secure = Secure::new();
    let mut client = secure.secured();
    client.negotiate();
    let data: Vec<u8> = (0..2 << 20)
        .map(|at| u8::try_from(at % 249).unwrap())
        .collect();
    assert_eq!(client.write(1, 0, &data), 0);
    assert!(client.read(0, 2 << 20) == data);
    assert!(secure.memory.durable()[..2 << 20] == data);
}

#[test]
fn before_tls_nothing_is_told_and_afterwards_nothing_is_remembered() {
    let secure = Secure::new();
    let mut plain = Client::over(secure.connect());
    plain.greet();
    for code in [3, 6, 7, 8, 9, 10, 11] {
        plain.option(code, b"\0\0\0\x03sda\0\0");
        assert_eq!(plain.option_reply(), (code, (1 << 31) | 5, vec![]));
    }
    plain.option(1, b"sda");
    assert!(plain.is_closed());
    // Structured replies that were asked for before TLS were refused, so a context needs them anew.
    let mut client = secure.secured();
    client.option(10, b"\0\0\0\x03sda\0\0\0\x01\0\0\0\x0fbase:allocation");
    assert_eq!(client.option_reply().1, (1 << 31) | 3);
    client.option(5, b"");
    assert_eq!(client.option_reply().1, (1 << 31) | 1);
}

#[test]
fn bytes_injected_behind_starttls_and_foreign_certificates_are_refused() {
    let secure = Secure::new();
    let mut injected = secure.connect();
    injected.read_exact(&mut [0; 18]).unwrap();
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0");
    injected.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    let _ = injected.read_to_end(&mut answer);
    assert!(
        !answer.windows(3).any(|three| three == b"sda"),
        "{answer:?}"
    );

    let mut plain = Client::over(secure.connect());
    plain.greet();
    plain.option(5, b"");
    plain.option_reply();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let foreign = secure.client_config(&Authority::new());
    let tls = ClientConnection::new(foreign, name).unwrap();
    let mut stream = StreamOwned::new(tls, plain.stream);
    let _ = stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    assert!(stream.read_exact(&mut [0; 20]).is_err());
    assert_eq!(secure.handle.as_ref().unwrap().connections(), 0);
}

#[test]
fn a_close_reaches_clients_behind_tls() {
    let mut secure = Secure::new();
    let mut client = secure.secured();
    client.negotiate();
    eventually("it is counted", || {
        secure.handle.as_ref().unwrap().connections() == 1
    });
    secure.handle.take().unwrap().close(Disconnect::Graceful);
    assert!(client.is_closed());
}

#[test]
fn qemu_img_and_nbdinfo_connect_over_tls() {
    let secure = Secure::new();
    let directory = tempfile::tempdir().unwrap();
    secure.certificates(directory.path());
    let port = secure.address().port();
    let directory = directory.path().display();
    let qemu = Command::new("qemu-img")
        .args(["info", "--object"])
        .arg(format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={directory}"
        ))
        .arg("--image-opts")
        .arg(format!(
            "driver=nbd,host=127.0.0.1,port={port},tls-creds=tls0,export=sda"
        ))
        .output()
        .expect("qemu-img is needed for this test: install the Debian package qemu-utils");
    let printed = String::from_utf8_lossy(&qemu.stdout);
    assert!(printed.contains("4 MiB (4194304 bytes)"), "{qemu:?}");
    let nbdinfo = Command::new("nbdinfo")
        .arg(format!(
            "nbds://127.0.0.1:{port}/sdb?tls-certificates={directory}"
        ))
        .output()
        .expect("nbdinfo is needed for this test: install the Debian package libnbd-bin");
    let printed = String::from_utf8_lossy(&nbdinfo.stdout);
    assert!(printed.contains("export=\"sdb\""), "{nbdinfo:?}");
    assert!(printed.contains("with TLS"), "{nbdinfo:?}");
}
