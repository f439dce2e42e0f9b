//! The unix socket of an export: its file, its rights, and who comes in.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use super::BindError;
use super::handshake::Start;
use super::listener::Listener;

const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;
/// Pause after an error of `accept`, which is most often a lack of file descriptors.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket's name in the file system; gone when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a successor's socket of the same name is left alone.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "remove socket");
        }
    }
}

/// Makes the socket, replacing a stale one.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |action| {
        move |source| BindError::Socket {
            action,
            path: path.to_path_buf(),
            source,
        }
    };
    if let Some(directory) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        make_directory(directory).map_err(failed("make the directory of"))?;
    }
    remove_stale(path)?;
    let listener = StdListener::bind(path).map_err(failed("listen on"))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
    let file = SocketFile {
        path: path.to_path_buf(),
        id: (metadata.dev(), metadata.ino()),
    };
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("set mode of"))?;
    listener.set_nonblocking(true).map_err(failed("prepare"))?;
    let listener = UnixListener::from_std(listener).map_err(failed("register"))?;
    Ok((listener, file))
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_path_buf()));
    }
    match StdStream::connect(path) {
        // Nobody listens: its owner died without removing it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(BindError::InUse(path.to_path_buf())),
    }
    fs::remove_file(path).map_err(|source| BindError::Socket {
        action: "remove the stale socket",
        path: path.to_path_buf(),
        source,
    })
}

/// Hands connections to `listener` until it closes.
pub(super) async fn accept(socket: UnixListener, listener: Arc<Listener>) {
    loop {
        let accepted = tokio::select! {
            () = listener.closed() => return,
            accepted = socket.accept() => accepted,
        };
        let admitted = accepted.and_then(|(stream, _)| {
            let peer = stream.peer_cred()?;
            tracing::debug!(uid = peer.uid(), pid = peer.pid(), "NBD client connects");
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            listener.admit(stream, Start::Greeting)
        });
        if let Err(error) = admitted {
            tracing::warn!(%error, "accept an NBD client");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}
