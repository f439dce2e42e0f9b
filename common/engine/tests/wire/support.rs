//! A pair with certificates, agents' servers, and an endpoint that does as it is told.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use sitepair_certs::{
    Ca, Expected, Holder, Issued, TlsPaths, TlsStore, Validity, write_key, write_public,
};
use sitepair_engine::endpoint::{
    DataFrame, PeerEndpoint, PeerError, Transfer, TransferDigest, cycle_digest,
};
use sitepair_engine::env::HostEnv;
use sitepair_engine::wire::{LinkConfig, LinkState, LinkTiming, RemotePeer, Services, serve};
use sitepair_model::ids::{
    Cycle, Digest, DiskId, GenId, Generation, GroupId, Nonce, OpId, PairName, Site, UnixMillis,
};
use sitepair_model::lineage::Lineage;
use sitepair_model::peer::{
    Committed, DiskCommit, FrameExtent, FrameExtentKind, Grant, GroupOffer, Hello, HelloAnswer,
    PeerSummary, RoleName, TransferBegin, TransferCommit, TransferKind,
};
use sitepair_model::point::Consistency;
use sitepair_model::retention::Retention;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

/// Everything here is done long before; a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn pair() -> PairName {
    "acme".parse().unwrap()
}

/// A CA and a folder with the files of whom it issued for.
pub(crate) struct Pki {
    pub(crate) ca: Ca,
    folder: tempfile::TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let ca = Ca::create(&pair(), Validity::days(SystemTime::now(), 30)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_public(&folder.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        Self { ca, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn paths(&self, name: &str, with_crl: bool) -> TlsPaths {
        TlsPaths {
            ca: self.path("ca.pem"),
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            crl: with_crl.then(|| self.path("crl.pem")),
        }
    }

    pub(crate) fn issue(&self, holder: &Holder) -> Issued {
        self.ca
            .issue(&pair(), holder, Validity::days(SystemTime::now(), 30))
            .unwrap()
    }

    pub(crate) fn write(&self, name: &str, issued: &Issued) {
        write_public(&self.path(&format!("{name}.pem")), &issued.certificate_pem).unwrap();
        write_key(&self.path(&format!("{name}.key")), &issued.key_pem).unwrap();
    }

    pub(crate) fn revoke(&self, serials: &[String]) {
        let list = self.ca.revocation_list(serials, SystemTime::now()).unwrap();
        write_public(&self.path("crl.pem"), &list).unwrap();
    }

    /// Issues for an agent, and loads what was written.
    pub(crate) fn agent(&self, site: Site, with_crl: bool) -> Arc<TlsStore> {
        let name = site.as_str();
        self.write(name, &self.issue(&Holder::Agent(site)));
        let paths = self.paths(name, with_crl);
        Arc::new(TlsStore::load(paths, pair(), Expected::Agent(site)).unwrap())
    }

    pub(crate) fn person(&self, holder: &Holder) -> Arc<TlsStore> {
        self.write("person", &self.issue(holder));
        let paths = self.paths("person", false);
        Arc::new(TlsStore::load(paths, pair(), Expected::Person).unwrap())
    }
}

/// An agent's server on a port of its own.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start(store: Arc<TlsStore>, site: Site, peer: Arc<FakePeer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let services = Services {
            store,
            site,
            peer,
            control: None::<HealthServer<HealthService>>,
        };
        let ending = stop.clone();
        let task = tokio::spawn(async move { serve(listener, services, ending).await.unwrap() });
        Self {
            address,
            stop,
            task,
        }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        within(self.task).await.unwrap();
    }
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work)
        .await
        .expect("took far too long")
}

pub(crate) fn timing() -> LinkTiming {
    LinkTiming {
        retry_min: Duration::from_millis(50),
        ..LinkTiming::default()
    }
}

pub(crate) fn remote(address: SocketAddr, store: &Arc<TlsStore>, timing: LinkTiming) -> RemotePeer {
    let config = LinkConfig {
        address: address.to_string(),
        peer: Site::Primary,
        timing,
    };
    RemotePeer::start(config, Arc::clone(store), Arc::new(HostEnv))
}

pub(crate) async fn until_up(peer: &RemotePeer) {
    let mut link = peer.link();
    within(link.wait_for(|state| matches!(state, LinkState::Up { .. })))
        .await
        .unwrap();
}

/// Waits until an attempt has failed, and returns why.
pub(crate) async fn until_down(peer: &RemotePeer) -> String {
    let mut link = peer.link();
    let failed =
        |state: &LinkState| matches!(state, LinkState::Down { attempts, .. } if *attempts > 0);
    match within(link.wait_for(failed)).await.unwrap().clone() {
        LinkState::Down { last_error, .. } => last_error,
        LinkState::Up { .. } => unreachable!("waited for down"),
    }
}

/// Server of the primary site, link from the secondary.
pub(crate) struct Linked {
    pub(crate) pki: Pki,
    pub(crate) server: TestServer,
    pub(crate) store: Arc<TlsStore>,
    pub(crate) fake: Arc<FakePeer>,
    pub(crate) remote: RemotePeer,
}

impl Linked {
    pub(crate) async fn new(fake: FakePeer) -> Self {
        Self::with_timing(fake, timing()).await
    }

    pub(crate) async fn with_timing(fake: FakePeer, timing: LinkTiming) -> Self {
        let pki = Pki::new();
        let fake = Arc::new(fake);
        let store = pki.agent(Site::Primary, false);
        let server = TestServer::start(Arc::clone(&store), Site::Primary, Arc::clone(&fake)).await;
        let remote = remote(server.address, &pki.agent(Site::Secondary, false), timing);
        until_up(&remote).await;
        Self {
            pki,
            server,
            store,
            fake,
            remote,
        }
    }
}

/// What a test tells the fake endpoint to do.
#[derive(Debug)]
pub(crate) struct FakePeer {
    /// Answer to everything, instead of doing it.
    pub(crate) error: Mutex<Option<PeerError>>,
    /// A frame is taken only with a permit of this.
    pub(crate) gate: Arc<Semaphore>,
    /// How long a checkpoint takes.
    pub(crate) checkpoint_takes: Duration,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    pub(crate) frames: Arc<Mutex<Vec<DataFrame>>>,
    /// Whether frames are kept, or only counted.
    pub(crate) keep_frames: bool,
}

impl Default for FakePeer {
    fn default() -> Self {
        Self {
            error: Mutex::new(None),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            checkpoint_takes: Duration::ZERO,
            log: Arc::default(),
            frames: Arc::default(),
            keep_frames: true,
        }
    }
}

impl FakePeer {
    fn note(&self, what: impl Into<String>) -> Result<(), PeerError> {
        self.log.lock().unwrap().push(what.into());
        match &*self.error.lock().unwrap() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn answer_with(&self, error: PeerError) {
        *self.error.lock().unwrap() = Some(error);
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

#[async_trait]
impl PeerEndpoint for FakePeer {
    async fn hello(&self, hello: Hello) -> Result<HelloAnswer, PeerError> {
        self.note("hello")?;
        Ok(HelloAnswer {
            request: hello.request,
            nonce: hello.nonce,
            own_nonce: Nonce::from_bytes([9; 16]),
            summary: PeerSummary {
                role: RoleName::Replica,
                ..hello.summary
            },
        })
    }

    async fn offer(&self, offer: GroupOffer) -> Result<(), PeerError> {
        self.note(format!("offer {}", offer.name))
    }

    async fn settle(&self, group: GroupId, retention: Retention) -> Result<Retention, PeerError> {
        self.note(format!("settle {group} {}", retention.policy))?;
        Ok(retention)
    }

    async fn withdraw(&self, group: GroupId, delete_replica: bool) -> Result<(), PeerError> {
        self.note(format!("withdraw {group} {delete_replica}"))
    }

    async fn grant(&self, grant: Grant) -> Result<OpId, PeerError> {
        self.note("grant")?;
        Ok(grant.request)
    }

    async fn begin(&self, begin: TransferBegin) -> Result<Box<dyn Transfer>, PeerError> {
        self.note(format!("begin {:?}", begin.kind))?;
        Ok(Box::new(FakeTransfer {
            gate: Arc::clone(&self.gate),
            checkpoint_takes: self.checkpoint_takes,
            log: Arc::clone(&self.log),
            frames: self.keep_frames.then(|| Arc::clone(&self.frames)),
            digests: HashMap::new(),
            committed: false,
        }))
    }
}

struct FakeTransfer {
    gate: Arc<Semaphore>,
    checkpoint_takes: Duration,
    log: Arc<Mutex<Vec<String>>>,
    frames: Option<Arc<Mutex<Vec<DataFrame>>>>,
    digests: HashMap<DiskId, TransferDigest>,
    committed: bool,
}

impl Drop for FakeTransfer {
    fn drop(&mut self) {
        if !self.committed {
            self.log.lock().unwrap().push("abandoned".to_owned());
        }
    }
}

#[async_trait]
impl Transfer for FakeTransfer {
    async fn send(&mut self, frame: DataFrame) -> Result<(), PeerError> {
        self.gate.acquire().await.unwrap().forget();
        self.digests.entry(frame.disk).or_default().add(&frame);
        if let Some(frames) = &self.frames {
            frames.lock().unwrap().push(frame);
        }
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), PeerError> {
        tokio::time::sleep(self.checkpoint_takes).await;
        self.log.lock().unwrap().push("checkpoint".to_owned());
        Ok(())
    }

    async fn commit(mut self: Box<Self>, commit: TransferCommit) -> Result<Committed, PeerError> {
        for disk in &commit.disks {
            let own = self.digests.get(&disk.disk).map(TransferDigest::digest);
            if own != Some(disk.digest) {
                return Err(PeerError::Refused {
                    why: "the digests differ".to_owned(),
                });
            }
        }
        self.committed = true;
        self.log.lock().unwrap().push("commit".to_owned());
        Ok(Committed {
            cycle: Cycle(2),
            digest: cycle_digest(&commit.disks),
        })
    }
}

pub(crate) fn a_hello() -> Hello {
    Hello {
        request: OpId::from_bytes([1; 16]),
        nonce: Nonce::from_bytes([2; 16]),
        summary: PeerSummary {
            group: GroupId::from_bytes([3; 16]),
            role: RoleName::Source,
            generation: a_generation(),
            lineage: Lineage::born(a_generation().id),
            cycle: Cycle::NONE,
            digest: None,
            forced: Vec::new(),
        },
    }
}

pub(crate) fn a_generation() -> Generation {
    Generation {
        epoch: 1,
        id: GenId::from_bytes([4; 16]),
    }
}

pub(crate) fn a_begin() -> TransferBegin {
    TransferBegin {
        group: GroupId::from_bytes([3; 16]),
        generation: a_generation().id,
        kind: TransferKind::Cycle {
            from: Cycle(1),
            to: Cycle(2),
        },
    }
}

/// A frame with `size` bytes of data at `offset`, and zeros after it.
pub(crate) fn a_frame(disk: u8, offset: u64, payload: Bytes) -> DataFrame {
    let size = u64::try_from(payload.len()).unwrap();
    DataFrame {
        disk: DiskId::from_bytes([disk; 16]),
        extents: vec![
            FrameExtent {
                offset,
                length: size,
                kind: FrameExtentKind::Data,
            },
            FrameExtent {
                offset: offset + size,
                length: 4096,
                kind: FrameExtentKind::Zero,
            },
        ],
        hash: Digest::from_bytes(*blake3::hash(&payload).as_bytes()),
        payload,
    }
}

pub(crate) fn a_commit(digests: &HashMap<DiskId, TransferDigest>) -> TransferCommit {
    TransferCommit {
        cut_at: UnixMillis(1_700_000_000_000),
        consistency: Consistency::Crash,
        label: Some("test".to_owned()),
        disks: digests
            .iter()
            .map(|(disk, digest)| DiskCommit {
                disk: *disk,
                digest: digest.digest(),
                covered_bytes: digest.covered_bytes(),
            })
            .collect(),
    }
}

/// Collects what is logged on this thread.
#[derive(Clone, Default)]
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let logged = Self::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        (logged, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until a line says all of `words`.
    pub(crate) async fn until(&self, words: &[&str]) {
        let found = async {
            while !self
                .text()
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LONG, found).await.is_err() {
            panic!("no line with {words:?} in:\n{}", self.text());
        }
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
