//! What the operator may choose about the SSH door, and the russh configuration that follows from it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Algorithm, PrivateKey};
use russh::{Limits, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use crate::input::WINDOW_BYTES;

#[derive(Clone)]
pub struct SshConfig {
    /// Where to listen. Port 0 takes a free one; see [`crate::SshHandle::local_addr`].
    pub listen: SocketAddr,
    /// Seed of the ed25519 host key. The same on every node, so that clients never see the host change.
    pub host_key_seed: [u8; 32],
    pub limits: SshLimits,
}

impl SshConfig {
    pub fn new(listen: SocketAddr, host_key_seed: [u8; 32]) -> SshConfig {
        SshConfig { listen, host_key_seed, limits: SshLimits::default() }
    }
}

#[derive(Debug, Clone)]
pub struct SshLimits {
    /// Open connections of everybody. The next one is turned away.
    pub connections_max: usize,
    /// Open connections of one client address.
    pub connections_per_address_max: usize,
    /// Open channels of one connection. Each may hold one window (2 MiB) of unread input.
    pub channels_per_connection_max: usize,
    /// Unread input of all channels of one connection. A client beyond it is cut.
    pub input_bytes_per_connection_max: usize,
    /// Unread input of all connections together. Whoever sends beyond it is cut.
    pub input_bytes_max: usize,
    /// From accept to a valid token. Half-open clients are cut after it.
    pub login_deadline_ms: u64,
    /// How long a wrong token waits for its refusal, whatever was wrong with it. A login is one token per connection.
    pub refusal_delay_ms: u64,
    /// How often a silent client is asked whether it is there. Three unanswered questions end the connection.
    pub keepalive_interval_ms: u64,
    /// How long the client may leave the TCP connection unread while we have something to write.
    pub write_stall_deadline_ms: u64,
}

impl Default for SshLimits {
    fn default() -> SshLimits {
        SshLimits {
            connections_max: 4_096,
            connections_per_address_max: 256,
            channels_per_connection_max: 64,
            input_bytes_per_connection_max: 32 * 1024 * 1024,
            input_bytes_max: 1024 * 1024 * 1024,
            login_deadline_ms: 30_000,
            refusal_delay_ms: 250,
            keepalive_interval_ms: 30_000,
            write_stall_deadline_ms: 120_000,
        }
    }
}

const KEEPALIVES_UNANSWERED_MAX: usize = 3;
/// A wrong token ends the connection at once; this bounds attempts that never name one (bad signatures).
const AUTH_ATTEMPTS_MAX: usize = 3;
const SERVER_ID: &str = concat!("SSH-2.0-Atoll_", env!("CARGO_PKG_VERSION"));

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] =
    &[cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR];
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

pub(crate) fn host_key(seed: &[u8; 32]) -> anyhow::Result<PrivateKey> {
    Ok(PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(seed)), "")?)
}

pub(crate) fn russh_config(limits: &SshLimits, host_key: PrivateKey) -> russh::server::Config {
    russh::server::Config {
        server_id: SshId::Standard(Cow::Borrowed(SERVER_ID)),
        methods: MethodSet::server_supported(),
        // The session answers a wrong token after its own constant delay; OpenSSH's first question must cost nothing.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: AUTH_ATTEMPTS_MAX,
        keys: vec![host_key],
        limits: Limits::default(),
        window_size: WINDOW_BYTES,
        grant_window_by_application: true,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            // No decompression of what strangers send.
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_millis(limits.keepalive_interval_ms)),
        keepalive_max: KEEPALIVES_UNANSWERED_MAX,
        nodelay: true,
        ..Default::default()
    }
}
