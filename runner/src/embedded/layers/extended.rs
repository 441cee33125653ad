//! What a tar says about an entry outside its header: PAX records, and where a sparse file has content.

use super::LayerError;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const XATTRS_MAX: usize = 128;
/// The kernel's own bounds for one name and one value.
const XATTR_NAME_BYTES_MAX: usize = 255;
const XATTR_BYTES_MAX: usize = 64 * 1024;
const REGIONS_MAX: usize = 1024 * 1024;

/// Values that replace those of the next header.
#[derive(Debug, Default)]
pub struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a file with holes whose map begins its content (PAX sparse format 1.0).
    pub sparse_size: Option<u64>,
}

impl Extended {
    /// Records of the form `<length of the record> <key>=<value>\n`.
    pub fn read_pax(&mut self, mut records: &[u8]) -> Result<(), LayerError> {
        let mut sparse_path = None;
        let mut sparse_major = None;
        while !records.is_empty() {
            let (key, value, rest) = split_record(records).ok_or_else(broken)?;
            records = rest;
            if value.contains(&0) && !key.starts_with(XATTR_PREFIX) {
                return Err(broken());
            }
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value)?),
                b"uid" => self.uid = Some(number(value)?),
                b"gid" => self.gid = Some(number(value)?),
                b"mtime" => self.mtime = Some(time(value)?),
                b"GNU.sparse.major" => sparse_major = Some(number(value)?),
                b"GNU.sparse.name" => sparse_path = Some(value.to_vec()),
                b"GNU.sparse.realsize" => self.sparse_size = Some(number(value)?),
                b"GNU.sparse.map" | b"GNU.sparse.numblocks" => sparse_major = Some(0),
                key => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        self.add_xattr(name, value)?;
                    }
                }
            }
        }
        match (sparse_major, self.sparse_size) {
            (Some(1), Some(_)) => self.path = sparse_path.or(self.path.take()),
            (None, None) => {}
            _ => {
                return Err(LayerError::Bad(
                    "its tar has a sparse file in an old PAX format; write it in format 1.0 (GNU tar's default)"
                        .to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), LayerError> {
        let fits = !name.is_empty() && name.len() <= XATTR_NAME_BYTES_MAX && value.len() <= XATTR_BYTES_MAX;
        if !fits || name.contains(&0) || self.xattrs.len() == XATTRS_MAX {
            return Err(LayerError::Bad("its tar has an extended attribute beyond the bounds".to_owned()));
        }
        self.xattrs.retain(|(known, _)| known != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Where a sparse file has content: offset and length, in order, without overlap.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SparseMap(pub Vec<(u64, u64)>);

impl SparseMap {
    pub fn push(&mut self, offset: u64, length: u64) -> Result<(), LayerError> {
        let after = self.0.last().map_or(0, |(offset, length)| offset + length);
        if offset < after || offset.checked_add(length).is_none() || self.0.len() == REGIONS_MAX {
            return Err(SparseMap::broken());
        }
        self.0.push((offset, length));
        Ok(())
    }

    /// That it describes a file of `size` bytes with `stored` bytes of content.
    pub fn check(&self, size: u64, stored: u64) -> Result<(), LayerError> {
        let end = self.0.last().map_or(0, |(offset, length)| offset + length);
        let content: u64 = self.0.iter().map(|(_, length)| length).sum();
        if end <= size && content <= stored { Ok(()) } else { Err(SparseMap::broken()) }
    }

    pub fn broken() -> LayerError {
        LayerError::Bad("its tar has a sparse file with a broken map".to_owned())
    }
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
    if length <= blank + 1 || length > records.len() || records[length - 1] != b'\n' {
        return None;
    }
    let record = &records[blank + 1..length - 1];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

fn number(value: &[u8]) -> Result<u64, LayerError> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)
}

/// `[-]seconds[.fraction]`; a fraction counts forwards in time also before 1970.
fn time(value: &[u8]) -> Result<(i64, u32), LayerError> {
    let text = std::str::from_utf8(value).map_err(|_| broken())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| broken())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(broken());
    }
    let nine: String = fraction.bytes().chain(std::iter::repeat(b'0')).take(9).map(char::from).collect();
    let nanos: u32 = nine.parse().map_err(|_| broken())?;
    match (text.starts_with('-'), nanos) {
        (true, 1..) => Ok((seconds.checked_sub(1).ok_or_else(broken)?, 1_000_000_000 - nanos)),
        _ => Ok((seconds, nanos)),
    }
}

fn broken() -> LayerError {
    LayerError::Bad("its tar has a broken extended header".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_line_ends_and_zeros_in_an_attribute_is_read_whole() {
        let mut extended = Extended::default();

        extended.read_pax(b"33 SCHILY.xattr.user.x=a\n\0b=c\nde\n20 mtime=-1.25\n").unwrap_err();
        let value = b"a\n\0b=c\nde";
        let record = [b"SCHILY.xattr.user.x=".as_slice(), value, b"\n"].concat();
        let records =
            [format!("{} ", record.len() + 3).into_bytes(), record, b"15 mtime=-1.25\n".to_vec()].concat();
        extended.read_pax(&records).unwrap();

        assert_eq!(extended.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
        assert_eq!(extended.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn a_map_that_goes_back_or_beyond_the_file_is_refused() {
        let mut map = SparseMap::default();
        map.push(10, 5).unwrap();

        assert!(map.push(14, 1).is_err());
        assert!(map.push(u64::MAX, 2).is_err());
        assert!(map.check(15, 5).is_ok());
        assert!(map.check(14, 5).is_err());
        assert!(map.check(15, 4).is_err());
    }
}
