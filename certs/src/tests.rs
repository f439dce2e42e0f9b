//! Certificates are made, read and checked; every defect has an error of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sitepair_model::ids::{PairName, Site};

use crate::{
    AGENT_DAYS, CA_DAYS, Ca, Expected, Holder, Identity, IdentityError, Issued, TlsError, TlsPaths,
    TlsStore, Validity, parse_holder, write_key, write_public,
};

const DAY: Duration = Duration::from_secs(86_400);

fn pair() -> PairName {
    "acme".parse().unwrap()
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn a_ca() -> Ca {
    Ca::create(&pair(), Validity::days(now(), CA_DAYS)).unwrap()
}

fn operator() -> Holder {
    Holder::Operator("ann".parse().unwrap())
}

fn issue(ca: &Ca, holder: &Holder) -> Issued {
    ca.issue(&pair(), holder, Validity::days(now(), AGENT_DAYS))
        .unwrap()
}

/// A folder with the files of an agent.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(ca: &Ca, issued: &Issued) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write_public(&files.path("ca.pem"), ca.certificate_pem()).unwrap();
        files.put(issued);
        files
    }

    fn put(&self, issued: &Issued) {
        write_public(&self.path("agent.pem"), &issued.certificate_pem).unwrap();
        write_key(&self.path("agent.key"), &issued.key_pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn paths(&self, with_crl: bool) -> TlsPaths {
        TlsPaths {
            ca: self.path("ca.pem"),
            certificate: self.path("agent.pem"),
            key: self.path("agent.key"),
            crl: with_crl.then(|| self.path("crl.pem")),
        }
    }

    fn load(&self) -> Result<TlsStore, TlsError> {
        TlsStore::load(self.paths(false), pair(), Expected::Agent(Site::Primary))
    }

    fn load_with_crl(&self) -> Result<TlsStore, TlsError> {
        TlsStore::load(self.paths(true), pair(), Expected::Agent(Site::Primary))
    }
}

fn agent_files() -> (Ca, Issued, Files) {
    let ca = a_ca();
    let issued = issue(&ca, &Holder::Agent(Site::Primary));
    let files = Files::new(&ca, &issued);
    (ca, issued, files)
}

#[test]
fn a_certificate_speaks_for_whom_it_was_issued() {
    let ca = a_ca();
    for holder in [
        Holder::Agent(Site::Primary),
        Holder::Agent(Site::Secondary),
        operator(),
        Holder::Admin("root-1".parse().unwrap()),
        Holder::Viewer("wall.display".parse().unwrap()),
    ] {
        let issued = issue(&ca, &holder);
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let identity = Identity::from_der(&der).unwrap();
        assert_eq!(identity, issued.identity);
        assert_eq!((&identity.pair, &identity.holder), (&pair(), &holder));
        assert!(
            identity.not_before < now() - Duration::from_secs(3500),
            "backdated"
        );
        let left = identity.not_after.duration_since(now()).unwrap();
        assert!(left > 89 * DAY && left <= 90 * DAY);
    }
}

#[test]
fn only_names_of_our_form_are_read() {
    assert_eq!(
        parse_holder("spiffe://acme/agent/primary"),
        Ok((pair(), Holder::Agent(Site::Primary)))
    );
    for bad in [
        "",
        "spiffe://",
        "spiffe://acme",
        "spiffe://acme/agent",
        "spiffe://acme/agent/",
        "spiffe://acme/agent/third",
        "spiffe://acme/agent/primary/",
        "spiffe://acme/agent/primary/x",
        "spiffe://acme//primary",
        "spiffe:///agent/primary",
        "SPIFFE://acme/agent/primary",
        "https://acme/agent/primary",
        "spiffe://acme/root/ann",
        "spiffe://acme/operator/../ann",
        "spiffe://acme/operator/a b",
        "spiffe://acme/operator/ann?x",
        " spiffe://acme/operator/ann",
    ] {
        assert!(
            matches!(parse_holder(bad), Err(IdentityError::Name { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn damaged_certificates_never_panic() {
    let issued = issue(&a_ca(), &Holder::Agent(Site::Primary));
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    for length in 0..der.len() {
        assert!(
            Identity::from_der(&der[..length]).is_err(),
            "cut to {length}"
        );
    }
    for at in 0..der.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = der.to_vec();
            bad[at] ^= flip;
            let _ = Identity::from_der(&bad);
        }
    }
    let longer = [&der[..], b"x"].concat();
    assert_eq!(
        Identity::from_der(&longer),
        Err(IdentityError::NotACertificate)
    );
}

#[test]
fn a_ca_read_back_issues_for_the_same_pair() {
    let (ca, _, files) = agent_files();
    let again = Ca::from_pem(ca.certificate_pem(), &ca.key_pem()).unwrap();
    files.put(&issue(&again, &Holder::Agent(Site::Primary)));
    files.load().unwrap();
    assert!(Ca::from_pem("nothing", &ca.key_pem()).is_err());
}

#[test]
fn a_pair_whose_name_is_no_dns_name_gets_no_agents() {
    for name in ["acme.", "a..b"] {
        let pair: PairName = name.parse().unwrap();
        let made = a_ca().issue(
            &pair,
            &Holder::Agent(Site::Primary),
            Validity::days(now(), 1),
        );
        assert!(
            matches!(made, Err(crate::IssueError::PairName { .. })),
            "{name}"
        );
    }
}

#[test]
fn keys_are_written_for_their_owner_alone() {
    let (_, _, files) = agent_files();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&files.path("agent.key")), 0o600);
    fs::set_permissions(files.path("agent.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = files.load().unwrap_err();
    assert!(
        matches!(error, TlsError::KeyModeTooWide { mode: 0o640, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("chmod 0600"));
}

#[test]
fn every_defect_of_the_files_has_its_own_error() {
    let (ca, issued, files) = agent_files();
    fs::remove_file(files.path("agent.pem")).unwrap();
    assert!(matches!(
        files.load(),
        Err(TlsError::Read {
            what: "certificate",
            ..
        })
    ));
    fs::write(files.path("agent.pem"), "no pem").unwrap();
    assert!(matches!(
        files.load(),
        Err(TlsError::NotPem {
            what: "certificate",
            ..
        })
    ));
    files.put(&issued);
    fs::write(files.path("agent.key"), "no pem").unwrap();
    assert!(matches!(
        files.load(),
        Err(TlsError::NotPem {
            what: "private key",
            ..
        })
    ));
    write_key(&files.path("agent.key"), &issue(&ca, &operator()).key_pem).unwrap();
    assert!(matches!(files.load(), Err(TlsError::KeyMismatch { .. })));
    files.put(&issue(&ca, &operator()));
    assert!(matches!(files.load(), Err(TlsError::WrongRole { .. })));
    files.put(&issue(&ca, &Holder::Agent(Site::Secondary)));
    assert!(matches!(files.load(), Err(TlsError::WrongRole { .. })));
    files.put(&issue(&a_ca(), &Holder::Agent(Site::Primary)));
    assert!(matches!(files.load(), Err(TlsError::WrongCa { .. })));
    let other: PairName = "other".parse().unwrap();
    let stranger = ca
        .issue(
            &other,
            &Holder::Agent(Site::Primary),
            Validity::days(now(), 1),
        )
        .unwrap();
    files.put(&stranger);
    assert!(matches!(files.load(), Err(TlsError::WrongPair { .. })));
    files.put(&issued);
    fs::write(files.path("ca.pem"), "").unwrap();
    assert!(matches!(
        files.load(),
        Err(TlsError::NotPem {
            what: "CA certificate",
            ..
        })
    ));
}

fn between(ca: &Ca, holder: &Holder, not_before: SystemTime, not_after: SystemTime) -> Issued {
    let validity = Validity {
        not_before,
        not_after,
    };
    ca.issue(&pair(), holder, validity).unwrap()
}

#[test]
fn a_persons_dates_are_checked_and_told() {
    let (ca, _, files) = agent_files();
    let load = || TlsStore::load(files.paths(false), pair(), Expected::Person);
    let epoch = SystemTime::UNIX_EPOCH;
    files.put(&between(&ca, &operator(), epoch, epoch + 365 * DAY));
    let error = load().unwrap_err();
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
    assert!(
        error.to_string().contains("1971-01-01 00:00 UTC"),
        "{error}"
    );
    files.put(&between(&ca, &operator(), now() + DAY, now() + 2 * DAY));
    assert!(matches!(load(), Err(TlsError::NotYetValid { .. })));
}

#[test]
fn an_agent_loads_out_of_date_and_says_so_until_it_is_renewed() {
    let (ca, _, files) = agent_files();
    let agent = Holder::Agent(Site::Primary);
    files.put(&between(&ca, &agent, now() + DAY, now() + 2 * DAY));
    let store = files.load().unwrap();
    let early = store.current().out_of_date(now()).unwrap();
    assert!(matches!(early, TlsError::NotYetValid { .. }), "{early}");
    let ended = now() - DAY;
    files.put(&between(&ca, &agent, now() - 3 * DAY, ended));
    assert!(store.reload_if_changed().unwrap());
    let late = store.current().out_of_date(now()).unwrap();
    assert!(matches!(late, TlsError::Expired { .. }), "{late}");
    assert!(late.to_string().contains("renew it"), "{late}");
    assert!(store.current().out_of_date(ended - DAY).is_none());

    // Everything else about it still counts.
    let stranger = a_ca();
    files.put(&between(&stranger, &agent, now() - 3 * DAY, ended));
    assert!(matches!(store.reload(), Err(TlsError::WrongCa { .. })));
    assert!(matches!(files.load(), Err(TlsError::WrongCa { .. })));
    let other = Holder::Agent(Site::Secondary);
    files.put(&between(&ca, &other, now() - 3 * DAY, ended));
    assert!(matches!(files.load(), Err(TlsError::WrongRole { .. })));
    let old = between(&ca, &agent, now() - 3 * DAY, ended);
    files.put(&old);
    let serials = std::slice::from_ref(&old.identity.serial);
    fs::write(
        files.path("crl.pem"),
        ca.revocation_list(serials, now()).unwrap(),
    )
    .unwrap();
    assert!(matches!(
        files.load_with_crl(),
        Err(TlsError::Revoked { .. })
    ));
    fs::set_permissions(files.path("agent.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(files.load(), Err(TlsError::KeyModeTooWide { .. })));

    files.put(&issue(&ca, &agent));
    assert!(store.reload_if_changed().unwrap());
    assert!(store.current().out_of_date(now()).is_none());
}

#[test]
fn a_reload_that_fails_keeps_what_was_in_use() {
    let (ca, issued, files) = agent_files();
    let store = files.load().unwrap();
    assert!(!store.reload_if_changed().unwrap(), "nothing changed");
    let renewed = issue(&ca, &Holder::Agent(Site::Primary));
    // The certificate arrives before its key: refused once, told once, taken when the key is there.
    write_public(&files.path("agent.pem"), &renewed.certificate_pem).unwrap();
    assert!(matches!(
        store.reload_if_changed(),
        Err(TlsError::KeyMismatch { .. })
    ));
    assert!(!store.reload_if_changed().unwrap());
    assert_eq!(store.current().identity().serial, issued.identity.serial);
    write_key(&files.path("agent.key"), &renewed.key_pem).unwrap();
    assert!(store.reload_if_changed().unwrap());
    assert_eq!(store.current().identity().serial, renewed.identity.serial);
}

#[test]
fn a_configured_revocation_list_must_be_there_and_good() {
    let (ca, issued, files) = agent_files();
    let put = |text: &str| fs::write(files.path("crl.pem"), text).unwrap();
    assert!(matches!(files.load_with_crl(), Err(TlsError::Read { .. })));
    put("");
    assert!(matches!(
        files.load_with_crl(),
        Err(TlsError::EmptyCrl { .. })
    ));
    put("garbage");
    assert!(matches!(
        files.load_with_crl(),
        Err(TlsError::EmptyCrl { .. })
    ));
    put("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert!(files.load_with_crl().is_err(), "a list that is none");
    put(&a_ca().revocation_list(&[], now()).unwrap());
    assert!(files.load_with_crl().is_err(), "the list of another CA");
    put(&ca
        .revocation_list(std::slice::from_ref(&issued.identity.serial), now())
        .unwrap());
    assert!(matches!(
        files.load_with_crl(),
        Err(TlsError::Revoked { .. })
    ));

    put(&ca.revocation_list(&["0a1b".to_owned()], now()).unwrap());
    let store = files.load_with_crl().unwrap();
    assert!(store.current().is_revoked("0a1b"));
    assert!(!store.current().is_revoked(&issued.identity.serial));
    put("");
    assert!(matches!(store.reload(), Err(TlsError::EmptyCrl { .. })));
    assert!(
        store.current().is_revoked("0a1b"),
        "the old list stays in force"
    );
}

#[test]
fn an_old_revocation_list_does_not_cut_the_sites_off() {
    let (ca, _, files) = agent_files();
    let old = now() - 365 * DAY;
    fs::write(files.path("crl.pem"), ca.revocation_list(&[], old).unwrap()).unwrap();
    files.load_with_crl().unwrap();
}
