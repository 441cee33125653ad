// What a person sees: the web terminal and a desktop's screen, in a real browser, by signed links through a node that owns neither.
// Arguments: API key, a node's base URL, a sandbox, and one with a desktop.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

const require = createRequire(`${process.env.ATOLL_NODE_MODULES}/`)
const { Daytona } = require('@daytonaio/sdk')
const puppeteer = require('puppeteer-core')

const [key, base, sandboxId, desktopId] = process.argv.slice(2)
const client = new Daytona({ apiKey: key, apiUrl: `${base}/api` })
const PATIENCE = { timeout: 120_000, polling: 200 }

const browser = await puppeteer.launch({
  executablePath: '/usr/bin/chromium',
  // As root there is no other way; and not every resolver knows *.localhost.
  args: ['--no-sandbox', '--disable-gpu', '--host-resolver-rules=MAP *.localhost 127.0.0.1'],
  defaultViewport: { width: 1400, height: 1000 },
})
const complaints = []
let shown

async function open(sandbox, port, path) {
  const page = (shown = await browser.newPage())
  page.on('pageerror', (error) => complaints.push(`${path}: ${error.message}`))
  const { url } = await sandbox.getSignedPreviewUrl(port, 120)
  const answer = await page.goto(new URL(path, url).href, PATIENCE)
  assert.equal(answer.status(), 200, `${path}: ${await answer.text()}`)
  return page
}

async function webTerminal(sandbox) {
  const page = await open(sandbox, 22222, '/')
  const shows = (text) => page.waitForFunction((text) => document.body.innerText.includes(text), PATIENCE, text)
  await page.waitForSelector('.xterm-helper-textarea', PATIENCE)
  await shows('$')
  await page.keyboard.type('echo $((6 * 7)) for $USER; stty size\n')
  await shows('42 for daytona')
  // It has taken the window's size, not a terminal's usual one.
  const [rows] = await page.evaluate(() => document.body.innerText.match(/\n(\d+) (\d+)\s/).slice(1).map(Number))
  assert.ok(rows > 30, `${rows} rows`)
  await page.close()
}

async function screen(desktop) {
  const computer = desktop.computerUse
  await computer.start()
  const page = await open(desktop, 6080, '/vnc.html?autoconnect=true&reconnect=false')
  await page.waitForFunction(() => document.documentElement.classList.contains('noVNC_connected'), PATIENCE)
  const canvas = await page.waitForSelector('#noVNC_container canvas', PATIENCE)
  const { width, height } = (await computer.display.getInfo()).displays[0]
  assert.deepEqual(await canvas.evaluate((canvas) => [canvas.width, canvas.height]), [width, height])
  const colours = () => {
    const canvas = document.querySelector('#noVNC_container canvas')
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    return new Set(new Uint32Array(data.buffer)).size > 50
  }
  await page.waitForFunction(colours, PATIENCE)
  // And the other way: what the person does arrives on the desktop.
  const box = await canvas.boundingBox()
  for (const [x, y] of [[100, 120], [400, 300]]) {
    await page.mouse.move(box.x + (x * box.width) / width, box.y + (y * box.height) / height)
    const arrived = async () => {
      const at = await computer.mouse.getPosition()
      return Math.abs(at.x - x) <= 2 && Math.abs(at.y - y) <= 2 ? null : `at ${at.x}, ${at.y}, not ${x}, ${y}`
    }
    const deadline = Date.now() + 10_000
    for (let wrong = await arrived(); wrong; wrong = await arrived()) {
      assert.ok(Date.now() < deadline, wrong)
    }
  }
  if (process.env.ATOLL_SCREENSHOT) await page.screenshot({ path: process.env.ATOLL_SCREENSHOT })
  await page.close()
  await computer.stop()
}

try {
  await webTerminal(await client.get(sandboxId))
  if (desktopId) await screen(await client.get(desktopId))
  assert.deepEqual(complaints, [])
  console.log('STORY COMPLETE')
} catch (error) {
  console.error(complaints, await shown?.evaluate(() => [document.documentElement.className, document.body.innerText]))
  throw error
} finally {
  await browser.close()
}
process.exit(0)
