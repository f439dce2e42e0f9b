//! Who gets in, who does not, and whether both ends learn why.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use sitepair_certs::{Ca, Holder, Issued, Validity, dial, write_public};
use sitepair_engine::endpoint::{PeerEndpoint, PeerError};
use sitepair_engine::wire::{CONNECTIONS_PER_IDENTITY_MAX, LinkState};
use sitepair_model::ids::Site;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{
    FakePeer, Linked, Logged, Pki, TestServer, a_hello, pair, remote, timing, until_down, until_up,
    within,
};

async fn a_server(pki: &Pki, with_crl: bool) -> TestServer {
    let store = pki.agent(Site::Primary, with_crl);
    TestServer::start(store, Site::Primary, Arc::new(FakePeer::default())).await
}

/// Connects with any certificate, as a program of somebody else might; the error of the first read.
async fn refusal(pki: &Pki, server: &TestServer, own: Option<&Issued>) -> String {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pki.ca.certificate_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![chain], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("primary.agent.acme").unwrap();
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await;
    let error = match connected {
        Err(error) => error,
        Ok(mut tls) => within(tls.read_u8())
            .await
            .expect_err("the server let us in"),
    };
    error.to_string()
}

#[tokio::test]
async fn refused_handshakes_tell_both_ends_why() {
    let (logged, _guard) = Logged::start();
    let pki = Pki::new();
    pki.revoke(&[]);
    let revoked = pki.issue(&Holder::Agent(Site::Secondary));
    pki.revoke(std::slice::from_ref(&revoked.identity.serial));
    let server = a_server(&pki, true).await;
    let agent = Holder::Agent(Site::Secondary);
    let long_ago = Validity {
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
    };
    let days = |days| Validity::days(SystemTime::now(), days);
    let expired = pki.ca.issue(&pair(), &agent, long_ago).unwrap();
    let stranger = pki
        .ca
        .issue(&"other".parse().unwrap(), &agent, days(1))
        .unwrap();
    let other_ca = Ca::create(&"elsewhere".parse().unwrap(), days(1)).unwrap();
    let unknown = other_ca.issue(&pair(), &agent, days(1)).unwrap();
    let forged = Ca::create(&pair(), days(1))
        .unwrap()
        .issue(&pair(), &agent, days(1))
        .unwrap();

    let alert = refusal(&pki, &server, None).await;
    assert!(alert.contains("CertificateRequired"), "{alert}");
    logged
        .until(&["connection refused", "127.0.0.1", "showed no certificate"])
        .await;
    for (own, alert, cause) in [
        (&expired, "CertificateExpired", "expired"),
        (&unknown, "UnknownCA", "unknown issuer"),
        (&forged, "DecryptError", "unknown issuer"),
        (&revoked, "CertificateRevoked", "revoked"),
        (&stranger, "alert", "expected somebody of pair acme"),
    ] {
        let told = refusal(&pki, &server, Some(own)).await;
        assert!(told.contains(alert), "{cause}: {told}");
        let uri = own.identity.uri();
        logged
            .until(&["connection refused", &uri, &own.identity.serial, cause])
            .await;
    }
    let good = pki.agent(Site::Secondary, false);
    until_up(&remote(server.address, &good, timing())).await;
    server.end().await;
}

#[tokio::test]
async fn the_link_says_why_the_other_end_refuses_us() {
    let pki = Pki::new();
    let store = pki.agent(Site::Secondary, false);
    pki.revoke(std::slice::from_ref(&store.current().identity().serial));
    let server = a_server(&pki, true).await;
    let remote = remote(server.address, &store, timing());
    let why = until_down(&remote).await;
    assert!(why.contains("refused our certificate as revoked"), "{why}");
    let error = remote.hello(a_hello()).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Link { why } if why.contains("revoked")),
        "{error}"
    );
}

#[tokio::test]
async fn the_link_says_that_nobody_listens() {
    let pki = Pki::new();
    let store = pki.agent(Site::Secondary, false);
    let server = a_server(&pki, false).await;
    let address = server.address;
    server.end().await;
    let why = until_down(&remote(address, &store, timing())).await;
    assert!(
        why.contains("refused") && why.contains(&address.to_string()),
        "{why}"
    );
}

#[tokio::test]
async fn an_agent_of_another_site_or_pair_is_not_our_peer() {
    let pki = Pki::new();
    // At the address of the primary agent answers the secondary's.
    let store = pki.agent(Site::Secondary, false);
    let server = TestServer::start(store, Site::Secondary, Arc::new(FakePeer::default())).await;
    let why = until_down(&remote(
        server.address,
        &pki.agent(Site::Secondary, false),
        timing(),
    ))
    .await;
    assert!(why.contains("another site or pair"), "{why}");

    let elsewhere = Pki::new();
    let server = a_server(&elsewhere, false).await;
    let why = until_down(&remote(
        server.address,
        &pki.agent(Site::Secondary, false),
        timing(),
    ))
    .await;
    assert!(why.contains("unknown issuer"), "{why}");
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let pki = Pki::new();
    let server = a_server(&pki, false).await;
    pki.write("client", &pki.issue(&Holder::Agent(Site::Secondary)));
    let connect = |version: &'static str| {
        let paths = pki.paths("client", false);
        let address = server.address.to_string();
        tokio::task::spawn_blocking(move || {
            Command::new("openssl")
                .args([
                    "s_client", version, "-brief", "-alpn", "h2", "-connect", &address,
                ])
                .arg("-CAfile")
                .arg(paths.ca)
                .arg("-cert")
                .arg(paths.certificate)
                .arg("-key")
                .arg(paths.key)
                .stdin(std::process::Stdio::null())
                .output()
                .expect("openssl is installed (package openssl)")
        })
    };
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let newer = within(connect("-tls1_3")).await.unwrap();
    assert!(text(&newer).contains("TLSv1.3"), "{}", text(&newer));
    assert!(
        text(&newer).contains("Verification: OK"),
        "{}",
        text(&newer)
    );
    let older = within(connect("-tls1_2")).await.unwrap();
    assert!(!older.status.success(), "{}", text(&older));
    assert!(
        text(&older).contains("protocol version"),
        "{}",
        text(&older)
    );
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let pki = Pki::new();
    let server = a_server(&pki, false).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    until_up(&remote(
        server.address,
        &pki.agent(Site::Secondary, false),
        timing(),
    ))
    .await;
}

#[tokio::test]
async fn an_identity_holds_a_bounded_number_of_connections() {
    let (logged, _guard) = Logged::start();
    let pki = Pki::new();
    let server = a_server(&pki, false).await;
    let store = pki.person(&Holder::Viewer("wall".parse().unwrap()));
    let address = server.address.to_string();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_PER_IDENTITY_MAX {
        let mut tls = dial(&store.current(), Site::Primary, &address)
            .await
            .unwrap();
        // The server's first bytes show that it took the connection.
        within(tls.read_u8()).await.unwrap();
        open.push(tls);
    }
    let mut surplus = dial(&store.current(), Site::Primary, &address)
        .await
        .unwrap();
    assert!(
        within(surplus.read_u8()).await.is_err(),
        "one too many was let in"
    );
    logged
        .until(&[
            "connection refused",
            "viewer/wall",
            "connections of this identity",
        ])
        .await;
    // Other identities are not concerned, and a closed connection makes room.
    until_up(&remote(
        server.address,
        &pki.agent(Site::Secondary, false),
        timing(),
    ))
    .await;
    drop(open.pop());
    let again = async {
        loop {
            let mut tls = dial(&store.current(), Site::Primary, &address)
                .await
                .unwrap();
            if tls.read_u8().await.is_ok() {
                break;
            }
        }
    };
    within(again).await;
}

#[tokio::test]
async fn certificates_are_exchanged_under_a_running_transfer() {
    let linked = Linked::new(FakePeer::default()).await;
    let mut transfer = linked
        .remote
        .begin(crate::support::a_begin())
        .await
        .unwrap();
    transfer
        .send(crate::support::a_frame(1, 0, vec![1; 4096].into()))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();

    let renewed = linked.pki.issue(&Holder::Agent(Site::Primary));
    linked.pki.write("primary", &renewed);
    let reloaded = async {
        while linked.store.current().identity().serial != renewed.identity.serial {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(reloaded).await;

    let viewer = linked.pki.person(&Holder::Viewer("v".parse().unwrap()));
    let address = linked.server.address.to_string();
    let tls = dial(&viewer.current(), Site::Primary, &address)
        .await
        .unwrap();
    let shown = &tls.get_ref().1.peer_certificates().unwrap()[0];
    let shown = sitepair_certs::Identity::from_der(shown).unwrap();
    assert_eq!(
        shown.serial, renewed.identity.serial,
        "new connections see the new certificate"
    );

    transfer
        .send(crate::support::a_frame(1, 8192, vec![2; 4096].into()))
        .await
        .unwrap();
    transfer.checkpoint().await.unwrap();
    assert!(matches!(
        *linked.remote.link().borrow(),
        LinkState::Up { .. }
    ));
}

#[tokio::test]
async fn a_revoked_identity_loses_its_open_connection() {
    let pki = Pki::new();
    pki.revoke(&[]);
    let server = a_server(&pki, true).await;
    let store = pki.agent(Site::Secondary, false);
    let remote = remote(server.address, &store, timing());
    until_up(&remote).await;
    // An empty file is no list: it must not let anybody in, nor disturb those inside.
    write_public(&pki.path("crl.pem"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    remote.hello(a_hello()).await.unwrap();
    pki.revoke(std::slice::from_ref(&store.current().identity().serial));
    let refused = |state: &LinkState| matches!(state, LinkState::Down { last_error, .. } if last_error.contains("revoked"));
    within(remote.link().wait_for(refused)).await.unwrap();
}
