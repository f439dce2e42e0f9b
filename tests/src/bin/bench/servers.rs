//! The servers that guest writes are measured against, each with an image of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sitepair_disk::Image;
use sitepair_disk::open::{OpenOptions, open_image};
use sitepair_disk::storage::Storage;
use sitepair_disk::storage::host::HostStorage;
use sitepair_engine::env::HostEnv;
use sitepair_engine::nbd::{Disconnect, Export, ExportHandle, NbdLimits, NbdServer};
use sitepair_engine::source::{
    CutInfo, Fresh, Limits, ShipError, SourceDisk, SourceGroup, SourceOptions,
};
use sitepair_model::ids::{Cycle, DiskId, GenId, GroupId, UnixMillis};
use sitepair_model::point::Consistency;
use sitepair_tests::tools::QemuNbd;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cpu;
use crate::sink::Sink;

const DISK: DiskId = DiskId::from_bytes([1; 16]);
/// Time between cuts of the server that replicates.
const INTERVAL: Duration = Duration::from_secs(1);

/// What stands between the guest and the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// QEMU's server.
    Qemu,
    /// Ours, with the image alone.
    Untracked,
    /// Ours, with tracking; nothing is sent.
    Tracked,
    /// Ours, with tracking, while cycles are cut and sent.
    Replicating,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [
        Self::Qemu,
        Self::Untracked,
        Self::Tracked,
        Self::Replicating,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-nbd",
            Self::Untracked => "untracked",
            Self::Tracked => "tracked",
            Self::Replicating => "replicating",
        }
    }
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) uri: String,
    image_path: PathBuf,
    running: Running,
}

enum Running {
    Qemu(QemuNbd),
    Ours(Ours),
}

struct Ours {
    export: ExportHandle,
    image: Arc<dyn Image>,
    group: Option<Arc<SourceGroup>>,
    replication: Option<(CancellationToken, JoinHandle<Result<()>>)>,
}

impl Server {
    /// Serves the image, which nobody else has open, on a socket in the folder `sockets`.
    pub(crate) fn start(
        kind: Kind,
        image: &Path,
        format: &str,
        sockets: &Path,
        runtime: &Runtime,
    ) -> Result<Self> {
        let (uri, running) = if kind == Kind::Qemu {
            let server = QemuNbd::start(sockets, image, format)?;
            (server.uri.clone(), Running::Qemu(server))
        } else {
            let socket = sockets.join(format!("{}.sock", kind.name()));
            let uri = format!("nbd+unix:///disk?socket={}", socket.display());
            let ours = Ours::start(kind, image, &socket, runtime)
                .with_context(|| format!("serve {}", image.display()))?;
            (uri, Running::Ours(ours))
        };
        Ok(Self {
            uri,
            image_path: image.to_owned(),
            running,
        })
    }

    /// Processor time that the server has used, in seconds. Ours share this process, so only one of
    /// them may work at a time.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        match &self.running {
            Running::Qemu(server) => cpu::process(server.process.id()),
            Running::Ours(_) => Ok(cpu::own()),
        }
    }

    /// Writes back what the run before left in memory.
    pub(crate) fn settle(&self) -> Result<()> {
        let name = || format!("sync {}", self.image_path.display());
        let file = File::open(&self.image_path).with_context(name)?;
        file.sync_data().with_context(name)
    }

    pub(crate) fn stop(self, runtime: &Runtime) -> Result<()> {
        match self.running {
            Running::Qemu(mut server) => server.process.sigterm().map(drop),
            Running::Ours(ours) => runtime.block_on(ours.stop()),
        }
    }
}

impl Ours {
    fn start(kind: Kind, path: &Path, socket: &Path, runtime: &Runtime) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(HostStorage);
        let image = open_image(&storage, path, OpenOptions::default())?;
        let group = match kind {
            Kind::Qemu | Kind::Untracked => None,
            Kind::Tracked | Kind::Replicating => Some(track(&storage, &image, path)?),
        };
        let served = match &group {
            Some(group) => group.tracked(DISK).context("the group has no disk")?,
            None => Arc::clone(&image),
        };
        let export = Export {
            name: "disk".to_owned(),
            image: served,
        };
        let _inside = runtime.enter();
        let export = NbdServer::new(NbdLimits::default()).bind_unix(socket, export)?;
        let replication = match (&group, kind) {
            (Some(group), Kind::Replicating) => {
                let stop = CancellationToken::new();
                let task = tokio::spawn(replicate(Arc::clone(group), stop.clone()));
                Some((stop, task))
            }
            _ => None,
        };
        Ok(Self {
            export,
            image,
            group,
            replication,
        })
    }

    async fn stop(self) -> Result<()> {
        if let Some((stop, task)) = self.replication {
            stop.cancel();
            task.await.context("join the replicating task")??;
        }
        let (export, image) = (self.export, self.image);
        tokio::task::spawn_blocking(move || export.close(Disconnect::Graceful))
            .await
            .context("close the server")?;
        if let Some(group) = self.group {
            group.close().await?;
        }
        image.close().context("close the image")
    }
}

fn track(
    storage: &Arc<dyn Storage>,
    image: &Arc<dyn Image>,
    path: &Path,
) -> Result<Arc<SourceGroup>> {
    let options = SourceOptions {
        group: GroupId::from_bytes([2; 16]),
        generation: GenId::from_bytes([3; 16]),
        acknowledged: Cycle::NONE,
        limits: Limits::default(),
        env: Arc::new(HostEnv),
        storage: Arc::clone(storage),
    };
    let disk = SourceDisk {
        disk: DISK,
        name: "disk".parse().context("name a disk")?,
        image: Arc::clone(image),
        image_path: path.to_owned(),
        fresh: Fresh::InStep,
    };
    let group = SourceGroup::open(options, vec![disk])?;
    group.admit();
    Ok(group)
}

/// Cuts and sends what changed, again and again. Cycles that the guest overtook are given up, as
/// they would be.
async fn replicate(group: Arc<SourceGroup>, stop: CancellationToken) -> Result<()> {
    while stop
        .run_until_cancelled(tokio::time::sleep(INTERVAL))
        .await
        .is_some()
    {
        if group.progress().open_dirty_bytes == 0 {
            continue;
        }
        let info = CutInfo {
            at: UnixMillis(0),
            consistency: Consistency::Crash,
            label: None,
        };
        let sealed = group.cut(info).await?;
        match group.ship(&Sink, &sealed, &stop).await {
            Ok(_) | Err(ShipError::Stopped) => {}
            Err(ShipError::Abandoned) => {
                crate::complain("a cycle was given up: the guest overwrote too much of it");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
