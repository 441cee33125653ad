//! The REST door's shapes: exactly the fields, names and nullability that the public SDKs expect.
//! A field that the SDKs' models require is never left out; one that may be null is written as null.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

mod account;
mod catalogue;
mod object_storage;
mod sandbox;
mod service;
mod warm_pool;

pub use account::{ApiKeyList, Organization, OtelConfig, User, UserPublicKey};
pub use catalogue::{
    BuildInfo, BuildLogsUrl, CreateDockerRegistry, CreateSnapshot, DockerRegistry, PaginatedSnapshots,
    Region, RegionType, RegistryPushAccessDto, RegistryType, SnapshotDto, SnapshotState,
    UpdateDockerRegistry,
};
pub use object_storage::StorageAccessDto;
pub use sandbox::{
    BuildProgress, CreateBuildInfo, CreateSandbox, CreateSandboxSnapshot, ForkSandbox, ListSandboxesResponse,
    PortPreviewUrl, Sandbox, SandboxDesiredState, SandboxLabels, SandboxListItem, SandboxState,
    SandboxVolume, SignedPortPreviewUrl, SshAccessDto, SshAccessValidationDto, Start, ToolboxProxyUrl,
    UpdateSandboxNetworkSettings,
};
pub use service::{
    Announcement, Cluster, ClusterGroup, ClusterNode, CreateJoinToken, DaytonaConfiguration, Health,
    HealthIndicator, JoinToken, OidcConfig,
};
pub use warm_pool::{CreateWarmPool, UpdateWarmPool, WarmPool};

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// The path that was asked for, as the client wrote it.
    pub path: String,
    pub timestamp: Timestamp,
    pub status_code: u16,
    /// The HTTP reason phrase.
    pub error: String,
    pub message: String,
    /// What went wrong, for programs: `NOT_FOUND`, `CONFLICT`, …
    pub code: String,
    pub source: ErrorSource,
}

/// Which of the system's programs refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorSource {
    DaytonaApi,
    DaytonaDaemon,
    DaytonaProxy,
}

/// A moment in milliseconds since 1970, written `2026-01-31T12:00:00.000Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(pub u64);

/// The last millisecond of the year 9999, beyond which the format has no room.
const TIMESTAMP_MS_MAX: u64 = 253_402_300_799_999;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.min(TIMESTAMP_MS_MAX);
        let seconds = i64::try_from(ms / 1000).expect("the maximum fits into 48 bits");
        let at = time::OffsetDateTime::from_unix_timestamp(seconds).expect("the maximum is in the year 9999");
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            ms % 1000
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
            .map_err(de::Error::custom)?;
        u64::try_from(at.unix_timestamp_nanos() / 1_000_000)
            .map(Timestamp)
            .map_err(|_| de::Error::custom("a time before 1970"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_with_milliseconds_and_read_back() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z"),
            (TIMESTAMP_MS_MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(serde_json::from_value::<Timestamp>(text.into()).unwrap(), Timestamp(ms));
        }
    }

    #[test]
    fn a_timestamp_beyond_the_format_is_clamped() {
        assert_eq!(Timestamp(u64::MAX).to_string(), Timestamp(TIMESTAMP_MS_MAX).to_string());
    }
}
