//! Computer use: a desktop of the sandbox's user, seen and driven by callers (`/computeruse/…`).
//!
//!   xvfb ─▶ dbus ─▶ atspi ─▶ xfce4 ─▶ x11vnc ─▶ novnc     each started when the former is ready, stopped the other way round
//!    ▲ X11            ▲ AT-SPI
//!   agent           accessibility                         children that answer questions, see [`helper`]
//!
//! The daemon itself speaks neither to the X server nor to the bus: they belong to the user, and pictures are large.

mod accessibility;
pub mod agent;
mod helper;
mod log;
mod program;
mod recordings;
pub mod routes;
mod session;
mod settings;

use std::path::{Path, PathBuf};

use atoll_api::access::{NOVNC_PORT, VNC_PORT};

use crate::environment::Variables;
use crate::errors::ApiError;
use crate::routes::Daemon;
pub use session::Desktop;

const DISPLAY: &str = ":1";
/// Where Debian keeps the pages of noVNC.
const NOVNC_PAGES: &str = "/usr/share/novnc";

/// Where the programs are. Made by looking for them, so that whoever has it may start them.
pub struct Installed {
    xvfb: PathBuf,
    dbus: PathBuf,
    /// Xfce, or a window manager alone.
    session: PathBuf,
    atspi: PathBuf,
    x11vnc: PathBuf,
    websockify: PathBuf,
}

impl Installed {
    /// Looked for as the user. Otherwise the names of what is missing.
    async fn find(daemon: &Daemon, env: &Variables) -> Result<Installed, Vec<&'static str>> {
        let path = env.get("PATH").cloned().unwrap_or_default();
        let find = move || {
            let mut missing = Vec::new();
            let mut find = |name, candidates: &[&str]| {
                let found = candidates.iter().find_map(|candidate| match candidate.starts_with('/') {
                    true => Some(PathBuf::from(candidate)).filter(|path| path.is_file()),
                    false => crate::programs::in_path(&path, candidate),
                });
                found.unwrap_or_else(|| {
                    missing.push(name);
                    PathBuf::new()
                })
            };
            let installed = Installed {
                xvfb: find("Xvfb", &["Xvfb"]),
                dbus: find("dbus-daemon", &["dbus-daemon"]),
                session: find("xfce4-session or openbox", &["xfce4-session", "openbox"]),
                // No PATH has them.
                atspi: find(
                    "at-spi-bus-launcher",
                    &["/usr/libexec/at-spi-bus-launcher", "/usr/lib/at-spi2-core/at-spi-bus-launcher"],
                ),
                x11vnc: find("x11vnc", &["x11vnc"]),
                websockify: find("websockify", &["websockify"]),
            };
            if !Path::new(NOVNC_PAGES).join("vnc.html").is_file() {
                missing.push("novnc");
            }
            if missing.is_empty() { Ok(installed) } else { Err(missing) }
        };
        daemon.workers.run(find).await
    }
}

fn not_installed(missing: &[&str]) -> ApiError {
    ApiError::unavailable(format!(
        "computer use needs programs that this sandbox lacks: {}; make the sandbox from the snapshot atoll-desktop, or install them",
        missing.join(", ")
    ))
}
