//! TCP with TLS: certificates of both ends, real clients, what happens before TLS, and exports that come and
//! go. All certificates are made and checked by the same code as in agents.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use sitepair_certs::{
    Ca, Expected, Holder, TlsPaths, TlsStore, Validity, agent_dns_name, write_key, write_public,
};
use sitepair_engine::nbd::{
    BindError, Disconnect, Export, ExportHandle, NbdLimits, NbdServer, TlsPort,
};
use sitepair_engine::wire::roles::ATTACH;
use sitepair_model::ids::{PairName, Site};

use crate::client::Client;
use crate::eventually;
use crate::image::Memory;

const SIZE: usize = 4 << 20;
type Secured = Client<StreamOwned<ClientConnection, TcpStream>>;

fn pair() -> PairName {
    "acme".parse().unwrap()
}

fn operator() -> Holder {
    Holder::Operator("ann".parse().unwrap())
}

fn a_ca() -> Ca {
    Ca::create(&pair(), Validity::days(SystemTime::now(), 30)).unwrap()
}

/// Certificate files as QEMU and libnbd want them; an agent takes any names.
fn write(folder: &Path, issuer: &Ca, trusted: &Ca, holder: &Holder) -> TlsPaths {
    let validity = Validity::days(SystemTime::now(), 30);
    let issued = issuer.issue(&pair(), holder, validity).unwrap();
    let paths = TlsPaths {
        ca: folder.join("ca-cert.pem"),
        certificate: folder.join("client-cert.pem"),
        key: folder.join("client-key.pem"),
        crl: None,
    };
    write_public(&paths.ca, trusted.certificate_pem()).unwrap();
    write_public(&paths.certificate, &issued.certificate_pem).unwrap();
    write_key(&paths.key, &issued.key_pem).unwrap();
    paths
}

struct Secure {
    port: TlsPort,
    exports: Vec<ExportHandle>,
    ca: Ca,
    store: Arc<TlsStore>,
    memory: Arc<Memory>,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Secure {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let ca = a_ca();
        let folder = tempfile::tempdir().unwrap();
        let mut paths = write(folder.path(), &ca, &ca, &Holder::Agent(Site::Primary));
        let crl = folder.path().join("crl.pem");
        write_public(&crl, &ca.revocation_list(&[], SystemTime::now()).unwrap()).unwrap();
        paths.crl = Some(crl);
        let store = TlsStore::load(paths, pair(), Expected::Agent(Site::Primary)).unwrap();
        let store = Arc::new(store);
        let port = {
            let _inside = runtime.enter();
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = tokio::net::TcpListener::from_std(socket).unwrap();
            let shown = Arc::clone(&store);
            NbdServer::new(NbdLimits::default())
                .open_tls(
                    socket,
                    Arc::new(move || shown.current().plain_server(ATTACH)),
                )
                .unwrap()
        };
        let mut secure = Self {
            port,
            exports: Vec::new(),
            ca,
            store,
            memory: Arc::new(Memory::new(SIZE)),
            folder,
            _runtime: runtime,
        };
        secure.exports = ["vm/sda", "vm/sdb"]
            .map(|name| secure.add(name).unwrap())
            .into();
        secure
    }

    fn add(&self, name: &str) -> Result<ExportHandle, BindError> {
        self.port.add(Export {
            name: name.into(),
            image: self.memory.clone(),
        })
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.port.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// A connection past the TLS handshake as far as the client can tell.
    fn secured(&self, config: Arc<ClientConfig>) -> Secured {
        let mut plain = Client::over(self.connect());
        plain.greet();
        plain.option(5, b"");
        assert_eq!(plain.option_reply(), (5, 1, vec![]));
        let name = ServerName::try_from(agent_dns_name(&pair(), Site::Primary)).unwrap();
        let tls = ClientConnection::new(config, name).unwrap();
        Client::over(StreamOwned::new(tls, plain.stream))
    }

    fn as_operator(&self) -> Secured {
        self.secured(client_config(&self.ca, &self.ca, &operator()))
    }

    fn attached(&self) -> (usize, usize) {
        let all = |count: fn(&ExportHandle) -> usize| self.exports.iter().map(count).sum();
        (all(ExportHandle::connections), all(ExportHandle::writers))
    }
}

fn client_config(issuer: &Ca, trusted: &Ca, holder: &Holder) -> Arc<ClientConfig> {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = write(folder.path(), issuer, trusted, holder);
    // Its own check would refuse a foreign one before the other end can.
    paths.ca = folder.path().join("own-ca.pem");
    write_public(&paths.ca, issuer.certificate_pem()).unwrap();
    let expected = match holder {
        Holder::Agent(site) => Expected::Agent(*site),
        Holder::Admin(_) | Holder::Operator(_) | Holder::Viewer(_) => Expected::Person,
    };
    let store = TlsStore::load(paths, pair(), expected).unwrap();
    store.current().client(Site::Primary).unwrap()
}

/// Whether the server ends the connection in answer to a request for the list of exports.
fn is_refused(mut client: Secured) -> bool {
    let asked = client.stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    asked.is_err() || client.stream.read_exact(&mut [0; 20]).is_err()
}

#[test]
fn a_client_with_a_certificate_reads_and_writes() {
    let secure = Secure::new();
    let mut client = secure.as_operator();
    client.negotiate_named("vm/sda");
    let data: Vec<u8> = (0..2 << 20)
        .map(|at| u8::try_from(at % 249).unwrap())
        .collect();
    assert_eq!(client.write(1, 0, &data), 0);
    assert!(client.read(0, 2 << 20) == data);
    assert!(secure.memory.durable()[..2 << 20] == data);
    assert_eq!(secure.attached(), (1, 1), "counted as one that may write");
}

#[test]
fn before_tls_nothing_is_told_and_afterwards_nothing_is_remembered() {
    let secure = Secure::new();
    let mut plain = Client::over(secure.connect());
    plain.greet();
    for code in [3, 6, 7, 8, 9, 10, 11] {
        plain.option(code, b"\0\0\0\x06vm/sda\0\0");
        assert_eq!(plain.option_reply(), (code, (1 << 31) | 5, vec![]));
    }
    plain.option(1, b"vm/sda");
    assert!(plain.is_closed());
    // Structured replies that were asked for before TLS were refused, so a context needs them anew.
    let mut client = secure.as_operator();
    client.option(10, b"\0\0\0\x06vm/sda\0\0\0\x01\0\0\0\x0fbase:allocation");
    assert_eq!(client.option_reply().1, (1 << 31) | 3);
    client.option(5, b"");
    assert_eq!(client.option_reply().1, (1 << 31) | 1);
}

#[test]
fn bytes_injected_behind_starttls_are_refused() {
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
}

#[test]
fn only_operators_admins_and_agents_of_the_pair_get_in() {
    let secure = Secure::new();
    for holder in [
        operator(),
        Holder::Admin("root".parse().unwrap()),
        Holder::Agent(Site::Primary),
        Holder::Agent(Site::Secondary),
    ] {
        let config = client_config(&secure.ca, &secure.ca, &holder);
        assert!(!is_refused(secure.secured(config)), "{holder}");
    }
    let viewer = Holder::Viewer("wall".parse().unwrap());
    let viewer = client_config(&secure.ca, &secure.ca, &viewer);
    assert!(is_refused(secure.secured(viewer)));
    // Its issuer has the same name, and issued for the same pair.
    let foreign = client_config(&a_ca(), &secure.ca, &operator());
    assert!(is_refused(secure.secured(foreign)));
    assert_eq!(secure.attached(), (0, 0));
}

#[test]
fn a_revoked_certificate_is_refused_from_the_next_connection_on() {
    let secure = Secure::new();
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), &secure.ca, &secure.ca, &operator());
    let own = TlsStore::load(paths, pair(), Expected::Person)
        .unwrap()
        .current();
    let config = own.client(Site::Primary).unwrap();
    assert!(!is_refused(secure.secured(Arc::clone(&config))));
    let revoked = [own.identity().serial.clone()];
    let list = secure
        .ca
        .revocation_list(&revoked, SystemTime::now())
        .unwrap();
    write_public(&secure.folder.path().join("crl.pem"), &list).unwrap();
    assert!(secure.store.reload_if_changed().unwrap());
    assert!(is_refused(secure.secured(config)));
}

#[test]
fn exports_come_and_go_and_only_their_own_clients_with_them() {
    let mut secure = Secure::new();
    let (mut first, mut second) = (secure.as_operator(), secure.as_operator());
    first.negotiate_named("vm/sda");
    second.negotiate_named("vm/sdb");
    eventually("both are counted", || secure.attached() == (2, 2));
    assert!(matches!(secure.add("vm/sda"), Err(BindError::NameInUse(_))));

    let mut late = secure.as_operator();
    late.option(3, b"");
    assert_eq!(late.option_reply().1, 2, "the server shows its exports");
    secure.exports.remove(0).close(Disconnect::Graceful);
    assert!(first.is_closed());
    assert_eq!(second.write(1, 0, &[7; 512]), 0, "the other goes on");
    assert_eq!(secure.attached(), (1, 1));
    // One who saw the export before it closed, and chooses it now.
    late.option_reply();
    late.option_reply();
    late.option(7, b"\0\0\0\x06vm/sda\0\0");
    while late.option_reply().1 == 3 {}
    assert!(late.is_closed());

    let mut after = secure.as_operator();
    after.option(7, b"\0\0\0\x06vm/sda\0\0");
    assert_eq!(after.option_reply().1, (1 << 31) | 6, "unknown now");
    after.option(7, b"\0\0\0\0\0\0");
    assert_eq!(
        after.option_reply().1,
        (1 << 31) | 6,
        "no name means no disk"
    );
    let again = secure.add("vm/sda").unwrap();
    secure.exports.push(again);
    let mut back = secure.as_operator();
    back.negotiate_named("vm/sda");
    assert_eq!(back.read(0, 512), [7; 512]);
}

/// Runs one of QEMU's programs against the port, with a folder of certificates made for `holder`.
fn qemu(secure: &Secure, holder: &Holder, program: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &secure.ca, &secure.ca, holder);
    let (folder, port) = (folder.path().display(), secure.port.address().port());
    let name = agent_dns_name(&pair(), Site::Primary);
    Command::new(program)
        .args(arguments)
        .arg("--object")
        .arg(format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={folder}"
        ))
        .arg("--image-opts")
        .arg(format!(
            "driver=nbd,host=127.0.0.1,port={port},tls-creds=tls0,tls-hostname={name},export=vm/sda"
        ))
        .output()
        .expect("QEMU's tools are needed for this test: install the Debian package qemu-utils")
}

#[test]
fn qemu_connects_over_tls_with_our_certificates() {
    let secure = Secure::new();
    let info = qemu(&secure, &operator(), "qemu-img", &["info"]);
    let printed = String::from_utf8_lossy(&info.stdout);
    assert!(printed.contains("4 MiB (4194304 bytes)"), "{info:?}");
    let write = ["-c", "write -P 0x5a 64k 1M", "-c", "flush"];
    let wrote = qemu(&secure, &operator(), "qemu-io", &write);
    assert!(wrote.status.success(), "{wrote:?}");
    assert!(
        secure.memory.durable()[64 << 10..][..1 << 20]
            .iter()
            .all(|b| *b == 0x5a)
    );
    let viewer = Holder::Viewer("wall".parse().unwrap());
    let refused = qemu(&secure, &viewer, "qemu-img", &["info"]);
    assert!(!refused.status.success(), "{refused:?}");
}
