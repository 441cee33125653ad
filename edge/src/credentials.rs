//! What a visitor shows, in the order in which it is tried.

use atoll_api::file_link::FileLink;
use atoll_api::preview_host::PreviewSubject;
use atoll_api::tokens::{ApiKey, SignedPreviewToken, TokenHash};
use http::{HeaderMap, header};

use crate::cookie::Claim;

pub const PREVIEW_TOKEN_HEADER: &str = "x-daytona-preview-token";
pub const QUERY_KEY: &str = "DAYTONA_SANDBOX_AUTH_KEY";

/// One thing that might open the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    ApiKey(ApiKey),
    TokenInHeader(TokenHash),
    /// Success is worth a cookie: the next request of this browser won't have the key in its URL.
    TokenInQuery(TokenHash),
    Cookie(Claim),
    /// The host label itself. Success is worth a cookie: the link may be short-lived, the page is not.
    SignedLabel(SignedPreviewToken),
    /// Signed by whoever has the sandbox's signing key; opens the daemon for that file.
    FileLink(FileLink),
    /// Always tried last: the sandbox may be public.
    Nothing,
}

/// `query_key` and `cookie` have been taken from the request already. Bearers that are not our API keys are no
/// credential of ours: they are meant for the user's program, which doesn't get them either.
pub fn shown(
    headers: &HeaderMap,
    query_key: Option<&str>,
    cookie: Option<Claim>,
    subject: Option<&PreviewSubject>,
    link: Option<FileLink>,
) -> Vec<Shown> {
    let mut all = Vec::with_capacity(2);
    all.extend(bearer(headers).map(Shown::ApiKey));
    let in_header = headers.get(PREVIEW_TOKEN_HEADER).and_then(|value| value.to_str().ok());
    all.extend(in_header.map(|token| Shown::TokenInHeader(TokenHash::of(token.trim()))));
    all.extend(query_key.map(|token| Shown::TokenInQuery(TokenHash::of(token))));
    all.extend(cookie.map(Shown::Cookie));
    if let Some(PreviewSubject::Signed(token)) = subject {
        all.push(Shown::SignedLabel(token.clone()));
    }
    all.extend(link.map(Shown::FileLink));
    all.push(Shown::Nothing);
    all
}

fn bearer(headers: &HeaderMap) -> Option<ApiKey> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use atoll_api::file_link::FileOperation;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn credentials_are_tried_bearer_header_query_cookie_label_link_and_then_nothing() {
        let key = ApiKey::from_random([1; 32]);
        let label: SignedPreviewToken = "0123456789abcdef".parse().unwrap();
        let claim = Claim {
            sandbox_id: "00000000-0000-8000-8000-000000000000".parse().unwrap(),
            port: 1,
            expires_at_s: 2,
        };
        let headers = headers(&[
            ("authorization", &format!("bearer {}", key.reveal())),
            ("x-daytona-preview-token", "h"),
        ]);

        let link = FileLink {
            operation: FileOperation::Download,
            path: "p".into(),
            expires: "0".into(),
            signature: "s".into(),
        };

        let subject = PreviewSubject::Signed(label.clone());
        let all = shown(&headers, Some("q"), Some(claim.clone()), Some(&subject), Some(link.clone()));

        let expected = [
            Shown::ApiKey(key),
            Shown::TokenInHeader(TokenHash::of("h")),
            Shown::TokenInQuery(TokenHash::of("q")),
            Shown::Cookie(claim),
            Shown::SignedLabel(label),
            Shown::FileLink(link),
            Shown::Nothing,
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn an_authorization_that_is_not_ours_is_no_credential() {
        for value in ["Bearer eyJ.x.y", "Basic dXNlcjpwdw==", "Bearer", "Bearer dtn_short", "Token dtn_x"] {
            assert_eq!(
                shown(&headers(&[("authorization", value)]), None, None, None, None),
                [Shown::Nothing],
                "{value}"
            );
        }
    }
}
