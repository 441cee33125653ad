//! A TCP connection made from inside the sandbox, for `ssh -L`.

use std::time::Duration;

use atoll_api::channel::{ChannelExit, FrameKind};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::frames::{Frame, FrameReader};
use super::resolve::resolve;
use crate::output::CHUNK_BYTES;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Returns a reason only when there is no connection.
pub async fn run<R: AsyncRead + Unpin>(
    host: &str,
    port: u16,
    frames: &mut FrameReader<R>,
    output: &mpsc::Sender<Frame>,
) -> Result<(), String> {
    let connecting = async {
        let addresses: Vec<_> =
            resolve(host).await?.into_iter().map(|address| (address, port).into()).collect();
        TcpStream::connect(&addresses[..]).await.map_err(|error| error.to_string())
    };
    let stream =
        tokio::time::timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| "timed out".to_owned())??;
    // A failure only costs time.
    let _ = stream.set_nodelay(true);
    let _ = output.send(Frame::new(FrameKind::Opened, Bytes::new())).await;

    let (mut from, mut to) = stream.into_split();
    let sending = async {
        loop {
            match frames.next().await {
                Ok(Some(Frame { kind: FrameKind::Stdin, payload })) => {
                    if to.write_all(&payload).await.is_err() {
                        break;
                    }
                }
                // Half closed: the answer may still come.
                Ok(Some(Frame { kind: FrameKind::StdinEof, .. })) => {
                    let _ = to.shutdown().await;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
        // What it has sent before it closed is still to be read.
        std::future::pending().await
    };
    let receiving = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if output.send(Frame::new(FrameKind::Stdout, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
        let exit = serde_json::to_vec(&ChannelExit::Code(0)).expect("a number is always JSON");
        let _ = output.send(Frame::new(FrameKind::Exit, exit)).await;
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
    Ok(())
}
