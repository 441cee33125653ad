//! A layer's blob as the tar that is in it: decompressed, counted and hashed while it is read.

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ring::digest::{Context, SHA256};

use crate::image::{Compression, Digest};

/// Larger windows than what `zstd` makes without being asked to (8 MiB at its highest level) and than any image tool
/// makes; a decoder takes that much memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

pub struct BlobReader {
    decoder: Box<dyn Read + Send>,
    sha256: Context,
    bytes_left: u64,
}

impl BlobReader {
    /// Gives at most `bytes_max` and then an error, so that a small blob cannot become an endless tar.
    pub fn new(blob: File, compression: Compression, bytes_max: u64) -> io::Result<BlobReader> {
        let blob = BufReader::with_capacity(128 * 1024, blob);
        let decoder: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(blob),
            Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        };
        Ok(BlobReader { decoder, sha256: Context::new(&SHA256), bytes_left: bytes_max })
    }

    /// Of what was read. The whole tar's only after its end.
    pub fn digest(&self) -> Digest {
        Digest::finish_of(self.sha256.clone())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.bytes_left = self.bytes_left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the tar is larger than a layer may be")
        })?;
        self.sha256.update(&buffer[..count]);
        Ok(count)
    }
}
