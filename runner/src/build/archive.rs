//! Archives that ADD unpacks: a tar, plain or compressed, known by how it begins.

use std::io::{self, Read};

use super::BuildError;
use super::tree::{Content, Dialect, Hashing, Tree};
use crate::image::Compression;

const HEAD_BYTES: usize = 512;

/// The tree of the archive; `None` when the file is none.
pub fn unpacked(tree: &Tree, content: &Content, line: usize) -> Result<Option<Tree>, BuildError> {
    let failed = |error: io::Error| BuildError::Host(format!("read an archive: {error}"));
    if content.sparse.is_some() {
        return Ok(None);
    }
    let mut head = Vec::new();
    tree.read(content).map_err(failed)?.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    let compression = match head.as_slice() {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let reason =
                "ADD unpacks tars that are plain, gzip or zstd; COPY this one and unpack it with RUN";
            return Err(BuildError::at(line, reason));
        }
        head if head.get(257..262) == Some(b"ustar") => Compression::None,
        _ => return Ok(None),
    };
    let mut copy = tempfile::tempfile_in(tree.scratch()).map_err(failed)?;
    io::copy(&mut tree.read(content).map_err(failed)?, &mut copy).map_err(failed)?;
    let mut archive = Tree::new(tree.scratch().to_owned());
    match archive.lay(copy, compression, Dialect::Archive, Hashing::Nothing) {
        Ok(()) => Ok(Some(archive)),
        // Compressed, and no tar within: a file like any other.
        Err(_) if compression != Compression::None && archive.paths().count() <= 1 => Ok(None),
        Err(error) => Err(error),
    }
}
