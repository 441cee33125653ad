//! What other nodes add: blobs in pieces, and words about names.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;

/// Every other node in one.
#[derive(Default)]
struct Others {
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    names: Mutex<HashMap<String, Named>>,
    /// The next answer ends after so many bytes.
    breaks_after: Mutex<Option<usize>>,
    /// Where answers began.
    asked_from: Mutex<Vec<u64>>,
}

#[async_trait]
impl Peers for Others {
    async fn blob(&self, digest: &Digest, from: u64) -> Option<PeerBlob> {
        let blob = self.blobs.lock().unwrap().get(digest).cloned()?;
        let from = from.min(blob.len() as u64);
        self.asked_from.lock().unwrap().push(from);
        let mut content = blob[usize::try_from(from).unwrap()..].to_vec();
        if let Some(after) = self.breaks_after.lock().unwrap().take() {
            content.truncate(after);
        }
        Some(PeerBlob { bytes: blob.len() as u64, from, content: Box::new(std::io::Cursor::new(content)) })
    }

    async fn name(&self, name: &str) -> Option<Named> {
        self.names.lock().unwrap().get(name).cloned()
    }
}

fn local(tag: &str) -> Reference {
    Reference::local("org", "app", tag.parse().unwrap()).unwrap()
}

fn with_others(dir: &Path) -> (Store, Arc<Others>) {
    let (store, others) = (store_at(dir), Arc::new(Others::default()));
    store.set_peers(others.clone());
    (store, others)
}

#[tokio::test]
async fn a_blob_that_a_peer_broke_off_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (store, others) = with_others(dir.path());
    let blob = noise(500_000);
    let digest = Digest::of(&blob);
    others.blobs.lock().unwrap().insert(digest, blob.clone());
    *others.breaks_after.lock().unwrap() = Some(200_000);

    assert!(matches!(store.fetch_by_digest(digest).await, Err(StoreError::NotFound(_))));
    let (file, bytes) = store.fetch_by_digest(digest).await.unwrap();

    assert_eq!((content(file), bytes), (blob, 500_000));
    assert_eq!(*others.asked_from.lock().unwrap(), [0, 200_000]);
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_peer_sends_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, others) = with_others(dir.path());
    let digest = Digest::of(b"the truth");
    others.blobs.lock().unwrap().insert(digest, b"something else".to_vec());

    assert!(matches!(store.fetch_by_digest(digest).await, Err(StoreError::NotFound(_))));

    assert!(store.open_here(&digest).is_none());
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0, "nothing of it is kept");
}

#[tokio::test]
async fn of_our_own_names_the_latest_word_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (store, others) = with_others(dir.path());
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    let here = store.set_name(&local("v1"), one, Origin::Given).unwrap();
    let say = |named: Named| others.names.lock().unwrap().insert(named.name.clone(), named);
    let means = async || store.latest_name(&local("v1")).await.map(|named| named.digest);

    assert_eq!(means().await, Some(one));
    say(Named { digest: two, set_ms: here.set_ms - 1, ..here.clone() });
    assert_eq!(means().await, Some(one), "an older word is nothing");
    say(Named { digest: two, set_ms: here.set_ms + 60_000, ..here.clone() });
    assert_eq!(means().await, Some(two));
    let removed = Named { set_ms: here.set_ms + 70_000, origin: Origin::Removed, ..here.clone() };
    say(removed.clone());
    assert_eq!(means().await, None);

    // Pushed again by a node whose clock is behind.
    store.set_name_after(&local("v1"), one, Origin::Given, removed.set_ms).unwrap();
    assert_eq!(means().await, Some(one));
}

#[tokio::test]
async fn a_later_word_is_adopted_for_names_that_are_here_and_for_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    let here = store.set_name(&local("v1"), one, Origin::Given).unwrap();
    let later = Named { digest: two, set_ms: here.set_ms + 5, ..here.clone() };
    let foreign = Named { name: "x.y/app:1".to_owned(), ..later.clone() };
    store.set_name(&name("x.y/app:1"), one, Origin::Fetched).unwrap();

    assert!(store.adopt_name(&later).unwrap());
    assert!(!store.adopt_name(&later).unwrap(), "said twice, it is heard once");
    assert!(!store.adopt_name(&here).unwrap(), "the older one comes too late");
    assert!(!store.adopt_name(&Named { name: local("v2").to_string(), ..later.clone() }).unwrap());
    assert!(!store.adopt_name(&Named { set_ms: u64::MAX, ..foreign }).unwrap());

    assert_eq!(store.name_here(&local("v1")).unwrap().digest, two);
    assert!(store.name_here(&local("v2")).is_none());
    assert_eq!(store.name_here(&name("x.y/app:1")).unwrap().digest, one);
}

#[tokio::test]
async fn a_removed_name_keeps_nothing_and_an_untagged_one_until_disk_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let (removed, _) = image(&store, &[("a", &noise(1000))], "A=1").await;
    let (untagged, _) = image(&store, &[("b", &noise(1000))], "A=2").await;
    let (tagged, _) = image(&store, &[("c", &noise(1000))], "A=3").await;
    for (tag, digest, origin) in [
        ("gone".to_owned(), removed, Origin::Removed),
        (untagged.to_string(), untagged, Origin::Untagged),
        (tagged.to_string(), tagged, Origin::Untagged),
        ("v1".to_owned(), tagged, Origin::Given),
    ] {
        store.set_name(&local(&tag), digest, origin).unwrap();
    }
    let is_there = |digest: &Digest| store.open_here(digest).is_some();

    assert_eq!(store.digests_below("atoll.internal/org/").unwrap().len(), 6);
    assert!(store.digests_below("atoll.internal/or/").unwrap().is_empty());
    store.collect_with(&BTreeSet::new(), u64::MAX, Duration::ZERO).unwrap();
    assert_eq!([removed, untagged, tagged].map(|digest| is_there(&digest)), [false, true, true]);
    store.collect_with(&BTreeSet::new(), 0, Duration::ZERO).unwrap();
    assert_eq!([removed, untagged, tagged].map(|digest| is_there(&digest)), [false, false, true]);

    assert_eq!(store.names_here().unwrap().len(), 2, "the tag and its digest");
    assert!(store.word_here(&local("gone")).is_some_and(|word| word.is_removed()), "the note stays");
}
