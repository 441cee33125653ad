//! Any text as a token or id: refused, or taken as exactly this text, with a region that can be read and a secret that isn't printed.

#![no_main]

use atoll_api::ids::SandboxId;
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken};
use atoll_certs::join_token::JoinToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(key) = text.parse::<ApiKey>() {
        check(text, key.reveal(), &format!("{key:?}"));
    }
    if let Ok(token) = text.parse::<SshToken>() {
        check(text, token.reveal(), &format!("{token:?}"));
        assert_eq!(token.region().to_base36(), text.as_bytes()[..2]);
    }
    if let Ok(token) = text.parse::<SignedPreviewToken>() {
        check(text, token.reveal(), &format!("{token:?}"));
        assert_eq!(token.region().to_base36(), text.as_bytes()[..2]);
    }
    if let Ok(token) = text.parse::<JoinToken>() {
        check(text, &token.reveal(), &format!("{token:?}"));
    }
    if let Ok(sandbox_id) = text.parse::<SandboxId>() {
        let _ = sandbox_id.region();
        assert_eq!(sandbox_id.to_string().parse::<SandboxId>(), Ok(sandbox_id));
    }
});

fn check(text: &str, revealed: &str, printed: &str) {
    assert_eq!(text, revealed);
    assert!(!printed.contains(text));
}
