//! One message on the connection between node and runner: a length, that many bytes, and the descriptors that came
//! with them. Whatever the other side sends, no descriptor stays open by accident and no memory is promised in advance.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// As many as the kernel lets travel with one message (SCM_MAX_FD).
pub(super) const FDS_MAX: usize = 253;
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));
const LENGTH_BYTES: usize = 4;
/// Memory grows by this as bytes arrive, and not by what the length promises.
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// The descriptors are the receiver's with the first byte; at most [`FDS_MAX`].
pub(super) async fn send(stream: &UnixStream, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    let mut rest = &bytes[..];
    let mut fds = fds;
    while !rest.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || send_some(stream, rest, fds)).await?;
        rest = &rest[sent..];
        fds = &[];
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// `None`: the other side has hung up before it began. Errors: `InvalidData` for a frame that is too long or brings too
/// many descriptors, `UnexpectedEof` for half of one.
pub(super) async fn receive(stream: &UnixStream, bytes_max: usize) -> io::Result<Option<Frame>> {
    let mut fds = Vec::new();
    let mut head = Vec::with_capacity(LENGTH_BYTES);
    receive_until(stream, &mut head, LENGTH_BYTES, &mut fds).await?;
    let Ok(length) = <[u8; LENGTH_BYTES]>::try_from(head.as_slice()) else {
        return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
    };
    let length = u32::from_le_bytes(length) as usize;
    if length > bytes_max {
        let told = format!("a message of {length} bytes; at most {bytes_max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, told));
    }
    let mut payload = Vec::new();
    receive_until(stream, &mut payload, length, &mut fds).await?;
    if payload.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { payload, fds }))
}

/// Until `bytes` holds `length` of them, or fewer when the other side has hung up.
async fn receive_until(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    length: usize,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    while bytes.len() < length {
        let have = bytes.len();
        bytes.resize(length.min(have + CHUNK_BYTES), 0);
        let received =
            stream.async_io(Interest::READABLE, || receive_some(stream, &mut bytes[have..], fds)).await?;
        bytes.truncate(have + received);
        if received == 0 {
            break;
        }
    }
    Ok(())
}

fn receive_some(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
        fds.clear();
        let told = "more descriptors than one message may bring, or than this process may hold";
        return Err(io::Error::new(io::ErrorKind::InvalidData, told));
    }
    Ok(received.bytes)
}
