//! The ways from a runner to its runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_runner::remote::{ServeConfig, bind, serve};
use atoll_runner::{RemoteConfig, RemoteRuntime, Runtime};
use tokio_util::sync::CancellationToken;

use crate::world::Folder;

pub fn direct(runtime: Arc<dyn Runtime>, _folder: &Folder) -> Arc<dyn Runtime> {
    runtime
}

/// The server lives as long as the test.
pub fn remote(runtime: Arc<dyn Runtime>, folder: &Folder) -> Arc<dyn Runtime> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let socket = folder.path().join(format!("runner-{}.sock", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let data_dir = folder.path().join("data");
    let config = ServeConfig::new(data_dir.clone(), rustix::process::geteuid().as_raw());
    let listener = bind(&socket).unwrap();
    tokio::spawn(serve(listener, runtime, config, CancellationToken::new()));
    Arc::new(RemoteRuntime::new(RemoteConfig { socket, data_dir }))
}
