//! Two agents in one process: storage, catalogue, clocks and link are the test's, everything else is real.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sitepair_disk::Image;
use sitepair_disk::open::Format;
use sitepair_disk::raw::RawImage;
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::fake::FakeStorage;
use sitepair_disk::vhd::{self, VhdImage};
use sitepair_disk::vhdx::{CreateOptions, Kind, VhdxImage};
use sitepair_engine::agent::config::ReplicationConfig;
use sitepair_engine::agent::status::{CertificateStatus, GroupStatus, PointStatus};
use sitepair_engine::agent::{
    CommandError, Context, ContextParts, Operator, PeerFace, ProtectDisk, ProtectSpec, Unprotect,
};
use sitepair_engine::catalog::SqliteCatalog;
use sitepair_model::ids::{Cycle, DiskName, GroupName, Site, UnixMillis};
use sitepair_model::peer::RoleName;
use sitepair_model::retention::{Policy, Retention};

use crate::env::FakeEnv;
use crate::guest::{Content, Guest, Lost, read};
use crate::link::Link;
use crate::mortal::Mortal;

/// The disks; the second one ends in a short block.
pub(crate) const SIZES: [u64; 2] = [40 * 4096, 25 * 4096 + 512];

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// The process is killed; what it wrote is in the page cache.
    Process,
    /// The host loses power; the seed decides what of the unsynced is left.
    Host(u64),
}

/// One site.
pub(crate) struct PairSite {
    pub(crate) storage: FakeStorage,
    catalog: Arc<SqliteCatalog>,
    pub(crate) env: Arc<FakeEnv>,
    pub(crate) mortal: Option<Arc<Mortal>>,
    context: Option<Arc<Context>>,
    lives: u32,
    dead_for_ms: Option<u64>,
}

/// Both, and the guest.
pub(crate) struct Pair {
    pub(crate) sites: [PairSite; 2],
    pub(crate) link: Arc<Link>,
    pub(crate) guest: Guest,
    /// Where the guest's VM runs.
    attached: Option<usize>,
    /// Where it ran last.
    home: usize,
    pub(crate) grace: Duration,
    pub(crate) keep_points: u32,
    /// Zones that may be hot, for each disk.
    pub(crate) hot_zones: u32,
    sizes: [u64; 2],
    format: Format,
    dir: tempfile::TempDir,
}

/// Protection ended, and the replica's files with it.
pub(crate) fn deleting() -> Unprotect {
    Unprotect {
        delete_replica: true,
        ..Unprotect::default()
    }
}

pub(crate) fn group() -> GroupName {
    "web".parse().unwrap()
}

pub(crate) fn disk_names() -> [DiskName; 2] {
    ["system".parse().unwrap(), "data".parse().unwrap()]
}

pub(crate) fn disk_path(disk: usize) -> PathBuf {
    PathBuf::from(format!("/disks/{}.raw", disk_names()[disk]))
}

impl Pair {
    /// Two sites that do not run yet. Both have disks at the same place; only one's will be protected.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_disks(seed, SIZES, Format::Raw)
    }

    /// As [`new`](Self::new), with disks of these sizes and this format.
    pub(crate) fn with_disks(seed: u64, sizes: [u64; 2], format: Format) -> Self {
        let site = |n: u64| {
            let storage = FakeStorage::new();
            storage.create_dir_all(Path::new("/disks")).unwrap();
            for dir in ["/state", "/replicas"] {
                storage.create_dir_all(Path::new(dir)).unwrap();
            }
            PairSite {
                storage,
                catalog: Arc::new(SqliteCatalog::in_memory().unwrap()),
                env: Arc::new(FakeEnv::new(seed * 2 + n)),
                mortal: None,
                context: None,
                lives: 0,
                dead_for_ms: None,
            }
        };
        Self {
            sites: [site(0), site(1)],
            link: Link::new(seed),
            guest: Guest::new(&sizes),
            attached: None,
            home: 0,
            grace: Duration::from_secs(60),
            keep_points: 1000,
            hot_zones: 4096,
            sizes,
            format,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Both sites run, and the group is protected at `source`.
    pub(crate) async fn protected(seed: u64, source: usize) -> Self {
        let mut pair = Self::new(seed);
        pair.begin(source).await;
        pair
    }

    /// Both sites start, and the group is protected at `source`.
    pub(crate) async fn begin(&mut self, source: usize) {
        self.make_disks(source);
        self.start(0).await;
        self.start(1).await;
        self.protect(source).await.unwrap();
    }

    /// Makes the disks that are to be protected.
    pub(crate) fn make_disks(&self, source: usize) {
        let storage: Arc<dyn Storage> = Arc::new(self.sites[source].storage.clone());
        for (disk, size_bytes) in self.sizes.into_iter().enumerate() {
            let path = disk_path(disk);
            let image: Box<dyn Image> = match self.format {
                Format::Raw => Box::new(RawImage::create(&*storage, &path, size_bytes).unwrap()),
                Format::Vhd => {
                    let options = vhd::CreateOptions {
                        size_bytes,
                        block_bytes: 512 << 10,
                        kind: vhd::Kind::Dynamic,
                        disk_id: None,
                    };
                    let image = VhdImage::create(Arc::clone(&storage), &path, &options);
                    Box::new(image.unwrap())
                }
                Format::Vhdx => {
                    let options = CreateOptions {
                        size_bytes,
                        block_bytes: 1 << 20,
                        logical_sector_bytes: 512,
                        physical_sector_bytes: 4096,
                        kind: Kind::Dynamic,
                        disk_id: None,
                    };
                    let image = VhdxImage::create(Arc::clone(&storage), &path, &options);
                    Box::new(image.unwrap())
                }
                Format::Qcow2 => panic!("qcow2 images are not protected"),
            };
            image.close().unwrap();
        }
        storage.sync_dir(Path::new("/disks")).unwrap();
    }

    pub(crate) async fn protect(&self, source: usize) -> Result<(), CommandError> {
        let disk = |disk: usize| ProtectDisk {
            name: disk_names()[disk].clone(),
            path: disk_path(disk),
            replica_path: None,
            format: Some(self.format),
        };
        let spec = ProtectSpec {
            group: group(),
            disks: (0..2).map(disk).collect(),
            policy: Some(Policy::newest(self.keep_points)),
            interval: Some(Duration::from_secs(1)),
            use_existing: false,
        };
        self.operator(source).protect(spec).await.map(|_| ())
    }

    /// Begins a site's next life. False when it died at once.
    pub(crate) async fn start(&mut self, site: usize) -> bool {
        let run_dir = self
            .dir
            .path()
            .join(format!("{site}-{}", self.sites[site].lives));
        let here = &mut self.sites[site];
        here.lives += 1;
        let mortal = Mortal::new(here.storage.clone(), Arc::clone(&here.catalog));
        let (end, told) = self.link.attach(site, Arc::clone(&mortal));
        let context = Context::new(ContextParts {
            site: if site == 0 {
                Site::Primary
            } else {
                Site::Secondary
            },
            pair: "acme".to_owned(),
            env: Arc::clone(&here.env) as _,
            storage: Arc::new(here.storage.clone()),
            catalog: Arc::clone(&mortal) as _,
            peer: end,
            link: told,
            replication: ReplicationConfig {
                interval: Duration::from_secs(1),
                retention: Retention::newest(self.keep_points),
                same_boot_grace: self.grace,
                preserve_memory_bytes: 64 << 10,
                spill_max_bytes: 1 << 20,
                hot_zones: self.hot_zones,
            },
            state_dir: PathBuf::from("/state"),
            run_dir,
            replica_dir: PathBuf::from("/replicas"),
        });
        here.mortal = Some(Arc::clone(&mortal));
        here.context = Some(Arc::clone(&context));
        if let Err(e) = context.start_groups(here.dead_for_ms).await {
            assert!(mortal.is_dead(), "site {site} does not start: {e}");
            return false;
        }
        self.link.open(site, PeerFace::new(context));
        true
    }

    pub(crate) fn runs(&self, site: usize) -> bool {
        let alive = |mortal: &Arc<Mortal>| !mortal.is_dead();
        self.sites[site].mortal.as_ref().is_some_and(alive)
    }

    /// Ends a site's life, if a trap has not ended it yet, and leaves what survives.
    pub(crate) fn crash(&mut self, site: usize, death: Death) {
        let here = &mut self.sites[site];
        let Some(mortal) = here.mortal.take() else {
            return;
        };
        mortal.kill();
        self.link.detach(site);
        if let Some(zombie) = here.context.take() {
            // It can touch nothing any more; its tasks end.
            tokio::spawn(async move { zombie.stop_groups().await });
        }
        here.storage = match death {
            Death::Process => mortal.storage.after_kill(),
            Death::Host(seed) => mortal.storage.crash(seed),
        };
        if let Death::Host(_) = death {
            here.env.reboot();
        }
        here.dead_for_ms = (death == Death::Process).then_some(1_000);
        if self.attached == Some(site) {
            self.attached = None;
        }
        // What was answered outlives the process, flushed or not.
        if self.home == site && death != Death::Process {
            self.guest.lost = Lost::Unflushed;
        }
    }

    /// Stops a site cleanly.
    pub(crate) async fn stop(&mut self, site: usize) {
        self.link.detach(site);
        if self.attached == Some(site) {
            self.attached = None;
        }
        let here = &mut self.sites[site];
        here.context.take().unwrap().stop_groups().await;
        here.mortal.take().unwrap().kill();
        here.storage = here.storage.after_kill();
        here.dead_for_ms = Some(1_000);
    }

    /// How long the site seems to have been down when it starts next.
    pub(crate) fn set_dead_for(&mut self, site: usize, ms: Option<u64>) {
        self.sites[site].dead_for_ms = ms;
    }

    /// The site as its peer sees it, for a word that no real peer says.
    pub(crate) fn face(&self, site: usize) -> PeerFace {
        PeerFace::new(Arc::clone(self.sites[site].context.as_ref().unwrap()))
    }

    pub(crate) fn operator(&self, site: usize) -> Operator {
        let context = Arc::clone(self.sites[site].context.as_ref().expect("the site runs"));
        let certificate = || CertificateStatus {
            problem: None,
            identity: "spiffe://acme/operator/ann".to_owned(),
            not_after: UnixMillis(0),
        };
        Operator::new(context, "peer:7443".to_owned(), Arc::new(certificate))
    }

    pub(crate) async fn status(&self, site: usize) -> Option<GroupStatus> {
        self.sites[site].context.as_ref()?;
        let status = self.operator(site).status(Some(&group())).await.ok()?;
        status.groups.into_iter().next()
    }

    pub(crate) async fn role(&self, site: usize) -> Option<RoleName> {
        self.status(site).await.map(|status| status.role)
    }

    /// Waits, by the paused clock, until `done`; panics with both sites' status when it takes too long.
    pub(crate) async fn until(&self, what: &str, done: impl AsyncFn(&Self) -> bool) {
        for _ in 0..600 {
            if done(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for site in 0..2 {
            let status = self.status(site).await;
            tracing::error!(site, "{status:#?}");
        }
        panic!("not reached: {what}");
    }

    /// The disks that a site serves now; not to be kept, since they hold the files open.
    pub(crate) async fn disks_served_by(&self, site: usize) -> Option<Vec<Arc<dyn Image>>> {
        let context = self.sites[site].context.as_ref()?;
        let mut images = Vec::new();
        for disk in disk_names() {
            images.push(context.guest_image(&group(), &disk).await?);
        }
        Some(images)
    }

    /// The site that lets guests in, and the disks. Panics when both do (I1). The disks are not to be kept: they
    /// hold the files open.
    async fn served(&self) -> Option<(usize, Vec<Arc<dyn Image>>)> {
        let disks = [self.disks_served_by(0).await, self.disks_served_by(1).await];
        let lets_in = |images: &Vec<Arc<dyn Image>>| {
            images
                .iter()
                .any(|image| image.read_at(&mut [0; 512], 0).is_ok())
        };
        let open =
            [0, 1].map(|site: usize| disks[site].as_ref().is_some_and(lets_in) && self.runs(site));
        assert_ne!(open, [true, true], "I1: both sites serve the guest");
        disks
            .into_iter()
            .enumerate()
            .find(|(site, _)| open[*site])
            .and_then(|(site, images)| Some((site, images?)))
    }

    /// The site that serves the guest.
    pub(crate) async fn server(&self) -> Option<usize> {
        self.served().await.map(|(site, _)| site)
    }

    /// The guest's VM, where it is served now; it starts there if it does not run yet.
    async fn guest_disks(&mut self) -> Option<Vec<Arc<dyn Image>>> {
        let (site, images) = self.served().await?;
        if self.attached != Some(site) {
            if let Err(why) = self.guest.attach(&images) {
                assert!(!self.runs(site), "site {site}: {why}");
                return None;
            }
            (self.attached, self.home) = (Some(site), site);
        }
        Some(images)
    }

    /// One write of the guest; false when nobody took it.
    pub(crate) async fn write(&mut self, at: u64) -> bool {
        match self.guest_disks().await {
            Some(disks) => self.guest.write(&disks, at),
            None => false,
        }
    }

    pub(crate) async fn flush(&mut self) -> bool {
        match self.guest_disks().await {
            Some(disks) => self.guest.flush(&disks),
            None => false,
        }
    }

    /// Forgets where the guest runs, so that all disks are checked when it is served next.
    pub(crate) fn shut_guest_down(&mut self) {
        self.attached = None;
    }

    /// What a recovery point at `site` shows.
    pub(crate) async fn point(&self, site: usize, cycle: Cycle) -> Option<Content> {
        let context = self.sites[site].context.as_ref()?;
        let mut views = Vec::new();
        for disk in disk_names() {
            views.push(context.point_image(&group(), &disk, cycle).await?);
        }
        read(&views)
    }

    /// Every point that the replica at `site` keeps is some prefix of the guest's writes, later ones no shorter;
    /// gives how many there are.
    pub(crate) async fn check_points(&self, site: usize) -> usize {
        let points = self.operator(site).points(&group(), None).await;
        let points = points.unwrap().points;
        let mut shown = 0;
        for PointStatus { point, .. } in &points {
            let view = self.point(site, point.cycle).await;
            // Retention may have let it go since.
            let Some(view) = view else { continue };
            shown = self
                .guest
                .prefix_of(&view, shown)
                .unwrap_or_else(|| panic!("point {} is no prefix after {shown}", point.cycle));
        }
        points.len()
    }

    /// A point of this very moment, checked against what the guest's disks hold.
    pub(crate) async fn checked_cut(&mut self, source: usize) -> Cycle {
        let cycle = self.operator(source).cut(&group(), None).await.unwrap();
        let view = self
            .point(1 - source, cycle)
            .await
            .expect("the point is kept");
        assert!(
            self.guest.is_now(&view),
            "point {cycle} is not the disks of now"
        );
        cycle
    }

    /// Waits until `source` serves and replicates to the other site.
    pub(crate) async fn settled(&self, source: usize) {
        self.until(
            "one source that replicates, one replica",
            async |pair: &Self| {
                let (Some(here), Some(there)) =
                    (pair.status(source).await, pair.status(1 - source).await)
                else {
                    return false;
                };
                here.open
                    && here.allowed_operations.contains(&"planned failover")
                    && there.replica.is_some_and(|r| r.points > 0)
            },
        )
        .await;
    }

    /// Hands the guest over to the other site and waits until it is served there.
    pub(crate) async fn fail_over(&mut self, from: usize) {
        let operator = self.operator(from);
        let op = operator.planned_failover(&group(), None, true, true).await;
        op.unwrap_or_else(|e| panic!("site {from} refuses a planned failover: {e}"));
        self.settled(1 - from).await;
        self.shut_guest_down();
        assert!(self.guest_disks().await.is_some());
    }
}
