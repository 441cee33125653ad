//! Any Host header: refused, or one port and subject that written down again mean the same.

#![no_main]

use atoll_api::preview_host::{PreviewHost, PreviewSubject};
use libfuzzer_sys::fuzz_target;

const DOMAIN: &str = "preview.example.com";

fuzz_target!(|host: &str| {
    let _ = PreviewHost::parse(host, "");
    let Ok(parsed) = PreviewHost::parse(host, DOMAIN) else { return };
    let subject = match &parsed.subject {
        PreviewSubject::Sandbox(sandbox_id) => sandbox_id.to_string(),
        PreviewSubject::Signed(token) => token.reveal().to_owned(),
    };
    assert_ne!(parsed.port, 0);
    assert_eq!(PreviewHost::parse(&format!("{}-{subject}.{DOMAIN}", parsed.port), DOMAIN), Ok(parsed));
});
