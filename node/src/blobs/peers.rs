//! The asking side of a `Blob` stream: who has a blob, and what names stand for at the other nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::{NodeId, OrganizationId};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::{StreamHeader, call, read_message, write_message};
use atoll_runner::image::Digest;
use atoll_runner::store::{Named, PeerBlob, Peers};
use futures_util::StreamExt;
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tracing::debug;

use super::reader;
use super::{Answer, MESSAGE_BYTES_MAX, Question, Take};

/// Nodes that are asked for a blob at the same time.
const ASKED_AT_ONCE: usize = 4;
/// Nodes that are asked about names at the same time; every one of them is asked.
const ASKED_ABOUT_NAMES_AT_ONCE: usize = 64;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// For one node's answer, connecting included.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// A node that did not answer is not asked again for so long.
const SHUNNED_FOR: Duration = Duration::from_secs(5);
/// For so long a node that had a blob is asked for it first.
const HOLDER_FOR: Duration = Duration::from_secs(600);
const HOLDERS_MAX: usize = 10_000;
/// How often those who have a blob and send too many already are asked again.
const BUSY_ROUNDS_MAX: usize = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// A handle; as many as one likes.
#[derive(Clone)]
pub struct PeerStores(Arc<Inner>);

struct Inner {
    link: Arc<dyn Link>,
    /// The other nodes, nearest first.
    members: Box<dyn Fn() -> Vec<NodeId> + Send + Sync>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    holders: HashMap<Digest, (NodeId, Instant)>,
    silent: HashMap<NodeId, Instant>,
}

/// Nodes that did not answer. Where nobody had it, one of them may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Silent(pub Vec<NodeId>);

/// A node has the blob and waits for it to be taken.
pub struct Offer {
    pub peer: NodeId,
    pub bytes: u64,
    stream: ByteStream,
}

impl Offer {
    /// From byte `from` on.
    pub async fn take(mut self, from: u64) -> Result<ByteStream, LinkError> {
        let broken = |cause: String| LinkError::Broken { peer: self.peer, cause };
        write_message(&mut self.stream, &Take { from }).await.map_err(|error| broken(error.to_string()))?;
        Ok(self.stream)
    }
}

enum Found {
    Offer(Offer),
    Busy,
    Nothing,
}

impl PeerStores {
    /// `members` gives the other nodes, nearest first.
    pub fn new(link: Arc<dyn Link>, members: impl Fn() -> Vec<NodeId> + Send + Sync + 'static) -> PeerStores {
        PeerStores(Arc::new(Inner { link, members: Box::new(members), memory: Mutex::default() }))
    }

    /// The first that offers a blob.
    pub async fn find(&self, digest: Digest) -> Result<Offer, Silent> {
        let mut silent = Silent::default();
        for _ in 0..BUSY_ROUNDS_MAX {
            let (candidates, shunned) = self.candidates(&digest);
            silent = Silent(shunned);
            let mut is_busy = false;
            let asked =
                candidates.into_iter().map(|peer| async move { (peer, self.ask_for(peer, digest).await) });
            let mut answers = futures_util::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
            while let Some((peer, found)) = answers.next().await {
                match found {
                    Ok(Found::Offer(offer)) => {
                        self.remember(digest, peer);
                        return Ok(offer);
                    }
                    Ok(Found::Busy) => is_busy = true,
                    Ok(Found::Nothing) => {}
                    Err(error) => {
                        debug!(%peer, %digest, %error, "a node cannot be asked for a blob");
                        self.shun(peer);
                        silent.0.push(peer);
                    }
                }
            }
            if !is_busy {
                break;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        Err(silent)
    }

    /// The blob from byte `from` on, wherever it can be had; goes on elsewhere when a node breaks off. Gives the length of
    /// the whole blob and the rest of it.
    pub async fn read(
        &self,
        digest: Digest,
        from: u64,
    ) -> Result<(u64, impl AsyncRead + Send + Unpin + use<>), Silent> {
        let offer = self.find(digest).await?;
        let bytes = offer.bytes;
        Ok((bytes, reader::read(self.clone(), digest, offer, from.min(bytes))))
    }

    /// Every node's words about names that begin with `prefix`, and who did not answer.
    pub async fn words_below(&self, prefix: &str) -> (Vec<Named>, Silent) {
        self.words(&Question::Words { prefix: prefix.to_owned() }).await
    }

    /// Every node's word about a name.
    pub async fn words_about(&self, name: &str) -> (Vec<Named>, Silent) {
        self.words(&Question::Word { name: name.to_owned() }).await
    }

    /// Whether some other node knows of an image of the organization that leads to the digest.
    pub async fn reach(&self, organization_id: OrganizationId, digest: Digest) -> Result<(), Silent> {
        let (answers, silent) = self.ask_all(&Question::Reaches { organization_id, digest }).await;
        if answers.contains(&Answer::Reaches(true)) { Ok(()) } else { Err(silent) }
    }

    /// Tells every node that can be told. Those that cannot hear it later, from whoever keeps the store.
    pub async fn announce(&self, named: &Named) {
        self.ask_all(&Question::Announce(named.clone())).await;
    }

    async fn words(&self, question: &Question) -> (Vec<Named>, Silent) {
        let (answers, silent) = self.ask_all(question).await;
        let words = answers.into_iter().flat_map(|answer| match answer {
            Answer::Words(words) => words,
            _ => Vec::new(),
        });
        (words.collect(), silent)
    }

    async fn ask_all(&self, question: &Question) -> (Vec<Answer>, Silent) {
        let (members, shunned) = self.members();
        let asked = members.into_iter().map(|peer| async move {
            let link = &*self.0.link;
            (peer, call::<_, Answer>(link, peer, StreamHeader::Blob, question, ANSWER_DEADLINE).await)
        });
        let mut asked = futures_util::stream::iter(asked).buffer_unordered(ASKED_ABOUT_NAMES_AT_ONCE);
        let (mut answers, mut silent) = (Vec::new(), Silent(shunned));
        while let Some((peer, answer)) = asked.next().await {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    debug!(%peer, %error, "a node cannot be asked about images");
                    self.shun(peer);
                    silent.0.push(peer);
                }
            }
        }
        (answers, silent)
    }

    async fn ask_for(&self, peer: NodeId, digest: Digest) -> Result<Found, LinkError> {
        let conversation = async {
            let broken = |cause: String| LinkError::Broken { peer, cause };
            let mut stream = self.0.link.open(peer, StreamHeader::Blob, CONNECT_DEADLINE).await?;
            let question = write_message(&mut stream, &Question::Blob { digest }).await;
            question.map_err(|error| broken(error.to_string()))?;
            let answer = read_message(&mut stream, MESSAGE_BYTES_MAX).await;
            Ok(match answer.map_err(|error| broken(error.to_string()))? {
                Answer::Offer { bytes } => Found::Offer(Offer { peer, bytes, stream }),
                Answer::Busy => Found::Busy,
                _ => Found::Nothing,
            })
        };
        let answered = tokio::time::timeout(ANSWER_DEADLINE, conversation).await;
        answered.unwrap_or(Err(LinkError::TimedOut(peer)))
    }

    /// Who is asked for a blob, in this order, and who is not.
    fn candidates(&self, digest: &Digest) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut members, shunned) = self.members();
        let holder = self.memory().holders.get(digest).filter(|(_, at)| at.elapsed() < HOLDER_FOR).copied();
        if let Some((holder, _)) = holder
            && let Some(at) = members.iter().position(|member| *member == holder)
        {
            members[..=at].rotate_right(1);
        }
        (members, shunned)
    }

    /// Those that are asked now, and those that were silent a moment ago.
    fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let members = (self.0.members)();
        let mut memory = self.memory();
        memory.silent.retain(|_, since| since.elapsed() < SHUNNED_FOR);
        members.into_iter().partition(|member| !memory.silent.contains_key(member))
    }

    fn shun(&self, peer: NodeId) {
        self.memory().silent.insert(peer, Instant::now());
    }

    /// The node did not keep what it offered.
    pub(super) fn forget(&self, digest: &Digest, peer: NodeId) {
        let mut memory = self.memory();
        if memory.holders.get(digest).is_some_and(|(holder, _)| *holder == peer) {
            memory.holders.remove(digest);
        }
    }

    fn remember(&self, digest: Digest, peer: NodeId) {
        let mut memory = self.memory();
        if memory.holders.len() >= HOLDERS_MAX {
            memory.holders.retain(|_, (_, at)| at.elapsed() < HOLDER_FOR);
        }
        if memory.holders.len() < HOLDERS_MAX {
            memory.holders.insert(digest, (peer, Instant::now()));
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Peers for PeerStores {
    async fn blob(&self, digest: &Digest, from: u64) -> Option<PeerBlob> {
        let offer = self.find(*digest).await.ok()?;
        let bytes = offer.bytes;
        let from = if from > bytes { 0 } else { from };
        Some(PeerBlob { bytes, from, content: Box::new(reader::read(self.clone(), *digest, offer, from)) })
    }

    async fn name(&self, name: &str) -> Option<Named> {
        let (words, _) = self.words_about(name).await;
        words
            .into_iter()
            .filter(|word| word.name == name)
            .fold(None, |latest, word| Named::later(latest, Some(word)))
    }
}
