//! A path as it stands in a layer's tar, made safe, and what its last name means in OCI's terms.

use super::LayerError;

const PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Relative, without `.`, `..` and empty names.
pub struct EntryPath<'a> {
    names: Vec<&'a [u8]>,
}

pub enum Meaning<'a> {
    /// The layer's root folder itself.
    Root,
    Entry(&'a [u8]),
    /// Something below by that name is gone.
    Whiteout(&'a [u8]),
    /// Everything below in the folder that it lies in is gone.
    Opaque,
    /// Bookkeeping of the tool that wrote it.
    Ignored,
}

impl<'a> EntryPath<'a> {
    pub fn parse(written: &'a [u8]) -> Result<EntryPath<'a>, LayerError> {
        let names: Vec<&[u8]> =
            written.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
        let path = EntryPath { names };
        if written.len() > PATH_BYTES_MAX || path.names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(path.bad("is longer than a path may be"));
        }
        if path.names.iter().any(|name| *name == b".." || name.contains(&0)) {
            return Err(path.bad("is no path within the image"));
        }
        Ok(path)
    }

    pub fn meaning(&self) -> Result<Meaning<'a>, LayerError> {
        let Some((name, above)) = self.names.split_last() else { return Ok(Meaning::Root) };
        if above.iter().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
            return match above.iter().any(|name| name.starts_with(b".wh..wh.")) {
                true => Ok(Meaning::Ignored),
                false => Err(self.bad("lies below a deleted folder's mark")),
            };
        }
        if *name == OPAQUE_NAME {
            return Ok(Meaning::Opaque);
        }
        let Some(deleted) = name.strip_prefix(WHITEOUT_PREFIX) else { return Ok(Meaning::Entry(name)) };
        match deleted {
            b"" | b"." | b".." => Err(self.bad("marks something impossible as deleted")),
            deleted if deleted.starts_with(WHITEOUT_PREFIX) => Ok(Meaning::Ignored),
            deleted => Ok(Meaning::Whiteout(deleted)),
        }
    }

    pub fn joined(&self) -> Vec<u8> {
        join(&self.names)
    }

    /// The folder it lies in, `.` for the root.
    pub fn parent(&self) -> Vec<u8> {
        join(&self.names[..self.names.len().saturating_sub(1)])
    }

    /// Where the names of [`EntryPath::parent`] end in it, outermost first.
    pub fn parent_ends(&self) -> Vec<usize> {
        let above = &self.names[..self.names.len().saturating_sub(1)];
        let ends = above.iter().scan(0, |end, name| {
            *end += name.len() + 1;
            Some(*end - 1)
        });
        ends.collect()
    }

    pub fn same_as(&self, other: &EntryPath<'_>) -> bool {
        self.names == other.names
    }

    pub fn bad(&self, why: &str) -> LayerError {
        let path = String::from_utf8_lossy(&self.joined()).into_owned();
        LayerError::Bad(format!("/{} {why}", path.chars().take(200).collect::<String>().escape_debug()))
    }
}

fn join(names: &[&[u8]]) -> Vec<u8> {
    if names.is_empty() { b".".to_vec() } else { names.join(&b'/') }
}
