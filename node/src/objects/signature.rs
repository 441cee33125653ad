//! AWS Signature Version 4, as S3 has it: what a request says of its signature, and whether that holds. Pure.

use http::{HeaderMap, Method, Uri, header};
use ring::{digest, hmac};

use super::errors::S3Error;
use super::operation::Query;
use super::payload::Payload;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
/// How far a request's time may be from ours, as at AWS.
const SKEW_S_MAX: u64 = 15 * 60;
/// Of a presigned URL, as at AWS. The credentials in it end long before.
const EXPIRES_S_MAX: u64 = 7 * 24 * 3600;

/// A request's head, as far as it is signed.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
}

/// What a request says of its signature; not yet believed.
pub(super) struct Claim {
    pub(super) access_key: String,
    pub(super) session_token: String,
    pub(super) payload: Payload,
    /// `<date>/<region>/s3/aws4_request`
    scope: String,
    signed_headers: String,
    signature: String,
    amz_date: String,
    at_s: u64,
    place: Place,
    /// As it is signed.
    payload_text: String,
}

/// Where the signature stands.
enum Place {
    Header,
    Query { expires_s: u64 },
}

/// The signatures of a body's chunks, each over the one before.
pub(super) struct Chain {
    key: hmac::Key,
    amz_date: String,
    scope: String,
    previous: String,
}

impl Claim {
    pub(super) fn read(head: &Head<'_>, query: &Query, region: &str) -> Result<Claim, S3Error> {
        if query.get("X-Amz-Signature").is_some() {
            return Claim::read_query(head, query, region);
        }
        let Some(authorization) = head.text(header::AUTHORIZATION.as_str()) else {
            return Err(S3Error::AccessDenied(
                "a signature is required: GET /api/object-storage/push-access gives credentials to sign with",
            ));
        };
        let fields = authorization.strip_prefix(ALGORITHM).ok_or(S3Error::AuthorizationHeaderMalformed(
            "the Authorization header must be: AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…",
        ))?;
        let field = |name: &str| {
            fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('=')).ok_or(
                S3Error::AuthorizationHeaderMalformed(
                    "the Authorization header must have Credential, SignedHeaders and Signature",
                ),
            )
        };
        let required = |name, what| head.text(name).ok_or(S3Error::InvalidRequest(what));
        let payload_text = required("x-amz-content-sha256", "the header x-amz-content-sha256 is required")?;
        Claim::new(
            field("Credential")?,
            required("x-amz-date", "the header x-amz-date is required")?,
            head.text("x-amz-security-token"),
            field("SignedHeaders")?,
            field("Signature")?,
            payload_text,
            Place::Header,
            region,
        )
    }

    fn read_query(head: &Head<'_>, query: &Query, region: &str) -> Result<Claim, S3Error> {
        let field = |name: &str| {
            query.get(name).ok_or(S3Error::AuthorizationHeaderMalformed(
                "a presigned URL must have X-Amz-Algorithm, -Credential, -Date, -Expires, -SignedHeaders and -Signature",
            ))
        };
        if field("X-Amz-Algorithm")? != ALGORITHM {
            return Err(S3Error::AuthorizationHeaderMalformed("X-Amz-Algorithm must be AWS4-HMAC-SHA256"));
        }
        let expires_s = field("X-Amz-Expires")?.parse().ok().filter(|expires_s| *expires_s <= EXPIRES_S_MAX);
        let expires_s = expires_s.ok_or(S3Error::AuthorizationHeaderMalformed(
            "X-Amz-Expires must be a number of seconds, at most seven days",
        ))?;
        Claim::new(
            field("X-Amz-Credential")?,
            field("X-Amz-Date")?,
            query.get("X-Amz-Security-Token"),
            field("X-Amz-SignedHeaders")?,
            field("X-Amz-Signature")?,
            head.text("x-amz-content-sha256").unwrap_or("UNSIGNED-PAYLOAD"),
            Place::Query { expires_s },
            region,
        )
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the fields of a signature, named in both places it is read from"
    )]
    fn new(
        credential: &str,
        amz_date: &str,
        session_token: Option<&str>,
        signed_headers: &str,
        signature: &str,
        payload_text: &str,
        place: Place,
        region: &str,
    ) -> Result<Claim, S3Error> {
        let malformed = |what| Err(S3Error::AuthorizationHeaderMalformed(what));
        let Some((access_key, scope)) = credential.split_once('/') else {
            return malformed("Credential must be: access key/date/region/s3/aws4_request");
        };
        let at_s = seconds(amz_date).ok_or(S3Error::AuthorizationHeaderMalformed(
            "the signature's time must be written 20260131T120000Z",
        ))?;
        if scope != format!("{}/{region}/{SERVICE}/aws4_request", &amz_date[..8]) {
            return malformed(
                "Credential must end in: day of the signature/us-east-1/s3/aws4_request; set the region us-east-1",
            );
        }
        let Some(session_token) = session_token else {
            return Err(S3Error::InvalidToken);
        };
        Ok(Claim {
            access_key: access_key.to_owned(),
            session_token: session_token.to_owned(),
            payload: payload_text.parse()?,
            scope: scope.to_owned(),
            signed_headers: signed_headers.to_owned(),
            signature: signature.to_owned(),
            amz_date: amz_date.to_owned(),
            at_s,
            place,
            payload_text: payload_text.to_owned(),
        })
    }

    /// Whether the request is what the holder of `secret` has signed, now.
    pub(super) fn check(
        self,
        head: &Head<'_>,
        query: &Query,
        secret: &str,
        now_s: u64,
    ) -> Result<Chain, S3Error> {
        match self.place {
            Place::Header if now_s.abs_diff(self.at_s) > SKEW_S_MAX => {
                return Err(S3Error::RequestTimeTooSkewed);
            }
            Place::Query { .. } if self.at_s > now_s + SKEW_S_MAX => {
                return Err(S3Error::RequestTimeTooSkewed);
            }
            Place::Query { expires_s } if self.at_s + expires_s < now_s => {
                return Err(S3Error::AccessDenied("the presigned URL has expired"));
            }
            Place::Header | Place::Query { .. } => {}
        }
        let is_signed = |name: &str| self.signed_headers.split(';').any(|signed| signed == name);
        let unsigned = |name: &str| name.starts_with("x-amz-") && !is_signed(name);
        if !is_signed("host") || head.headers.keys().any(|name| unsigned(name.as_str())) {
            return Err(S3Error::AccessDenied(
                "Host and every header that begins with x-amz- must be signed",
            ));
        }
        let key = signing_key(secret, &self.scope);
        let canonical = self.canonical(head, query);
        let text = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.amz_date,
            self.scope,
            hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
        );
        check_hex(&key, &text, &self.signature)?;
        Ok(Chain { key, amz_date: self.amz_date, scope: self.scope, previous: self.signature })
    }

    fn canonical(&self, head: &Head<'_>, query: &Query) -> String {
        let mut canonical = format!("{}\n{}\n", head.method, canonical_path(head.uri.path()));
        canonical.push_str(&query.canonical());
        canonical.push('\n');
        for name in self.signed_headers.split(';') {
            canonical.push_str(name);
            canonical.push(':');
            canonical.push_str(&head.canonical_value(name));
            canonical.push('\n');
        }
        canonical.push('\n');
        canonical.push_str(&self.signed_headers);
        canonical.push('\n');
        canonical.push_str(&self.payload_text);
        canonical
    }
}

impl<'a> Head<'a> {
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// As the client wrote it: our own edge says so, and nobody else can reach our socket.
    fn host(&self) -> &'a str {
        let told = self.text("x-forwarded-host").or_else(|| self.text(header::HOST.as_str()));
        told.or_else(|| Some(self.uri.authority()?.as_str())).unwrap_or_default()
    }

    fn canonical_value(&self, name: &str) -> String {
        if name == "host" {
            return self.host().to_owned();
        }
        let values = self.headers.get_all(name).iter().map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
        });
        values.collect::<Vec<_>>().join(",")
    }
}

impl Chain {
    /// Of a chunk with this content.
    pub(super) fn check_chunk(&mut self, content: digest::Context, signature: &str) -> Result<(), S3Error> {
        let nothing = hex::encode(digest::digest(&digest::SHA256, b""));
        let hash = hex::encode(content.finish());
        self.check("AWS4-HMAC-SHA256-PAYLOAD", &format!("{nothing}\n{hash}"), signature)
    }

    /// Of what stands after the last chunk: a line `name:value\n` for each.
    pub(super) fn check_trailer(&mut self, trailer: &str, signature: &str) -> Result<(), S3Error> {
        let hash = hex::encode(digest::digest(&digest::SHA256, trailer.as_bytes()));
        self.check("AWS4-HMAC-SHA256-TRAILER", &hash, signature)
    }

    fn check(&mut self, kind: &str, hashes: &str, signature: &str) -> Result<(), S3Error> {
        let text = format!("{kind}\n{}\n{}\n{}\n{hashes}", self.amz_date, self.scope, self.previous);
        check_hex(&self.key, &text, signature)?;
        self.previous = signature.to_owned();
        Ok(())
    }
}

/// In constant time.
fn check_hex(key: &hmac::Key, text: &str, signature: &str) -> Result<(), S3Error> {
    let shown = hex::decode(signature).map_err(|_| S3Error::SignatureDoesNotMatch)?;
    hmac::verify(key, text.as_bytes(), &shown).map_err(|_| S3Error::SignatureDoesNotMatch)
}

fn signing_key(secret: &str, scope: &str) -> hmac::Key {
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    scope.split('/').fold(first, |key, part| {
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
    })
}

/// Clients escape more or less; what they sign is escaped in one way.
fn canonical_path(path: &str) -> String {
    path.split('/').map(|segment| escaped(&unescaped(segment))).collect::<Vec<_>>().join("/")
}

/// Everything but letters, digits and `-._~`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte))
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Malformed escapes stay as they are.
pub(super) fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = (*first == b'%').then(|| tail.get(..2)).flatten();
        let mut byte = [0];
        match digits.filter(|digits| hex::decode_to_slice(digits, &mut byte).is_ok()) {
            Some(_) => {
                bytes.push(byte[0]);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// `20260131T120000Z` in seconds since 1970.
fn seconds(amz_date: &str) -> Option<u64> {
    let bytes = amz_date.as_bytes();
    let shape_ok = bytes.len() == 16
        && bytes[8] == b'T'
        && bytes[15] == b'Z'
        && bytes.iter().enumerate().all(|(at, byte)| at == 8 || at == 15 || byte.is_ascii_digit());
    if !shape_ok {
        return None;
    }
    let number = |range: std::ops::Range<usize>| amz_date[range].parse::<u8>().ok();
    let month = time::Month::try_from(number(4..6)?).ok()?;
    let day = time::Date::from_calendar_date(amz_date[..4].parse().ok()?, month, number(6..8)?).ok()?;
    let time = day.with_hms(number(9..11)?, number(11..13)?, number(13..15)?).ok()?;
    u64::try_from(time.assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
pub(super) mod tests;
