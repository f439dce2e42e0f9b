//! The two sides a group can have at a site, open: disks that are served and tracked, or a replica.
//!
//! Owns: opening and closing images, the NBD servers of a source, the merge task of a replica.
//! Does not do: decide which side it is; [`task`](super::task) is told that by the role record.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sitepair_disk::Image;
use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::parent::Parents;
use sitepair_model::cause::chain;
use sitepair_model::group::{GroupState, Role};
use sitepair_model::ids::{Cycle, DiskName, GenId, GroupName};
use sitepair_model::peer::Committed;
use sitepair_model::point::Consistency;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::core::Core;
use super::replicator::Replicator;
use crate::catalog::{DiskRow, GroupRow, PointRow};
use crate::nbd::{BindError, Disconnect, Export, ExportHandle};
use crate::replica::{CommitRole, ReplicaGroup};
use crate::source::{Fresh, Limits, SourceDisk, SourceGroup, SourceOptions};

/// What of a group is open here.
pub(super) enum Side {
    /// Nothing; why, for the operator.
    Shut(String),
    /// The disks are here, tracked.
    Source(SourceSide),
    /// A replica is kept here.
    Replica(ReplicaSide),
}

/// A source's disks.
pub(super) struct SourceSide {
    pub(super) group: Arc<SourceGroup>,
    /// The generation that its change maps are bound to.
    pub(super) generation: GenId,
    images: Vec<Arc<dyn Image>>,
    /// One for each disk while guests are served.
    pub(super) servers: Vec<ServedDisk>,
    pub(super) replicator: Option<(u64, Replicator)>,
}

/// The ways to one disk that guests have.
pub(super) struct ServedDisk {
    unix: ExportHandle,
    /// Where the agent has a port for it.
    tls: Option<ExportHandle>,
}

impl ServedDisk {
    /// Serves a disk at a socket, and as `remote` at the agent's port.
    pub(super) fn open(
        context: &Context,
        socket: &Path,
        remote: String,
        export: Export,
    ) -> Result<Self, BindError> {
        let remote = Export {
            name: remote,
            image: Arc::clone(&export.image),
        };
        Ok(Self {
            unix: context.nbd.bind_unix(socket, export)?,
            tls: context
                .nbd_tls()
                .map(|tls| tls.port.add(remote))
                .transpose()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &ExportHandle> {
        std::iter::once(&self.unix).chain(&self.tls)
    }

    /// Guests that are attached.
    pub(super) fn connections(&self) -> usize {
        self.all().map(ExportHandle::connections).sum()
    }

    /// Guests that are attached and may write.
    fn writers(&self) -> usize {
        self.all().map(ExportHandle::writers).sum()
    }

    pub(super) fn close(self, how: Disconnect) {
        std::iter::once(self.unix)
            .chain(self.tls)
            .for_each(|handle| handle.close(how));
    }
}

/// A replica and its merge task.
pub(super) struct ReplicaSide {
    pub(super) group: ReplicaGroup,
    stop: CancellationToken,
    merges: tokio::task::JoinHandle<()>,
}

/// Path of a disk's NBD socket.
pub(super) fn socket_path(run_dir: &Path, group: &GroupName, disk: &impl Display) -> PathBuf {
    run_dir.join(group.as_str()).join(format!("{disk}.sock"))
}

/// Path of the NBD socket of a disk at a recovery point.
pub(super) fn point_socket_path(
    run_dir: &Path,
    group: &GroupName,
    disk: &DiskName,
    cycle: Cycle,
) -> PathBuf {
    run_dir
        .join(group.as_str())
        .join(format!("{disk}@{cycle}.sock"))
}

/// How a hypervisor names an export.
pub(super) fn nbd_uri(disk: &DiskName, socket: &Path) -> String {
    format!("nbd+unix:///{disk}?socket={}", socket.display())
}

/// Path of the change map beside an image.
pub(super) fn map_path(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".map");
    PathBuf::from(path)
}

impl SourceSide {
    /// Opens images and change maps. Blocks.
    pub(super) fn open(
        context: &Context,
        row: &GroupRow,
        state: &GroupState,
        fresh: Fresh,
    ) -> Result<Self, String> {
        let images = row
            .disks
            .iter()
            .map(|disk| open_disk(context, disk))
            .collect::<Result<Vec<_>, _>>()?;
        Self::with_images(context, row, state, images, fresh)
    }

    /// Tracks images that are open already. Blocks.
    pub(super) fn with_images(
        context: &Context,
        row: &GroupRow,
        state: &GroupState,
        images: Vec<Arc<dyn Image>>,
        fresh: Fresh,
    ) -> Result<Self, String> {
        let disks = row
            .disks
            .iter()
            .zip(&images)
            .map(|(disk, image)| SourceDisk {
                disk: disk.disk,
                name: disk.name.clone(),
                image: Arc::clone(image),
                image_path: disk.path.clone(),
                fresh,
            })
            .collect();
        let settings = &context.replication;
        let options = SourceOptions {
            group: row.group,
            generation: state.record.generation().id,
            acknowledged: state.record.cycle(),
            limits: Limits {
                preserve_memory_bytes: settings.preserve_memory_bytes,
                preserve_spill_bytes: settings.spill_max_bytes,
                hot_zones_max: u64::from(settings.hot_zones),
                ..Limits::default()
            },
            env: Arc::clone(&context.env),
            storage: Arc::clone(&context.storage),
        };
        let group = SourceGroup::open(options, disks).map_err(|e| chain(&e))?;
        Ok(Self {
            group,
            generation: state.record.generation().id,
            images,
            servers: Vec::new(),
            replicator: None,
        })
    }

    /// Serves the disks to guests. After an error some may be served: [`disconnect`](Self::disconnect) them.
    pub(super) fn serve(&mut self, context: &Context, row: &GroupRow) -> Result<(), String> {
        self.group.admit();
        for disk in &row.disks {
            let image = self
                .group
                .tracked(disk.disk)
                .ok_or("a disk of the group is not open")?;
            let export = Export {
                name: disk.name.to_string(),
                image,
            };
            let socket = socket_path(&context.run_dir, &row.name, &disk.name);
            let remote = format!("{}/{}", row.name, disk.name);
            match ServedDisk::open(context, &socket, remote, export) {
                Ok(server) => self.servers.push(server),
                // Those that are bound are the caller's to end.
                Err(e) => return Err(chain(&e)),
            }
        }
        Ok(())
    }

    /// Ends all NBD connections; requests under way are answered first if `how` is graceful.
    pub(super) async fn disconnect(&mut self, how: Disconnect) {
        let servers = std::mem::take(&mut self.servers);
        // A panic in there is a bug that was logged; the sockets are gone all the same.
        let _ = tokio::task::spawn_blocking(move || {
            servers.into_iter().for_each(|server| server.close(how));
        })
        .await;
    }

    /// Guests that are attached and may write.
    pub(super) fn writers(&self) -> usize {
        self.servers.iter().map(ServedDisk::writers).sum()
    }

    /// Stops sending, if it does; gives the last cycle that was acknowledged meanwhile.
    pub(super) async fn stop_replicator(&mut self) -> Option<(GenId, Committed)> {
        let (_, replicator) = self.replicator.take()?;
        replicator.stop().await
    }

    /// A clean stop: guests let go, change maps saved, images closed.
    pub(super) async fn close(mut self) -> Result<(), String> {
        self.disconnect(Disconnect::Graceful).await;
        self.stop_replicator().await;
        let saved = self.group.close().await.map_err(|e| chain(&e));
        let images = std::mem::take(&mut self.images);
        drop(self);
        let closed = tokio::task::spawn_blocking(move || {
            images
                .into_iter()
                .try_for_each(|image| image.close().map_err(|e| chain(&e)))
        })
        .await
        .unwrap_or_else(|e| Err(e.to_string()));
        saved.and(closed)
    }
}

impl ReplicaSide {
    /// Runs a replica's merges.
    pub(super) fn start(group: ReplicaGroup) -> Self {
        let stop = CancellationToken::new();
        let merges = tokio::spawn({
            let (group, stop) = (group.clone(), stop.clone());
            async move { group.run_merges(stop).await }
        });
        Self {
            group,
            stop,
            merges,
        }
    }

    /// Opens the replica that the role record speaks of. Blocks.
    ///
    /// A site that handed over is a replica from the moment its record says so; what that needs
    /// (no change maps, the hand-over cut as the only point) is done here if a crash kept it from being done.
    pub(super) fn open(
        context: &Context,
        row: &GroupRow,
        state: &GroupState,
        role: Arc<dyn CommitRole>,
    ) -> Result<ReplicaGroup, String> {
        let points = context.catalog.points(row.group).map_err(|e| chain(&e))?;
        let newest = points.last().map_or(Cycle::NONE, |p| p.cycle);
        let generation = state.record.generation().id;
        let opened = match state.record.last {
            Some(last) if last.cycle > newest => {
                forget_maps(context, row)?;
                let base = hand_over_point(context, state, last);
                ReplicaGroup::adopt(context.replica_site(), row, &base, generation, role)
            }
            _ => ReplicaGroup::open(context.replica_site(), row, generation, role),
        };
        opened.map_err(|e| chain(&e))
    }

    /// A clean stop: merges end, images are closed.
    pub(super) async fn close(self) -> Result<(), String> {
        let replica = self.stop().await;
        let closed = tokio::task::spawn_blocking(move || replica.close()).await;
        closed.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
    }

    /// Ends the merge task.
    pub(super) async fn stop(self) -> ReplicaGroup {
        self.stop.cancel();
        // A panic in it was logged.
        let _ = self.merges.await;
        self.group
    }
}

fn hand_over_point(context: &Context, state: &GroupState, last: Committed) -> PointRow {
    PointRow {
        cycle: last.cycle,
        generation: state.record.generation().id,
        cut_at: context.env.now(),
        consistency: Consistency::Crash,
        label: Some("handed over".to_owned()),
        pinned: false,
        digest: last.digest,
        logs: Vec::new(),
    }
}

/// Removes the change maps: they speak of a time when this site was the source.
pub(super) fn forget_maps(context: &Context, row: &GroupRow) -> Result<(), String> {
    for disk in &row.disks {
        let path = map_path(&disk.path);
        match context.storage.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("remove {}: {e}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn open_disk(context: &Context, disk: &DiskRow) -> Result<Arc<dyn Image>, String> {
    let options = OpenOptions {
        format: Some(super::disk_format(disk.format)),
        read_only: false,
        parents: Parents::Refused,
    };
    let image = open_image(&context.storage, &disk.path, options)
        .map_err(|e| format!("open {}: {}", disk.path.display(), chain(&e)))?;
    let size = image.geometry().size_bytes;
    if size != disk.size_bytes {
        return Err(format!(
            "{} has {size} bytes, but was protected with {}; put the right image back",
            disk.path.display(),
            disk.size_bytes
        ));
    }
    Ok(image)
}

/// Whether the record wants the disks themselves open here, rather than a replica.
pub(super) fn wants_source(state: &GroupState) -> bool {
    match state.record.role {
        Role::Source | Role::Quiescing { .. } | Role::HandedOver { .. } | Role::Fenced { .. } => {
            state.record.promoting.is_none()
        }
        Role::Trial(_) | Role::Seeding | Role::Replica => false,
    }
}

/// Opens whichever side the record wants.
pub(super) async fn open_side(context: &Arc<Context>, core: &Arc<Core>) -> Side {
    let (context, core) = (Arc::clone(context), Arc::clone(core));
    let opened = tokio::task::spawn_blocking(move || {
        let (state, row) = (core.state(), core.row());
        if wants_source(&state) {
            SourceSide::open(&context, &row, &state, Fresh::Resume).map(Opened::Source)
        } else {
            ReplicaSide::open(&context, &row, &state, core).map(Opened::Replica)
        }
    })
    .await;
    match opened {
        Ok(Ok(Opened::Source(side))) => Side::Source(side),
        Ok(Ok(Opened::Replica(group))) => Side::Replica(ReplicaSide::start(group)),
        Ok(Err(why)) => Side::Shut(why),
        Err(e) => Side::Shut(e.to_string()),
    }
}

enum Opened {
    Source(SourceSide),
    Replica(ReplicaGroup),
}
