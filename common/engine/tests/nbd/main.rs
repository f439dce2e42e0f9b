//! The NBD server against raw bytes, hostile clients, and the clients that administrators use.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod hostile;
mod image;
mod protocol;
mod tls;
mod tools;

use std::path::PathBuf;
use std::sync::Arc;

use sitepair_disk::Image;
use sitepair_engine::nbd::{Disconnect, Export, ExportHandle, NbdLimits, NbdServer};

/// A server with one socket in a directory of its own.
struct Served {
    runtime: tokio::runtime::Runtime,
    server: NbdServer,
    handle: Option<ExportHandle>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Served {
    fn new(image: Arc<dyn Image>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("group").join("sda.sock");
        let server = NbdServer::new(NbdLimits::default());
        let handle = {
            let _inside = runtime.enter();
            server
                .bind_unix(
                    &socket,
                    Export {
                        name: "sda".into(),
                        image,
                    },
                )
                .unwrap()
        };
        Self {
            runtime,
            server,
            handle: Some(handle),
            socket,
            directory,
        }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///sda?socket={}", self.socket.display())
    }

    fn handle(&self) -> &ExportHandle {
        self.handle.as_ref().unwrap()
    }

    fn close(&mut self, how: Disconnect) {
        self.handle.take().unwrap().close(how);
    }
}

/// Waits until `done`, for at most ten seconds.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(10),
            "still not: {what}"
        );
        std::thread::yield_now();
    }
}
