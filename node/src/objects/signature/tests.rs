//! Against the examples of AWS's own documentation.

use super::*;

/// The examples of AWS's own documentation: "Authenticating Requests (AWS Signature Version 4)" of Amazon S3.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// 2013-05-24 00:00:00
const NOW_S: u64 = 1_369_353_600;

struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Request {
    fn new(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
        let mut all = HeaderMap::new();
        all.insert("host", "examplebucket.s3.amazonaws.com".parse().unwrap());
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            all.append(name, value.parse().unwrap());
        }
        Request { method: method.parse().unwrap(), uri: target.parse().unwrap(), headers: all }
    }

    /// With the token that AWS's examples don't have and nobody looks at here.
    fn signed(method: &str, target: &str, headers: &[(&str, &str)], names: &str, signature: &str) -> Request {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders={names},Signature={signature}"
        );
        let mut all = headers.to_vec();
        all.push(("x-amz-date", "20130524T000000Z"));
        all.push(("authorization", &authorization));
        Request::new(method, target, &all)
    }

    fn head(&self) -> Head<'_> {
        Head { method: &self.method, uri: &self.uri, headers: &self.headers }
    }

    fn check_at(&self, now_s: u64) -> Result<Chain, S3Error> {
        let query = Query::parse(self.uri.query().unwrap_or_default()).unwrap();
        let payload = self.head().text("x-amz-content-sha256").unwrap_or("UNSIGNED-PAYLOAD");
        // As `read`, with a session token that is not among the signed headers.
        let claim = match query.get("X-Amz-Signature") {
            Some(signature) => Claim::new(
                query.get("X-Amz-Credential").unwrap(),
                query.get("X-Amz-Date").unwrap(),
                Some("t"),
                query.get("X-Amz-SignedHeaders").unwrap(),
                signature,
                payload,
                Place::Query { expires_s: query.get("X-Amz-Expires").unwrap().parse().unwrap() },
                "us-east-1",
            )?,
            None => {
                let authorization = self.head().text("authorization").unwrap();
                let field = |name: &str| {
                    authorization.split([',', ' ']).find_map(|field| field.strip_prefix(name)).unwrap()
                };
                Claim::new(
                    field("Credential="),
                    self.head().text("x-amz-date").unwrap(),
                    Some("t"),
                    field("SignedHeaders="),
                    field("Signature="),
                    payload,
                    Place::Header,
                    "us-east-1",
                )?
            }
        };
        claim.check(&self.head(), &query, SECRET, now_s)
    }

    fn check(&self) -> Result<Chain, S3Error> {
        self.check_at(NOW_S)
    }
}

fn get_object() -> Request {
    Request::signed(
        "GET",
        "/test.txt",
        &[("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY)],
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    )
}

fn presigned() -> Request {
    Request::new(
        "GET",
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
        &[],
    )
}

/// The upload in chunks of AWS's documentation, with the signature of its head.
pub(in crate::objects) fn chunked_chain(
    payload: &str,
    names: &str,
    extra: &[(&str, &str)],
    signature: &str,
) -> Chain {
    let mut headers = vec![
        ("content-encoding", "aws-chunked"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-content-sha256", payload),
    ];
    headers.extend(extra);
    let mut request = Request::signed("PUT", "/examplebucket/chunkObject.txt", &headers, names, signature);
    request.headers.insert("host", "s3.amazonaws.com".parse().unwrap());
    request.check().unwrap()
}

#[test]
fn awss_examples_are_accepted() {
    get_object().check().unwrap();
    presigned().check().unwrap();
    let put = Request::signed(
        "PUT",
        "/test$file.text",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
        ],
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    );
    put.check().unwrap();
    for (target, signature) in [
        ("/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ("/?prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ] {
        let names = "host;x-amz-content-sha256;x-amz-date";
        Request::signed("GET", target, &[("x-amz-content-sha256", EMPTY)], names, signature)
            .check()
            .unwrap_or_else(|error| panic!("{target}: {error}"));
    }
}

#[test]
fn a_changed_request_is_refused() {
    let changes: [fn(&mut Request); 6] = [
        |request| request.method = Method::PUT,
        |request| request.uri = "/test.txt2".parse().unwrap(),
        |request| request.uri = "/test.txt?acl".parse().unwrap(),
        |request| drop(request.headers.insert("range", "bytes=0-8".parse().unwrap())),
        |request| drop(request.headers.insert("host", "other".parse().unwrap())),
        |request| assert!(request.headers.append("range", "bytes=0-9".parse().unwrap())),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut request = get_object();
        change(&mut request);
        assert!(matches!(request.check(), Err(S3Error::SignatureDoesNotMatch)), "change {at}");
    }
    let mut request = get_object();
    request.headers.insert("x-amz-acl", "public-read".parse().unwrap());
    assert!(matches!(request.check(), Err(S3Error::AccessDenied(_))));
}

#[test]
fn old_and_future_requests_are_refused() {
    for now_s in [NOW_S - SKEW_S_MAX - 1, NOW_S + SKEW_S_MAX + 1] {
        assert!(matches!(get_object().check_at(now_s), Err(S3Error::RequestTimeTooSkewed)));
    }
    get_object().check_at(NOW_S + SKEW_S_MAX).unwrap();
    presigned().check_at(NOW_S + 86_400).unwrap();
    assert!(matches!(presigned().check_at(NOW_S + 86_401), Err(S3Error::AccessDenied(_))));
    assert!(matches!(presigned().check_at(NOW_S - SKEW_S_MAX - 1), Err(S3Error::RequestTimeTooSkewed)));
}

#[test]
fn a_malformed_signature_is_told_what_it_should_be() {
    let region = "us-east-1";
    let read = |headers: &[(&str, &str)]| {
        let request = Request::new("GET", "/b", headers);
        Claim::read(&request.head(), &Query::parse("").unwrap(), region).map(|_| ())
    };
    let credential =
        |scope: &str| format!("AWS4-HMAC-SHA256 Credential=A/{scope}, SignedHeaders=host, Signature=00");
    let good = credential("20130524/us-east-1/s3/aws4_request");
    let common =
        [("x-amz-date", "20130524T000000Z"), ("x-amz-content-sha256", EMPTY), ("x-amz-security-token", "t")];
    let with = |authorization: &str| read(&[&common[..], &[("authorization", authorization)]].concat());

    assert!(with(&good).is_ok());
    assert!(matches!(read(&common), Err(S3Error::AccessDenied(_))));
    for bad in [
        "Bearer dtn_1",
        "AWS4-HMAC-SHA256 Credential=A",
        &credential("20130525/us-east-1/s3/aws4_request"),
        &credential("20130524/eu-west-1/s3/aws4_request"),
        &credential("20130524/us-east-1/sts/aws4_request"),
        &credential("20130524"),
    ] {
        assert!(matches!(with(bad), Err(S3Error::AuthorizationHeaderMalformed(_))), "{bad}");
    }
    for (name, value) in
        [("x-amz-date", "2013-05-24"), ("x-amz-date", "20131324T000000Z"), ("x-amz-date", "é")]
    {
        let mut headers = common.to_vec();
        headers[0] = (name, value);
        headers.push(("authorization", &good));
        assert!(read(&headers).is_err(), "{value}");
    }
    for missing in 0..common.len() {
        let mut headers = common.to_vec();
        headers.remove(missing);
        headers.push(("authorization", &good));
        assert!(read(&headers).is_err(), "{}", common[missing].0);
    }
}

#[test]
fn paths_are_escaped_in_one_way() {
    for (path, canonical) in
        [("/a b", "/a%20b"), ("/a%20b", "/a%20b"), ("/%7e/%2F", "/~/%2F"), ("/%zz%4", "/%25zz%254")]
    {
        assert_eq!(canonical_path(path), canonical);
    }
}
