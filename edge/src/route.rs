//! Which door a request is for, by host and path alone. A host below the preview domain never reaches the API.

use std::borrow::Cow;

use atoll_api::ids::SandboxId;
use atoll_api::preview_host::{PreviewHost, PreviewHostError};

use crate::head::Host;
use crate::refusal::Refusal;
use crate::target::{self, ToolboxPath, ToolboxTarget};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// A user's program, or the daemon through its own port.
    Preview(PreviewHost),
    /// The daemon of a sandbox; `target` is what it will be asked for.
    Toolbox { sandbox_id: SandboxId, path: ToolboxPath, target: Cow<'a, [u8]> },
    /// This node's API and dashboard.
    Api,
}

/// `target` is in origin form.
pub fn route<'a>(host: &Host, target: &'a [u8], preview_domain: &str) -> Result<Route<'a>, Refusal> {
    match PreviewHost::parse(&host.name, preview_domain) {
        Ok(preview) => return Ok(Route::Preview(preview)),
        Err(PreviewHostError::Malformed) => return Err(Refusal::NoSuchPreview),
        Err(PreviewHostError::NotPreview) => {}
    }
    match target::split_toolbox(target) {
        Some(ToolboxTarget { path, segment, rest }) => {
            let sandbox_id = std::str::from_utf8(segment).ok().and_then(|id| id.parse().ok());
            let sandbox_id = sandbox_id.ok_or(Refusal::SandboxNotFound)?;
            Ok(Route::Toolbox { sandbox_id, path, target: rest })
        }
        None => Ok(Route::Api),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::parse_host;
    use atoll_api::ids::RegionOrdinal;
    use atoll_api::preview_host::PreviewSubject;

    const DOMAIN: &str = "preview.localhost";

    fn id() -> SandboxId {
        SandboxId::new(RegionOrdinal::new(1).unwrap(), [4; 14])
    }

    fn routed<'a>(host: &str, target: &'a str) -> Result<Route<'a>, Refusal> {
        route(&parse_host(host).unwrap(), target.as_bytes(), DOMAIN)
    }

    #[test]
    fn a_preview_host_wins_over_every_path() {
        let preview = Route::Preview(PreviewHost { port: 3000, subject: PreviewSubject::Sandbox(id()) });
        for path in ["/", "/api", "/toolbox/x", "/dashboard"] {
            for host in
                [format!("3000-{}.preview.localhost", id()), format!("3000-{}.PREVIEW.localhost.:9100", id())]
            {
                assert_eq!(routed(&host, path), Ok(preview.clone()), "{host} {path}");
            }
        }
    }

    #[test]
    fn a_bad_label_below_the_preview_domain_is_nobody() {
        for host in ["x.preview.localhost", "3000.preview.localhost", "0-0123456789abcdef.preview.localhost"]
        {
            assert_eq!(routed(host, "/api/health"), Err(Refusal::NoSuchPreview), "{host}");
        }
    }

    #[test]
    fn the_toolbox_is_a_path_on_any_other_host() {
        for host in ["127.0.0.1:9100", "localhost", "node-1.example", "[::1]"] {
            for path in [ToolboxPath::Own, ToolboxPath::OfTheApi] {
                let asked = format!("{}/files?path=/a", path.prefix(&id().to_string()));
                let target = b"/files?path=/a".as_slice().into();
                let expected = Route::Toolbox { sandbox_id: id(), path, target };
                assert_eq!(routed(host, &asked), Ok(expected), "{host} {asked}");
            }
        }
        assert_eq!(routed("localhost", "/toolbox/nope/files"), Err(Refusal::SandboxNotFound));
        assert_eq!(routed("localhost", "/toolbox/%20/files"), Err(Refusal::SandboxNotFound));
        assert_eq!(routed("localhost", "/api/toolbox/nope/toolbox/files"), Err(Refusal::SandboxNotFound));
    }

    #[test]
    fn everything_else_is_the_api() {
        for path in [
            "/",
            "/api",
            "/api/sandbox",
            "/dashboard",
            "/toolbox",
            "/x",
            "/api/toolbox/x",
            "/api/toolbox/x/toolboxes",
        ] {
            assert_eq!(routed("localhost", path), Ok(Route::Api), "{path}");
        }
        assert_eq!(routed("preview.localhost", "/"), Ok(Route::Api));
    }
}
