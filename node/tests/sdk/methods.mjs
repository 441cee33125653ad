// Every method of what a sandbox offers, called by the unmodified npm SDK. One that nobody calls is a failure.
// Arguments: API key, a node's base URL, a sandbox with an entrypoint, and one with a desktop if there is one.
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'

// The SDK lives in a folder of its own, outside this tree.
const require = createRequire(`${process.env.ATOLL_NODE_MODULES}/`)
const { Daytona, DaytonaError } = require('@daytonaio/sdk')

const [key, base, sandboxId, desktopId] = process.argv.slice(2)
const HOME = '/home/daytona'
const WHERE = `${HOME}/methods-npm`
const called = new Set()
const offered = new Set()
const failures = []

/** Hands on, and notes which methods there are and which are called. */
function watched(part) {
  const prototype = Object.getPrototypeOf(part)
  const label = (method) => `${prototype.constructor.name}.${method}`
  const isMethod = (name) => typeof Object.getOwnPropertyDescriptor(prototype, name)?.value === 'function'
  // What TypeScript calls private shows in the declarations only.
  const declared = declarations(prototype.constructor.name)
  for (const name of Object.getOwnPropertyNames(prototype)) {
    if (isMethod(name) && declared.has(name)) offered.add(label(name))
  }
  return new Proxy(part, {
    get(target, name) {
      if (!isMethod(name)) return target[name]
      if (offered.has(label(name))) called.add(label(name))
      return target[name].bind(target)
    },
  })
}

function declarations(name) {
  const folder = `${process.env.ATOLL_NODE_MODULES}/@daytonaio/sdk/cjs`
  const files = ['Process', 'FileSystem', 'Git', 'LspServer', 'CodeInterpreter', 'ComputerUse']
  const source = files.map((file) => readFileSync(join(folder, `${file}.d.ts`), 'utf8')).join('\n')
  const body = source.split(new RegExp(`export declare class ${name} `))[1]?.split('\n}\n')[0] ?? ''
  return new Set([...body.matchAll(/^    (?!private|constructor|protected|static)(\w+)\(/gm)].map((match) => match[1]))
}

async function commands(process) {
  const ran = await process.executeCommand('echo $A; pwd', '/tmp', { A: 'b' }, 20)
  assert.deepEqual([ran.exitCode, ran.result], [0, 'b\n/tmp\n'])
  assert.equal((await process.codeRun('import sys; print(6 * 7, sys.argv[1])', { argv: ['x'] })).result, '42 x\n')
}

async function sessions(process) {
  await process.createSession('npm')
  const ran = await process.executeSessionCommand('npm', { command: 'echo out; echo err >&2' })
  assert.deepEqual([ran.exitCode, ran.stdout, ran.stderr], [0, 'out\n', 'err\n'])
  const { cmdId } = await process.executeSessionCommand('npm', { command: 'read word; echo got $word', runAsync: true })
  assert.equal((await process.getSessionCommand('npm', cmdId)).exitCode, undefined)
  await process.sendSessionCommandInput('npm', cmdId, 'word')
  const chunks = []
  const take = (chunk) => chunks.push(chunk)
  await process.getSessionCommandLogs('npm', cmdId, take, take)
  assert.match(chunks.join(''), /got word/)
  assert.match((await process.getSessionCommandLogs('npm', cmdId)).stdout, /got word/)
  assert.deepEqual((await process.getSession('npm')).commands.map((command) => command.exitCode), [0, 0])
  assert.ok((await process.listSessions()).some((session) => session.sessionId === 'npm'))
  await process.deleteSession('npm')
  assert.equal((await process.getEntrypointSession()).sessionId, 'entrypoint')
  assert.equal((await process.getEntrypointLogs()).stdout, 'the entrypoint runs\n')
}

async function terminals(process) {
  const seen = []
  const onData = (data) => seen.push(Buffer.from(data))
  const terminal = await process.createPty({ id: 'n1', cwd: '/tmp', envs: { E: 'e' }, cols: 90, rows: 20, onData })
  await terminal.waitForConnection()
  const viewer = await process.connectPty('n1', { onData })
  await viewer.waitForConnection()
  assert.equal((await process.resizePtySession('n1', 91, 21)).cols, 91)
  assert.equal((await process.getPtySessionInfo('n1')).cwd, '/tmp')
  assert.deepEqual((await process.listPtySessions()).map((session) => session.id), ['n1'])
  await terminal.sendInput('echo size $(stty size) $E; exit 4\n')
  for (const handle of [terminal, viewer]) assert.equal((await handle.wait()).exitCode, 4)
  assert.equal(Buffer.concat(seen).toString().split('size 21 91 e').length, 3)
  const killed = await process.createPty({ id: 'n2', onData })
  await killed.waitForConnection()
  await process.killPtySession('n2')
  assert.deepEqual(await process.listPtySessions(), [])
}

async function files(fs) {
  const local = join(mkdtempSync(join(tmpdir(), 'atoll-methods-')), 'local')
  await fs.createFolder(`${WHERE}/deep`, '755')
  await fs.uploadFile(Buffer.from('one needle\n'), `${WHERE}/one.txt`)
  await fs.uploadFiles([
    { source: Buffer.from('two needle\n'), destination: `${WHERE}/two.txt` },
    { source: Buffer.from(''), destination: `${WHERE}/deep/three.md` },
  ])
  await fs.uploadFileStream(Buffer.from('streamed'), `${WHERE}/streamed`)
  assert.equal(await text(await fs.downloadFileStream(`${WHERE}/streamed`)), 'streamed')
  await fs.deleteFile(`${WHERE}/streamed`)
  const names = (await fs.listFiles(WHERE)).map((entry) => entry.name)
  assert.deepEqual(names.sort(), ['deep', 'one.txt', 'two.txt'])
  await fs.setFilePermissions(`${WHERE}/one.txt`, { mode: '640', owner: 'daytona', group: 'daytona' })
  assert.equal((await fs.getFileDetails(`${WHERE}/one.txt`)).permissions, '0640')
  assert.equal((await fs.findFiles(WHERE, 'needle')).length, 2)
  assert.deepEqual((await fs.searchFiles(WHERE, '*.md')).files, [`${WHERE}/deep/three.md`])
  assert.equal((await fs.replaceInFiles([`${WHERE}/one.txt`], 'needle', 'pin'))[0].success, true)
  await fs.moveFiles(`${WHERE}/one.txt`, `${WHERE}/moved.txt`)
  assert.equal((await fs.downloadFile(`${WHERE}/moved.txt`)).toString(), 'one pin\n')
  await fs.downloadFile(`${WHERE}/moved.txt`, local)
  assert.equal(readFileSync(local, 'utf8'), 'one pin\n')
  const got = await fs.downloadFiles([{ source: `${WHERE}/two.txt` }, { source: '/no/such/file' }])
  assert.equal(got[0].result.toString(), 'two needle\n')
  assert.ok(got[1].error)
  await fs.deleteFile(WHERE, true)
}

async function repositories(git, process) {
  const [repo, bare, copy] = ['repo', 'bare.git', 'copy'].map((name) => `${HOME}/npm-${name}`)
  const run = async (command) => (await process.executeCommand(command)).result
  await git.init(bare, true, 'main')
  await git.configureUser('A', 'a@example.com')
  await git.dangerouslyAuthenticate('u', 'p', 'example.com')
  await git.init(repo, false, 'main')
  await run(`echo one > ${repo}/file; echo two > ${repo}/other`)
  assert.deepEqual((await git.status(repo)).fileStatus.map((file) => file.name).sort(), ['file', 'other'])
  await git.add(repo, ['file', 'other'])
  assert.equal((await git.commit(repo, 'first', 'A', 'a@example.com')).sha.length, 40)
  await git.remoteAdd(repo, 'origin', bare)
  assert.equal(await git.remoteGet(repo, 'origin'), bare)
  assert.deepEqual((await git.remotes(repo)).remotes.map((remote) => remote.name), ['origin'])
  await git.push(repo, undefined, undefined, 'main', 'origin', true)
  await git.createBranch(repo, 'side')
  await git.checkoutBranch(repo, 'side')
  assert.deepEqual((await git.branches(repo)).branches.sort(), ['main', 'side'])
  await git.checkoutBranch(repo, 'main')
  await git.deleteBranch(repo, 'side')
  await git.clone(bare, copy, 'main')
  await run(`cd ${repo} && echo three > file && git commit -qam second && git push -q`)
  await git.pull(copy)
  assert.equal(await run(`cat ${copy}/file`), 'three\n')
  await git.setConfig('some.key', 'value', 'local', repo)
  assert.equal(await git.getConfig('some.key', 'local', repo), 'value')
  await run(`echo changed > ${repo}/file`)
  await git.restore(repo, ['file'])
  await git.reset(repo, 'hard', 'HEAD~1')
  assert.equal(await run(`cat ${repo}/file`), 'one\n')
}

async function languageServers(sandbox, process) {
  const project = `${HOME}/npm-project`
  await process.executeCommand(`mkdir -p ${project} && printf 'import os\\n\\ndef greet(name):\\n    return os.pa\\n' > ${project}/main.py`)
  const lsp = watched(await sandbox.createLspServer('python', project))
  await lsp.start()
  await lsp.didOpen(`${project}/main.py`)
  assert.ok((await lsp.documentSymbols(`${project}/main.py`)).some((symbol) => symbol.name === 'greet'))
  assert.ok(Array.isArray(await lsp.workspaceSymbols('greet')))
  assert.ok(Array.isArray(await lsp.sandboxSymbols('greet')))
  const offers = await lsp.completions(`${project}/main.py`, { line: 3, character: 16 })
  assert.ok(offers.items.some((item) => item.label === 'path'))
  await lsp.didClose(`${project}/main.py`)
  await lsp.stop()
}

async function interpreters(interpreter) {
  const context = await interpreter.createContext('/tmp')
  await interpreter.runCode('answer = 6 * 7', { context })
  const said = []
  const ran = await interpreter.runCode('print(answer)', { context, onStdout: (message) => said.push(message.output) })
  assert.deepEqual([ran.stdout, said.join('')], ['42\n', '42\n'])
  assert.equal((await interpreter.runCode('1 / 0')).error.name, 'ZeroDivisionError')
  assert.ok((await interpreter.listContexts()).some((known) => known.id === context.id))
  await interpreter.deleteContext(context)
}

async function computerUse(computer, process, tried) {
  const [display, screenshot, mouse, keyboard, recording, nodes] = ['display', 'screenshot', 'mouse', 'keyboard', 'recording', 'accessibility'].map((name) => watched(computer[name]))
  if (await tried(() => computer.start())) await process.executeCommand('setsid mousepad >/dev/null 2>&1 </dev/null &')
  await tried(() => computer.getStatus())
  for (const method of ['getProcessStatus', 'getProcessLogs', 'getProcessErrors']) await tried(() => computer[method]('xvfb'))
  await tried(() => display.getInfo())
  await tried(() => display.getWindows())
  const region = { x: 10, y: 20, width: 200, height: 100 }
  const options = { format: 'jpeg', quality: 60, scale: 0.5, showCursor: true }
  await tried(() => screenshot.takeFullScreen(true))
  await tried(() => screenshot.takeRegion(region, true))
  await tried(() => screenshot.takeCompressed(options))
  await tried(() => screenshot.takeCompressedRegion(region, options))
  const recorded = await tried(() => recording.start('npm'))
  await tried(() => mouse.move(100, 110))
  await tried(() => mouse.getPosition())
  await tried(() => mouse.click(101, 111))
  await tried(() => mouse.drag(100, 100, 200, 200))
  await tried(() => mouse.scroll(100, 110, 'down', 2))
  await tried(() => keyboard.type('hello', 1))
  await tried(() => keyboard.press('a', ['shift']))
  await tried(() => keyboard.hotkey('ctrl+c'))
  await tried(() => nodes.getTree({ scope: 'all', maxDepth: 4 }))
  const found = async (wish) => {
    const deadline = Date.now() + 30_000
    for (;;) {
      const answer = await tried(() => nodes.findNodes({ scope: 'all', ...wish }))
      if (!answer) return 'none'
      if (answer.matches.length) return answer.matches[0].id
      assert.ok(Date.now() < deadline, JSON.stringify(wish))
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  const editor = await found({ role: 'text', states: ['editable'], limit: 5 })
  const quit = await found({ role: 'menu item', name: 'Quit', nameMatch: 'exact' })
  await tried(() => nodes.focusNode(editor))
  await tried(() => nodes.setNodeValue(editor, 'by the tree'))
  await tried(() => nodes.invokeNode(quit))
  const id = recorded ? recorded.id : 'none'
  const local = join(mkdtempSync(join(tmpdir(), 'atoll-methods-')), 'recording.mp4')
  await tried(() => recording.list())
  await tried(() => recording.stop(id))
  await tried(() => recording.get(id))
  await tried(() => recording.download(id, local))
  if (recorded) assert.ok(statSync(local).size > 0)
  await tried(() => recording.delete(id))
  await tried(() => computer.restartProcess('x11vnc'))
  await tried(() => computer.stop())
}

/** Opened without a key, by a client that knows nothing of the SDK. */
const fileLinks = async () => {
  const path = `${HOME}/a link & more npm.txt`
  const form = new FormData()
  form.append('file', new Blob(['linked']), 'x')
  assert.equal((await fetch(await sandbox.uploadUrl(path), { method: 'POST', body: form })).status, 200)
  const link = await sandbox.downloadUrl(path, 0)
  assert.equal(await (await fetch(link)).text(), 'linked')
  const status = async (url) => (await fetch(url)).status
  assert.equal(await status(link.replace('more', 'less')), 401)
  await sandbox.rotateSigningKey()
  assert.equal(await status(link), 401)
  assert.equal(await status(await sandbox.downloadUrl(path)), 200)
}

const withoutDesktop = async (call) => {
  try {
    return await call()
  } catch (error) {
    // Of a refused download the SDK tells the status only.
    const isClear = error.message.includes('desktop') || error.statusCode === 503
    if (!(error instanceof DaytonaError && isClear)) failures.push(`computer use: ${error.stack}`)
  }
}

/** One that fails does not hide the next. */
const attempt = (name, story) => story.catch((error) => failures.push(`${name}: ${error.stack}`))

const client = new Daytona({ apiKey: key, apiUrl: `${base}/api` })
const sandbox = await client.get(sandboxId)
assert.equal(await sandbox.getUserHomeDir(), HOME)
const run = watched(sandbox.process)
await attempt('commands', commands(run))
await attempt('sessions', sessions(run))
await attempt('terminals', terminals(run))
await attempt('files', files(watched(sandbox.fs)))
await attempt('links to files', fileLinks())
await attempt('git', repositories(watched(sandbox.git), run))
await attempt('language servers', languageServers(sandbox, run))
await attempt('interpreters', interpreters(watched(sandbox.codeInterpreter)))
await attempt('computer use', computerUse(watched(sandbox.computerUse), run, withoutDesktop))
if (desktopId) {
  const desktop = await client.get(desktopId)
  await attempt('computer use on a desktop', computerUse(watched(desktop.computerUse), desktop.process, (call) => call()))
}
for (const method of offered) if (!called.has(method)) failures.push(`${method} was not called`)
for (const failure of failures) console.log(failure)
const { version } = require('@daytonaio/sdk/package.json')
console.log(`@daytonaio/sdk ${version}: ${called.size} of ${offered.size} methods called`)
if (failures.length === 0) console.log('STORY COMPLETE')
process.exit(failures.length === 0 ? 0 : 1)
