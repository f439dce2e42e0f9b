//! Starting and stopping an agent.
//!
//! ```text
//! certificates -> folders and their lock -> catalogue -> link -> port for guests -> groups -> port -> ready
//! stop: port closed -> groups (guests let go, change maps saved) -> link
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sitepair_certs::{Expected, TlsError, TlsPaths, TlsStore};
use sitepair_disk::storage::host::HostStorage;
use sitepair_disk::storage::{BlockFile, LockKind, OpenMode, Storage};
use sitepair_model::cause::chain;
use sitepair_model::group::{GroupState, Restart, RoleRecord};
use sitepair_model::ids::{Site, UnixMillis};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::alive::{AliveFile, WRITE_EVERY};
use super::config::Config;
use super::core::Core;
use super::side::{Side, open_side};
use super::status::CertificateStatus;
use super::task::Msg;
use super::{Context, ContextParts, Operator, PeerFace};
use crate::catalog::{Catalog, CatalogError, GroupRow, SqliteCatalog};
use crate::env::{Env, HostEnv};
use crate::nbd::BindError;
use crate::replica::{ReplicaError, finish_discards};
use crate::wire::control::ControlService;
use crate::wire::{LinkConfig, LinkTiming, RemotePeer, ServeError, Services, serve};

/// An agent that could not start, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A folder.
    #[error("prepare {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent uses it.
    #[error("{path} is in use by another agent; stop that one first")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// What an earlier life left to be removed.
    #[error("clean up after the last run")]
    CleanUp(#[from] ReplicaError),
    /// A role record that cannot be trusted.
    #[error(
        "role record of group {group}: {why}; restore the catalogue from a backup, or remove the \
         group at the other site"
    )]
    Record {
        /// The group.
        group: String,
        /// What is wrong.
        why: String,
    },
    /// The port.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The port for guests of other hosts.
    #[error("serve disks over TLS")]
    NbdTls(#[from] BindError),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals.
    #[error("wait for signals")]
    Signal(#[source] io::Error),
}

/// How often a certificate that is out of date is spoken of in the log.
const OUT_OF_DATE_EVERY: Duration = Duration::from_secs(3600);

/// Runs the agent of `site` until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// [`RunError`]; everything is as a crash would leave it, which the next start knows to deal with.
pub async fn run(site: Site, config: Config) -> Result<(), RunError> {
    let env: Arc<dyn Env> = Arc::new(HostEnv);
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new());
    let store = Arc::new(load_tls(site, &config)?);
    let _lock = prepare_folders(&*storage, &config)?;
    let listener = listen(&config.listen).await?;
    let catalog: Arc<dyn Catalog> = Arc::new(SqliteCatalog::open(
        &config.state_dir.join("catalog.sqlite"),
    )?);
    let alive = AliveFile::new(&config.state_dir);
    let dead_for_ms = alive.dead_for_ms(&*env);

    let link = LinkConfig {
        address: config.peer.clone(),
        peer: site.other(),
        timing: LinkTiming::default(),
    };
    let remote = Arc::new(RemotePeer::start(
        link,
        Arc::clone(&store),
        Arc::clone(&env),
    ));
    let context = Context::new(ContextParts {
        site,
        pair: config.pair.to_string(),
        env: Arc::clone(&env),
        storage,
        catalog,
        link: remote.link(),
        peer: remote,
        replication: config.replication.clone(),
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        replica_dir: config.replica_dir.clone(),
    });
    if let Some(address) = &config.nbd.listen {
        let socket = listen(address).await?;
        context.serve_tls(address, socket, &store)?;
    }
    context.start_groups(dead_for_ms).await?;

    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(
        listener,
        services(site, &store, &context, &config),
        stop.clone(),
    ));
    let beat = tokio::spawn(keep_alive(alive, env, stop.clone()));
    let dates = tokio::spawn(watch_dates(Arc::clone(&store), stop.clone()));
    // Not running under systemd is fine.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(%site, listen = config.listen, peer = config.peer, "agent is ready");

    let ended = wait_for_end(server, &stop).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    context.stop_groups().await;
    context.close_tls().await;
    // A panic in them was logged.
    let _ = beat.await;
    let _ = dates.await;
    tracing::info!("agent stopped");
    ended
}

fn load_tls(site: Site, config: &Config) -> Result<TlsStore, TlsError> {
    let paths = TlsPaths {
        ca: config.tls.ca.clone(),
        certificate: config.tls.certificate.clone(),
        key: config.tls.key.clone(),
        crl: config.tls.crl.clone(),
    };
    TlsStore::load(paths, config.pair.clone(), Expected::Agent(site))
}

/// Makes the folders and takes the lock that keeps a second agent away from them.
fn prepare_folders(storage: &dyn Storage, config: &Config) -> Result<Arc<dyn BlockFile>, RunError> {
    for path in [&config.state_dir, &config.replica_dir, &config.run_dir] {
        storage
            .create_dir_all(path)
            .map_err(|source| RunError::Folder {
                path: path.clone(),
                source,
            })?;
    }
    let path = config.state_dir.join("lock");
    let failed = |source| RunError::Folder {
        path: path.clone(),
        source,
    };
    if !storage.exists(&path).map_err(failed)? {
        // Another agent may win this race; the lock decides.
        let _ = storage.open(&path, OpenMode::CreateNew);
    }
    let file = storage.open(&path, OpenMode::ReadWrite).map_err(failed)?;
    match file.lock(LockKind::Exclusive) {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(RunError::InUse {
            path: config.state_dir.clone(),
        }),
        Err(e) => Err(failed(e)),
    }
}

async fn listen(address: &str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen {
            address: address.to_owned(),
            source,
        })
}

fn services(
    site: Site,
    store: &Arc<TlsStore>,
    context: &Arc<Context>,
    config: &Config,
) -> Services<crate::wire::control::ControlServer> {
    let shown = Arc::clone(store);
    let certificate = move || certificate_status(&shown);
    let operator = Operator::new(
        Arc::clone(context),
        config.peer.clone(),
        Arc::new(certificate),
    );
    Services {
        store: Arc::clone(store),
        site,
        peer: Arc::new(PeerFace::new(Arc::clone(context))),
        control: Some(ControlService::server(operator)),
    }
}

fn certificate_status(store: &TlsStore) -> CertificateStatus {
    let state = store.current();
    let identity = state.identity();
    CertificateStatus {
        identity: identity.uri(),
        not_after: unix_millis(identity.not_after),
        problem: state.out_of_date(SystemTime::now()).map(|e| chain(&e)),
    }
}

fn unix_millis(time: SystemTime) -> UnixMillis {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Waits for a signal, or for the server to fail; either way it has ended when this returns.
async fn wait_for_end(
    mut server: tokio::task::JoinHandle<Result<(), ServeError>>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
        ended = &mut server => {
            stop.cancel();
            return ended.unwrap_or(Ok(())).map_err(RunError::Serve);
        }
    }
    stop.cancel();
    // A panic in it was logged.
    server.await.unwrap_or(Ok(())).map_err(RunError::Serve)
}

/// Says at start and every hour that our certificate is out of date, for as long as it is.
async fn watch_dates(store: Arc<TlsStore>, stop: CancellationToken) {
    loop {
        if let Some(problem) = store.current().out_of_date(SystemTime::now()) {
            tracing::error!(
                "{problem}; guests are served, but the other agent and operators refuse this one until then"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(OUT_OF_DATE_EVERY) => {}
        }
    }
}

async fn keep_alive(file: AliveFile, env: Arc<dyn Env>, stop: CancellationToken) {
    loop {
        if let Err(e) = file.write(&*env) {
            tracing::warn!("the file that says that the agent lives cannot be written: {e}");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WRITE_EVERY) => {}
        }
    }
}

impl Context {
    /// Starts the tasks of all groups in the catalogue. `dead_for_ms` is how long no process of this agent lived,
    /// if that is known to have been within this boot.
    ///
    /// # Errors
    /// The catalogue's. An image that cannot be opened is not one: its group says so in its status.
    pub async fn start_groups(self: &Arc<Self>, dead_for_ms: Option<u64>) -> Result<(), RunError> {
        let context = Arc::clone(self);
        let rows = tokio::task::spawn_blocking(move || {
            finish_discards(&context.replica_site())?;
            Ok::<_, RunError>(context.catalog.groups()?)
        })
        .await
        .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        let grace = self.replication.same_boot_grace.as_millis();
        let restart = Restart {
            nonce: self.nonce,
            boot: self.env.boot_id(),
            dead_for_ms,
            grace_ms: u64::try_from(grace).unwrap_or(u64::MAX),
        };
        for row in rows {
            self.start_group(row, &restart).await?;
        }
        Ok(())
    }

    async fn start_group(
        self: &Arc<Self>,
        row: GroupRow,
        restart: &Restart,
    ) -> Result<(), RunError> {
        let record = self.read_record(&row)?;
        let begun = GroupState::restarted(record.clone(), restart);
        if begun.next.record != record {
            self.catalog
                .put_role(row.group, &begun.next.record.encode())?;
        }
        let core = Core::new(Arc::clone(&self.catalog), row, begun.next);
        let side = open_side(self, &core).await;
        if let Side::Shut(why) = &side {
            tracing::error!(group = %core.name, "not open: {why}");
        }
        self.groups.start(self, core, side, begun.after);
        Ok(())
    }

    fn read_record(&self, row: &GroupRow) -> Result<RoleRecord, RunError> {
        let wrong = |why: String| RunError::Record {
            group: row.name.to_string(),
            why,
        };
        let bytes = self
            .catalog
            .role(row.group)?
            .ok_or_else(|| wrong("it is missing".to_owned()))?;
        RoleRecord::decode(&bytes).map_err(|e| wrong(chain(&e)))
    }

    /// Stops all groups cleanly and waits for everything that they started.
    pub async fn stop_groups(&self) {
        let mut stopping = Vec::new();
        for (_, handle) in self.groups.all() {
            let (done, stopped) = oneshot::channel();
            // One that has ended by itself needs no telling.
            if handle.inbox.send(Msg::Stop(done)).await.is_ok() {
                stopping.push(stopped);
            }
        }
        for stopped in stopping {
            let _ = stopped.await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
