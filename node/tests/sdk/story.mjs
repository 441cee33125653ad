// One story by the unmodified npm SDK, each step through another node. Arguments: API key, three node base URLs.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

// The SDK lives in a folder of its own, outside this tree.
const require = createRequire(`${process.env.ATOLL_NODE_MODULES}/`)
const { Daytona, DaytonaConflictError, DaytonaFileNotFoundError, DaytonaNotFoundError, DaytonaProcessExecutionTimeoutError } = require('@daytonaio/sdk')

const [key, first, second, third] = process.argv.slice(2)
const client = (base) => new Daytona({ apiKey: key, apiUrl: `${base}/api` })

// create on 1
const made = await client(first).create({
  name: 'node-story',
  language: 'typescript',
  envVars: { GREETING: 'hello' },
  labels: { story: 'node' },
})
assert.equal(made.state, 'started')
await assert.rejects(client(first).create({ name: 'node-story' }), DaytonaConflictError)
await assert.rejects(client(first).get('no-such-sandbox'), DaytonaNotFoundError)

// exec and files on 2
const two = client(second)
const sandbox = await two.get(made.id)
assert.equal(sandbox.labels.story, 'node')
const answer = await sandbox.process.executeCommand('echo $GREETING from $(whoami)')
assert.equal(answer.exitCode, 0)
assert.equal(answer.result.trim(), 'hello from daytona')
assert.equal((await sandbox.process.codeRun('const answer: number = 6 * 7; console.log(answer)')).result.trim(), '42')
await assert.rejects(sandbox.process.executeCommand('sleep 30', undefined, undefined, 1), DaytonaProcessExecutionTimeoutError)

const home = await sandbox.getUserHomeDir()
await sandbox.fs.createFolder(`${home}/work`, '755')
await sandbox.fs.uploadFile(Buffer.from('one\n'), `${home}/work/one.txt`)
assert.equal((await sandbox.fs.downloadFile(`${home}/work/one.txt`)).toString(), 'one\n')
assert.deepEqual((await sandbox.fs.listFiles(`${home}/work`)).map((entry) => entry.name), ['one.txt'])

await assert.rejects(sandbox.fs.downloadFile(`${home}/work/none`), DaytonaFileNotFoundError)
const large = Buffer.alloc(10_000_000, 'large')
await sandbox.fs.uploadFile(large, `${home}/large`)
assert.ok(large.equals(await sandbox.fs.downloadFile(`${home}/large`)))

// a command's log is followed on 2 and on 3 while its input comes from 2
const three = await client(third).get(made.id)
await sandbox.process.createSession('s1')
const { cmdId } = await sandbox.process.executeSessionCommand('s1', { command: 'read word; echo got $word; echo bad >&2', runAsync: true })
const logs = [sandbox, three].map(async (from) => {
  let text = ''
  await from.process.getSessionCommandLogs('s1', cmdId, (chunk) => { text += chunk }, (chunk) => { text += `!${chunk}` })
  return text.trim().split('\n').sort()
})
await sandbox.process.sendSessionCommandInput('s1', cmdId, 'word')
for (const log of await Promise.all(logs)) assert.deepEqual(log, ['!bad', 'got word', 'word'])
assert.equal((await sandbox.process.getSessionCommand('s1', cmdId)).exitCode, 0)
await sandbox.process.deleteSession('s1')

// SSH access: made, valid on any node, revoked
const access = await sandbox.createSshAccess(5)
assert.ok((await three.validateSshAccess(access.token)).valid)
await sandbox.revokeSshAccess(access.token)
assert.ok(!(await three.validateSshAccess(access.token)).valid)

// a terminal
let seen = ''
const pty = await sandbox.process.createPty({ id: 'p1', cols: 80, rows: 24, onData: (data) => { seen += new TextDecoder().decode(data) } })
await pty.waitForConnection()
const viewer = await three.process.connectPty('p1', { onData: () => {} })
await viewer.waitForConnection()
await viewer.resize(91, 21)
await pty.sendInput('echo pty-$((40 + 2)) size $(stty size); exit 3\n')
const ended = await pty.wait()
assert.equal(ended.exitCode, 3)
assert.match(seen, /pty-42 size 21 91/)
assert.equal((await viewer.wait()).exitCode, 3)

// a web server, its preview on 3
await sandbox.process.createSession('web')
await sandbox.process.executeSessionCommand('web', {
  command: 'cd /tmp && echo preview-works > index.html && python3 -m http.server 3000',
  runAsync: true,
})
await sandbox.process.executeCommand('for i in $(seq 100); do curl -s localhost:3000 >/dev/null && exit 0; sleep 0.1; done; exit 1')
const link = await three.getPreviewLink(3000)
// Not every resolver knows *.localhost: the node's address is dialled and the preview named in the Host header.
const page = await new Promise((resolve, reject) => {
  const target = new URL(third)
  const options = { host: target.hostname, port: target.port, path: '/index.html', headers: { host: new URL(link.url).host, 'x-daytona-preview-token': link.token } }
  import('node:http').then(({ get }) => get(options, (response) => {
    let body = ''
    response.on('data', (chunk) => { body += chunk })
    response.on('end', () => resolve(body))
  }).on('error', reject))
})
assert.equal(page, 'preview-works\n')

// delete on 2
await (await two.get(made.id)).delete()
console.log('STORY COMPLETE')
process.exit(0)
