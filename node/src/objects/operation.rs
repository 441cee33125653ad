//! What a request asks for, by method, path and query. Pure; what this bucket does not have is refused by name.

use atoll_api::ids::OrganizationId;
use http::{Method, Uri};

use super::BUCKET;
use super::contexts::ContextHash;
use super::errors::S3Error;
use super::signature::{escaped, unescaped};

/// The only file of a context.
pub(super) const FILE: &str = "context.tar";
const PARAMETERS_MAX: usize = 64;
/// As S3.
pub(super) const PARTS_MAX: u32 = 10_000;
const KEYS_MAX: usize = 1000;

/// A query, decoded.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Result<Query, S3Error> {
        let decoded = |text: &str| {
            String::from_utf8(unescaped(&text.replace('+', " ")))
                .map_err(|_| S3Error::InvalidArgument("the query must be UTF-8".to_owned()))
        };
        let mut parameters = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parameters.push((decoded(name)?, decoded(value)?));
        }
        match parameters.len() <= PARAMETERS_MAX {
            true => Ok(Query(parameters)),
            false => Err(S3Error::InvalidArgument("the query has too many parameters".to_owned())),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// As it is signed: without the signature itself.
    pub(super) fn canonical(&self) -> String {
        let mut pairs: Vec<(String, String)> = self
            .0
            .iter()
            .filter(|(name, _)| name != "X-Amz-Signature")
            .map(|(name, value)| (escaped(name.as_bytes()), escaped(value.as_bytes())))
            .collect();
        pairs.sort();
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }

    /// The name of a parameter that is none of `known`, and would change what is asked for.
    fn other_than(&self, known: &[&str]) -> Option<&str> {
        let is_neutral = |name: &str| name == "x-id" || name.to_ascii_lowercase().starts_with("x-amz-");
        let mut names = self.0.iter().map(|(name, _)| name.as_str());
        names.find(|name| !known.contains(name) && !is_neutral(name))
    }
}

/// One context of one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) organization_id: OrganizationId,
    pub(super) hash: ContextHash,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{FILE}", self.organization_id, self.hash)
    }
}

impl std::str::FromStr for Key {
    type Err = S3Error;

    fn from_str(text: &str) -> Result<Key, S3Error> {
        let parsed = || {
            let mut parts = text.splitn(3, '/');
            let organization_id = organization(parts.next()?)?;
            let hash = parts.next()?.parse().ok()?;
            (parts.next()? == FILE).then_some(Key { organization_id, hash })
        };
        parsed().ok_or_else(|| {
            S3Error::InvalidArgument(format!(
                "a key in this bucket is <organization id>/<hash>/{FILE}, the hash 32 to 64 digits of 0-9a-f"
            ))
        })
    }
}

/// As the API writes it, so that one context has one key.
fn organization(text: &str) -> Option<OrganizationId> {
    let organization_id = OrganizationId(text.parse().ok()?);
    (organization_id.to_string() == text).then_some(organization_id)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    HeadBucket,
    Location,
    List(List),
    Head(Key),
    Get(Key),
    Put(Key),
    Delete(Key),
    Begin(Key),
    PutPart { key: Key, upload: String, number: u32 },
    Complete { key: Key, upload: String },
    Abort { key: Key, upload: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    pub(super) organization_id: OrganizationId,
    pub(super) prefix: String,
    /// Only keys after this one.
    pub(super) after: String,
    pub(super) keys_max: usize,
    pub(super) delimiter: Option<String>,
}

impl Operation {
    pub(super) fn parse(method: &Method, uri: &Uri, query: &Query) -> Result<Operation, S3Error> {
        let rest = uri.path().strip_prefix('/').and_then(|path| path.strip_prefix(BUCKET));
        let key = match rest {
            Some("" | "/") => return Operation::of_bucket(method, query),
            Some(key) => key.strip_prefix('/').ok_or(S3Error::NoSuchBucket)?,
            None => return Err(S3Error::NoSuchBucket),
        };
        let key = String::from_utf8(unescaped(key));
        let key: Key =
            key.map_err(|_| S3Error::InvalidArgument("a key must be UTF-8".to_owned()))?.parse()?;
        Operation::of_key(method, key, query)
    }

    fn of_bucket(method: &Method, query: &Query) -> Result<Operation, S3Error> {
        let known = |names: &[&str]| match query.other_than(names) {
            Some(name) => Err(S3Error::NotImplemented(format!("no operation on the bucket has {name}"))),
            None => Ok(()),
        };
        match *method {
            Method::HEAD => known(&[]).map(|()| Operation::HeadBucket),
            Method::GET if query.get("location").is_some() => {
                known(&["location"]).map(|()| Operation::Location)
            }
            Method::GET if query.get("list-type") == Some("2") => {
                known(&[
                    "list-type",
                    "prefix",
                    "max-keys",
                    "continuation-token",
                    "start-after",
                    "delimiter",
                    "encoding-type",
                    "fetch-owner",
                ])?;
                List::parse(query).map(Operation::List)
            }
            Method::GET => Err(S3Error::NotImplemented("a bucket is listed with list-type=2".to_owned())),
            _ => Err(S3Error::MethodNotAllowed(method.clone())),
        }
    }

    fn of_key(method: &Method, key: Key, query: &Query) -> Result<Operation, S3Error> {
        let known = |names: &[&str]| match query.other_than(names) {
            Some(name) => Err(S3Error::NotImplemented(format!("no operation on a context has {name}"))),
            None => Ok(()),
        };
        let upload = || query.get("uploadId").map(str::to_owned).ok_or(S3Error::NoSuchUpload);
        match *method {
            Method::HEAD => known(&[]).map(|()| Operation::Head(key)),
            Method::GET => {
                // Presigned URLs may say how the answer is to be labelled.
                known(&["response-content-type", "response-content-disposition"])
                    .map(|()| Operation::Get(key))
            }
            Method::PUT if query.get("uploadId").is_some() || query.get("partNumber").is_some() => {
                known(&["uploadId", "partNumber"])?;
                let number = query.get("partNumber").and_then(|number| number.parse().ok());
                let number = number.filter(|number| (1..=PARTS_MAX).contains(number)).ok_or_else(|| {
                    S3Error::InvalidArgument(format!("partNumber must be a number from 1 to {PARTS_MAX}"))
                })?;
                Ok(Operation::PutPart { key, upload: upload()?, number })
            }
            Method::PUT => known(&[]).map(|()| Operation::Put(key)),
            Method::POST if query.get("uploads").is_some() => {
                known(&["uploads"]).map(|()| Operation::Begin(key))
            }
            Method::POST => {
                known(&["uploadId"])?;
                Ok(Operation::Complete { key, upload: upload()? })
            }
            Method::DELETE if query.get("uploadId").is_some() => {
                known(&["uploadId"])?;
                Ok(Operation::Abort { key, upload: upload()? })
            }
            Method::DELETE => known(&[]).map(|()| Operation::Delete(key)),
            _ => Err(S3Error::MethodNotAllowed(method.clone())),
        }
    }

    /// Whose context it is about; `None`: it is about nobody's.
    pub(super) fn organization_id(&self) -> Option<OrganizationId> {
        match self {
            Operation::HeadBucket | Operation::Location => None,
            Operation::List(list) => Some(list.organization_id),
            Operation::Head(key)
            | Operation::Get(key)
            | Operation::Put(key)
            | Operation::Delete(key)
            | Operation::Begin(key)
            | Operation::PutPart { key, .. }
            | Operation::Complete { key, .. }
            | Operation::Abort { key, .. } => Some(key.organization_id),
        }
    }
}

impl List {
    fn parse(query: &Query) -> Result<List, S3Error> {
        let prefix = query.get("prefix").unwrap_or_default().to_owned();
        let organization_id = prefix.split('/').next().and_then(organization).ok_or(
            S3Error::AccessDenied("the prefix must begin with the credentials' own organization id"),
        )?;
        let keys_max = match query.get("max-keys").map(str::parse::<usize>) {
            None => KEYS_MAX,
            Some(Ok(keys_max)) => keys_max.min(KEYS_MAX),
            Some(Err(_)) => return Err(S3Error::InvalidArgument("max-keys must be a number".to_owned())),
        };
        // The token is the last key of the page before: it says nothing that the client doesn't know.
        let after =
            query.get("continuation-token").or(query.get("start-after")).unwrap_or_default().to_owned();
        let delimiter = query.get("delimiter").filter(|delimiter| !delimiter.is_empty()).map(str::to_owned);
        Ok(List { organization_id, prefix, after, keys_max, delimiter })
    }

    /// The one context that the prefix can lead to, if it names one.
    pub(super) fn only(&self) -> Option<Key> {
        let rest = self.prefix.strip_prefix(&format!("{}/", self.organization_id))?;
        let (hash, file) = rest.split_once('/')?;
        let hash = hash.parse().ok()?;
        FILE.starts_with(file).then_some(Key { organization_id: self.organization_id, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORGANIZATION: &str = "11111111-1111-1111-1111-111111111111";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn parsed(method: &str, target: &str) -> Result<Operation, S3Error> {
        let target =
            target.replace("ORG", ORGANIZATION).replace("KEY", &format!("{ORGANIZATION}/{HASH}/context.tar"));
        let uri: Uri = target.parse().unwrap();
        Operation::parse(&method.parse().unwrap(), &uri, &Query::parse(uri.query().unwrap_or_default())?)
    }

    fn key() -> Key {
        Key { organization_id: OrganizationId(ORGANIZATION.parse().unwrap()), hash: HASH.parse().unwrap() }
    }

    #[test]
    fn each_operation_is_known_by_its_form() {
        let upload = || "u".to_owned();
        for (method, target, expected) in [
            ("HEAD", "/atoll-contexts", Operation::HeadBucket),
            ("HEAD", "/atoll-contexts/", Operation::HeadBucket),
            ("GET", "/atoll-contexts/?location", Operation::Location),
            ("HEAD", "/atoll-contexts/KEY", Operation::Head(key())),
            ("GET", "/atoll-contexts/KEY?x-id=GetObject", Operation::Get(key())),
            ("PUT", "/atoll-contexts/KEY?x-id=PutObject", Operation::Put(key())),
            ("DELETE", "/atoll-contexts/KEY", Operation::Delete(key())),
            ("POST", "/atoll-contexts/KEY?uploads=", Operation::Begin(key())),
            ("POST", "/atoll-contexts/KEY?uploads", Operation::Begin(key())),
            (
                "PUT",
                "/atoll-contexts/KEY?partNumber=7&uploadId=u",
                Operation::PutPart { key: key(), upload: upload(), number: 7 },
            ),
            ("POST", "/atoll-contexts/KEY?uploadId=u", Operation::Complete { key: key(), upload: upload() }),
            ("DELETE", "/atoll-contexts/KEY?uploadId=u", Operation::Abort { key: key(), upload: upload() }),
        ] {
            assert_eq!(parsed(method, target).unwrap(), expected, "{method} {target}");
        }
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let other = "/atoll-contexts/ORG/0123456789abcdef0123456789abcdef";
        let long = format!("/atoll-contexts/ORG/{}/context.tar", "a".repeat(65));
        for target in [
            "/atoll-contexts/x",
            "/atoll-contexts/ORG/",
            "/atoll-contexts/ORG/../context.tar",
            "/atoll-contexts/ORG/0123456789ABCDEF0123456789abcdef/context.tar",
            "/atoll-contexts/%00",
            "/atoll-contexts/%ff",
            &long,
            &format!("{other}/other.tar"),
            &format!("{other}/context.tar/x"),
            &format!("{other}/%2e%2e"),
            "/atoll-contexts/11111111111111111111111111111111/0123456789abcdef0123456789abcdef/context.tar",
        ] {
            assert!(matches!(parsed("PUT", target), Err(S3Error::InvalidArgument(_))), "{target}");
        }
        for target in ["/", "/other/KEY", "/atoll-contextsx/KEY", "/atoll-contextsx"] {
            assert!(matches!(parsed("GET", target), Err(S3Error::NoSuchBucket)), "{target}");
        }
        for (method, target) in [
            ("GET", "/atoll-contexts?versions"),
            ("GET", "/atoll-contexts"),
            ("GET", "/atoll-contexts/KEY?acl"),
            ("PUT", "/atoll-contexts/KEY?tagging"),
            ("GET", "/atoll-contexts/KEY?uploadId=u"),
            ("HEAD", "/atoll-contexts/KEY?versionId=1"),
        ] {
            assert!(matches!(parsed(method, target), Err(S3Error::NotImplemented(_))), "{method} {target}");
        }
        for number in ["0", "10001", "-1", "x", ""] {
            let target = format!("/atoll-contexts/KEY?uploadId=u&partNumber={number}");
            assert!(matches!(parsed("PUT", &target), Err(S3Error::InvalidArgument(_))), "{number}");
        }
        assert!(matches!(parsed("PUT", "/atoll-contexts"), Err(S3Error::MethodNotAllowed(_))));
        assert!(matches!(parsed("PATCH", "/atoll-contexts/KEY"), Err(S3Error::MethodNotAllowed(_))));
        assert!(matches!(parsed("POST", "/atoll-contexts/KEY"), Err(S3Error::NoSuchUpload)));
    }

    #[test]
    fn a_list_is_of_one_organization() {
        let list = |query: &str| parsed("GET", &format!("/atoll-contexts/?list-type=2{query}"));

        let Operation::List(found) =
            list("&prefix=ORG%2F0123456789abcdef0123456789abcdef%2F&max-keys=1").unwrap()
        else {
            panic!("no list")
        };
        assert_eq!((found.keys_max, found.only()), (1, Some(key())));
        for (prefix, only) in
            [("ORG", None), ("ORG/01", None), ("ORG/0123456789abcdef0123456789abcdef/x", None)]
        {
            let Operation::List(found) = list(&format!("&prefix={prefix}")).unwrap() else {
                panic!("no list")
            };
            assert_eq!((found.organization_id, found.only()), (key().organization_id, only));
        }
        for query in ["", "&prefix=", "&prefix=x", "&prefix=11111111"] {
            assert!(matches!(list(query), Err(S3Error::AccessDenied(_))), "{query}");
        }
        assert!(matches!(list("&prefix=ORG&max-keys=x"), Err(S3Error::InvalidArgument(_))));
    }
}
