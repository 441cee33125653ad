//! The grammar of preview hosts: `{port}-{sandbox id}.{domain}` and `{port}-{signed token}.{domain}`.

use crate::ids::SandboxId;
use crate::tokens::SignedPreviewToken;

/// A parsed preview host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewHost {
    pub port: u16,
    pub subject: PreviewSubject,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewSubject {
    Sandbox(SandboxId),
    Signed(SignedPreviewToken),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PreviewHostError {
    /// Not below the preview domain at all: some other door's business.
    #[error("not a preview host")]
    NotPreview,
    #[error("expected <port>-<sandbox id or token>.<preview domain>")]
    Malformed,
}

impl PreviewHost {
    /// `host` is a Host header's value (a port suffix is allowed), `domain` the node's preview domain without one.
    pub fn parse(host: &str, domain: &str) -> Result<PreviewHost, PreviewHostError> {
        let name = without_port(host);
        let label = strip_suffix_ignore_case(name, domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .filter(|label| !label.is_empty())
            .ok_or(PreviewHostError::NotPreview)?;
        // Host names are case-insensitive; ids and tokens are written in lower case.
        let label = label.to_ascii_lowercase();
        let (port, subject) = label.split_once('-').ok_or(PreviewHostError::Malformed)?;
        let subject = match (subject.parse(), subject.parse()) {
            (Ok(id), _) => PreviewSubject::Sandbox(id),
            (_, Ok(token)) => PreviewSubject::Signed(token),
            _ => return Err(PreviewHostError::Malformed),
        };
        Ok(PreviewHost { port: parse_port(port)?, subject })
    }
}

fn parse_port(text: &str) -> Result<u16, PreviewHostError> {
    let canonical = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten().ok_or(PreviewHostError::Malformed)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn strip_suffix_ignore_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    let (head, tail) = (text.get(..at)?, text.get(at..)?);
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RegionOrdinal;

    const DOMAIN: &str = "preview.localhost";

    fn id() -> SandboxId {
        SandboxId::new(RegionOrdinal::new(3).unwrap(), [9; 14])
    }

    #[test]
    fn a_host_names_port_and_sandbox() {
        let host = format!("3000-{}.preview.localhost:9100", id());

        let parsed = PreviewHost::parse(&host, DOMAIN).unwrap();

        assert_eq!(parsed, PreviewHost { port: 3000, subject: PreviewSubject::Sandbox(id()) });
    }

    #[test]
    fn hosts_are_case_insensitive() {
        let host = format!("80-{}.Preview.LOCALHOST", id()).to_uppercase();

        assert!(PreviewHost::parse(&host, DOMAIN).is_ok());
    }

    #[test]
    fn a_signed_token_stands_in_for_the_sandbox() {
        let parsed = PreviewHost::parse("8080-0123456789abcdef.preview.localhost", DOMAIN).unwrap();

        assert!(matches!(parsed.subject, PreviewSubject::Signed(t) if t.reveal() == "0123456789abcdef"));
    }

    #[test]
    fn everything_else_is_refused() {
        let id = id();
        for (host, error) in [
            ("preview.localhost".to_owned(), PreviewHostError::NotPreview),
            (".preview.localhost".to_owned(), PreviewHostError::NotPreview),
            ("evilpreview.localhost".to_owned(), PreviewHostError::NotPreview),
            ("localhost:9100".to_owned(), PreviewHostError::NotPreview),
            ("é.example".to_owned(), PreviewHostError::NotPreview),
            (format!("0-{id}.preview.localhost"), PreviewHostError::Malformed),
            (format!("080-{id}.preview.localhost"), PreviewHostError::Malformed),
            (format!("+80-{id}.preview.localhost"), PreviewHostError::Malformed),
            (format!("65536-{id}.preview.localhost"), PreviewHostError::Malformed),
            (format!("80-x.{id}.preview.localhost"), PreviewHostError::Malformed),
            ("3000.preview.localhost".to_owned(), PreviewHostError::Malformed),
        ] {
            assert_eq!(PreviewHost::parse(&host, DOMAIN), Err(error), "{host}");
        }
    }
}
