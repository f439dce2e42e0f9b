//! Beginning to protect a group: its disks are opened for good, the other site takes part or refuses, and then
//! it is in the catalogue. Whatever fails on the way leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sitepair_disk::open::{Format, OpenOptions, open_image, probe};
use sitepair_disk::parent::Parents;
use sitepair_disk::qcow2::Qcow2Image;
use sitepair_disk::vhd::{self, VhdImage};
use sitepair_disk::vhdx::{Kind, VhdxImage};
use sitepair_disk::{DiskError, Image};
use sitepair_model::cause::chain;
use sitepair_model::group::GroupState;
use sitepair_model::ids::{DiskId, DiskName, GenId, GroupId, GroupName};
use sitepair_model::peer::ImageFormat;
use sitepair_model::retention::{Policy, Retention};

use super::Operator;
use crate::agent::command::CommandError;
use crate::agent::config::{check_interval, check_policy};
use crate::agent::core::Core;
use crate::agent::side::{Side, SourceSide, forget_maps, nbd_uri, socket_path};
use crate::agent::status::DiskStatus;
use crate::agent::{Context, LinkView, offer_of};
use crate::catalog::{DiskRow, GroupRow};
use crate::endpoint::PeerError;
use crate::source::Fresh;

/// A group to protect.
#[derive(Debug, Clone)]
pub struct ProtectSpec {
    /// Its name.
    pub group: GroupName,
    /// Its disks.
    pub disks: Vec<ProtectDisk>,
    /// Recovery points to keep; the agent's default if `None`.
    pub policy: Option<Policy>,
    /// Time between cuts; the agent's default if `None`.
    pub interval: Option<Duration>,
    /// Whether files at the replica's place may be written over.
    pub use_existing: bool,
}

/// One of its disks.
#[derive(Debug, Clone)]
pub struct ProtectDisk {
    /// Its name.
    pub name: DiskName,
    /// Its image on this host, absolute.
    pub path: PathBuf,
    /// Where the replica goes, if the operator says.
    pub replica_path: Option<String>,
    /// The image's format, if the operator says.
    pub format: Option<Format>,
}

/// Most disks of a group.
const DISKS_MAX: usize = 64;

impl Operator {
    /// Begins to protect a group whose disks are on this host.
    ///
    /// # Errors
    /// [`CommandError`]; then nothing that was made stays.
    pub async fn protect(
        &self,
        spec: ProtectSpec,
    ) -> Result<(GroupId, Vec<DiskStatus>), CommandError> {
        check(&spec)?;
        let this = self.clone();
        // A task of its own: an operator who goes away must not leave half a group behind.
        let protecting = self
            .context
            .tasks
            .spawn(async move { this.protect_checked(spec).await });
        protecting
            .await
            .unwrap_or_else(|e| Err(CommandError::Failed(e.to_string())))
    }

    async fn protect_checked(
        &self,
        spec: ProtectSpec,
    ) -> Result<(GroupId, Vec<DiskStatus>), CommandError> {
        let name = spec.group.clone();
        let _reserved = self.context.groups.reserve(&name).ok_or_else(|| {
            CommandError::Refused(format!(
                "group {name} is known at the {} site already; choose another name",
                self.context.site
            ))
        })?;
        if !self.context.link.borrow().is_up() {
            return Err(CommandError::Unreachable(
                "the other site must take part and is not reachable; see `sitepair status`"
                    .to_owned(),
            ));
        }
        let context = Arc::clone(&self.context);
        let prepared = tokio::task::spawn_blocking(move || prepare(&context, spec))
            .await
            .map_err(|e| CommandError::Failed(e.to_string()))??;
        self.begin(prepared).await
    }

    async fn begin(&self, prepared: Prepared) -> Result<(GroupId, Vec<DiskStatus>), CommandError> {
        let Prepared {
            row,
            images,
            paths,
            use_existing,
        } = prepared;
        let context = &self.context;
        let first = GenId::from_bytes(context.env.random_id());
        let boot = context.env.boot_id();
        let born = GroupState::born_source(row.group, first, context.nonce, boot);
        let offer = offer_of(&row, born.next.record.generation(), use_existing, &paths);
        // The other site first: it may refuse, and then nothing has happened here.
        match context.peer.offer(offer).await {
            Ok(()) => {}
            Err(PeerError::Refused { why }) => return Err(CommandError::Refused(why)),
            Err(PeerError::Link { why }) => {
                // It may have acted, and only its answer was lost.
                self.undo(&row).await;
                return Err(CommandError::Unreachable(why));
            }
            Err(PeerError::Failed { why }) => {
                return Err(CommandError::Failed(format!("the other site: {why}")));
            }
        }
        let opened = {
            let (context, row, born) = (Arc::clone(context), row.clone(), born.clone());
            tokio::task::spawn_blocking(move || {
                // The change maps are durable before the group is: a group without them would count as lost.
                let side = SourceSide::with_images(&context, &row, &born.next, images, Fresh::Seed)
                    .map_err(CommandError::Failed)?;
                let record = born.next.record.encode();
                let put = context.catalog.put_group(&row, &record);
                put.map(|()| side)
                    .map_err(|e| CommandError::Failed(chain(&e)))
            })
            .await
            .map_err(|e| CommandError::Failed(e.to_string()))?
        };
        let side = match opened {
            Ok(side) => side,
            Err(error) => {
                self.undo(&row).await;
                return Err(error);
            }
        };
        let core = Core::new(Arc::clone(&context.catalog), row.clone(), born.next);
        context
            .groups
            .start(context, core, Side::Source(side), born.after);
        tracing::info!(group = %row.name, "protected");
        let disks = row.disks.iter().map(|d| {
            let socket = socket_path(&context.run_dir, &row.name, &d.name);
            DiskStatus {
                name: d.name.clone(),
                path: d.path.display().to_string(),
                size_bytes: d.size_bytes,
                format: d.format,
                nbd_uri: Some(nbd_uri(&d.name, &socket)),
                nbd_tls_uri: context.nbd_tls().map(|tls| tls.uri(&row.name, &d.name)),
                clients: 0,
            }
        });
        Ok((row.group, disks.collect()))
    }

    /// Nothing half-done stays behind, here or at the other site.
    async fn undo(&self, row: &GroupRow) {
        if let Err(why) = forget_maps(&self.context, row) {
            tracing::warn!(group = %row.name, "{why}");
        }
        if let Err(e) = self.context.peer.withdraw(row.group, true).await {
            tracing::warn!(group = %row.name,
                "the other site keeps a replica that nobody fills; end its protection there: {e}");
        }
    }
}

fn check(spec: &ProtectSpec) -> Result<(), CommandError> {
    let invalid = |why: String| Err(CommandError::Invalid(why));
    if spec.disks.is_empty() || spec.disks.len() > DISKS_MAX {
        return invalid(format!("a group has 1 to {DISKS_MAX} disks"));
    }
    for (i, disk) in spec.disks.iter().enumerate() {
        if !disk.path.is_absolute() {
            return invalid(format!("path {} is not absolute", disk.path.display()));
        }
        for other in &spec.disks[..i] {
            if other.name == disk.name {
                return invalid(format!("two disks are named {}", disk.name));
            }
            if other.path == disk.path {
                return invalid(format!("{} is given twice", disk.path.display()));
            }
        }
    }
    if let Some(interval) = spec.interval
        && let Err(why) = check_interval(interval)
    {
        return invalid(format!("interval: {why}"));
    }
    match spec.policy.as_ref().map(check_policy) {
        Some(Err(why)) => invalid(format!("recovery points to keep: {why}")),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Disks that are open, and a group that could be.
struct Prepared {
    row: GroupRow,
    images: Vec<Arc<dyn Image>>,
    paths: Vec<Option<String>>,
    use_existing: bool,
}

fn prepare(context: &Context, spec: ProtectSpec) -> Result<Prepared, CommandError> {
    refuse_known(context, &spec.disks)?;
    let mut disks = Vec::with_capacity(spec.disks.len());
    for disk in spec.disks {
        let (image, format) = open_to_protect(context, &disk).map_err(|e| {
            let (path, why) = (disk.path.display().to_string(), chain(&e));
            let about = if why.contains(&path) {
                String::new()
            } else {
                format!("{path}: ")
            };
            CommandError::Refused(format!("disk {}: {about}{why}", disk.name))
        })?;
        let geometry = image.geometry();
        // What other programs wrote and did not sync must not be lost to a power cut after it was sent.
        image.flush().map_err(|e| CommandError::Failed(chain(&e)))?;
        let row = DiskRow {
            disk: DiskId::from_bytes(context.env.random_id()),
            name: disk.name,
            path: disk.path,
            size_bytes: geometry.size_bytes,
            format,
            logical_sector_bytes: geometry.logical_sector_bytes,
            format_block_bytes: geometry.block_bytes,
            owned: false,
        };
        disks.push((row, image, disk.replica_path));
    }
    disks.sort_by_key(|(row, ..)| row.disk);
    let default_ms = u64::try_from(context.replication.interval.as_millis()).unwrap_or(u64::MAX);
    let given = spec
        .interval
        .map(|i| u64::try_from(i.as_millis()).unwrap_or(u64::MAX));
    let default = context.replication.retention.clone();
    let mut row = GroupRow {
        group: GroupId::from_bytes(context.env.random_id()),
        name: spec.group,
        interval_ms: given.unwrap_or(default_ms),
        retention: Retention {
            policy: spec.policy.unwrap_or(default.policy),
            ..default
        },
        created_at: context.env.now(),
        settings: "{}".to_owned(),
        disks: Vec::with_capacity(disks.len()),
    };
    let (mut images, mut paths) = (Vec::new(), Vec::new());
    for (disk, image, path) in disks {
        row.disks.push(disk);
        images.push(image);
        paths.push(path);
    }
    Ok(Prepared {
        row,
        images,
        paths,
        use_existing: spec.use_existing,
    })
}

/// An image of another group is locked by ourselves; "in use by another process" would send the operator astray.
fn refuse_known(context: &Context, disks: &[ProtectDisk]) -> Result<(), CommandError> {
    let groups = context.catalog.groups();
    let groups = groups.map_err(|e| CommandError::Failed(chain(&e)))?;
    for disk in disks {
        let known = |group: &&GroupRow| group.disks.iter().any(|d| d.path == disk.path);
        if let Some(group) = groups.iter().find(known) {
            return Err(CommandError::Refused(format!(
                "{} belongs to group {} already; `sitepair status {}` tells how it is",
                disk.path.display(),
                group.name,
                group.name
            )));
        }
    }
    Ok(())
}

/// Opens a disk for good, and tells the format that it is opened as from now on.
fn open_to_protect(
    context: &Context,
    disk: &ProtectDisk,
) -> Result<(Arc<dyn Image>, ImageFormat), DiskError> {
    let format = match disk.format {
        Some(format) => format,
        None => probe(&*context.storage, &disk.path)?,
    };
    match format {
        Format::Raw => {
            let options = OpenOptions {
                format: disk.format,
                read_only: false,
                parents: Parents::Refused,
            };
            let image = open_image(&context.storage, &disk.path, options)?;
            Ok((image, ImageFormat::Raw))
        }
        Format::Vhd => {
            let refused = || DiskError::Unsupported {
                what: format!(
                    "protecting {}, a differencing disk (merge it into its parent first)",
                    disk.path.display()
                ),
            };
            let storage = Arc::clone(&context.storage);
            let image = VhdImage::open_with(storage, &disk.path, false, &mut |_| Err(refused()))?;
            let format = match image.kind() {
                vhd::Kind::Dynamic => ImageFormat::VhdDynamic,
                vhd::Kind::Fixed => ImageFormat::VhdFixed,
                vhd::Kind::Differencing => return Err(refused()),
            };
            Ok((Arc::new(image), format))
        }
        Format::Vhdx => {
            let image = VhdxImage::open(Arc::clone(&context.storage), &disk.path, false)?;
            let format = match image.kind() {
                Kind::Dynamic => ImageFormat::VhdxDynamic,
                Kind::Fixed => ImageFormat::VhdxFixed,
            };
            Ok((Arc::new(image), format))
        }
        Format::Qcow2 => {
            let image = Qcow2Image::open(&*context.storage, &disk.path, false)?;
            Ok((Arc::new(image), ImageFormat::Qcow2))
        }
    }
}
