//! The body of an upload: taken out of its chunks, measured, and checked against whatever the client said of it. Pure.
//!
//!   Size ──"<hex>[;chunk-signature=…]\r\n"──▶ Data ──▶ AfterData ──"\r\n"──▶ Size … ──"0…\r\n"──▶ End, trailers

use std::str::FromStr;

use ring::digest::{Context, SHA256};

use super::checksum::{Algorithm, Running};
use super::errors::S3Error;
use super::signature::{Chain, Head};

/// Of a chunk's head.
const LINE_BYTES_MAX: usize = 1024;
/// Of all that follows the last chunk.
const TRAILER_BYTES_MAX: usize = 4096;
const CHUNK_SIGNATURE: &str = "chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// What `x-amz-content-sha256` says of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    Unsigned,
    /// In hex.
    Sha256(String),
    Chunked {
        signing: Signing,
        trailer: Trailer,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signing {
    EachChunk,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trailer {
    Expected,
    Absent,
}

impl FromStr for Payload {
    type Err = S3Error;

    fn from_str(text: &str) -> Result<Payload, S3Error> {
        let chunked = |signing, trailer| Ok(Payload::Chunked { signing, trailer });
        match text {
            "UNSIGNED-PAYLOAD" => Ok(Payload::Unsigned),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => chunked(Signing::EachChunk, Trailer::Absent),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => chunked(Signing::EachChunk, Trailer::Expected),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => chunked(Signing::Nothing, Trailer::Expected),
            sha256 if sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(Payload::Sha256(sha256.to_ascii_lowercase()))
            }
            _ => Err(S3Error::InvalidArgument(
                "x-amz-content-sha256 must be a SHA-256 in hex, UNSIGNED-PAYLOAD, or one of \
                 STREAMING-AWS4-HMAC-SHA256-PAYLOAD[-TRAILER] and STREAMING-UNSIGNED-PAYLOAD-TRAILER"
                    .to_owned(),
            )),
        }
    }
}

/// Takes a body in.
pub(super) struct Intake {
    chunks: Option<Chunks>,
    sha256: Option<(Context, String)>,
    checks: Vec<(Running, Option<String>)>,
    /// Without the framing.
    length: Option<u64>,
    bytes_max: u64,
    taken: u64,
}

impl Intake {
    /// Of what is to be kept: the checksums in the head are about it.
    pub(super) fn of_object(
        head: &Head<'_>,
        payload: Payload,
        chain: Chain,
        bytes_max: u64,
    ) -> Result<Intake, S3Error> {
        let mut intake = Intake::of_request(head, payload, chain, bytes_max)?;
        for (name, value) in head.headers {
            if let Some(algorithm) = Algorithm::of_header(name.as_str()) {
                let expected = String::from_utf8_lossy(value.as_bytes()).into_owned();
                intake.checks.push((Running::new(algorithm), Some(expected)));
            }
        }
        if intake.chunks.is_some() {
            let announced = head.text("x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
            let announced = announced.split(',').filter_map(|name| Algorithm::of_header(name.trim()));
            intake.checks.extend(announced.map(|algorithm| (Running::new(algorithm), None)));
        }
        Ok(intake)
    }

    /// Of what only says what to do.
    pub(super) fn of_request(
        head: &Head<'_>,
        payload: Payload,
        chain: Chain,
        bytes_max: u64,
    ) -> Result<Intake, S3Error> {
        let number = |name: &str| {
            let parsed = head.text(name).map(str::parse::<u64>).transpose();
            parsed.map_err(|_| S3Error::InvalidArgument(format!("{name} must be a number")))
        };
        let (chunks, sha256, length) = match payload {
            Payload::Unsigned => (None, None, number("content-length")?),
            Payload::Sha256(hex) => (None, Some((Context::new(&SHA256), hex)), number("content-length")?),
            Payload::Chunked { signing, trailer } => {
                let length = number("x-amz-decoded-content-length")?.ok_or(S3Error::MissingContentLength)?;
                let chain = (signing == Signing::EachChunk).then_some(chain);
                (Some(Chunks::new(chain, trailer)), None, Some(length))
            }
        };
        if length.is_some_and(|length| length > bytes_max) {
            return Err(S3Error::EntityTooLarge);
        }
        Ok(Intake { chunks, sha256, checks: Vec::new(), length, bytes_max, taken: 0 })
    }

    /// What the client has announced.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece of content out of what has arrived, which is shortened by what was used; `None`: more must come.
    pub(super) fn next<'a>(&mut self, arrived: &mut &'a [u8]) -> Result<Option<&'a [u8]>, S3Error> {
        let piece = match &mut self.chunks {
            Some(chunks) => chunks.next(arrived)?,
            None => {
                let all = std::mem::take(arrived);
                (!all.is_empty()).then_some(all)
            }
        };
        if let Some(piece) = piece {
            self.taken += piece.len() as u64;
            if self.taken > self.bytes_max {
                return Err(S3Error::EntityTooLarge);
            }
            if let Some((context, _)) = &mut self.sha256 {
                context.update(piece);
            }
            for (running, _) in &mut self.checks {
                running.update(piece);
            }
        }
        Ok(piece)
    }

    /// Whether it was whole, and what the client said of it.
    pub(super) fn finish(self) -> Result<(), S3Error> {
        let trailers = self.chunks.map(Chunks::finish).transpose()?.unwrap_or_default();
        if self.length.is_some_and(|length| length != self.taken) {
            return Err(S3Error::IncompleteBody);
        }
        if let Some((context, expected)) = self.sha256
            && hex::encode(context.finish()) != expected
        {
            return Err(S3Error::XAmzContentSHA256Mismatch);
        }
        for (running, expected) in self.checks {
            let trailing = || {
                let found =
                    trailers.iter().find(|(name, _)| Algorithm::of_header(name) == Some(running.algorithm));
                found.map(|(_, value)| value.clone())
            };
            let expected = expected.or_else(trailing).ok_or(S3Error::IncompleteBody)?;
            running.check(&expected)?;
        }
        Ok(())
    }
}

struct Chunks {
    at: At,
    line: Vec<u8>,
    chain: Option<Chain>,
    /// Of the chunk that is arriving: its content so far, and its signature.
    current: Option<(Context, String)>,
    trailer: Trailer,
    tail: Vec<u8>,
}

enum At {
    Size,
    Data { left: u64 },
    AfterData,
    End,
}

impl Chunks {
    fn new(chain: Option<Chain>, trailer: Trailer) -> Chunks {
        Chunks { at: At::Size, line: Vec::new(), chain, current: None, trailer, tail: Vec::new() }
    }

    fn next<'a>(&mut self, arrived: &mut &'a [u8]) -> Result<Option<&'a [u8]>, S3Error> {
        loop {
            match &mut self.at {
                At::Size => {
                    let Some(line) = self.take_line(arrived)? else { return Ok(None) };
                    self.begin_chunk(&line)?;
                }
                At::Data { left } => {
                    if arrived.is_empty() {
                        return Ok(None);
                    }
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(arrived.len());
                    let (piece, rest) = arrived.split_at(count);
                    *arrived = rest;
                    *left -= count as u64;
                    if *left == 0 {
                        self.at = At::AfterData;
                    }
                    if let Some((context, _)) = &mut self.current {
                        context.update(piece);
                    }
                    return Ok(Some(piece));
                }
                At::AfterData => {
                    let Some(line) = self.take_line(arrived)? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(S3Error::IncompleteBody);
                    }
                    self.end_chunk()?;
                    self.at = At::Size;
                }
                At::End => {
                    self.tail.extend_from_slice(arrived);
                    *arrived = &[];
                    return match self.tail.len() <= TRAILER_BYTES_MAX {
                        true => Ok(None),
                        false => Err(S3Error::IncompleteBody),
                    };
                }
            }
        }
    }

    /// Without its end; `None` when that has not arrived.
    fn take_line(&mut self, arrived: &mut &[u8]) -> Result<Option<String>, S3Error> {
        let end = arrived.iter().position(|byte| *byte == b'\n');
        let (line, rest) = arrived.split_at(end.map_or(arrived.len(), |end| end + 1));
        self.line.extend_from_slice(line);
        *arrived = rest;
        if self.line.len() > LINE_BYTES_MAX {
            return Err(S3Error::IncompleteBody);
        }
        if end.is_none() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r\n").ok_or(S3Error::IncompleteBody)?;
        Ok(Some(String::from_utf8(line.to_vec()).map_err(|_| S3Error::IncompleteBody)?))
    }

    fn begin_chunk(&mut self, line: &str) -> Result<(), S3Error> {
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let digits_ok = (1..=16).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| digits_ok).ok_or(S3Error::IncompleteBody)?;
        if self.chain.is_some() {
            let signature = extension.strip_prefix(CHUNK_SIGNATURE).ok_or(S3Error::SignatureDoesNotMatch)?;
            self.current = Some((Context::new(&SHA256), signature.to_owned()));
        }
        self.at = At::Data { left: size };
        if size == 0 {
            self.end_chunk()?;
            self.at = At::End;
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), S3Error> {
        match (&mut self.chain, self.current.take()) {
            (Some(chain), Some((content, signature))) => chain.check_chunk(content, &signature),
            (Some(_), None) => Err(S3Error::SignatureDoesNotMatch),
            (None, _) => Ok(()),
        }
    }

    /// The trailers, names in lower case.
    fn finish(mut self) -> Result<Vec<(String, String)>, S3Error> {
        if !matches!(self.at, At::End) {
            return Err(S3Error::IncompleteBody);
        }
        let tail = String::from_utf8(self.tail).map_err(|_| S3Error::IncompleteBody)?;
        let mut trailers = Vec::new();
        for line in tail.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(S3Error::IncompleteBody)?;
            trailers.push((name.trim_ascii().to_ascii_lowercase(), value.trim_ascii().to_owned()));
        }
        if self.trailer == Trailer::Absent && !trailers.is_empty() {
            return Err(S3Error::IncompleteBody);
        }
        if let (Some(chain), Trailer::Expected) = (&mut self.chain, self.trailer) {
            let at = trailers.iter().position(|(name, _)| name == TRAILER_SIGNATURE);
            let (_, signature) = trailers.remove(at.ok_or(S3Error::SignatureDoesNotMatch)?);
            let signed: String = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            chain.check_trailer(&signed, &signature)?;
        }
        Ok(trailers)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};

    use super::super::signature::tests::chunked_chain;
    use super::*;

    const CHUNKED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    const NAMES: &str = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
                         x-amz-decoded-content-length;x-amz-storage-class";
    const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    const SIGNATURES: [&str; 3] = [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ];
    /// "Signature calculations: trailing headers" of the same documentation.
    const TRAILER_NAMES: &str = "content-encoding;host;x-amz-content-sha256;x-amz-date;\
                                 x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer";
    const TRAILER_SEED: &str = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
    const TRAILER_SIGNATURES: [&str; 3] = [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ];
    const TRAILER: &str = "x-amz-checksum-crc32c:sOO8/Q==\r\n\
                           x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n";

    /// As AWS's documentation has it: 66560 times `a`, in chunks of 65536.
    fn framed(signatures: [&str; 3], trailer: &str) -> Vec<u8> {
        let mut body = Vec::new();
        for (size, signature) in [65_536, 1024, 0].into_iter().zip(signatures) {
            body.extend(format!("{size:x};chunk-signature={signature}\r\n").into_bytes());
            if size > 0 {
                body.extend(vec![b'a'; size]);
                body.extend(b"\r\n");
            }
        }
        body.extend([trailer.as_bytes(), b"\r\n"].concat());
        body
    }

    fn chain() -> Chain {
        chunked_chain(CHUNKED, NAMES, &[("content-length", "66824")], SEED)
    }

    fn trailer_chain() -> Chain {
        let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
        chunked_chain(payload, TRAILER_NAMES, &[("x-amz-trailer", "x-amz-checksum-crc32c")], TRAILER_SEED)
    }

    /// Fed in pieces of `step` bytes.
    fn taken(
        payload: &str,
        chain: Chain,
        headers: &[(&str, &str)],
        body: &[u8],
        step: usize,
    ) -> Result<Vec<u8>, S3Error> {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            all.insert(name, value.parse().unwrap());
        }
        let head = Head { method: &Method::PUT, uri: &Uri::from_static("/"), headers: &all };
        let mut intake = Intake::of_object(&head, payload.parse()?, chain, 1 << 20)?;
        let mut content = Vec::new();
        for mut arrived in body.chunks(step) {
            while let Some(piece) = intake.next(&mut arrived)? {
                content.extend_from_slice(piece);
            }
        }
        intake.finish()?;
        Ok(content)
    }

    #[test]
    fn awss_example_in_chunks_is_accepted_however_it_arrives() {
        let body = framed(SIGNATURES, "");
        for step in [1, 17, 4096, usize::MAX] {
            let length = [("x-amz-decoded-content-length", "66560")];
            let content = taken(CHUNKED, chain(), &length, &body, step.min(body.len())).unwrap();
            assert_eq!(content, vec![b'a'; 66_560]);
        }
    }

    #[test]
    fn awss_example_with_a_trailer_is_accepted_and_its_trailer_checked() {
        let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
        let headers = [("x-amz-decoded-content-length", "66560"), ("x-amz-trailer", "x-amz-checksum-crc32c")];
        let send = |trailer: &str| {
            taken(payload, trailer_chain(), &headers, &framed(TRAILER_SIGNATURES, trailer), 1000)
        };

        assert_eq!(send(TRAILER).unwrap().len(), 66_560);
        for trailer in [String::new(), TRAILER.replace("sOO8", "sOO9"), TRAILER.replace("d81f", "d81e")] {
            assert!(matches!(send(&trailer), Err(S3Error::SignatureDoesNotMatch)), "{trailer}");
        }
    }

    #[test]
    fn no_byte_of_a_signed_body_can_be_changed() {
        let body = framed(SIGNATURES, "");
        let length = [("x-amz-decoded-content-length", "66560")];
        // Every byte of the framing, and some of the content.
        let framing = (0..90).chain(65_620..65_720).chain(66_640..body.len() - 2);
        for at in framing.chain((0..body.len() - 2).step_by(4999)) {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(taken(CHUNKED, chain(), &length, &changed, 4096).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_body_that_ends_early_or_late_is_refused() {
        let payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
        let send = |body: &[u8]| {
            let length = [("x-amz-decoded-content-length", "3")];
            taken(payload, chain(), &length, body, 2).map(|content| String::from_utf8(content).unwrap())
        };
        let long_line = [b"3;".to_vec(), vec![b'x'; 2000], b"\r\nabc\r\n0\r\n\r\n".to_vec()].concat();
        let long_tail = [b"3\r\nabc\r\n0\r\n".to_vec(), vec![b'x'; 5000]].concat();

        assert_eq!(send(b"3\r\nabc\r\n0\r\n\r\n").unwrap(), "abc");
        assert_eq!(send(b"1\r\na\r\n2;x=y\r\nbc\r\n00\r\nother: x\r\n\r\n").unwrap(), "abc");
        for body in [
            &b""[..],
            b"3",
            b"3\r\nabc",
            b"3\r\nabc\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\nabc\n0\n\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"-3\r\nabc\r\n0\r\n\r\n",
            b"\r\nabc\r\n0\r\n\r\n",
            b"ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
            b"2\r\nab\r\n0\r\n\r\n",
            b"4\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\r\n0\r\nno trailer\r\n",
            &long_line,
            &long_tail,
        ] {
            assert!(
                matches!(send(body), Err(S3Error::IncompleteBody)),
                "{}",
                String::from_utf8_lossy(&body[..body.len().min(80)])
            );
        }
    }

    #[test]
    fn too_much_is_refused_before_it_comes() {
        let send = |payload: &str, headers: &[(&str, &str)], body: &[u8]| {
            taken(payload, chain(), headers, body, 4096)
        };
        let streaming = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

        let announced = send("UNSIGNED-PAYLOAD", &[("content-length", "1048577")], b"");
        assert!(matches!(announced, Err(S3Error::EntityTooLarge)));
        let announced = send(streaming, &[("x-amz-decoded-content-length", "1048577")], b"");
        assert!(matches!(announced, Err(S3Error::EntityTooLarge)));
        let unannounced = send("UNSIGNED-PAYLOAD", &[], &vec![0; (1 << 20) + 1]);
        assert!(matches!(unannounced, Err(S3Error::EntityTooLarge)));
        assert!(matches!(send(streaming, &[], b""), Err(S3Error::MissingContentLength)));
    }
}
