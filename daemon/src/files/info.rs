//! What is told about one file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::base_name;
use crate::accounts::Accounts;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileInfo {
    pub name: String,
    pub size: u64,
    /// As `ls` writes it, with Go's letters for what isn't a plain file: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`.
    pub mode: String,
    /// For old clients; no standard format.
    pub mod_time: String,
    /// RFC 3339.
    pub modified_at: String,
    pub is_dir: bool,
    pub owner: String,
    pub group: String,
    /// Octal, four digits.
    pub permissions: String,
    /// The whole path; only where entries of several folders are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl FileInfo {
    pub fn new(path: &Path, metadata: &Metadata, accounts: &Accounts) -> FileInfo {
        let modified = OffsetDateTime::from_unix_timestamp(metadata.mtime())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
            + time::Duration::nanoseconds(metadata.mtime_nsec());
        FileInfo {
            name: base_name(path),
            size: metadata.size(),
            mode: mode_text(metadata.mode()),
            mod_time: legacy_text(modified),
            modified_at: modified.format(&Rfc3339).unwrap_or_default(),
            is_dir: metadata.is_dir(),
            owner: accounts.user_name(metadata.uid()),
            group: accounts.group_name(metadata.gid()),
            permissions: format!("{:04o}", metadata.mode() & 0o7777),
            path: None,
        }
    }
}

fn legacy_text(at: OffsetDateTime) -> String {
    let (date, (hour, minute, second, nanosecond)) = (at.date(), at.to_hms_nano());
    format!("{date} {hour:02}:{minute:02}:{second:02}.{nanosecond:09} +0000 UTC")
}

fn mode_text(mode: u32) -> String {
    let kind = match mode & 0o170000 {
        0o040000 => "d",
        0o120000 => "L",
        0o010000 => "p",
        0o140000 => "S",
        0o060000 => "D",
        0o020000 => "Dc",
        _ => "",
    };
    let special: String = [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')]
        .iter()
        .filter(|(bit, _)| mode & bit != 0)
        .map(|(_, c)| c)
        .collect();
    let permissions = (0..9).map(|at| if mode & (0o400 >> at) != 0 { b"rwxrwxrwx"[at] as char } else { '-' });
    let prefix =
        if kind.is_empty() && special.is_empty() { "-".to_owned() } else { format!("{kind}{special}") };
    prefix + &permissions.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::mode_text;

    #[test]
    fn modes_read_like_gos() {
        for (mode, text) in [
            (0o100644, "-rw-r--r--"),
            (0o040755, "drwxr-xr-x"),
            (0o120777, "Lrwxrwxrwx"),
            (0o041777, "dtrwxrwxrwx"),
            (0o104755, "urwxr-xr-x"),
            (0o010600, "prw-------"),
            (0o020666, "Dcrw-rw-rw-"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }
}
