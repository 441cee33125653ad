//! Credentials for uploading build contexts. The uploads themselves come in by another door, [`crate::objects`].

use atoll_api::rest::{ErrorBody, StorageAccessDto};
use axum::Json;
use axum::extract::State;

use super::RestState;
use super::door::Door;
use super::visitor::Visitor;
use crate::objects::{BUCKET, Issued, REGION};

/// Valid for 45 minutes, through every node.
#[utoipa::path(
    get, path = "/object-storage/push-access", operation_id = "getPushAccess", tag = "object-storage", security(("bearer" = [])),
    responses((status = 200, body = StorageAccessDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn push_access(State(state): State<RestState>, visitor: Visitor) -> Json<StorageAccessDto> {
    let organization_id = visitor.caller.organization_id;
    let Issued { access_key, secret, session_token } = state.objects.issue(organization_id);
    Json(StorageAccessDto {
        access_key,
        secret,
        session_token,
        storage_url: storage_door(&visitor.door, state.settings.https_base.as_ref()).base(),
        organization_id,
        bucket: BUCKET.to_owned(),
        region: REGION.to_owned(),
    })
}

/// The door that the client came through, where that is one with TLS; else this node's own with TLS: the Python SDK
/// uploads to no other. Without any, the other SDKs still can.
fn storage_door<'a>(used: &'a Door, https_base: Option<&'a Door>) -> &'a Door {
    match used.is_secure() {
        true => used,
        false => https_base.unwrap_or(used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_go_to_a_door_with_tls_if_there_is_one() {
        let door = |text: &str| text.parse::<Door>().unwrap();
        let (plain, secure, own) = (door("http://a:1"), door("https://b"), door("https://c:2"));

        assert_eq!(storage_door(&secure, Some(&own)), &secure);
        assert_eq!(storage_door(&plain, Some(&own)), &own);
        assert_eq!(storage_door(&plain, None), &plain);
    }
}
