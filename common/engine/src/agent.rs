//! The agent: one process at one site, with a task for each of its groups.
//!
//! Owns: the catalogue, the link to the other agent, the NBD and gRPC servers, the groups' tasks, and
//! the order in which all of that starts and stops. Receives a checked [`config::Config`] and the site's
//! profile; runs until it is told to stop.
//!
//! Does not do: decide about roles (the model does), move data ([`source`](crate::source) and
//! [`replica`](crate::replica) do).

mod alive;
mod command;
pub mod config;
mod core;
mod export;
mod groups;
mod job;
pub mod log;
mod nbd_tls;
mod note;
mod operator;
mod peer;
mod replicator;
mod run;
mod side;
mod start;
pub mod status;
mod task;
mod test_failover;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use sitepair_disk::Image;
use sitepair_disk::open::Format;
use sitepair_disk::storage::Storage;
use sitepair_model::ids::{Cycle, DiskName, Generation, GroupName, Nonce, Site, UnixMillis};
use sitepair_model::peer::{DiskOffer, GroupOffer, ImageFormat};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::catalog::{Catalog, GroupRow};
use crate::endpoint::PeerEndpoint;
use crate::env::Env;
use crate::nbd::NbdServer;
use crate::replica::ReplicaSite;
use crate::wire::LinkState;

use nbd_tls::NbdTls;

pub use command::{CommandError, Done, Unprotect};
pub use note::Note;
pub use operator::{Asker, Operator, ProtectDisk, ProtectSpec, RetentionChange};
pub use peer::PeerFace;
pub use run::{RunError, run};
pub use start::start;
pub use test_failover::TestSpec;

/// What all groups of an agent share.
pub struct Context {
    /// Where the agent runs.
    pub site: Site,
    /// The pair's name.
    pub pair: String,
    /// Clocks and random numbers.
    pub env: Arc<dyn Env>,
    /// Files.
    pub storage: Arc<dyn Storage>,
    /// What must be remembered.
    pub catalog: Arc<dyn Catalog>,
    /// The other agent.
    pub peer: Arc<dyn PeerEndpoint>,
    /// Whether it can be reached.
    pub link: watch::Receiver<LinkState>,
    /// Defaults for groups.
    pub replication: config::ReplicationConfig,
    /// Catalogue and journals.
    pub state_dir: PathBuf,
    /// NBD sockets.
    pub run_dir: PathBuf,
    /// Replica images.
    pub replica_dir: PathBuf,
    /// This process life.
    pub nonce: Nonce,
    /// When it began.
    pub started_at: UnixMillis,
    nbd: NbdServer,
    nbd_tls: OnceLock<NbdTls>,
    groups: groups::Groups,
    jobs: job::Jobs,
    /// Work that groups started; joined at the end.
    tasks: TaskTracker,
}

/// What a [`Context`] is made of.
pub struct ContextParts {
    /// Where the agent runs.
    pub site: Site,
    /// The pair's name.
    pub pair: String,
    /// Clocks and random numbers.
    pub env: Arc<dyn Env>,
    /// Files.
    pub storage: Arc<dyn Storage>,
    /// What must be remembered.
    pub catalog: Arc<dyn Catalog>,
    /// The other agent.
    pub peer: Arc<dyn PeerEndpoint>,
    /// Whether it can be reached.
    pub link: watch::Receiver<LinkState>,
    /// Defaults for groups.
    pub replication: config::ReplicationConfig,
    /// Catalogue and journals.
    pub state_dir: PathBuf,
    /// NBD sockets.
    pub run_dir: PathBuf,
    /// Replica images.
    pub replica_dir: PathBuf,
}

impl Context {
    /// An agent's context, without groups yet.
    #[must_use]
    pub fn new(parts: ContextParts) -> Arc<Self> {
        let nonce = Nonce::from_bytes(parts.env.random_id());
        Arc::new(Self {
            site: parts.site,
            pair: parts.pair,
            storage: parts.storage,
            catalog: parts.catalog,
            peer: parts.peer,
            link: parts.link,
            replication: parts.replication,
            state_dir: parts.state_dir,
            run_dir: parts.run_dir,
            replica_dir: parts.replica_dir,
            nonce,
            started_at: parts.env.now(),
            nbd: NbdServer::new(crate::nbd::NbdLimits::default()),
            nbd_tls: OnceLock::new(),
            groups: groups::Groups::default(),
            jobs: job::Jobs::new(Arc::clone(&parts.env)),
            tasks: TaskTracker::new(),
            env: parts.env,
        })
    }

    /// A disk as its guest has it, for a guest in this process: every check that the NBD server's requests meet is
    /// met by these. `None` while this site does not serve the group.
    pub async fn guest_image(&self, group: &GroupName, disk: &DiskName) -> Option<Arc<dyn Image>> {
        self.groups.image(group, disk, None).await
    }

    /// A disk at a recovery point that this site keeps, read-only. The point stays while the image is held.
    pub async fn point_image(
        &self,
        group: &GroupName,
        disk: &DiskName,
        cycle: Cycle,
    ) -> Option<Arc<dyn Image>> {
        self.groups.image(group, disk, Some(cycle)).await
    }

    fn replica_site(&self) -> ReplicaSite {
        ReplicaSite {
            storage: Arc::clone(&self.storage),
            catalog: Arc::clone(&self.catalog),
            env: Arc::clone(&self.env),
            state_dir: self.state_dir.clone(),
            replica_dir: self.replica_dir.clone(),
        }
    }
}

/// Whether a link is up.
trait LinkView {
    /// Up, and the other agent has answered.
    fn is_up(&self) -> bool;
}

impl LinkView for LinkState {
    fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// The format to open an image as.
fn disk_format(format: ImageFormat) -> Format {
    match format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::VhdxDynamic | ImageFormat::VhdxFixed => Format::Vhdx,
        ImageFormat::VhdDynamic | ImageFormat::VhdFixed => Format::Vhd,
        ImageFormat::Qcow2 => Format::Qcow2,
    }
}

/// What the peer is offered for a group. `paths` are the replica paths that the operator named, in the order of
/// the row's disks; missing ones leave the choice to the peer.
fn offer_of(
    row: &GroupRow,
    generation: Generation,
    use_existing: bool,
    paths: &[Option<String>],
) -> GroupOffer {
    let disks = row.disks.iter().enumerate().map(|(i, d)| DiskOffer {
        disk: d.disk,
        name: d.name.clone(),
        size_bytes: d.size_bytes,
        logical_sector_bytes: d.logical_sector_bytes,
        // What follows a guest at speed, and Hyper-V opens: a new replica of a qcow2 is none.
        format: match d.format {
            ImageFormat::Qcow2 => ImageFormat::VhdxDynamic,
            format => format,
        },
        format_block_bytes: match d.format {
            ImageFormat::Qcow2 => 0,
            _ => d.format_block_bytes,
        },
        path: paths.get(i).cloned().flatten(),
    });
    GroupOffer {
        group: row.group,
        name: row.name.clone(),
        generation,
        disks: disks.collect(),
        retention: row.retention.clone(),
        use_existing,
        interval_ms: row.interval_ms,
    }
}
