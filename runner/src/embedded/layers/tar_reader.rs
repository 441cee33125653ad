//! Reads a stranger's tar (ustar, PAX, GNU) as a stream, with every size bounded before memory is taken for it.
//!
//! Headers are the `tar` crate's; its iterator is not used, because it takes a PAX header of any length into memory and
//! splits records at line ends, which breaks extended attributes with binary values.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::LayerError;
use super::extended::{Extended, SparseMap};

pub const BLOCK: usize = 512;
/// Of one PAX header or GNU long name.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;

/// What one entry is, with everything that extension headers said about it.
#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    /// As written; not yet safe.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Since 1970.
    pub mtime_s: i64,
    pub mtime_ns: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of the content as unpacked.
    pub size: u64,
    /// For a file with holes: where its content lies, in order.
    pub sparse: Option<SparseMap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// The entries of a tar, one after the other.
pub struct TarReader<R> {
    input: R,
    /// Of the current entry, not yet read.
    content_left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> TarReader<R> {
        TarReader { input, content_left: 0, padding: 0 }
    }

    /// The next entry; `None` at the archive's end. What was not read of the entry before it is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extended = Extended::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(malformed)?;
            match header.entry_type() {
                EntryType::XHeader => extended.read_pax(&self.extension(size)?)?,
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extended.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extended.link = Some(until_nul(self.extension(size)?)),
                entry_type => return self.entry(&header, entry_type, extended).map(Some),
            }
        }
    }

    /// The rest of the archive after its end mark, so that what checks the whole stream has seen all of it.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(|_| ())
    }

    fn entry(
        &mut self,
        header: &Header,
        entry_type: EntryType,
        extended: Extended,
    ) -> Result<Entry, LayerError> {
        let stored = extended.size.map_or_else(|| header.entry_size().map_err(malformed), Ok)?;
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match entry_type {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if path.ends_with(b"/") => {
                Kind::Dir
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            other => {
                return Err(LayerError::Bad(format!("its tar has an entry of the unknown type {other:?}")));
            }
        };
        // Only files have content; some writers put a size into the header of a link all the same.
        self.set_content(if kind == Kind::File { stored } else { 0 })?;
        let (mut size, mut sparse) = (self.content_left, None);
        if kind == Kind::File {
            if entry_type == EntryType::GNUSparse {
                let map = self.old_gnu_map(header)?;
                size = header.as_gnu().map_or(Ok(0), |gnu| gnu.real_size()).map_err(malformed)?;
                sparse = Some(map);
            } else if let Some(real_size) = extended.sparse_size {
                sparse = Some(self.map_in_content()?);
                size = real_size;
            }
            if let Some(map) = &sparse {
                map.check(size, self.content_left)?;
            }
        }
        let (mtime_s, mtime_ns) = match extended.mtime {
            Some(mtime) => mtime,
            None => {
                (i64::try_from(number(&header.as_bytes()[136..148], header.mtime())?).unwrap_or(i64::MAX), 0)
            }
        };
        Ok(Entry {
            kind,
            path,
            link: extended.link.unwrap_or_else(|| {
                header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default()
            }),
            mode: number(&header.as_bytes()[100..108], header.mode())?,
            uid: extended.uid.map_or_else(|| number(&header.as_bytes()[108..116], header.uid()), Ok)?,
            gid: extended.gid.map_or_else(|| number(&header.as_bytes()[116..124], header.gid()), Ok)?,
            mtime_s,
            mtime_ns,
            xattrs: extended.xattrs,
            size,
            sparse,
        })
    }

    /// `None` at the end mark: a block of zeros, or the end of the input between two entries.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum counts its own field as blanks.
        let sum: u32 =
            block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        if header.cksum().map_err(malformed)? != sum {
            return Err(LayerError::Bad(
                "its tar has a header with a wrong checksum; the image is broken".to_owned(),
            ));
        }
        Ok(Some(header))
    }

    fn set_content(&mut self, size: u64) -> Result<(), LayerError> {
        // Room for the padding, so that no sum of sizes overflows below.
        if size > u64::MAX / 2 {
            return Err(LayerError::Bad("its tar has an entry of an impossible size".to_owned()));
        }
        self.content_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(LayerError::Bad(format!(
                "its tar has an extended header of {size} bytes; at most {EXTENSION_BYTES_MAX} are read"
            )));
        }
        self.set_content(size)?;
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes).map_err(early_end)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let count = self.content_left + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(count), &mut io::sink())?;
        (self.content_left, self.padding) = (0, 0);
        if skipped < count { Err(truncated()) } else { Ok(()) }
    }

    /// GNU's first form: the map is in the header and in blocks that follow it, which its size does not count.
    fn old_gnu_map(&mut self, header: &Header) -> Result<SparseMap, LayerError> {
        let gnu =
            header.as_gnu().ok_or_else(|| LayerError::Bad("its tar has a broken sparse file".to_owned()))?;
        let mut map = SparseMap::default();
        for region in gnu.sparse.iter().filter(|region| !region.is_empty()) {
            map.push(region.offset().map_err(malformed)?, region.length().map_err(malformed)?)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes()).map_err(early_end)?;
            for region in block.sparse().iter().filter(|region| !region.is_empty()) {
                map.push(region.offset().map_err(malformed)?, region.length().map_err(malformed)?)?;
            }
            more = block.is_extended();
        }
        Ok(map)
    }

    /// PAX 1.0: decimal numbers, one a line, at the beginning of the content, filled up to a whole block.
    fn map_in_content(&mut self) -> Result<SparseMap, LayerError> {
        let mut read = 0u64;
        let mut number = || -> Result<u64, LayerError> {
            let mut value = 0u64;
            loop {
                let mut byte = [0];
                self.read_exact(&mut byte).map_err(early_end)?;
                read += 1;
                match byte[0] {
                    b'\n' => return Ok(value),
                    digit @ b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
                            .ok_or_else(SparseMap::broken)?;
                    }
                    _ => return Err(SparseMap::broken()),
                }
            }
        };
        let mut map = SparseMap::default();
        for _ in 0..number()? {
            let (offset, length) = (number()?, number()?);
            map.push(offset, length)?;
        }
        let mut filling = [0; BLOCK];
        let rest = (read.next_multiple_of(BLOCK as u64) - read) as usize;
        self.read_exact(&mut filling[..rest]).map_err(early_end)?;
        Ok(map)
    }
}

/// The stored content of the entry that came last; for a sparse file, of its regions one after the other.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content_left -= count as u64;
        Ok(count)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Some writers leave fields empty that mean nothing to them.
fn number<T: Default>(field: &[u8], parsed: io::Result<T>) -> Result<T, LayerError> {
    match field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        true => Ok(T::default()),
        false => parsed.map_err(malformed),
    }
}

fn malformed(error: io::Error) -> LayerError {
    LayerError::Bad(format!("its tar is malformed: {error}"))
}

fn truncated() -> LayerError {
    LayerError::Bad("its tar ends in the middle of an entry".to_owned())
}

fn early_end(error: io::Error) -> LayerError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => LayerError::Io(error),
    }
}
