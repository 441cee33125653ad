//! What a path below `/v2/` asks for. A repository's name may hold slashes, so paths are read from their end.

use atoll_api::ids::OrganizationId;
use atoll_runner::image::Digest;
use atoll_runner::store::{Reference, Version};

use super::errors::RegistryError;

const QUERY_PAIRS_MAX: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/v2/`: whether this is a registry and the credentials are good.
    Base,
    Catalog,
    Tags(Repository),
    Manifest(Repository, Version),
    Blob(Repository, Digest),
    /// Where uploads begin.
    Uploads(Repository),
    /// Its id is read by whoever knows the uploads.
    Upload(Repository, String),
    Referrers,
}

/// One of the caller's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    pub organization_id: OrganizationId,
    /// Without the organization.
    pub path: String,
    /// As the client wrote it: what links are made with.
    pub written: String,
}

impl Target {
    /// `path` is the request's, still encoded.
    pub fn parse(path: &str, caller: OrganizationId) -> Result<Target, RegistryError> {
        let path = decoded(path)?;
        let rest = path.strip_prefix("/v2").unwrap_or(&path);
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        match rest {
            "" => return Ok(Target::Base),
            "_catalog" => return Ok(Target::Catalog),
            _ => {}
        }
        let repository = |written: &str| Repository::parse(written, caller);
        if let Some(written) = rest.strip_suffix("/tags/list") {
            return Ok(Target::Tags(repository(written)?));
        }
        if let Some(written) = rest.strip_suffix("/blobs/uploads/").or(rest.strip_suffix("/blobs/uploads")) {
            return Ok(Target::Uploads(repository(written)?));
        }
        let (above, last) = rest.rsplit_once('/').ok_or_else(|| no_such_path(&path))?;
        if let Some(written) = above.strip_suffix("/blobs/uploads") {
            return Ok(Target::Upload(repository(written)?, last.to_owned()));
        }
        if let Some(written) = above.strip_suffix("/blobs") {
            return Ok(Target::Blob(repository(written)?, digest(last)?));
        }
        if let Some(written) = above.strip_suffix("/manifests") {
            return Ok(Target::Manifest(repository(written)?, version(last)?));
        }
        if let Some(written) = above.strip_suffix("/referrers") {
            repository(written)?;
            return Ok(Target::Referrers);
        }
        Err(no_such_path(&path))
    }
}

impl Repository {
    fn parse(written: &str, caller: OrganizationId) -> Result<Repository, RegistryError> {
        let path = match written.split_once('/') {
            Some((first, path)) => match first.parse::<uuid::Uuid>() {
                Ok(organization) if organization == caller.0 => path,
                Ok(_) => {
                    return Err(RegistryError::Denied(
                        "the API key belongs to another organization than the repository".to_owned(),
                    ));
                }
                Err(_) => written,
            },
            None => written,
        };
        let repository =
            Repository { organization_id: caller, path: path.to_owned(), written: written.to_owned() };
        // Whatever is a name with a tag is one with any other.
        repository.reference(Version::Tag("latest".to_owned()))?;
        Ok(repository)
    }

    /// As the store knows it.
    pub fn reference(&self, version: Version) -> Result<Reference, RegistryError> {
        Reference::local(&self.organization_id.to_string(), &self.path, version)
            .map_err(|error| RegistryError::NameInvalid(error.to_string()))
    }

    /// `/v2/<name>/<rest>`.
    pub fn location(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.written)
    }
}

pub fn digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|_| {
        RegistryError::DigestInvalid(format!("{:?} is not sha256: and 64 digits of 0-9a-f", short(text)))
    })
}

fn version(text: &str) -> Result<Version, RegistryError> {
    if text.contains(':') {
        return Ok(Version::Digest(digest(text)?));
    }
    text.parse().map_err(|_| RegistryError::TagInvalid(format!("{:?} is not a tag", short(text))))
}

/// `a=b&c=d`, decoded.
pub fn query(text: &str) -> Result<Vec<(String, String)>, RegistryError> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(QUERY_PAIRS_MAX);
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(name)?, decoded(value)?))
    };
    pairs.map(pair).collect()
}

/// A `+` stays what it is: none of our values has a space, and media types have a plus.
fn decoded(text: &str) -> Result<String, RegistryError> {
    let bad = || RegistryError::NameInvalid("the address is not valid percent-encoded UTF-8".to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let mut byte = [0];
        let digits = after.get(..2).ok_or_else(bad)?;
        hex::decode_to_slice(digits, &mut byte).map_err(|_| bad())?;
        bytes.push(byte[0]);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn no_such_path(path: &str) -> RegistryError {
    RegistryError::NoSuchPath(format!("{:?} is no path of a registry", short(path)))
}

/// Nobody's mistake is worth repeating in full.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: OrganizationId = OrganizationId(uuid::Uuid::from_u128(1));

    fn parsed(path: &str) -> Result<Target, RegistryError> {
        Target::parse(path, US)
    }

    fn repository(written: &str, path: &str) -> Repository {
        Repository { organization_id: US, path: path.to_owned(), written: written.to_owned() }
    }

    #[test]
    fn each_path_is_read_from_its_end() {
        let digest = Digest::of(b"x");
        let own = format!("{US}/app");
        for (path, target) in [
            ("/v2".to_owned(), Target::Base),
            ("/v2/".to_owned(), Target::Base),
            ("/v2/_catalog".to_owned(), Target::Catalog),
            ("/v2/app/tags/list".to_owned(), Target::Tags(repository("app", "app"))),
            (format!("/v2/{own}/tags/list"), Target::Tags(repository(&own, "app"))),
            ("/v2/a/b/c/tags/list".to_owned(), Target::Tags(repository("a/b/c", "a/b/c"))),
            ("/v2/tags/list/tags/list".to_owned(), Target::Tags(repository("tags/list", "tags/list"))),
            (
                "/v2/blobs/manifests/v1".to_owned(),
                Target::Manifest(repository("blobs", "blobs"), "v1".parse().unwrap()),
            ),
            (
                format!("/v2/app/manifests/{digest}"),
                Target::Manifest(repository("app", "app"), Version::Digest(digest)),
            ),
            (
                format!("/v2/app/blobs/sha256%3A{}", digest.hex()),
                Target::Blob(repository("app", "app"), digest),
            ),
            ("/v2/app/blobs/uploads/".to_owned(), Target::Uploads(repository("app", "app"))),
            ("/v2/app/blobs/uploads".to_owned(), Target::Uploads(repository("app", "app"))),
            (
                "/v2/app/blobs/uploads/12-ab".to_owned(),
                Target::Upload(repository("app", "app"), "12-ab".to_owned()),
            ),
            (format!("/v2/app/referrers/{digest}"), Target::Referrers),
        ] {
            assert_eq!(parsed(&path), Ok(target), "{path}");
        }
    }

    #[test]
    fn what_is_no_path_of_ours_is_refused_by_its_reason() {
        let other = uuid::Uuid::from_u128(2);
        let long = "a".repeat(300);
        for (path, status) in [
            ("/v2/app".to_owned(), 404),
            ("/v2/app/what/ever".to_owned(), 404),
            ("/v2/manifests/v1".to_owned(), 404),
            ("/v2//manifests/v1".to_owned(), 400),
            ("/v2/../app/manifests/v1".to_owned(), 400),
            ("/v2/App/manifests/v1".to_owned(), 400),
            ("/v2/a b/manifests/v1".to_owned(), 400),
            ("/v2/a%2/manifests/v1".to_owned(), 400),
            ("/v2/a%ff/manifests/v1".to_owned(), 400),
            (format!("/v2/{long}/manifests/v1"), 400),
            ("/v2/app/manifests/-v1".to_owned(), 400),
            ("/v2/app/manifests/".to_owned(), 400),
            ("/v2/app/manifests/sha256:12".to_owned(), 400),
            ("/v2/app/manifests/sha512:12".to_owned(), 400),
            ("/v2/app/blobs/latest".to_owned(), 400),
            (format!("/v2/{other}/app/manifests/v1"), 403),
        ] {
            let refused = parsed(&path).map_err(|error| error.status(&http::Method::GET).as_u16());
            assert_eq!(refused, Err(status), "{path}");
        }
    }

    #[test]
    fn queries_are_decoded_and_bounded() {
        let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];

        assert_eq!(query("digest=sha256%3aab").unwrap(), one("digest", "sha256:ab"));
        assert_eq!(query("mount=a%2Fb").unwrap(), one("mount", "a/b"));
        assert!(query("").unwrap().is_empty());
        assert_eq!(query(&"a=b&".repeat(100)).unwrap().len(), QUERY_PAIRS_MAX);
        assert!(query("a=%zz").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_something_or_refused(path in ".{0,200}", query_text in ".{0,100}") {
            let _ = parsed(&format!("/v2/{path}"));
            let _ = query(&query_text);
        }
    }
}
