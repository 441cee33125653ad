//! The few XML documents of S3: written, and the one that is read.

use atoll_api::rest::Timestamp;
use quick_xml::Reader;
use quick_xml::escape::escape;
use quick_xml::events::Event;

use super::errors::S3Error;
use super::operation::{Key, PARTS_MAX};
use super::{BUCKET, REGION};

pub(super) const CONTENT_TYPE: &str = "application/xml";
const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
/// Ten thousand parts with our long tags, checksums and some space.
pub(super) const COMPLETE_BYTES_MAX: u64 = 8 << 20;

pub(super) fn error(code: &str, message: &str, resource: &str, request_id: &str) -> String {
    let (message, resource) = (escape(message), escape(resource));
    format!(
        "{HEAD}<Error><Code>{code}</Code><Message>{message}</Message><Resource>{resource}</Resource>\
         <RequestId>{request_id}</RequestId></Error>"
    )
}

/// Nothing stands for `us-east-1`, as S3 has it.
pub(super) fn location() -> String {
    let region = if REGION == "us-east-1" { "" } else { REGION };
    format!("{HEAD}<LocationConstraint xmlns=\"{NAMESPACE}\">{region}</LocationConstraint>")
}

pub(super) fn begun(key: &Key, upload: &str) -> String {
    format!(
        "{HEAD}<InitiateMultipartUploadResult xmlns=\"{NAMESPACE}\"><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
         <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
    )
}

pub(super) fn completed(key: &Key, tag: &str) -> String {
    format!(
        "{HEAD}<CompleteMultipartUploadResult xmlns=\"{NAMESPACE}\"><Location>/{BUCKET}/{key}</Location>\
         <Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>&quot;{tag}&quot;</ETag></CompleteMultipartUploadResult>"
    )
}

pub(super) struct Listed {
    pub(super) key: Key,
    pub(super) tag: String,
    pub(super) bytes: u64,
    pub(super) set_ms: u64,
}

pub(super) struct Page<'a> {
    pub(super) prefix: &'a str,
    pub(super) keys_max: usize,
    pub(super) contents: Vec<Listed>,
    pub(super) common_prefixes: Vec<String>,
    /// Where the next page goes on, if there is one.
    pub(super) next: Option<String>,
}

pub(super) fn listed(page: &Page<'_>) -> String {
    let mut xml = format!(
        "{HEAD}<ListBucketResult xmlns=\"{NAMESPACE}\"><Name>{BUCKET}</Name><Prefix>{}</Prefix>\
         <KeyCount>{}</KeyCount><MaxKeys>{}</MaxKeys><IsTruncated>{}</IsTruncated>",
        escape(page.prefix),
        page.contents.len() + page.common_prefixes.len(),
        page.keys_max,
        page.next.is_some(),
    );
    if let Some(next) = &page.next {
        xml.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", escape(next.as_str())));
    }
    for Listed { key, tag, bytes, set_ms } in &page.contents {
        xml.push_str(&format!(
            "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>&quot;{tag}&quot;</ETag>\
             <Size>{bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            Timestamp(*set_ms),
        ));
    }
    for prefix in &page.common_prefixes {
        xml.push_str(&format!(
            "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
            escape(prefix.as_str())
        ));
    }
    xml.push_str("</ListBucketResult>");
    xml
}

/// The number and tag of each part that an upload is completed with, as listed.
pub(super) fn parts(xml: &[u8]) -> Result<Vec<(u32, String)>, S3Error> {
    let mut reader = Reader::from_reader(xml);
    let mut parts = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let (mut number, mut tag) = (String::new(), String::new());
    loop {
        match reader.read_event().map_err(|_| S3Error::MalformedXML)? {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_owned());
                // Deep enough for whatever stands beside the tag of a part.
                if path.len() > 8 {
                    return Err(S3Error::MalformedXML);
                }
                if is_part(&path) {
                    number.clear();
                    tag.clear();
                }
            }
            Event::End(_) => {
                if is_part(&path) {
                    let number = number.trim().parse().map_err(|_| S3Error::MalformedXML)?;
                    parts.push((number, tag.trim().trim_matches('"').to_owned()));
                    if parts.len() > PARTS_MAX as usize {
                        return Err(S3Error::MalformedXML);
                    }
                }
                path.pop();
            }
            Event::Text(text) => {
                if let Some(field) = field(&path, &mut number, &mut tag) {
                    field.push_str(&text);
                }
            }
            Event::GeneralRef(reference) => {
                let known = match reference.resolve_char_ref().map_err(|_| S3Error::MalformedXML)? {
                    Some(character) => character,
                    None => match reference.as_ref() {
                        "quot" => '"',
                        "apos" => '\'',
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        _ => return Err(S3Error::MalformedXML),
                    },
                };
                if let Some(field) = field(&path, &mut number, &mut tag) {
                    field.push(known);
                }
            }
            Event::Eof if path.is_empty() && !parts.is_empty() => return Ok(parts),
            Event::Eof | Event::DocType(_) | Event::CData(_) => return Err(S3Error::MalformedXML),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

fn is_part(path: &[String]) -> bool {
    matches!(path, [root, part] if root == "CompleteMultipartUpload" && part == "Part")
}

fn field<'a>(path: &[String], number: &'a mut String, tag: &'a mut String) -> Option<&'a mut String> {
    let (name, parent) = path.split_last()?;
    match name.as_str() {
        "PartNumber" if is_part(parent) => Some(number),
        "ETag" if is_part(parent) => Some(tag),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_every_sdk_writes_them() {
        let expected = vec![(1, "a".to_owned()), (2, "b".to_owned())];
        for xml in [
            "<CompleteMultipartUpload><Part><ETag>\"a\"</ETag><PartNumber>1</PartNumber></Part><Part><ETag>\"b\"</ETag><PartNumber>2</PartNumber></Part></CompleteMultipartUpload>",
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><ETag>&quot;a&quot;</ETag><PartNumber>1</PartNumber></Part><Part><PartNumber>2</PartNumber><ETag>&#34;b&#x22;</ETag></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload>\n <Part>\n  <PartNumber> 1 </PartNumber><ChecksumCRC32>x</ChecksumCRC32><ETag>a</ETag>\n </Part><Part><ETag>b</ETag><PartNumber>2</PartNumber><Empty/></Part>\n</CompleteMultipartUpload>\n",
        ] {
            assert_eq!(parts(xml.as_bytes()).unwrap(), expected, "{xml}");
        }
    }

    #[test]
    fn other_xml_is_refused() {
        let deep = "<a>".repeat(100);
        let many = format!(
            "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
            "<Part><ETag>a</ETag><PartNumber>1</PartNumber></Part>".repeat(10_001)
        );
        for xml in [
            "",
            "x",
            "<CompleteMultipartUpload></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>a</ETag></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>a</ETag><PartNumber>x</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>a</ETag><PartNumber>1</PartNumber></Part>",
            "<CompleteMultipartUpload><Part><ETag>a</Part></CompleteMultipartUpload>",
            "<!DOCTYPE x [<!ENTITY e \"a\">]><CompleteMultipartUpload><Part><ETag>&e;</ETag><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><ETag>&e;</ETag><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
            "<Other><Part><ETag>a</ETag><PartNumber>1</PartNumber></Part></Other>",
            &deep,
            &many,
        ] {
            assert!(parts(xml.as_bytes()).is_err(), "{}", &xml[..xml.len().min(200)]);
        }
    }

    #[test]
    fn what_a_client_wrote_stays_text() {
        assert!(error("NoSuchKey", "<m>", "/a&<b>", "r").contains("/a&amp;&lt;b&gt;"));
    }
}
