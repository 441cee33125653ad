//! The answering side of a `Blob` stream.

use std::fs::File;
use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::stream::{answer, read_message, write_message};
use atoll_runner::image::Digest;
use atoll_runner::store::Store;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Answer, MESSAGE_BYTES_MAX, Question, Reach, Take, WORDS_MAX};

/// Blobs that are sent at once. Each costs one chunk of memory and one stream's window.
const SENDING_MAX: usize = 24;
/// How long a request for a blob waits for its turn before it is told to look elsewhere.
const TURN_WAIT: Duration = Duration::from_secs(1);
/// A peer that asks has its question ready.
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);
/// Whoever takes an offer does so at once; the others drop it.
const TAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long has gone, or writes to a client that has. It can ask again from where it was.
const STALL_MAX: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 128 * 1024;

pub struct BlobServer {
    store: Store,
    reach: Arc<Reach>,
    sending: Semaphore,
}

impl BlobServer {
    pub fn new(store: Store, reach: Arc<Reach>) -> BlobServer {
        BlobServer { store, reach, sending: Semaphore::new(SENDING_MAX) }
    }

    pub async fn serve(&self, mut stream: ByteStream) -> anyhow::Result<()> {
        let question = read_message(&mut stream, MESSAGE_BYTES_MAX);
        let said = match timeout(QUESTION_DEADLINE, question).await.context("no question came")?? {
            Question::Blob { digest } => return self.offer(digest, stream).await,
            Question::Word { name } => {
                let name = name.parse().context("a peer asks for no image's name")?;
                Answer::Words(self.store.word_here(&name).into_iter().collect())
            }
            Question::Words { prefix } => {
                let store = self.store.clone();
                let mut words = tokio::task::spawn_blocking(move || store.words_below(&prefix)).await??;
                words.truncate(WORDS_MAX);
                Answer::Words(words)
            }
            Question::Reaches { organization_id, digest } => {
                Answer::Reaches(self.reach.here(organization_id, digest).await?)
            }
            Question::Announce(named) => {
                self.store.adopt_name(&named)?;
                Answer::Nothing
            }
        };
        timeout(STALL_MAX, answer(&mut stream, &said)).await.context("a peer does not take the answer")??;
        Ok(())
    }

    async fn offer(&self, digest: Digest, mut stream: ByteStream) -> anyhow::Result<()> {
        let Some((file, bytes)) = self.store.open_here(&digest) else {
            return Ok(answer(&mut stream, &Answer::Nothing).await?);
        };
        let Ok(_turn) = timeout(TURN_WAIT, self.sending.acquire()).await else {
            return Ok(answer(&mut stream, &Answer::Busy).await?);
        };
        write_message(&mut stream, &Answer::Offer { bytes }).await?;
        let take = timeout(TAKE_DEADLINE, read_message(&mut stream, MESSAGE_BYTES_MAX)).await;
        // Who does not take it has found it elsewhere.
        let Ok(Ok(Take { from })) = take else { return Ok(()) };
        send(file, from, &mut stream).await.with_context(|| format!("send {digest}"))
    }
}

async fn send(file: File, from: u64, stream: &mut ByteStream) -> anyhow::Result<()> {
    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(from)).await?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk).await?;
        if count == 0 {
            return Ok(timeout(STALL_MAX, stream.shutdown()).await??);
        }
        timeout(STALL_MAX, stream.write_all(&chunk[..count])).await??;
    }
}
