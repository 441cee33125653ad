//! Uploads in parts, of which no node remembers anything: the id of an upload and the tag of a part carry their own proof,
//! and a part is a blob like any other. One that is never put together goes with the next collection.

use std::time::Duration;

use atoll_runner::image::Digest;
use atoll_runner::store::BlobWriter;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::checksum::{Algorithm, Running};
use super::contexts::CONTEXT_BYTES_MAX;
use super::credentials::CREDENTIALS_LIVE;
use super::door::{Incoming, ObjectStorage, READ_BYTES, Signed, document, refuse_conditions};
use super::errors::S3Error;
use super::operation::Key;
use super::payload::Intake;
use super::xml;

/// For the list of parts to arrive.
const LIST_TIME_MAX: Duration = Duration::from_secs(60);
const UPLOAD_PROOF: &str = "upload";
const PART_PROOF: &str = "part";

impl ObjectStorage {
    /// The id says when it was begun, and proves that for this key.
    pub(super) fn begin(&self, key: &Key, now_s: u64) -> String {
        let salt: [u8; 8] = rand::random();
        let begun = [now_s.to_be_bytes(), salt].concat();
        let proof = self.issuer.proof(UPLOAD_PROOF, &[key.to_string().as_bytes(), &begun]);
        URL_SAFE_NO_PAD.encode([&begun[..], &proof].concat())
    }

    pub(super) fn upload(&self, key: &Key, upload: &str, now_s: u64) -> Result<(), S3Error> {
        let id = URL_SAFE_NO_PAD.decode(upload).map_err(|_| S3Error::NoSuchUpload)?;
        let (begun, proof) = id.split_first_chunk::<16>().ok_or(S3Error::NoSuchUpload)?;
        let (begun_s, _) = begun.split_first_chunk::<8>().ok_or(S3Error::NoSuchUpload)?;
        let is_ours = self.issuer.is_proof(UPLOAD_PROOF, &[key.to_string().as_bytes(), begun], proof);
        let is_late = now_s.saturating_sub(u64::from_be_bytes(*begun_s)) > CREDENTIALS_LIVE.as_secs();
        match is_ours && !is_late {
            true => Ok(()),
            false => Err(S3Error::NoSuchUpload),
        }
    }

    /// The digest, and the proof that it was uploaded as this part: knowing a digest gives nobody its content.
    pub(super) fn part_tag(&self, upload: &str, number: u32, digest: &Digest) -> String {
        let digest = digest.hex();
        let fields = [upload.as_bytes(), &number.to_be_bytes(), digest.as_bytes()];
        format!("{digest}{}", hex::encode(self.issuer.proof(PART_PROOF, &fields)))
    }

    fn part(&self, upload: &str, number: u32, tag: &str) -> Option<Digest> {
        let (digest, proof) = tag.split_at_checked(64)?;
        let fields = [upload.as_bytes(), &number.to_be_bytes(), digest.as_bytes()];
        self.issuer.is_proof(PART_PROOF, &fields, &hex::decode(proof).ok()?).then_some(())?;
        format!("sha256:{digest}").parse().ok()
    }

    pub(super) async fn complete(
        &self,
        signed: Signed<'_>,
        key: &Key,
        upload: &str,
        body: &mut Incoming,
    ) -> Result<Response, S3Error> {
        refuse_conditions(signed.head.headers)?;
        let _room = self.room(signed.known.organization_id)?;
        let mut of_whole = of_whole(signed.head.headers);
        let mut intake =
            Intake::of_request(&signed.head, signed.payload, signed.chain, xml::COMPLETE_BYTES_MAX)?;
        let mut document_bytes = Vec::new();
        let reading = async {
            while let Some(arrived) = body.next().await? {
                let mut arrived = &arrived[..];
                while let Some(piece) = intake.next(&mut arrived)? {
                    document_bytes.extend_from_slice(piece);
                }
            }
            Ok::<(), S3Error>(())
        };
        timeout(LIST_TIME_MAX, reading).await.unwrap_or(Err(S3Error::RequestTimeout))?;
        intake.finish()?;
        let listed = xml::parts(&document_bytes)?;
        if !listed.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(S3Error::InvalidPartOrder);
        }
        let mut digests = Vec::with_capacity(listed.len());
        for (number, tag) in &listed {
            digests.push((*number, self.part(upload, *number, tag).ok_or(S3Error::InvalidPart(*number))?));
        }
        let (digest, bytes) = match digests.as_slice() {
            [(number, digest)] if of_whole.is_none() => {
                let (_, bytes) =
                    self.contexts.part(*digest).await.map_err(|_| S3Error::InvalidPart(*number))?;
                (*digest, bytes)
            }
            _ => {
                let mut writer = self.contexts.writer()?;
                for (number, digest) in &digests {
                    self.append(&mut writer, *number, *digest, &mut of_whole).await?;
                }
                if let Some((running, expected)) = of_whole {
                    running.check(&expected)?;
                }
                writer.finish(None).await?
            }
        };
        self.contexts.put(key, digest, bytes).await?;
        Ok(document(xml::completed(key, &digest.hex())))
    }

    async fn append(
        &self,
        writer: &mut BlobWriter,
        number: u32,
        digest: Digest,
        of_whole: &mut Option<(Running, String)>,
    ) -> Result<(), S3Error> {
        let (file, bytes) = self.contexts.part(digest).await.map_err(|error| {
            tracing::info!(%error, number, "a part of an upload cannot be had");
            S3Error::InvalidPart(number)
        })?;
        if writer.written() + bytes > CONTEXT_BYTES_MAX {
            return Err(S3Error::EntityTooLarge);
        }
        self.check_space(bytes)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let count =
                file.read(&mut chunk).await.map_err(|error| S3Error::InternalError(error.to_string()))?;
            if count == 0 {
                return Ok(());
            }
            if let Some((running, _)) = of_whole {
                running.update(&chunk[..count]);
            }
            writer.write(&chunk[..count]).await?;
        }
    }
}

/// A checksum of all parts together. One of the parts' checksums ends in their count, and says nothing that they don't.
fn of_whole(headers: &HeaderMap) -> Option<(Running, String)> {
    headers.iter().find_map(|(name, value)| {
        let algorithm = Algorithm::of_header(name.as_str())?;
        let expected = value.to_str().ok().filter(|expected| !expected.contains('-'))?;
        Some((Running::new(algorithm), expected.to_owned()))
    })
}
