//! A space with its log, vote and snapshot as one file, so that a storage engine can be changed or a replica inspected.
//!
//! The file is `magic`, then records `kind (u8) ‖ length (u32) ‖ bytes ‖ …` big endian: pairs, at most one snapshot, and
//! an end mark with the CRC-32 of all before it. Only a replica that does not run can be exported or imported.

use std::io::{self, Read, Write};

use super::{Change, Disk};

const MAGIC: &[u8; 8] = b"ATOLLEX1";
const PAIR: u8 = 1;
const SNAPSHOT: u8 = 2;
const END: u8 = 3;
const WHOLE_SPACE_END: &[u8] = &[0xff];
const PAIRS_BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// Of one record's part; above any value that a replica writes.
const PART_BYTES_MAX: usize = 4 * 1024 * 1024 * 1024 - 1;

pub fn export(disk: &dyn Disk, space: &str, to: &mut dyn Write) -> io::Result<()> {
    let mut to = Summed { inner: to, sum: crc32fast::Hasher::new() };
    to.write_all(MAGIC)?;
    let mut from = Vec::new();
    loop {
        let pairs = disk.scan(space, from.clone()..WHOLE_SPACE_END.to_vec(), PAIRS_BYTES_AT_ONCE)?;
        let Some((last, _)) = pairs.last() else { break };
        from = [last.as_slice(), &[0xff, 0xff, 0]].concat();
        for (key, value) in &pairs {
            to.write_all(&[PAIR])?;
            write_part(&mut to, key)?;
            write_part(&mut to, value)?;
        }
    }
    if let Some(snapshot) = disk.snapshot(space)? {
        to.write_all(&[SNAPSHOT])?;
        write_part(&mut to, &snapshot.read_all()?)?;
    }
    to.write_all(&[END])?;
    let sum = to.sum.finalize();
    to.inner.write_all(&sum.to_be_bytes())
}

/// Fills an empty space; durable on return. A damaged file is refused, and may leave a part behind: wipe it then.
pub fn import(disk: &dyn Disk, space: &str, snapshot_name: &str, from: &mut dyn Read) -> io::Result<()> {
    if disk.last(space, Vec::new()..WHOLE_SPACE_END.to_vec())?.is_some() || disk.snapshot(space)?.is_some() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{space} is not empty")));
    }
    let mut from = Summed { inner: from, sum: crc32fast::Hasher::new() };
    if from.read_array::<8>()? != *MAGIC {
        return Err(damaged("it does not begin as an export"));
    }
    loop {
        match from.read_array::<1>()?[0] {
            PAIR => {
                let key = from.read_part()?;
                let value = from.read_part()?;
                disk.write(space, vec![Change::Put { key, value }])?;
            }
            SNAPSHOT => {
                let bytes = from.read_part()?;
                disk.save_snapshot(space, snapshot_name, &bytes)?;
            }
            END => break,
            _ => return Err(damaged("a record is of no known kind")),
        }
    }
    let sum = from.sum.clone().finalize();
    if from.read_array::<4>()? != sum.to_be_bytes() {
        return Err(damaged("its checksum differs"));
    }
    disk.sync()
}

struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl Write for Summed<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Summed<&mut dyn Read> {
    fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn read_part(&mut self) -> io::Result<Vec<u8>> {
        let length = u32::from_be_bytes(self.read_array()?);
        let mut bytes = Vec::new();
        // Not allocated by what the file says, but by what it holds.
        let read = (&mut *self.inner).take(u64::from(length)).read_to_end(&mut bytes)?;
        if read != length as usize {
            return Err(damaged("it ends too early"));
        }
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

fn write_part(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > PART_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a part is too big to export"));
    }
    to.write_all(&(bytes.len() as u32).to_be_bytes())?;
    to.write_all(bytes)
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the export is damaged: {why}"))
}
