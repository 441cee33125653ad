//! Who asks: the API key that a registry's client sends as a password, or as a bearer token.

use atoll_api::access::Caller;
use atoll_api::tokens::ApiKey;
use atoll_mesh::dial::Directory;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::errors::RegistryError;

pub async fn caller(directory: &dyn Directory, headers: &HeaderMap) -> Result<Caller, RegistryError> {
    Ok(directory.api_key(&api_key(headers)?).await?)
}

fn api_key(headers: &HeaderMap) -> Result<ApiKey, RegistryError> {
    const WANTED: RegistryError = RegistryError::Unauthorized(
        "an API key is required: log in with any user name, and the key (dtn_…) as the password",
    );
    let shown = headers.get(AUTHORIZATION).ok_or(WANTED)?;
    let (scheme, shown) = shown.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(WANTED)?;
    let key = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => shown.trim().to_owned(),
        "basic" => {
            let pair = STANDARD.decode(shown.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
            // A user name holds no colon.
            let pair = pair.ok_or(WANTED)?;
            pair.split_once(':').map(|(_, password)| password.to_owned()).ok_or(WANTED)?
        }
        _ => return Err(WANTED),
    };
    key.parse().map_err(|_| {
        RegistryError::Unauthorized("the password is no API key: expected dtn_ and 64 hex digits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Result<ApiKey, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        api_key(&headers)
    }

    #[test]
    fn a_key_is_a_password_or_a_bearer_token() {
        let key = ApiKey::from_random([7; 32]);
        let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));

        for value in [
            basic(format!("anybody:{}", key.reveal())),
            basic(format!(":{}", key.reveal())).replace("Basic", "BASIC"),
            format!("Bearer {}", key.reveal()),
        ] {
            assert_eq!(shown(&value).unwrap().hash(), key.hash(), "{value}");
        }
        for value in [
            "Basic".to_owned(),
            "Basic !".to_owned(),
            basic(key.reveal().to_owned()),
            basic(format!("anybody:{}x", key.reveal())),
            basic(format!("{}:", key.reveal())),
            "Digest x".to_owned(),
            "Bearer dtn_1".to_owned(),
        ] {
            assert!(matches!(shown(&value), Err(RegistryError::Unauthorized(_))), "{value}");
        }
        assert!(matches!(api_key(&HeaderMap::new()), Err(RegistryError::Unauthorized(_))));
    }
}
