//! What programs say of what they show. A Python program asks them over their bus, see `accessibility.py`: Debian's desktop has all
//! that it needs, and a D-Bus library would be larger than the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use super::helper::HelperError;
use super::session::Live;
use crate::errors::ApiError;
use crate::programs::in_path;

const SCRIPT: &str = include_str!("accessibility.py");
/// Longer than what the script allows itself.
const DEADLINE: Duration = Duration::from_secs(15);
/// Debian's own knows Debian's modules; another, earlier in PATH, does not.
const PYTHON: &str = "/usr/bin/python3";

/// `question` names one of the script's operations.
pub async fn ask(live: &Live<'_>, question: &Value) -> Result<Box<RawValue>, ApiError> {
    let python = python(live).await?;
    let launch = || live.launch(python, &["-I", "-c", SCRIPT]);
    let helper = &live.daemon.desktop.accessibility;
    helper.ask(&live.daemon.launcher, launch, question, DEADLINE).await.map_err(|error| match error {
        HelperError::Refused(why) => ApiError::bad_request(why),
        HelperError::Unknown(why) => ApiError::not_found(why),
        HelperError::Unavailable(why) => ApiError::a11y_unavailable(why),
    })
}

async fn python(live: &Live<'_>) -> Result<PathBuf, ApiError> {
    let path = live.environment.get("PATH").cloned().unwrap_or_default();
    let find = move || {
        let own = Path::new(PYTHON);
        if own.is_file() { Some(own.to_owned()) } else { in_path(&path, "python3") }
    };
    let found = live.daemon.workers.run(find).await;
    found.ok_or_else(|| {
        ApiError::a11y_unavailable("accessibility needs python3 and python3-gi, which this sandbox lacks")
    })
}
