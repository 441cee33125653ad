//! Turns a refusal into a status, a JSON body or a page. The only file that knows status codes.

use http::{HeaderMap, Method, header};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::refusal::Refusal;

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// What the client can read best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Page,
}

impl Format {
    /// A page only for what looks like a browser navigating.
    pub fn wanted_by(headers: &HeaderMap) -> Format {
        let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accepts.to_ascii_lowercase().contains("text/html") { Format::Page } else { Format::Json }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    path: &'a str,
    timestamp: String,
    status_code: u16,
    error: &'static str,
    message: String,
    code: &'static str,
    source: &'static str,
}

const RETRY_AFTER_S: &str = "1";

fn status(refusal: &Refusal) -> (u16, &'static str, &'static str) {
    match refusal {
        Refusal::BadRequest(_) => (400, "Bad Request", "BAD_REQUEST"),
        // 400 and these words are what integrators match to start the sandbox again.
        Refusal::NotRunning { .. } => (400, "Bad Request", "SANDBOX_NOT_RUNNING"),
        Refusal::Unauthorized => (401, "Unauthorized", "UNAUTHORIZED"),
        Refusal::WrongSignature => (401, "Unauthorized", "WRONG_SIGNATURE"),
        Refusal::Expired => (401, "Unauthorized", "EXPIRED"),
        Refusal::NoSuchPreview | Refusal::SandboxNotFound | Refusal::NotFound => {
            (404, "Not Found", "NOT_FOUND")
        }
        Refusal::MethodNotAllowed => (405, "Method Not Allowed", "METHOD_NOT_ALLOWED"),
        Refusal::BodyTimedOut => (408, "Request Timeout", "REQUEST_TIMEOUT"),
        Refusal::TargetTooLong => (414, "URI Too Long", "URI_TOO_LONG"),
        Refusal::HeadTooLarge => (431, "Request Header Fields Too Large", "HEADERS_TOO_LARGE"),
        Refusal::Internal => (500, "Internal Server Error", "INTERNAL_SERVER_ERROR"),
        Refusal::PortClosed { .. } => (502, "Bad Gateway", "PORT_CLOSED"),
        Refusal::BrokenAnswer | Refusal::ApiBroken => (502, "Bad Gateway", "BAD_GATEWAY"),
        Refusal::Unreachable | Refusal::ApiUnavailable => (503, "Service Unavailable", "SERVICE_UNAVAILABLE"),
        Refusal::Overloaded => (503, "Service Unavailable", "OVERLOADED"),
        Refusal::TimedOut => (504, "Gateway Timeout", "GATEWAY_TIMEOUT"),
    }
}

/// `path` is without the query, which may hold a secret.
pub fn refusal(refusal: &Refusal, path: &str, format: Format, now: OffsetDateTime) -> Answer {
    let (status, error, code) = status(refusal);
    let (content_type, body) = match format {
        Format::Json => {
            let timestamp = now.format(&Rfc3339).unwrap_or_default();
            let message = refusal.to_string();
            let body =
                Body { path, timestamp, status_code: status, error, message, code, source: "DAYTONA_PROXY" };
            ("application/json; charset=utf-8", serde_json::to_vec(&body).unwrap_or_default())
        }
        Format::Page => ("text/html; charset=utf-8", page(refusal, status, error).into_bytes()),
    };
    let mut headers = vec![
        ("content-type", content_type.to_owned()),
        ("content-length", body.len().to_string()),
        ("cache-control", "no-store".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
    ];
    if format == Format::Page {
        headers.push(("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'".to_owned()));
    }
    match status {
        401 => headers.push(("www-authenticate", "Bearer".to_owned())),
        405 => headers.push(("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned())),
        503 => headers.push(("retry-after", RETRY_AFTER_S.to_owned())),
        _ => {}
    }
    Answer { status, headers, body }
}

fn page(refusal: &Refusal, status: u16, error: &str) -> String {
    let help = match refusal {
        Refusal::Unauthorized => {
            "Ask the sandbox's owner for a signed preview link, or send its token in the header \
             <code>X-Daytona-Preview-Token</code>."
        }
        Refusal::Expired => "Ask the sandbox's owner for a new preview link.",
        Refusal::NotRunning { .. } => "Start the sandbox and load this page again.",
        Refusal::PortClosed { .. } => {
            "The sandbox runs, but no program listens on this port yet. Start it and load this page again."
        }
        Refusal::NoSuchPreview | Refusal::SandboxNotFound => {
            "Check the address: the sandbox may have been deleted."
        }
        Refusal::Unreachable | Refusal::Overloaded | Refusal::ApiUnavailable | Refusal::TimedOut => {
            "Wait a moment and load this page again."
        }
        _ => "",
    };
    let message = escaped(&refusal.to_string());
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{status} {error}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;\
         padding:0 1em}}h1{{font-size:1.3em}}</style><h1>{status} {error}</h1><p>{message}</p><p>{help}</p></html>"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether this asks which cross-origin requests are allowed, rather than being one.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The toolbox is open to scripts of every origin: it takes no cookie, so they must know a credential.
pub fn preflight(headers: &HeaderMap) -> Answer {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).and_then(|value| value.to_str().ok());
    let headers = vec![
        ("access-control-allow-origin", "*".to_owned()),
        ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned()),
        ("access-control-allow-headers", asked.unwrap_or("Authorization, Content-Type").to_owned()),
        ("access-control-max-age", "86400".to_owned()),
    ];
    Answer { status: 204, headers, body: Vec::new() }
}

pub const CORS: [(&str, &str); 2] = [
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "X-Request-Id, Content-Disposition, Location"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(what: Refusal, format: Format) -> Answer {
        refusal(&what, "/p", format, OffsetDateTime::UNIX_EPOCH)
    }

    fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        answer.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn every_refusal_has_its_status() {
        for (what, status) in [
            (Refusal::BadRequest("x"), 400),
            (Refusal::NotRunning { state: "stopped".into() }, 400),
            (Refusal::Unauthorized, 401),
            (Refusal::WrongSignature, 401),
            (Refusal::Expired, 401),
            (Refusal::SandboxNotFound, 404),
            (Refusal::NoSuchPreview, 404),
            (Refusal::MethodNotAllowed, 405),
            (Refusal::TargetTooLong, 414),
            (Refusal::HeadTooLarge, 431),
            (Refusal::PortClosed { port: 1 }, 502),
            (Refusal::Unreachable, 503),
            (Refusal::Overloaded, 503),
            (Refusal::TimedOut, 504),
            (Refusal::Internal, 500),
        ] {
            assert_eq!(answered(what.clone(), Format::Json).status, status, "{what}");
        }
    }

    #[test]
    fn the_json_body_is_the_one_that_sdks_read() {
        let answer = answered(Refusal::NotRunning { state: "stopped".into() }, Format::Json);

        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["path"], "/p");
        assert_eq!(body["timestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(body["statusCode"], 400);
        assert_eq!(body["error"], "Bad Request");
        assert_eq!(body["source"], "DAYTONA_PROXY");
        assert!(body["message"].as_str().unwrap().contains("Is the Sandbox started?"));
    }

    #[test]
    fn who_should_come_back_is_told_when() {
        assert_eq!(field(&answered(Refusal::Unreachable, Format::Json), "retry-after"), Some("1"));
        assert_eq!(field(&answered(Refusal::Unauthorized, Format::Json), "www-authenticate"), Some("Bearer"));
    }

    #[test]
    fn a_page_says_what_to_do_and_never_runs_anything() {
        let answer = answered(Refusal::NotRunning { state: "<script>".into() }, Format::Page);

        let page = String::from_utf8(answer.body.clone()).unwrap();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");
        assert!(page.contains("Start the sandbox"));
        assert!(field(&answer, "content-security-policy").is_some());
    }

    #[test]
    fn only_what_looks_like_a_browser_gets_a_page() {
        let accepting =
            |value: &str| [(header::ACCEPT, value.parse().unwrap())].into_iter().collect::<HeaderMap>();
        assert_eq!(Format::wanted_by(&accepting("text/html,*/*;q=0.8")), Format::Page);
        assert_eq!(Format::wanted_by(&accepting("application/json")), Format::Json);
        assert_eq!(Format::wanted_by(&HeaderMap::new()), Format::Json);
    }
}
