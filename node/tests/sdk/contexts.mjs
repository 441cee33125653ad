// Build contexts uploaded by the unmodified npm SDK. Arguments: API key, three node base URLs.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

// The SDK lives in a folder of its own, outside this tree, and its S3 client beside it.
const require = createRequire(`${process.env.ATOLL_NODE_MODULES}/`)
const { Daytona, Image } = require('@daytonaio/sdk')
// Not exported, but what the SDK itself calls when an image has local files.
const { SnapshotService } = require(`${process.env.ATOLL_NODE_MODULES}/@daytonaio/sdk/cjs/Snapshot.js`)
const { DeleteObjectCommand, GetObjectCommand, HeadObjectCommand, PutObjectCommand, S3Client } = require('@aws-sdk/client-s3')

const [key, first, second] = process.argv.slice(2)
const api = (base) => new Daytona({ apiKey: key, apiUrl: `${base}/api` }).objectStorageApi

const folder = mkdtempSync(join(tmpdir(), 'atoll-contexts-'))
const [small, large] = [join(folder, 'small.txt'), join(folder, 'large')]
writeFileSync(small, randomBytes(100))
const content = randomBytes(12_000_000)
writeFileSync(large, content)

const image = Image.base('debian:12').addLocalFile(small, '/a/small.txt').addLocalFile(large, '/a/large')
const hashes = await SnapshotService.processImageContext(api(first), image)
assert.equal(new Set(hashes).size, 2)

const shown = (await api(first).getPushAccess()).data
assert.match(shown.storageUrl, /^https:/)
const client = ({ accessKey, secret, sessionToken, region }) =>
  new S3Client({
    region,
    endpoint: shown.storageUrl,
    credentials: { accessKeyId: accessKey, secretAccessKey: secret, sessionToken },
    forcePathStyle: true,
  })
const s3 = client(shown)
const of = (hash, more = {}) => ({ Bucket: shown.bucket, Key: `${shown.organizationId}/${hash}/context.tar`, ...more })

const tar = await (await s3.send(new GetObjectCommand(of(hashes[1])))).Body.transformToByteArray()
assert.ok(Buffer.from(tar).includes(content), 'the tar has the file')
const before = await s3.send(new HeadObjectCommand(of(hashes[1])))
assert.deepEqual(await SnapshotService.processImageContext(api(first), image), hashes)
assert.deepEqual((await s3.send(new HeadObjectCommand(of(hashes[1])))).LastModified, before.LastModified)

// Credentials that another node gave; each checksum that the client can compute.
const foreign = client((await api(second).getPushAccess()).data)
for (const ChecksumAlgorithm of ['CRC32', 'SHA1', 'SHA256']) {
  await foreign.send(new PutObjectCommand(of('cd'.repeat(16), { Body: 'content', ChecksumAlgorithm })))
}
await assert.rejects(foreign.send(new PutObjectCommand(of('cd'.repeat(16), { Body: 'x', ChecksumSHA256: 'AAAA' }))), { name: 'BadDigest' })
await s3.send(new DeleteObjectCommand(of('cd'.repeat(16))))
await assert.rejects(s3.send(new GetObjectCommand(of('cd'.repeat(16)))), { name: 'NoSuchKey' })
await assert.rejects(s3.send(new PutObjectCommand({ ...of('x'), Key: 'x', Body: 'x' })), { name: 'InvalidArgument' })
console.log('STORY COMPLETE')
