//! The cookie that keeps a browser's access to a preview after a key in the URL, or a short signed link, let it in.
//!
//! Name: `daytona-sandbox-auth-{sandbox id or signed token}`, as the host label has it.
//! Value: `{sandbox id}.{port}.{expiry, Unix seconds}.{base64url HMAC-SHA-256}`. The MAC covers the label too, so a value
//! opens one label, one sandbox and one port. It holds for an hour even if the link ends sooner: a page must be able to
//! load its parts. No server keeps it, so every node of the cluster must have the same key.

use atoll_api::ids::SandboxId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderValue, header};
use sha2::Sha256;

pub const PREFIX: &str = "daytona-sandbox-auth-";
pub const MAX_AGE_S: u64 = 3600;

/// Signs cookies. The same on every node of a cluster.
#[derive(Clone)]
pub struct CookieKey([u8; 32]);

impl CookieKey {
    pub fn new(key: [u8; 32]) -> CookieKey {
        CookieKey(key)
    }

    fn mac(&self, label: &str, claim: &Claim) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"atoll preview cookie 1\0");
        mac.update(
            format!("{label}\0{}\0{}\0{}", claim.sandbox_id, claim.port, claim.expires_at_s).as_bytes(),
        );
        mac
    }
}

impl std::fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieKey(…)")
    }
}

/// What a valid cookie says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub sandbox_id: SandboxId,
    pub port: u16,
    pub expires_at_s: u64,
}

/// Whether the cookie may travel over plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
}

/// The whole `Set-Cookie` value.
pub fn issue(key: &CookieKey, label: &str, claim: &Claim, transport: Transport) -> String {
    let signature = URL_SAFE_NO_PAD.encode(key.mac(label, claim).finalize().into_bytes());
    let secure = match transport {
        Transport::Plain => "",
        Transport::Tls => "; Secure",
    };
    let Claim { sandbox_id, port, expires_at_s } = claim;
    format!(
        "{PREFIX}{label}={sandbox_id}.{port}.{expires_at_s}.{signature}; Path=/; Max-Age={MAX_AGE_S}; HttpOnly; SameSite=Lax{secure}"
    )
}

/// The claim of the visitor's cookie for this label and port, if it is ours and has not expired.
pub fn verified(key: &CookieKey, headers: &HeaderMap, label: &str, port: u16, now_s: u64) -> Option<Claim> {
    let name = format!("{PREFIX}{label}");
    cookies(headers)
        .filter_map(|cookie| std::str::from_utf8(cookie).ok()?.trim().split_once('='))
        .filter(|(found, _)| *found == name)
        .find_map(|(_, value)| verify(key, label, value))
        .filter(|claim| claim.port == port && now_s < claim.expires_at_s)
}

fn verify(key: &CookieKey, label: &str, value: &str) -> Option<Claim> {
    let mut parts = value.splitn(4, '.');
    let claim = Claim {
        sandbox_id: parts.next()?.parse().ok()?,
        port: parts.next()?.parse().ok()?,
        expires_at_s: parts.next()?.parse().ok()?,
    };
    let signature = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
    key.mac(label, &claim).verify_slice(&signature).is_ok().then_some(claim)
}

/// The `Cookie` header that user code may see: everything but ours. `None` when nothing is left.
pub fn without_ours(headers: &HeaderMap) -> Option<HeaderValue> {
    let kept: Vec<&[u8]> = cookies(headers)
        .map(<[u8]>::trim_ascii)
        .filter(|cookie| !cookie.is_empty() && !is_ours(cookie))
        .collect();
    HeaderValue::from_bytes(&kept.join(b"; ".as_slice())).ok().filter(|value| !value.is_empty())
}

fn is_ours(cookie: &[u8]) -> bool {
    // Servers differ about quotes and case in names; none of those is anybody else's.
    let name = cookie.split(|b| *b == b'=').next().unwrap_or_default();
    let name: Vec<u8> = name.iter().filter(|b| !b.is_ascii_whitespace() && **b != b'"').copied().collect();
    name.get(..PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PREFIX.as_bytes()))
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::ids::RegionOrdinal;

    const NOW_S: u64 = 1_000;

    fn claim(port: u16) -> Claim {
        let sandbox_id = SandboxId::new(RegionOrdinal::new(0).unwrap(), [1; 14]);
        Claim { sandbox_id, port, expires_at_s: NOW_S + MAX_AGE_S }
    }

    fn key() -> CookieKey {
        CookieKey::new([7; 32])
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::COOKIE, value.parse().unwrap())).collect()
    }

    fn pair(label: &str, port: u16) -> String {
        issue(&key(), label, &claim(port), Transport::Plain).split(';').next().unwrap().to_owned()
    }

    #[test]
    fn what_was_issued_is_accepted_until_it_expires() {
        let headers = headers(&[&format!("a=b; {}", pair("l", 80)), "c=d"]);

        assert_eq!(verified(&key(), &headers, "l", 80, NOW_S), Some(claim(80)));
        assert_eq!(verified(&key(), &headers, "l", 80, NOW_S + MAX_AGE_S), None);
    }

    #[test]
    fn a_cookie_opens_one_label_and_one_port_under_one_key() {
        let headers = headers(&[&pair("l", 80)]);
        let renamed = self::headers(&[&pair("l", 80).replace("auth-l", "auth-m")]);

        assert_eq!(verified(&key(), &headers, "l", 81, NOW_S), None);
        assert_eq!(verified(&key(), &headers, "m", 80, NOW_S), None);
        assert_eq!(verified(&key(), &renamed, "m", 80, NOW_S), None);
        assert_eq!(verified(&CookieKey::new([8; 32]), &headers, "l", 80, NOW_S), None);
    }

    #[test]
    fn a_changed_or_cut_value_is_nothing() {
        let good = pair("l", 80);
        for bad in [
            good.replace(".80.", ".81."),
            good[..good.len() - 1].to_owned(),
            format!("{PREFIX}l="),
            "x".into(),
        ] {
            assert_eq!(verified(&key(), &headers(&[&bad]), "l", 80, NOW_S), None, "{bad}");
        }
    }

    #[test]
    fn a_forged_cookie_before_the_right_one_does_not_hide_it() {
        let headers = headers(&[&format!("{PREFIX}l=forged; {}", pair("l", 80))]);

        assert!(verified(&key(), &headers, "l", 80, NOW_S).is_some());
    }

    #[test]
    fn user_code_sees_every_cookie_but_ours() {
        for (given, expected) in [
            (vec!["a=b; daytona-sandbox-auth-x=1; c=d"], Some("a=b; c=d")),
            (vec!["daytona-sandbox-auth-x=1"], None),
            (vec!["a=b", "Daytona-Sandbox-Auth-y=2;c=\"d e\""], Some("a=b; c=\"d e\"")),
            (vec!["\"daytona-sandbox-auth-x\"=1; =; e"], Some("=; e")),
            (vec![], None),
        ] {
            let got = without_ours(&headers(&given));
            assert_eq!(got.as_ref().map(|v| v.to_str().unwrap()), expected, "{given:?}");
        }
    }

    #[test]
    fn scripts_and_other_sites_never_get_it() {
        let plain = issue(&key(), "l", &claim(80), Transport::Plain);
        let tls = issue(&key(), "l", &claim(80), Transport::Tls);

        assert!(plain.ends_with("; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"), "{plain}");
        assert!(tls.ends_with("; Secure"), "{tls}");
    }
}
