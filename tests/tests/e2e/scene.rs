//! What scenarios share: a pair on a stage, and a virtual machine with disks and a guest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::ctl::{Ctl, GroupStatus};
use sitepair_tests::disks::{self, DiskFormat};
use sitepair_tests::guest::{Guest, Resting};
use sitepair_tests::nbd_client::{Client, Options};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{tools, wait};

pub(crate) const MIB: u64 = 1 << 20;

/// Longest time for anything that should take a moment; the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a guest waits for its agent to come back.
const RECONNECT: Duration = Duration::from_secs(60);

/// What guests think before each write: some hundred writes a second leave the processor to others.
const PAUSE: Duration = Duration::from_millis(1);

/// Plays a scenario with a pair; a failure is told with the agents' logs.
pub(crate) fn on_stage(options: PairOptions, play: impl FnOnce(&mut Pair) -> Result<()>) {
    let mut pair = Pair::start(options).unwrap();
    if let Err(error) = play(&mut pair) {
        panic!("{error:?}");
    }
}

/// A disk of a virtual machine: the guest writes at its start, content follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskPlan {
    pub(crate) name: &'static str,
    pub(crate) format: DiskFormat,
    pub(crate) size: u64,
    pub(crate) guest: u64,
    pub(crate) content: u64,
}

/// A small dynamic VHDX.
pub(crate) const SYSTEM: DiskPlan = DiskPlan {
    name: "system",
    format: DiskFormat::VhdxDynamic,
    size: 64 * MIB,
    guest: 4 * MIB,
    content: 8 * MIB,
};

/// A small raw disk.
pub(crate) const DATA: DiskPlan = DiskPlan {
    name: "data",
    format: DiskFormat::Raw,
    size: 32 * MIB,
    guest: 2 * MIB,
    content: 4 * MIB,
};

/// A virtual machine: its disks, born at the pair's first site.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) group: String,
    plans: Vec<DiskPlan>,
    folder: PathBuf,
    contents: Vec<blake3::Hash>,
    seed: u64,
}

impl Vm {
    /// Makes the disks; nothing is protected yet.
    pub(crate) fn create(pair: &Pair, group: &str, plans: &[DiskPlan]) -> Result<Self> {
        let folder = pair.folder().join(format!("disks-{group}"));
        std::fs::create_dir(&folder).context("make a folder for disks")?;
        let seed = u64::from_le_bytes(blake3::hash(group.as_bytes()).as_bytes()[..8].try_into()?);
        let mut contents = Vec::new();
        for plan in plans {
            let path = file_in(&folder, plan);
            disks::create(&path, plan.format, plan.size)?;
            contents.push(disks::fill(&path, plan.guest, plan.content, seed)?);
        }
        Ok(Self {
            group: group.to_owned(),
            plans: plans.to_vec(),
            folder,
            contents,
            seed,
        })
    }

    /// Names and files, as `protect` takes them.
    pub(crate) fn disks(&self) -> Vec<(&'static str, PathBuf)> {
        self.plans
            .iter()
            .map(|plan| (plan.name, file_in(&self.folder, plan)))
            .collect()
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.plans.iter().map(|plan| plan.name).collect()
    }

    /// Bytes of content, apart from what the guest writes.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.plans.iter().map(|plan| plan.content).sum()
    }

    /// Bytes that the guest may write to.
    pub(crate) fn guest_bytes(&self) -> u64 {
        self.plans.iter().map(|plan| plan.guest).sum()
    }

    /// Begins to protect it at the first site.
    pub(crate) fn protect(&self, pair: &Pair) -> Result<()> {
        let disks = self.disks();
        let disks: Vec<(&str, &Path)> = disks
            .iter()
            .map(|(name, path)| (*name, path.as_path()))
            .collect();
        pair.ctl()
            .protect(pair.first(), &self.group, &disks)
            .map(drop)
    }

    /// Protects it, and starts its guest.
    pub(crate) fn protect_and_boot(&self, pair: &Pair) -> Result<Guest> {
        self.protect(pair)?;
        self.new_guest().resume(&self.uris(pair, pair.first())?)
    }

    /// A guest that has not begun, and survives an agent's restart.
    pub(crate) fn new_guest(&self) -> Resting {
        self.new_guest_reconnecting(RECONNECT)
    }

    /// A guest that has not begun.
    pub(crate) fn new_guest_reconnecting(&self, limit: Duration) -> Resting {
        let sizes: Vec<u64> = self.plans.iter().map(|plan| plan.guest).collect();
        Resting::new(self.seed, &sizes, limit).pausing(PAUSE)
    }

    /// Waits until the disks are served at `site`, and gives their URIs.
    pub(crate) fn uris(&self, pair: &Pair, site: Site) -> Result<Vec<String>> {
        let ctl = pair.ctl();
        let open = |now: &GroupStatus| now.is_open() && self.uris_in(now).is_ok();
        let status = ctl.wait_group(site, &self.group, "open to guests", LIMIT, open)?;
        self.uris_in(&status)
    }

    fn uris_in(&self, status: &GroupStatus) -> Result<Vec<String>> {
        self.plans
            .iter()
            .map(|plan| status.nbd_uri(plan.name))
            .collect()
    }

    /// Shuts the guest down and waits until the agent has seen it go.
    pub(crate) fn shut_down(&self, pair: &Pair, site: Site, guest: Guest) -> Result<Resting> {
        let resting = guest.stop()?;
        pair.ctl().wait_detached(site, &self.group, LIMIT)?;
        Ok(resting)
    }

    /// Waits until `replica` has its first point of this direction, and the source says so too.
    pub(crate) fn wait_replicating(&self, pair: &Pair, replica: Site) -> Result<GroupStatus> {
        let cycle = pair.ctl().group(replica.other(), &self.group)?.cycle();
        pair.ctl()
            .wait_point_at_least(replica, &self.group, cycle + 1, LIMIT)
    }

    /// Checks, over NBD, that every acknowledged write and all of the content is there.
    pub(crate) fn check_all(&self, resting: &Resting, uris: &[String]) -> Result<()> {
        resting.verify_all(uris).map(drop)?;
        self.check_content(uris)
    }

    /// Checks the content, over NBD.
    pub(crate) fn check_content(&self, uris: &[String]) -> Result<()> {
        for ((plan, uri), &content) in self.plans.iter().zip(uris).zip(&self.contents) {
            let mut client = Client::connect(Options::from_uri(uri)?)?;
            let found = tools::hash_range(&mut client, plan.guest, plan.content)?;
            client.disconnect()?;
            ensure!(
                found == content,
                "the content of disk {} is another one",
                plan.name
            );
        }
        Ok(())
    }

    /// Makes a point of the resting guest's disks, and has QEMU and a hash compare it with `source`.
    pub(crate) fn check_point_against(&self, pair: &Pair, source: Site) -> Result<()> {
        let ctl = pair.ctl();
        let cycle = ctl.cut(&self.group)?;
        let points = ctl.export(&self.group, cycle, &self.names())?;
        let live = self.uris(pair, source)?;
        for (point, live) in points.iter().zip(&live) {
            tools::compare((point, "raw"), (live, "raw"))?;
            ensure!(
                tools::hash_export(point)? == tools::hash_export(live)?,
                "{point} and {live} have other bytes, which QEMU did not see"
            );
        }
        self.check_content(&points)?;
        ctl.unexport(&self.group, cycle)
    }

    /// Waits until the group is at rest after some accident: one site serves, the other one is its
    /// replica, and they agree. Never may both serve. Gives the site that serves.
    pub(crate) fn wait_settled(&self, pair: &Pair) -> Result<Site> {
        let mut last = String::new();
        let settled = wait::until("one site serves and the other follows", LIMIT, || {
            let [a, b] = [Site::Primary, Site::Secondary]
                .map(|site| (site, pair.ctl().group(site, &self.group)));
            last = format!("{a:?}\n{b:?}");
            let ((site_a, Ok(a)), (site_b, Ok(b))) = (a, b) else {
                return Ok(None);
            };
            if a.is_open() && b.is_open() {
                bail!("both sites serve the guest: {}\n{}", a.0, b.0);
            }
            let follows = |one: &GroupStatus, other: &GroupStatus| {
                one.is_open() && one.role() == "source" && other.role() == "replica"
            };
            Ok(if follows(&a, &b) {
                Some(site_a)
            } else if follows(&b, &a) {
                Some(site_b)
            } else {
                None
            })
        });
        settled.with_context(|| format!("last seen: {last}"))
    }
}

fn file_in(folder: &Path, plan: &DiskPlan) -> PathBuf {
    folder.join(format!("{}.{}", plan.name, plan.format.extension()))
}

/// Waits until a site says that the link is down, within the time in which it must be noticed.
pub(crate) fn wait_link_down(ctl: &Ctl, site: Site) -> Result<()> {
    const NOTICED_WITHIN: Duration = Duration::from_secs(30);
    wait::until(
        &format!("{site} notices that the link is down"),
        NOTICED_WITHIN,
        || {
            let status = ctl.status(site)?;
            let told = !status.is_connected() && !status.link_error().is_empty();
            Ok(told.then_some(()))
        },
    )
}
