//! Who may dial a sandbox. The only maker of [`AuthorizedSandbox`], and so the only way to a [`Target`].

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, OrganizationId, SandboxId, UserId};
use crate::sandbox::{Phase, Placement};
use crate::tokens::TokenHash;

/// Ports of the sandbox that are ours and never public, whatever the sandbox's own flag says.
pub const DAEMON_PORT: u16 = 2280;
pub const WEB_TERMINAL_PORT: u16 = 22222;
pub const RECORDING_PORT: u16 = 33333;
/// A desktop's screen, keyboard and mouse, without a password of their own.
pub const VNC_PORT: u16 = 5901;
pub const NOVNC_PORT: u16 = 6080;

/// What a door wants to reach inside a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The toolbox daemon (HTTP/1.1, and [`crate::channel`] by upgrade).
    Daemon,
    /// A TCP port that a user's program listens on.
    Port(u16),
}

impl Target {
    /// The daemon's own port is reached through the daemon's door, which authenticates the node.
    pub fn port(port: u16) -> Target {
        if port == DAEMON_PORT { Target::Daemon } else { Target::Port(port) }
    }
}

/// A caller of the API whose key has been looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    pub organization_id: OrganizationId,
    pub user_id: UserId,
    pub key_name: String,
}

/// What is known of a sandbox that decides about access and routing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxFacts {
    pub sandbox_id: SandboxId,
    pub organization_id: OrganizationId,
    pub public: bool,
    pub preview_token_hash: TokenHash,
    pub phase: Phase,
    pub placement: Placement,
    /// Of the key that links to its files are signed with.
    #[serde(default)]
    pub signing_key_version: u32,
}

/// A signed preview token that was found in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewGrant {
    pub sandbox_id: SandboxId,
    pub port: u16,
    pub expires_at_ms: u64,
}

/// An SSH token that was found in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshGrant {
    pub sandbox_id: SandboxId,
    pub expires_at_ms: u64,
    pub token_hash: TokenHash,
}

/// A link to a file whose signature was found right; only [`crate::file_link::SigningKey::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileGrant {
    sandbox_id: SandboxId,
    expires_at_ms: u64,
}

impl FileGrant {
    pub(crate) fn verified(sandbox_id: SandboxId, expires_at_ms: u64) -> FileGrant {
        FileGrant { sandbox_id, expires_at_ms }
    }
}

/// What the visitor shows.
#[derive(Debug, Clone)]
pub enum Credential {
    /// `Authorization: Bearer`, already resolved.
    Caller(Caller),
    /// `X-Daytona-Preview-Token` or the query key: the hash of what was shown.
    PreviewToken(TokenHash),
    SignedPreview(PreviewGrant),
    /// Opens the daemon; the door asks it for that file and nothing else.
    FileLink(FileGrant),
    Ssh(SshGrant),
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nothing, or nothing that opens this door, was shown: ask for a credential.
    #[error("a valid credential is required")]
    Unauthorized,
    /// The credential is for another organization: to this caller the sandbox does not exist.
    #[error("sandbox not found")]
    NotFound,
    #[error("the link or token has expired")]
    Expired,
}

/// Proof that somebody may reach a sandbox. It can only be made by [`authorize`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedSandbox {
    sandbox_id: SandboxId,
    generation: Generation,
    target: Target,
}

impl AuthorizedSandbox {
    pub fn sandbox_id(&self) -> SandboxId {
        self.sandbox_id
    }

    /// The generation that was current when access was judged. A dialer may find a newer one.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn target(&self) -> Target {
        self.target
    }
}

pub fn authorize(
    credential: &Credential,
    sandbox: &SandboxFacts,
    target: Target,
    now_ms: u64,
) -> Result<AuthorizedSandbox, Denied> {
    match credential {
        Credential::Caller(caller) if caller.organization_id == sandbox.organization_id => {}
        Credential::Caller(_) => return Err(Denied::NotFound),
        Credential::PreviewToken(hash) if *hash == sandbox.preview_token_hash => {}
        Credential::SignedPreview(grant)
            if grant.sandbox_id == sandbox.sandbox_id && Target::port(grant.port) == target =>
        {
            unexpired(grant.expires_at_ms, now_ms)?;
        }
        Credential::FileLink(grant) if grant.sandbox_id == sandbox.sandbox_id && target == Target::Daemon => {
            unexpired(grant.expires_at_ms, now_ms)?;
        }
        Credential::Ssh(grant) if grant.sandbox_id == sandbox.sandbox_id => {
            unexpired(grant.expires_at_ms, now_ms)?;
        }
        Credential::Nothing if sandbox.public && may_be_public(target) => {}
        // A wrong or foreign token on a public port opens no less than showing nothing.
        Credential::PreviewToken(_) | Credential::SignedPreview(_)
            if sandbox.public && may_be_public(target) => {}
        Credential::PreviewToken(_)
        | Credential::SignedPreview(_)
        | Credential::FileLink(_)
        | Credential::Ssh(_)
        | Credential::Nothing => return Err(Denied::Unauthorized),
    }
    Ok(AuthorizedSandbox { sandbox_id: sandbox.sandbox_id, generation: sandbox.placement.generation, target })
}

fn unexpired(expires_at_ms: u64, now_ms: u64) -> Result<(), Denied> {
    if now_ms < expires_at_ms { Ok(()) } else { Err(Denied::Expired) }
}

fn may_be_public(target: Target) -> bool {
    match target {
        Target::Daemon => false,
        Target::Port(port) => {
            !matches!(port, DAEMON_PORT | WEB_TERMINAL_PORT | RECORDING_PORT | VNC_PORT | NOVNC_PORT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, RegionOrdinal};

    const NOW_MS: u64 = 1_000;

    fn sandbox(public: bool) -> SandboxFacts {
        SandboxFacts {
            sandbox_id: SandboxId::new(RegionOrdinal::new(0).unwrap(), [1; 14]),
            organization_id: OrganizationId(uuid::Uuid::from_u128(1)),
            public,
            preview_token_hash: TokenHash::of("right"),
            phase: Phase::Running,
            placement: Placement { node_id: NodeId(1), generation: Generation(7) },
            signing_key_version: 0,
        }
    }

    fn caller(organization: u128) -> Credential {
        Credential::Caller(Caller {
            organization_id: OrganizationId(uuid::Uuid::from_u128(organization)),
            user_id: UserId(uuid::Uuid::nil()),
            key_name: "k".into(),
        })
    }

    fn signed(port: u16, expires_at_ms: u64) -> Credential {
        Credential::SignedPreview(PreviewGrant { sandbox_id: sandbox(false).sandbox_id, port, expires_at_ms })
    }

    fn check(credential: Credential, public: bool, target: Target, expected: Result<(), Denied>) {
        let got = authorize(&credential, &sandbox(public), target, NOW_MS);
        assert_eq!(got.map(|_| ()), expected, "{credential:?} public={public} {target:?}");
    }

    #[test]
    fn access_follows_the_credential() {
        use Denied::*;
        let web = Target::port(3000);
        check(caller(1), false, Target::Daemon, Ok(()));
        check(caller(2), true, web, Err(NotFound));
        check(Credential::PreviewToken(TokenHash::of("right")), false, web, Ok(()));
        check(Credential::PreviewToken(TokenHash::of("wrong")), false, web, Err(Unauthorized));
        check(signed(3000, NOW_MS + 1), false, web, Ok(()));
        check(signed(3000, NOW_MS), false, web, Err(Expired));
        check(signed(3001, NOW_MS + 1), false, web, Err(Unauthorized));
        check(Credential::Nothing, false, web, Err(Unauthorized));
        check(Credential::Nothing, true, web, Ok(()));
    }

    #[test]
    fn a_link_to_a_file_opens_the_daemon_of_its_sandbox_until_it_ends() {
        let link = |n, expires_at_ms| {
            let sandbox_id = SandboxId::new(RegionOrdinal::new(0).unwrap(), [n; 14]);
            Credential::FileLink(FileGrant::verified(sandbox_id, expires_at_ms))
        };
        check(link(1, NOW_MS + 1), false, Target::Daemon, Ok(()));
        check(link(1, NOW_MS), false, Target::Daemon, Err(Denied::Expired));
        check(link(2, NOW_MS + 1), false, Target::Daemon, Err(Denied::Unauthorized));
        check(link(1, NOW_MS + 1), true, Target::Port(3000), Err(Denied::Unauthorized));
    }

    #[test]
    fn our_own_ports_are_never_public() {
        for port in [DAEMON_PORT, WEB_TERMINAL_PORT, RECORDING_PORT, VNC_PORT, NOVNC_PORT] {
            check(Credential::Nothing, true, Target::port(port), Err(Denied::Unauthorized));
        }
    }

    #[test]
    fn the_proof_carries_sandbox_generation_and_target() {
        let proof = authorize(&caller(1), &sandbox(false), Target::port(2280), NOW_MS).unwrap();

        assert_eq!(proof.sandbox_id(), sandbox(false).sandbox_id);
        assert_eq!(proof.generation(), Generation(7));
        assert_eq!(proof.target(), Target::Daemon);
    }
}
