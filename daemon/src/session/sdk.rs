//! Which shape of logs the caller's SDK expects, by the version it says it has.

use axum::http::HeaderMap;

const SPLIT_OUTPUT_HEADER: &str = "x-daytona-split-output";
const VERSION_HEADER: &str = "x-daytona-sdk-version";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogShape {
    /// `{output, stdout, stderr}`, `output` being the raw log.
    Json,
    /// Plain text, the raw log.
    Marked,
    /// Plain text, markers taken out.
    Plain,
}

impl LogShape {
    pub fn asked_for(headers: &HeaderMap) -> LogShape {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let wants_split = text(SPLIT_OUTPUT_HEADER).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        LogShape::of(text(VERSION_HEADER), wants_split.then_some(SplitWanted))
    }

    fn of(version: Option<&str>, split: Option<SplitWanted>) -> LogShape {
        let version = version.unwrap_or_default();
        let numbers = parse(version);
        if version.contains("dev") || numbers >= Some((0, 167)) {
            LogShape::Json
        } else if numbers >= Some((0, 27)) || split.is_some() {
            LogShape::Marked
        } else {
            LogShape::Plain
        }
    }
}

struct SplitWanted;

/// Major and minor; a leading `v` and anything after are ignored. Without a number there is no version.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim().trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides() {
        for (version, shape) in [
            (Some("0.167.0"), LogShape::Json),
            (Some("0.226.1"), LogShape::Json),
            (Some("1.0.0"), LogShape::Json),
            (Some("v0.0.0-dev"), LogShape::Json),
            (Some("0.166.9"), LogShape::Marked),
            (Some("0.27.0"), LogShape::Marked),
            (Some("0.26.9"), LogShape::Plain),
            (Some("nonsense"), LogShape::Plain),
            (None, LogShape::Plain),
        ] {
            assert_eq!(LogShape::of(version, None), shape, "{version:?}");
        }
    }

    #[test]
    fn who_asks_for_markers_gets_them() {
        assert_eq!(LogShape::of(None, Some(SplitWanted)), LogShape::Marked);
    }
}
