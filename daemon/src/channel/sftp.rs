//! An SFTP version 3 server on standard input and output: a process of its own, which is already the user when it starts,
//! so it may block on files and needs no checks but the kernel's.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File as NamedFile, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
    StatusCode, Version,
};
use russh_sftp::server::{Config, Handler, StatusReply};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::accounts::Accounts;

/// What one packet may hold, with its head.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
const DATA_BYTES_MAX: u32 = PACKET_BYTES_MAX - 1024;
const HANDLES_MAX: usize = 1024;
/// Names in one answer.
const NAMES_MAX: usize = 128;

const LIMITS: &str = "limits@openssh.com";
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";

/// Until the client closes its side.
pub fn serve_stdio() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("start the runtime")?;
    runtime.block_on(async {
        let input = pipe::Receiver::from_owned_fd(own(std::io::stdin())?).context("use standard input")?;
        let output = pipe::Sender::from_owned_fd(own(std::io::stdout())?).context("use standard output")?;
        let (alive, ended) = oneshot::channel();
        let server = Server {
            accounts: Accounts::read(Path::new("/etc")),
            open: HashMap::new(),
            next: 0,
            _alive: alive,
        };
        let config = Config { max_client_packet_len: PACKET_BYTES_MAX };
        russh_sftp::server::run_with_config(tokio::io::join(input, output), server, config).await;
        // The library's task drops the server when the stream ends; that is how it says so.
        let _ = ended.await;
        Ok(())
    })
}

fn own(stream: impl AsFd) -> Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned().context("take a standard stream")
}

struct Server {
    accounts: Accounts,
    open: HashMap<String, Open>,
    next: u64,
    _alive: oneshot::Sender<()>,
}

enum Open {
    File(File),
    Dir { path: PathBuf, entries: fs::ReadDir },
}

/// What the client reads when something fails.
struct Failure(StatusCode, Option<String>);

impl From<Failure> for StatusReply {
    fn from(Failure(code, message): Failure) -> StatusReply {
        match message {
            Some(message) => code.with_message(message),
            None => code.into(),
        }
    }
}

impl From<StatusCode> for Failure {
    fn from(code: StatusCode) -> Failure {
        Failure(code, None)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let code = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NoSuchFile,
            io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            io::ErrorKind::UnexpectedEof => StatusCode::Eof,
            _ => StatusCode::Failure,
        };
        Failure(code, Some(error.to_string()))
    }
}

type Reply<T> = Result<T, Failure>;

impl Server {
    fn keep(&mut self, id: u32, open: Open) -> Reply<Handle> {
        if self.open.len() >= HANDLES_MAX {
            return Err(Failure(StatusCode::Failure, Some("too many open files".into())));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Reply<&File> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(Failure(StatusCode::Failure, Some("not an open file".into()))),
        }
    }

    fn named(&self, name: String, metadata: &Metadata) -> NamedFile {
        let mut attributes = attributes(metadata);
        attributes.user = Some(self.accounts.user_name(metadata.uid()));
        attributes.group = Some(self.accounts.group_name(metadata.gid()));
        NamedFile::new(name, attributes)
    }
}

impl Handler for Server {
    type Error = Failure;

    fn unimplemented(&self) -> Failure {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Reply<Version> {
        let mut version = Version::new();
        for (name, revision) in [(LIMITS, "1"), (POSIX_RENAME, "1"), (HARDLINK, "1"), (FSYNC, "1")] {
            version.extensions.insert(name.into(), revision.into());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        wanted: FileAttributes,
    ) -> Reply<Handle> {
        let mut options = OpenOptions::from(flags);
        if let Some(mode) = wanted.permissions {
            options.mode(mode & 0o7777);
        }
        let file = options.open(&path)?;
        if file.metadata()?.is_dir() {
            return Err(Failure(StatusCode::Failure, Some("is a directory".into())));
        }
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Reply<Status> {
        self.open.remove(&handle).map(|_| done(id)).ok_or_else(|| StatusCode::Failure.into())
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Reply<Data> {
        let mut data = vec![0; length.min(DATA_BYTES_MAX) as usize];
        let mut filled = 0;
        while filled < data.len() {
            match self.file(&handle)?.read_at(&mut data[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(filled);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Reply<Status> {
        self.file(&handle)?.write_all_at(&data, offset)?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        Ok(Attrs { id, attrs: attributes(&fs::symlink_metadata(path)?) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        Ok(Attrs { id, attrs: attributes(&fs::metadata(path)?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Reply<Attrs> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.metadata()?) })
    }

    async fn setstat(&mut self, id: u32, path: String, wanted: FileAttributes) -> Reply<Status> {
        if let (Some(uid), Some(gid)) = (wanted.uid, wanted.gid) {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        if let Some(mode) = wanted.permissions {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if wanted.size.is_some() || wanted.mtime.is_some() {
            // Writing needs a right that setting the time doesn't; so the time alone goes by path.
            match wanted.size {
                Some(size) => {
                    let file = OpenOptions::new().write(true).open(&path)?;
                    file.set_len(size)?;
                    set_times(&file, &wanted)?;
                }
                None => set_times(&File::open(&path)?, &wanted)?,
            }
        }
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, wanted: FileAttributes) -> Reply<Status> {
        let file = self.file(&handle)?;
        if let (Some(uid), Some(gid)) = (wanted.uid, wanted.gid) {
            std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        if let Some(mode) = wanted.permissions {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(size) = wanted.size {
            file.set_len(size)?;
        }
        set_times(file, &wanted)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<Handle> {
        let entries = fs::read_dir(&path)?;
        self.keep(id, Open::Dir { path: path.into(), entries })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Reply<Name> {
        let Some(Open::Dir { path, entries }) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.into());
        };
        let path = path.clone();
        let taken: Vec<_> = entries.by_ref().take(NAMES_MAX).collect::<io::Result<_>>()?;
        if taken.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        // A file that vanishes meanwhile is not listed.
        let files = taken
            .iter()
            .filter_map(|entry| {
                let metadata = fs::symlink_metadata(path.join(entry.file_name())).ok()?;
                Some(self.named(entry.file_name().to_string_lossy().into_owned(), &metadata))
            })
            .collect();
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, path: String) -> Reply<Status> {
        fs::remove_file(path)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, wanted: FileAttributes) -> Reply<Status> {
        fs::DirBuilder::new().mode(wanted.permissions.unwrap_or(0o777) & 0o7777).create(path)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Reply<Status> {
        fs::remove_dir(path)?;
        Ok(done(id))
    }

    /// Also of what doesn't exist yet, if its folder does.
    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = PathBuf::from(if path.is_empty() { "." } else { &path });
        let real = match (fs::canonicalize(&path), path.parent(), path.file_name()) {
            (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                fs::canonicalize(parent)?.join(name)
            }
            (real, _, _) => real?,
        };
        Ok(Name { id, files: vec![NamedFile::dummy(real.to_string_lossy())] })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Reply<Status> {
        renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE).map_err(io::Error::from)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let target = fs::read_link(path)?;
        Ok(Name { id, files: vec![NamedFile::dummy(target.to_string_lossy())] })
    }

    /// Every client sends the two in the order that OpenSSH once got wrong: what the link says comes first.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Reply<Status> {
        std::os::unix::fs::symlink(target, link)?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Reply<Packet> {
        let mut strings = Strings(&data);
        match request.as_str() {
            LIMITS => {
                let limits = [PACKET_BYTES_MAX, DATA_BYTES_MAX, DATA_BYTES_MAX, HANDLES_MAX as u32];
                let data = limits.iter().flat_map(|limit| u64::from(*limit).to_be_bytes()).collect();
                Ok(Packet::ExtendedReply(ExtendedReply { id, data }))
            }
            POSIX_RENAME => {
                fs::rename(strings.next()?, strings.next()?)?;
                Ok(Packet::Status(done(id)))
            }
            HARDLINK => {
                fs::hard_link(strings.next()?, strings.next()?)?;
                Ok(Packet::Status(done(id)))
            }
            FSYNC => {
                self.file(strings.next()?)?.sync_all()?;
                Ok(Packet::Status(done(id)))
            }
            _ => Err(StatusCode::OpUnsupported.into()),
        }
    }
}

/// Strings as SSH writes them: four bytes of length, then the bytes.
struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    fn next(&mut self) -> Reply<&'a str> {
        let parsed = self.0.split_first_chunk().and_then(|(length, rest)| {
            let (string, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            Some((std::str::from_utf8(string).ok()?, rest))
        });
        let (string, rest) = parsed.ok_or(StatusCode::BadMessage)?;
        self.0 = rest;
        Ok(string)
    }
}

fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en-US".into() }
}

fn attributes(metadata: &Metadata) -> FileAttributes {
    // Version 3 has 32 bits of seconds.
    let seconds = |time: i64| Some(time.clamp(0, u32::MAX.into()) as u32);
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        user: None,
        group: None,
    }
}

fn set_times(file: &File, wanted: &FileAttributes) -> io::Result<()> {
    let at = |seconds: u32| -> SystemTime { UNIX_EPOCH + Duration::from_secs(seconds.into()) };
    let mut times = fs::FileTimes::new();
    if let Some(accessed) = wanted.atime {
        times = times.set_accessed(at(accessed));
    }
    if let Some(modified) = wanted.mtime {
        times = times.set_modified(at(modified));
    }
    if wanted.atime.is_some() || wanted.mtime.is_some() { file.set_times(times) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_where_they_say_or_are_refused() {
        let mut strings = Strings(b"\0\0\0\x02ab\0\0\0\0");
        assert_eq!(strings.next().ok(), Some("ab"));
        assert_eq!(strings.next().ok(), Some(""));
        assert!(strings.next().is_err());
        assert!(Strings(b"\0\0\0\x09ab").next().is_err());
    }
}
