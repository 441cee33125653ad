//! What a registry says in `WWW-Authenticate`.

#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// `None` for other schemes and for what is malformed.
    pub fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest.trim();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match key.trim() {
                key if key.eq_ignore_ascii_case("realm") => realm = Some(value.to_owned()),
                key if key.eq_ignore_ascii_case("service") => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        Some(Challenge::Bearer { realm: realm?, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
        };

        assert_eq!(Challenge::parse(hub), Some(expected));
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse("bearer realm=http://x/t, error=no"),
            Some(Challenge::Bearer { realm: "http://x/t".to_owned(), service: None })
        );
        for wrong in ["", "Digest x=y", "Bearer", "Bearer realm=\"open", "Bearer service=x"] {
            assert_eq!(Challenge::parse(wrong), None, "{wrong}");
        }
    }
}
