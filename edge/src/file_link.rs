//! Finds a signed link to a file in a toolbox request. What a link signs is all that the sandbox gets to see of the target.

use std::borrow::Cow;

use atoll_api::file_link::{FileLink, FileOperation};
use http::Method;

use crate::target;

/// `None`: no signed link. `target` is what the toolbox is asked for. A parameter that stands there twice signs nothing: two readers
/// could take different ones.
pub fn find(method: &Method, target: &[u8]) -> Option<FileLink> {
    let (path, query) = target::split_query(target);
    let operation = [FileOperation::Download, FileOperation::Upload]
        .into_iter()
        .find(|operation| path == operation.path().as_bytes() && method == operation.method())?;
    let only = |wanted: &str| {
        let mut values =
            form_urlencoded::parse(query?).filter(|(name, _)| name == wanted).map(|(_, value)| value);
        let value = values.next()?;
        values.next().is_none().then(|| Cow::into_owned(value))
    };
    Some(FileLink {
        operation,
        signature: only("signature")?,
        path: only("path").filter(|path| !path.is_empty())?,
        expires: only("expires")?,
    })
}

/// The target with nothing in it but what was signed.
pub fn target_of(link: &FileLink) -> Vec<u8> {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("path", &link.path).finish();
    format!("{}?{query}", link.operation.path()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_where_an_sdk_writes_one() {
        let target = b"/files/download?path=%2Ftmp%2Fa+b%26c&expires=12&signature=v1_x-_";

        let link = find(&Method::GET, target).unwrap();

        assert_eq!((link.operation, link.path.as_str()), (FileOperation::Download, "/tmp/a b&c"));
        assert_eq!((link.expires.as_str(), link.signature.as_str()), ("12", "v1_x-_"));
        assert_eq!(target_of(&link), b"/files/download?path=%2Ftmp%2Fa+b%26c");
        let upload = find(&Method::POST, b"/files/upload-v2?signature=s&path=x&expires=0").unwrap();
        assert_eq!(target_of(&upload), b"/files/upload-v2?path=x");
    }

    #[test]
    fn anything_else_is_none() {
        let query = "path=x&expires=1&signature=s";
        for (method, target) in [
            (Method::POST, format!("/files/download?{query}")),
            (Method::HEAD, format!("/files/download?{query}")),
            (Method::GET, format!("/files/upload-v2?{query}")),
            (Method::POST, format!("/files/upload?{query}")),
            (Method::DELETE, format!("/files?{query}")),
            (Method::GET, format!("/files/download/?{query}")),
            (Method::GET, format!("/files/%64ownload?{query}")),
            (Method::GET, format!("/files/download?{query}&path=y")),
            (Method::GET, format!("/files/download?{query}&p%61th=y")),
            (Method::GET, format!("/files/download?{query}&signature=")),
            (Method::GET, "/files/download?path=&expires=1&signature=s".to_owned()),
            (Method::GET, "/files/download?path=x&expires=1".to_owned()),
            (Method::GET, "/files/download?path=x&signature=s".to_owned()),
            (Method::GET, "/files/download".to_owned()),
        ] {
            assert_eq!(find(&method, target.as_bytes()), None, "{method} {target}");
        }
    }
}
