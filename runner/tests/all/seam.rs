//! The ways from a runner to its runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_runner::remote::{ServeConfig, bind, serve};
use atoll_runner::{RemoteConfig, RemoteRuntime, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::Folder;

pub fn direct(runtime: Arc<dyn Runtime>, _folder: &Folder) -> Arc<dyn Runtime> {
    runtime
}

/// The server lives as long as the test.
pub fn remote(runtime: Arc<dyn Runtime>, folder: &Folder) -> Arc<dyn Runtime> {
    let server = Server::start(runtime, folder);
    Arc::new(RemoteRuntime::new(server.client()))
}

/// What `atoll runner` is, without a process of its own.
pub struct Server {
    pub socket: PathBuf,
    node_dir: PathBuf,
    cancel: CancellationToken,
    served: JoinHandle<()>,
}

impl Server {
    pub fn start(runtime: Arc<dyn Runtime>, folder: &Folder) -> Server {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("runner-{}.sock", NUMBER.fetch_add(1, Ordering::Relaxed));
        Server::start_at(folder.path().join(name), runtime, folder, |_| ())
    }

    pub fn start_at(
        socket: PathBuf,
        runtime: Arc<dyn Runtime>,
        folder: &Folder,
        change: impl FnOnce(&mut ServeConfig),
    ) -> Server {
        let node_dir = folder.path().join("data");
        let mut config = ServeConfig::new(node_dir.clone(), rustix::process::geteuid().as_raw());
        change(&mut config);
        let cancel = CancellationToken::new();
        let listener = bind(&socket).unwrap();
        let served = tokio::spawn(serve(listener, runtime, config, cancel.clone()));
        Server { socket, node_dir, cancel, served }
    }

    pub fn client(&self) -> RemoteConfig {
        RemoteConfig { socket: self.socket.clone(), data_dir: self.node_dir.clone() }
    }

    /// Everything that is under way breaks off, and the socket goes.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.served.await.unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }
}
