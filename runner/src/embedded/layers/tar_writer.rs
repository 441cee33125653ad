//! Writes tar entries: a plain ustar header, and PAX records for whatever does not fit into one.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use rustix::fs::Stat;
use tar::{EntryType, Header};

use super::diff::copy_region;
use super::extended::SparseMap;
use super::tar_reader::BLOCK;

const NAME_FIELD_BYTES: usize = 100;
/// Eleven octal digits.
const OCTAL_MAX: u64 = 0o77_777_777_777;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
}

/// One entry, without its content.
#[derive(Debug, Clone)]
pub struct Head {
    pub kind: Type,
    /// Empty for the root.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_s: i64,
    pub mtime_ns: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub size: u64,
    pub sparse: Option<SparseMap>,
}

impl Head {
    pub fn new(kind: Type, path: &[u8], stat: &Stat) -> Head {
        Head {
            kind,
            path: path.to_vec(),
            link: Vec::new(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: stat.st_mtime_nsec as u32,
            xattrs: Vec::new(),
            size: 0,
            sparse: None,
        }
    }

    pub fn mark(path: &[u8]) -> Head {
        Head {
            kind: Type::File,
            path: path.to_vec(),
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
            xattrs: Vec::new(),
            size: 0,
            sparse: None,
        }
    }
}

pub struct TarWriter<W: Write> {
    out: BufWriter<W>,
}

impl<W: Write> TarWriter<W> {
    pub fn new(out: W) -> TarWriter<W> {
        TarWriter { out: BufWriter::with_capacity(128 * 1024, out) }
    }

    /// `content` is open at its beginning and has `head.size` bytes; `None` for an entry without content.
    pub fn append(&mut self, head: &Head, content: Option<&mut File>) -> io::Result<()> {
        let stored = self.begin(head)?;
        if let Some(file) = content {
            match &head.sparse {
                Some(sparse) => {
                    for (offset, length) in &sparse.0 {
                        copy_region(file, *offset, *length, &mut self.out)?;
                    }
                }
                None => copy_region(file, 0, head.size, &mut self.out)?,
            }
        }
        self.fill(stored)
    }

    /// As [`TarWriter::append`], with a file's content as a tar has it: of a sparse file its regions, one after the
    /// other.
    pub fn append_stored(&mut self, head: &Head, content: impl Read) -> io::Result<()> {
        let stored = self.begin(head)?;
        let length = match &head.sparse {
            Some(sparse) => sparse.0.iter().map(|(_, length)| length).sum(),
            None => head.size,
        };
        if io::copy(&mut content.take(length), &mut self.out)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.fill(stored)
    }

    /// Headers, and the map of a sparse file. Says how long the content is, map included.
    fn begin(&mut self, head: &Head) -> io::Result<u64> {
        let map = head.sparse.as_ref().map(map_bytes);
        let stored = match (&head.sparse, &map) {
            (Some(sparse), Some(map)) => {
                map.len() as u64 + sparse.0.iter().map(|(_, length)| length).sum::<u64>()
            }
            _ => head.size,
        };
        let path = match head.kind {
            Type::Dir if head.path.is_empty() => b"./".to_vec(),
            Type::Dir => [&head.path, b"/".as_slice()].concat(),
            _ => head.path.clone(),
        };
        let records = records(head, &path, stored);
        if !records.is_empty() {
            let mut extended = header(EntryType::XHeader, b"PaxHeaders/entry", records.len() as u64);
            extended.set_cksum();
            self.out.write_all(extended.as_bytes())?;
            self.out.write_all(&records)?;
            self.fill(records.len() as u64)?;
        }
        let mut header = header(entry_type(head.kind), &path, stored);
        header.set_mode(head.mode);
        header.set_uid(head.uid.into());
        header.set_gid(head.gid.into());
        header.set_mtime(u64::try_from(head.mtime_s).unwrap_or(0).min(OCTAL_MAX));
        let link = &head.link[..head.link.len().min(NAME_FIELD_BYTES)];
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        if let Some(map) = &map {
            self.out.write_all(map)?;
        }
        Ok(stored)
    }

    /// The end mark, and everything out of our hands.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    fn fill(&mut self, written: u64) -> io::Result<()> {
        let rest = (written.next_multiple_of(BLOCK as u64) - written) as usize;
        self.out.write_all(&[0; BLOCK][..rest])
    }
}

fn entry_type(kind: Type) -> EntryType {
    match kind {
        Type::File => EntryType::Regular,
        Type::Dir => EntryType::Directory,
        Type::Symlink => EntryType::Symlink,
        Type::HardLink => EntryType::Link,
        Type::Fifo => EntryType::Fifo,
    }
}

fn header(kind: EntryType, path: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // A larger one stands in a record.
    header.set_size(size.min(OCTAL_MAX));
    let name = &path[..path.len().min(NAME_FIELD_BYTES)];
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header
}

fn records(head: &Head, path: &[u8], stored: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if head.sparse.is_some() {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", path);
        record(&mut records, b"GNU.sparse.realsize", head.size.to_string().as_bytes());
    }
    if path.len() > NAME_FIELD_BYTES {
        record(&mut records, b"path", path);
    }
    if head.link.len() > NAME_FIELD_BYTES {
        record(&mut records, b"linkpath", &head.link);
    }
    if stored > OCTAL_MAX {
        record(&mut records, b"size", stored.to_string().as_bytes());
    }
    if head.mtime_ns != 0 || !(0..=OCTAL_MAX as i64).contains(&head.mtime_s) {
        record(&mut records, b"mtime", time(head.mtime_s, head.mtime_ns).as_bytes());
    }
    for (name, value) in &head.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// A fraction counts away from zero, as in any decimal number.
fn time(seconds: i64, nanos: u32) -> String {
    if seconds < 0 && nanos > 0 {
        let (seconds, nanos) = (seconds + 1, 1_000_000_000 - nanos);
        return format!("-{}.{nanos:09}", seconds.unsigned_abs());
    }
    format!("{seconds}.{nanos:09}")
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn map_bytes(map: &SparseMap) -> Vec<u8> {
    let mut text = format!("{}\n", map.0.len());
    for (offset, length) in &map.0 {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}
