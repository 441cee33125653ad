//! A pseudoterminal: the program's side for starting it, ours for reading, writing and resizing.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::polled;

/// What every client may ask for, both ways.
const SIZE_MAX: u16 = 1000;
/// Group `tty` is 5 everywhere; the user's messages (`write`) go through it.
const TTY_GROUP: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

impl Size {
    pub const DEFAULT: Size = Size { cols: 80, rows: 24 };

    pub fn new(cols: i64, rows: i64) -> Option<Size> {
        let checked = |value| u16::try_from(value).ok().filter(|value| (1..=SIZE_MAX).contains(value));
        Some(Size { cols: checked(cols)?, rows: checked(rows)? })
    }

    /// For a client that says 0 when it doesn't know.
    pub fn clamped(cols: u16, rows: u16) -> Size {
        let or = |value, default| if value == 0 { default } else { u16::min(value, SIZE_MAX) };
        Size { cols: or(cols, Size::DEFAULT.cols), rows: or(rows, Size::DEFAULT.rows) }
    }
}

pub struct Master(AsyncFd<OwnedFd>);

/// The program's side belongs to `uid`.
pub fn open(uid: u32, size: Size) -> io::Result<(Master, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    // A user namespace may not know the group; the owner is what counts.
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(TTY_GROUP)))
        .or_else(|_| rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None))?;
    rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o620))?;
    rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    let master = Master(polled::terminal(master)?);
    master.resize(size)?;
    Ok((master, slave))
}

impl Master {
    /// 0, or an error, once no program has the terminal any more. Cancel-safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(read) = ready.try_io(|master| Ok(rustix::io::read(master, &mut *buffer)?)) {
                return read;
            }
        }
    }

    /// Waits while the program doesn't read.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }

    pub fn resize(&self, size: Size) -> io::Result<()> {
        let window = Winsize { ws_col: size.cols, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, window)?)
    }

    /// The group that Ctrl+C would reach.
    pub fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(Size::new(1, 1000), Some(Size { cols: 1, rows: 1000 }));
        assert_eq!(Size::new(0, 24), None);
        assert_eq!(Size::new(80, 1001), None);
        assert_eq!(Size::new(-1, 70000), None);
        assert_eq!(Size::clamped(0, 2000), Size { cols: 80, rows: 1000 });
    }
}
