//! What the host has left, whatever the node has promised: too little, and no more sandboxes are made here.

use std::fs;
use std::path::Path;

use crate::runtime::RuntimeError;

/// Enough for what runs to go on, and for the node itself.
const MEMORY_FREE_BYTES_MIN: u64 = 512 << 20;
const DISK_FREE_BYTES_MIN: u64 = 1 << 30;

/// Errors: [`RuntimeError::Host`] says what is short. Takes some microseconds.
pub(super) fn check(state_dir: &Path) -> Result<(), RuntimeError> {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text));
    let disk = rustix::fs::statvfs(state_dir).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    judge(memory, disk)
}

/// `None`: not known, which refuses nobody.
fn judge(memory_bytes: Option<u64>, disk_bytes: Option<u64>) -> Result<(), RuntimeError> {
    if let Some(bytes) = memory_bytes.filter(|bytes| *bytes < MEMORY_FREE_BYTES_MIN) {
        return Err(short("memory", bytes));
    }
    if let Some(bytes) = disk_bytes.filter(|bytes| *bytes < DISK_FREE_BYTES_MIN) {
        return Err(short("disk", bytes));
    }
    Ok(())
}

fn short(what: &str, bytes: u64) -> RuntimeError {
    RuntimeError::Host(format!(
        "the node has only {} MiB of {what} left: stop or delete sandboxes, or add a node",
        bytes >> 20
    ))
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_little_left_makes_no_more() {
        const PLENTY: Option<u64> = Some(8 << 30);

        assert_eq!(judge(PLENTY, PLENTY), Ok(()));
        assert_eq!(judge(None, None), Ok(()));
        for (memory, disk, what) in [(Some(1 << 20), PLENTY, "memory"), (PLENTY, Some(1 << 20), "disk")] {
            let said = judge(memory, disk).unwrap_err().to_string();
            assert!(said.contains(&format!("1 MiB of {what}")), "{said}");
        }
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(available_bytes("MemTotal: 9 kB\n"), None);
    }
}
