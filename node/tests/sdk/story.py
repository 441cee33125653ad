"""One story by the unmodified Python SDK, each step through another node. Arguments: API key, three node base URLs."""

import asyncio
import sys
import time
import urllib.parse
import urllib.request

import urllib3
from daytona import (
    AsyncDaytona,
    CreateSandboxFromSnapshotParams,
    Daytona,
    DaytonaAuthenticationError,
    DaytonaConfig,
    DaytonaConflictError,
    DaytonaError,
    DaytonaFileNotFoundError,
    DaytonaNotFoundError,
    DaytonaProcessExecutionTimeoutError,
    FileDownloadRequest,
    ListSandboxesQuery,
    SessionExecuteRequest,
)
from daytona.common.pty import PtySize
from daytona_api_client.exceptions import ConflictException, NotFoundException

requests: list[str] = []
unwatched = urllib3.connectionpool.HTTPConnectionPool.urlopen


def watched(pool, method, url, *rest, **named):
    requests.append(f"{method} {url}")
    return unwatched(pool, method, url, *rest, **named)


urllib3.connectionpool.HTTPConnectionPool.urlopen = watched


def client(base: str) -> Daytona:
    return Daytona(DaytonaConfig(api_key=key, api_url=f"{base}/api"))


def refused(expected: type, call) -> DaytonaError:
    """The SDK's class decides what integrators catch; a subclass would do, a parent would not."""
    try:
        answer = call()
    except expected as error:
        assert type(error) is not DaytonaError, error
        return error
    raise AssertionError(f"not refused: {answer}")


key, first, second, third = sys.argv[1:]

# create on 1
params = CreateSandboxFromSnapshotParams(
    name="python-story", language="python", env_vars={"GREETING": "hello"}, labels={"story": "python"}
)
one = client(first)
requests.clear()
made = one.create(params)
assert made.state.value == "started", made.state
assert requests == ["POST /api/sandbox"], requests
assert "python-story" in str(refused(DaytonaConflictError, lambda: one.create(params)))
refused(DaytonaNotFoundError, lambda: one.get("no-such-sandbox"))
refused(DaytonaAuthenticationError, lambda: Daytona(DaytonaConfig(api_key="dtn_" + "0" * 64, api_url=f"{first}/api")).get("x"))

# exec and files on 2: found at once, by id and by name
two = client(second)
sandbox = two.get(made.id)
assert two.get("python-story").id == made.id
assert sandbox.labels["story"] == "python", sandbox.labels

answer = sandbox.process.exec("echo $GREETING from $(whoami)")
assert answer.exit_code == 0 and answer.result.strip() == "hello from daytona", answer
assert sandbox.process.exec("exit 7").exit_code == 7
assert sandbox.process.exec("pwd; echo $E", cwd="/tmp", env={"E": "q'u\"o"}).result == "/tmp\nq'u\"o\n"
assert sandbox.process.exec("true", cwd="/no/such").exit_code == -1
refused(DaytonaProcessExecutionTimeoutError, lambda: sandbox.process.exec("sleep 30", timeout=1))
assert sandbox.process.code_run("print(6 * 7)").result.strip() == "42"

# labels, lists page by page, intervals
sandbox.set_labels({"story": "python", "page": "x"})
other = two.create(CreateSandboxFromSnapshotParams(labels={"page": "x"}, ephemeral=True))
pages = client(third).list(ListSandboxesQuery(labels={"page": "x"}, limit=1))
assert {item.id for item in pages} == {made.id, other.id}
sandbox.set_autostop_interval(33)
other.stop()
refused(DaytonaNotFoundError, lambda: client(third).get(other.id))

# SSH access: made, valid on any node, revoked
access = sandbox.create_ssh_access(5)
assert access.ssh_command.split()[0] == "ssh" and access.token in access.ssh_command, access
assert client(third).get(made.id).validate_ssh_access(access.token).valid
sandbox.revoke_ssh_access(access.token)
assert not sandbox.validate_ssh_access(access.token).valid

home = sandbox.get_user_home_dir()
assert home == "/home/daytona", home
sandbox.fs.create_folder(f"{home}/work", "755")
sandbox.fs.upload_file(b"one\n", f"{home}/work/one.txt")
assert sandbox.fs.download_file(f"{home}/work/one.txt") == b"one\n"
assert [entry.name for entry in sandbox.fs.list_files(f"{home}/work")] == ["one.txt"]
assert sandbox.fs.get_file_info(f"{home}/work/one.txt").size == 4
refused(DaytonaFileNotFoundError, lambda: sandbox.fs.download_file(f"{home}/work/none"))
taken, missing = sandbox.fs.download_files([FileDownloadRequest(source=f"{home}/work/{name}") for name in ("one.txt", "none")])
assert taken.result == b"one\n" and missing.error_details.status_code == 404, missing
large = bytes(range(256)) * 40_000
sandbox.fs.upload_file_stream(large, f"{home}/large")
assert b"".join(sandbox.fs.download_file_stream(f"{home}/large")) == large
assert [match.line for match in sandbox.fs.find_files(f"{home}/work", "one")] == [1]
sandbox.fs.replace_in_files([f"{home}/work/one.txt"], "one", "1")
sandbox.fs.move_files(f"{home}/work/one.txt", f"{home}/work/two.txt")
assert sandbox.fs.search_files(home, "two*").files == [f"{home}/work/two.txt"]
sandbox.fs.delete_file(f"{home}/work/two.txt")

sandbox.process.create_session("s1")
run = lambda command: sandbox.process.execute_session_command("s1", SessionExecuteRequest(command=command))
run("cd /tmp")
assert run("pwd").stdout.strip() == "/tmp"
refused(DaytonaConflictError, lambda: sandbox.process.create_session("s1"))

# a command's log is followed on 2 and on 3 while its input comes from 2
command = sandbox.process.execute_session_command(
    "s1", SessionExecuteRequest(command="read word; echo got $word; echo bad >&2", run_async=True)
).cmd_id


async def follow(base: str) -> list[str]:
    chunks: list[str] = []
    async with AsyncDaytona(DaytonaConfig(api_key=key, api_url=f"{base}/api")) as following:
        process = (await following.get(made.id)).process
        logs = process.get_session_command_logs_async("s1", command, chunks.append, lambda text: chunks.append("!" + text))
        if base == second:
            await process.send_session_command_input("s1", command, "word")
        await asyncio.wait_for(logs, 10)
    return sorted("".join(chunks).splitlines())


async def both() -> list[list[str]]:
    return await asyncio.gather(follow(second), follow(third))


for log in asyncio.run(both()):
    assert log == ["!bad", "got word", "word"], log
assert sandbox.process.get_session_command("s1", command).exit_code == 0
sandbox.process.delete_session("s1")

# a terminal, seen on 2 and on 3
terminal = sandbox.process.create_pty_session("p1", cwd="/tmp", envs={"E": "e"}, pty_size=PtySize(cols=90, rows=20))
terminal.wait_for_connection()
viewer = client(third).get(made.id).process.connect_pty_session("p1")
viewer.wait_for_connection()
viewer.resize(PtySize(cols=91, rows=21))
terminal.send_input("echo size $(stty size) $E $PWD; exit 4\n")
for handle in (terminal, viewer):
    seen: list[bytes] = []
    assert handle.wait(on_data=seen.append, timeout=10).exit_code == 4
    assert b"size 21 91 e /tmp" in b"".join(seen), seen

# a web server in the sandbox, its preview on 3
sandbox.process.create_session("web")
sandbox.process.execute_session_command(
    "web",
    SessionExecuteRequest(command="cd /tmp && echo preview-works > index.html && python3 -m http.server 3000", run_async=True),
)
sandbox.process.exec("for i in $(seq 100); do curl -s localhost:3000 >/dev/null && exit 0; sleep 0.1; done; exit 1")
link = client(third).get(made.id).get_preview_link(3000)
# Not every resolver knows *.localhost: the node's address is dialled and the preview named in the Host header.
headers = {"Host": urllib.parse.urlsplit(link.url).netloc, "X-Daytona-Preview-Token": link.token}
request = urllib.request.Request(third + "/index.html", headers=headers)
with urllib.request.urlopen(request, timeout=20) as page:
    assert page.read() == b"preview-works\n"

# a warm pool: made on 2, seen to be full on 3, which answers the same for another of its kind, emptied and deleted on 1
pool = two.warm_pool.create(sandbox.snapshot, pool=1, target=sandbox.target)
assert (pool.snapshot, pool.target, pool.pool) == (sandbox.snapshot, sandbox.target, 1), pool
# (This part of the SDK lets its generated client's errors through.)
refused(ConflictException, lambda: client(third).warm_pool.create(sandbox.snapshot, pool=2, target=sandbox.target))
shown = lambda: next(item for item in client(third).warm_pool.list() if item.id == pool.id)
deadline = time.monotonic() + 60
while shown().current_size != 1:
    assert time.monotonic() < deadline, shown()
    time.sleep(0.02)
assert one.warm_pool.update(pool.id, pool=0).pool == 0
one.warm_pool.delete(pool.id)
refused(NotFoundException, lambda: two.warm_pool.update(pool.id, pool=1))

# stop and start on 3, delete on 2
three = client(third).get(made.id)
watched_on_1 = one.get(made.id)
three.stop()
assert three.state.value == "stopped", three.state
# What the SDK on 1 holds changes by the event alone: nothing is asked.
deadline = time.monotonic() + 10
while watched_on_1.state.value != "stopped":
    assert time.monotonic() < deadline, f"no event told node 1's client of the stop: {watched_on_1.state}"
    time.sleep(0.02)
assert "Is the Sandbox started?" in str(refused(DaytonaError, lambda: three.process.exec("true")))
three.start()
assert three.state.value == "started", three.state
assert three.process.exec("cat /tmp/index.html").result.strip() == "preview-works"
assert made.id in [item.id for item in client(third).list()]
two.get(made.id).delete()
print("STORY COMPLETE")
