//! `GET /atoll/channel`: what the SSH door and builds run in the sandbox, as frames (see `atoll_api::channel`).
//!
//! Back pressure goes through: input waits in the connection while the program doesn't read, output waits in its pipe while
//! the door doesn't.

mod frames;
mod program;
mod resolve;
pub mod sftp;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use atoll_api::channel::{CHANNEL_UPGRADE, ChannelOpen, ChannelProgram, FrameKind};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use crate::errors::ApiError;
use crate::routes::Daemon;
use frames::{Frame, FrameReader, write_frames};

const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Frames, of at most 16 KiB, that wait to be written.
const OUTPUT_FRAMES_MAX: usize = 4;

pub async fn open(State(daemon): State<Arc<Daemon>>, mut request: Request) -> Result<Response, ApiError> {
    let asked =
        request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !asked.eq_ignore_ascii_case(CHANNEL_UPGRADE) {
        return Err(ApiError::bad_request(format!("this route needs Upgrade: {CHANNEL_UPGRADE}")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    // Ends with its connection.
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(TokioIo::new(upgraded), &daemon).await,
            Err(error) => tracing::debug!(%error, "channel upgrade"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(CHANNEL_UPGRADE));
    Ok(response)
}

async fn serve(stream: TokioIo<hyper::upgrade::Upgraded>, daemon: &Daemon) {
    let (reader, writer) = tokio::io::split(stream);
    let mut frames = FrameReader::new(reader);
    let (output, waiting) = mpsc::channel(OUTPUT_FRAMES_MAX);
    let conversation = async {
        let served = match tokio::time::timeout(OPEN_DEADLINE, read_open(&mut frames)).await {
            Err(_) => Err("no open frame in time".to_owned()),
            Ok(Err(reason)) => Err(reason),
            Ok(Ok(open)) => match &open.program {
                ChannelProgram::Connect { host, port } => {
                    tunnel::run(host, *port, &mut frames, &output).await
                }
                _ => program::run(daemon, &open, &mut frames, &output).await,
            },
        };
        if let Err(reason) = served {
            // The door may have gone already.
            let _ = output.send(Frame::new(FrameKind::Refused, reason.into_bytes())).await;
        }
        drop(output);
    };
    tokio::join!(conversation, write_frames(writer, waiting));
}

async fn read_open<R: tokio::io::AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
) -> Result<ChannelOpen, String> {
    match frames.next().await {
        Ok(Some(Frame { kind: FrameKind::Open, payload })) => {
            serde_json::from_slice(&payload).map_err(|error| format!("malformed open frame: {error}"))
        }
        Ok(Some(_)) => Err("the first frame must be an open".into()),
        Ok(None) => Err("closed before an open frame".into()),
        Err(error) => Err(error.to_string()),
    }
}
