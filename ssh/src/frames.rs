//! Frames of [`atoll_api::channel`] as bytes: kind, big-endian length, payload. Pure.

use atoll_api::channel::{FRAME_BYTES_MAX, FrameKind};
use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(crate) const FRAME_HEADER_BYTES: usize = 5;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
}

pub(crate) fn encode(kind: FrameKind, payload: &[u8], out: &mut BytesMut) -> Result<(), FrameError> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(payload.len()));
    }
    let length = u32::try_from(payload.len()).expect("FRAME_BYTES_MAX fits u32");
    out.reserve(FRAME_HEADER_BYTES + payload.len());
    out.put_u8(kind as u8);
    out.put_u32(length);
    out.put_slice(payload);
    Ok(())
}

/// Takes the first whole frame off the buffer. `None` means: read more.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<(FrameKind, Bytes)>, FrameError> {
    let Some((&[kind, a, b, c, d], _)) = buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    let kind = FrameKind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < FRAME_HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(FRAME_HEADER_BYTES);
    Ok(Some((kind, buffer.split_to(length).freeze())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            for payload in &payloads {
                encode(FrameKind::Stdout, payload, &mut wire).unwrap();
            }

            let (mut buffer, mut decoded) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some((kind, payload)) = decode(&mut buffer).unwrap() {
                    prop_assert_eq!(kind, FrameKind::Stdout);
                    decoded.push(payload.to_vec());
                }
            }

            prop_assert_eq!(decoded, payloads);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&mut BytesMut::from(&bytes[..]));
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut header = BytesMut::from(&[FrameKind::Stdout as u8, 0xff, 0xff, 0xff, 0xff][..]);

        assert!(matches!(decode(&mut header), Err(FrameError::TooLong(_))));
        assert!(encode(FrameKind::Stdin, &vec![0; FRAME_BYTES_MAX + 1], &mut BytesMut::new()).is_err());
    }
}
