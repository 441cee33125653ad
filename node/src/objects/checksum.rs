//! The checksums that S3 clients give with a body, as a header or after it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::errors::S3Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    /// By the name of its header, in lower case.
    pub(super) fn of_header(name: &str) -> Option<Algorithm> {
        match name {
            "x-amz-checksum-crc32" => Some(Algorithm::Crc32),
            "x-amz-checksum-crc32c" => Some(Algorithm::Crc32c),
            "x-amz-checksum-crc64nvme" => Some(Algorithm::Crc64Nvme),
            "x-amz-checksum-sha1" => Some(Algorithm::Sha1),
            "x-amz-checksum-sha256" => Some(Algorithm::Sha256),
            _ => None,
        }
    }
}

/// One checksum of a body that is still arriving.
pub(super) struct Running {
    pub(super) algorithm: Algorithm,
    state: State,
}

enum State {
    Crc32(crc32fast::Hasher),
    Reflected { table: &'static [u64; 256], value: u64 },
    Digest(Box<Context>),
}

static CRC32C: [u64; 256] = table(0x82F6_3B78);
static CRC64_NVME: [u64; 256] = table(0x9A6C_9329_AC4B_C9B5);

impl Running {
    pub(super) fn new(algorithm: Algorithm) -> Running {
        let state = match algorithm {
            Algorithm::Crc32 => State::Crc32(crc32fast::Hasher::new()),
            Algorithm::Crc32c => State::Reflected { table: &CRC32C, value: u64::from(u32::MAX) },
            Algorithm::Crc64Nvme => State::Reflected { table: &CRC64_NVME, value: u64::MAX },
            Algorithm::Sha1 => State::Digest(Box::new(Context::new(&SHA1_FOR_LEGACY_USE_ONLY))),
            Algorithm::Sha256 => State::Digest(Box::new(Context::new(&SHA256))),
        };
        Running { algorithm, state }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Crc32(hasher) => hasher.update(bytes),
            State::Reflected { table, value } => {
                *value = bytes.iter().fold(*value, |value, byte| {
                    (value >> 8) ^ table[usize::from(value.to_le_bytes()[0] ^ byte)]
                });
            }
            State::Digest(context) => context.update(bytes),
        }
    }

    /// As a header has it.
    fn finish(self) -> String {
        match self.state {
            State::Crc32(hasher) => STANDARD.encode(hasher.finalize().to_be_bytes()),
            State::Reflected { value, .. } if self.algorithm == Algorithm::Crc32c => {
                STANDARD.encode(&(!value).to_be_bytes()[4..])
            }
            State::Reflected { value, .. } => STANDARD.encode((!value).to_be_bytes()),
            State::Digest(context) => STANDARD.encode(context.finish()),
        }
    }

    pub(super) fn check(self, expected: &str) -> Result<(), S3Error> {
        match self.finish() == expected.trim() {
            true => Ok(()),
            false => Err(S3Error::BadDigest),
        }
    }
}

/// Of a polynomial with its bits in reverse.
const fn table(polynomial: u64) -> [u64; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gives_the_check_value_of_its_standard() {
        for (name, expected) in [
            ("crc32", hex::decode("cbf43926").unwrap()),
            ("crc32c", hex::decode("e3069283").unwrap()),
            ("crc64nvme", hex::decode("ae8b14860a799888").unwrap()),
            ("sha1", hex::decode("f7c3bc1d808e04732adf679965ccc34ca7ae3441").unwrap()),
            (
                "sha256",
                hex::decode("15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225").unwrap(),
            ),
        ] {
            let algorithm = Algorithm::of_header(&format!("x-amz-checksum-{name}")).unwrap();
            let fed = || {
                let mut running = Running::new(algorithm);
                running.update(b"1234");
                running.update(b"56789");
                running
            };

            assert!(fed().check(&STANDARD.encode(&expected)).is_ok(), "{name}: {}", fed().finish());
            assert!(matches!(fed().check("AAAA"), Err(S3Error::BadDigest)));
        }
        assert_eq!(Algorithm::of_header("x-amz-checksum-type"), None);
    }
}
