// Images that the unmodified npm SDK describes and a node builds. Arguments: API key, three node base URLs.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

// The SDK lives in a folder of its own, outside this tree.
const require = createRequire(`${process.env.ATOLL_NODE_MODULES}/`)
const { Daytona, Image } = require('@daytonaio/sdk')

const [key, first, second] = process.argv.slice(2)
const client = (base) => new Daytona({ apiKey: key, apiUrl: `${base}/api` })
const [one, two] = [client(first), client(second)]
const base = (await one.snapshot.list()).items.find((snapshot) => snapshot.general).name

const mark = randomUUID()
const local = join(mkdtempSync(join(tmpdir(), 'atoll-builds-')), 'local.txt')
writeFileSync(local, mark)
const image = Image.base(base)
  .runCommands('mkdir -p /srv/app')
  .addLocalFile(local, '/srv/app/local.txt')
  .env({ MARK: mark })
  .workdir('/srv/app')
const proof = 'cat local.txt; echo " $MARK"; pwd'
const expected = `${mark} ${mark}\n/srv/app\n`

const lines = []
const options = { timeout: 120, onSnapshotCreateLogs: (line) => lines.push(line) }
const sandbox = await one.create({ image, resources: { cpu: 1, memory: 1, disk: 3 } }, options)
assert.equal(sandbox.state, 'started')
assert.match(lines.join('\n'), /RUN mkdir[^]*Built/)
assert.equal((await (await two.get(sandbox.id)).process.executeCommand(proof)).result, expected)

const name = `npm-built-${mark}`
const logs = []
// Longer than the SDK waits between two looks, or it would show no log.
const slow = image.runCommands('sleep 3')
const snapshot = await two.snapshot.create({ name, image: slow }, { timeout: 120, onLogs: (line) => logs.push(line) })
assert.equal(snapshot.state, 'active')
assert.match(logs.join('\n'), /Built/)
const made = await one.create({ snapshot: name }, { timeout: 60 })
assert.equal((await made.process.executeCommand(proof)).result, expected)
await two.snapshot.delete(snapshot)
await Promise.all([sandbox.delete(), made.delete()])
console.log('STORY COMPLETE')
