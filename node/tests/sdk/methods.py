"""Every method of what a sandbox offers, called by an unmodified Python SDK of whatever version. One that nobody calls is a failure.

Arguments: `sync` or `async`, API key, a node's base URL, a sandbox with an entrypoint, and one with a desktop if there is one."""

import asyncio
import importlib
import inspect
import os
import socket
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from importlib.metadata import version

from daytona import AsyncDaytona, CodeRunParams, Daytona, DaytonaConfig, DaytonaError, FileDownloadRequest, FileUpload, SessionExecuteRequest
from daytona.common import lsp_server
from daytona.common.computer_use import ScreenshotOptions, ScreenshotRegion
from daytona.common.pty import PtySize

mode, key, base, sandbox_id = sys.argv[1:5]
desktop_id = sys.argv[5] if len(sys.argv) > 5 else None
# Up to 0.110 the SDK takes its generated client's only.
generated = importlib.import_module("daytona_api_client_async" if mode == "async" else "daytona_api_client")
Position = getattr(lsp_server, "LspCompletionPosition", None) or generated.Position
HOME = "/home/daytona"
WHERE = f"{HOME}/methods-{mode}"
PARTS_OF = f"daytona._{mode}."

def resolved(host, *rest, **named):
    """As RFC 6761 has it. Not every resolver knows *.localhost, and SDKs up to 0.110 reach terminals and logs by preview hosts."""
    return unresolved("127.0.0.1" if str(host).endswith(".localhost") else host, *rest, **named)


unresolved, socket.getaddrinfo = socket.getaddrinfo, resolved

called: set[tuple[str, str]] = set()
offered: set[tuple[str, str]] = set()
failures: list[str] = []


class Watched:
    """Hands on, and notes which methods there are and which are called."""

    def __init__(self, of):
        self.of = of
        self.name = type(of).__name__
        methods = inspect.getmembers(type(of), inspect.isfunction)
        offered.update((self.name, method) for method, _ in methods if not method.startswith("_"))

    def __getattr__(self, name):
        value = getattr(self.of, name)
        if inspect.ismethod(value):
            called.add((self.name, name))
        return value


def has(part, name: str) -> bool:
    return hasattr(part.of, name)


async def now(value):
    """What a method gave, at once or as something to wait for. The synchronous SDK has asynchronous methods, too."""
    if not inspect.isawaitable(value):
        return value
    return await value if mode == "async" else asyncio.run(value)


async def gathered(stream) -> bytes:
    stream = await now(stream)
    if hasattr(stream, "__aiter__"):
        return b"".join([chunk async for chunk in stream])
    return b"".join(stream)


async def commands(process) -> None:
    ran = await now(process.exec("echo $A; pwd", cwd="/tmp", env={"A": "b"}, timeout=20))
    # SDKs up to 0.15x take the last line's end away.
    assert (ran.exit_code, ran.result.strip()) == (0, "b\n/tmp"), ran
    ran = await now(process.code_run("import os, sys; print(6 * 7, sys.argv[1], os.environ['E'])", CodeRunParams(argv=["x"], env={"E": "e"})))
    assert (ran.exit_code, ran.result.strip()) == (0, "42 x e"), ran


async def afterwards(process) -> None:
    ran = await now(process.exec("echo well"))
    assert ran.result.strip() == "well", ran


async def sessions(process) -> None:
    await now(process.create_session("methods"))
    ran = await now(process.execute_session_command("methods", SessionExecuteRequest(command="cd /tmp; pwd; echo err >&2")))
    assert ran.exit_code == 0 and "/tmp" in ran.output, ran
    takes_input = has(process, "send_session_command_input")
    command = "read word; echo got $word" if takes_input else "echo got word"
    started = await now(process.execute_session_command("methods", SessionExecuteRequest(command=command, run_async=True)))
    if takes_input:
        shown = await now(process.get_session_command("methods", started.cmd_id))
        assert shown.exit_code is None, shown
        await now(process.send_session_command_input("methods", started.cmd_id, "word"))
    chunks: list[str] = []
    await now(process.get_session_command_logs_async("methods", started.cmd_id, chunks.append, chunks.append))
    assert "got word" in "".join(chunks), chunks
    shown = await now(process.get_session_command("methods", started.cmd_id))
    assert shown.exit_code == 0, shown
    logs = await now(process.get_session_command_logs("methods", started.cmd_id))
    assert "got word" in logs.output and "got word" in logs.stdout, logs
    shown = await now(process.get_session("methods"))
    assert [command.exit_code for command in shown.commands] == [0, 0], shown
    assert "methods" in [session.session_id for session in await now(process.list_sessions())]
    await now(process.delete_session("methods"))


async def entrypoint(process) -> None:
    if not has(process, "get_entrypoint_session"):
        return
    shown = await now(process.get_entrypoint_session())
    assert shown.session_id == "entrypoint" and len(shown.commands) == 1, shown
    logs = await now(process.get_entrypoint_logs())
    assert logs.stdout == "the entrypoint runs\n", logs
    seen, chunks = asyncio.Event(), []

    async def take(chunk: str) -> None:
        chunks.append(chunk)
        seen.set()

    async def follow() -> None:
        following = asyncio.create_task(process.get_entrypoint_logs_async(take, take))
        await asyncio.wait_for(seen.wait(), 20)
        # It is followed for as long as the entrypoint runs. (The SDK does not let itself be cancelled at any time.)
        ended = process.exec("pkill -f '^sleep infinity'")
        if inspect.isawaitable(ended):
            await ended
        await asyncio.wait_for(following, 20)

    await now(follow())
    assert "".join(chunks) == "the entrypoint runs\n", chunks


async def terminals(process) -> None:
    chunks: list[bytes] = []
    watching = {"on_data": chunks.append} if mode == "async" else {}
    terminal = await now(process.create_pty_session("m1", cwd="/tmp", envs={"E": "e"}, pty_size=PtySize(cols=90, rows=20), **watching))
    await now(terminal.wait_for_connection())
    viewer = await now(process.connect_pty_session("m1", **watching))
    await now(viewer.wait_for_connection())
    resized = await now(process.resize_pty_session("m1", PtySize(cols=91, rows=21)))
    assert (resized.cols, resized.rows) == (91, 21), resized
    shown = await now(process.get_pty_session_info("m1"))
    assert (shown.cwd, shown.active) == ("/tmp", True), shown
    assert await terminal_ids(process) == ["m1"]
    await now(terminal.send_input("echo size $(stty size) $E; exit 4\n"))
    for handle in (terminal, viewer):
        result = await now(handle.wait() if mode == "async" else handle.wait(on_data=chunks.append))
        assert result.exit_code == 4, result
    assert b"".join(chunks).count(b"size 21 91 e") == 2, chunks
    killed = await now(process.create_pty_session("m2", **watching))
    await now(killed.wait_for_connection())
    await now(process.kill_pty_session("m2"))
    assert await terminal_ids(process) == []


async def terminal_ids(process) -> list[str]:
    listed = await now(process.list_pty_sessions())
    # SDKs up to 0.115 hand out the whole answer.
    return [session.id for session in getattr(listed, "sessions", listed)]


async def files(fs) -> None:
    local = os.path.join(tempfile.mkdtemp(), "local")
    await now(fs.create_folder(f"{WHERE}/deep", "755"))
    await now(fs.upload_file(b"one needle\n", f"{WHERE}/one.txt"))
    await now(fs.upload_files([FileUpload(b"two needle\n", f"{WHERE}/two.txt"), FileUpload(b"", f"{WHERE}/deep/three.md")]))
    if has(fs, "upload_file_stream"):
        await now(fs.upload_file_stream(b"streamed" * 100_000, f"{WHERE}/streamed"))
        assert await gathered(fs.download_file_stream(f"{WHERE}/streamed")) == b"streamed" * 100_000
        await now(fs.delete_file(f"{WHERE}/streamed"))
    assert sorted(entry.name for entry in await now(fs.list_files(WHERE))) == ["deep", "one.txt", "two.txt"]
    await now(fs.set_file_permissions(f"{WHERE}/one.txt", mode="640", owner="daytona", group="daytona"))
    shown = await now(fs.get_file_info(f"{WHERE}/one.txt"))
    assert (shown.size, shown.permissions, shown.owner, shown.is_dir) == (11, "0640", "daytona", False), shown
    found = await now(fs.find_files(WHERE, "needle"))
    assert sorted((match.file, match.line) for match in found) == [(f"{WHERE}/one.txt", 1), (f"{WHERE}/two.txt", 1)], found
    assert (await now(fs.search_files(WHERE, "*.md"))).files == [f"{WHERE}/deep/three.md"]
    replaced = await now(fs.replace_in_files([f"{WHERE}/one.txt"], "needle", "pin"))
    assert [result.success for result in replaced] == [True], replaced
    await now(fs.move_files(f"{WHERE}/one.txt", f"{WHERE}/deep/moved.txt"))
    assert await now(fs.download_file(f"{WHERE}/deep/moved.txt")) == b"one pin\n"
    await now(fs.download_file(f"{WHERE}/deep/moved.txt", local))
    with open(local, "rb") as file:
        assert file.read() == b"one pin\n"
    paths = [f"{WHERE}/two.txt", f"{WHERE}/deep/three.md", "/no/such/file"]
    got = await now(fs.download_files([FileDownloadRequest(source=path) for path in paths]))
    assert [file.source for file in got] == paths and got[0].result == b"two needle\n" and got[2].error, got
    await now(fs.delete_file(WHERE, recursive=True))


async def file_links(sandbox) -> None:
    """Opened without a key, by a client that knows nothing of the SDK."""
    if not hasattr(sandbox, "download_url"):
        return
    path = f"{HOME}/a link & more {mode}.txt"
    boundary = "----boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    body = f"{head}linked\r\n--{boundary}--\r\n".encode()
    upload = urllib.request.Request(await now(sandbox.upload_url(path)), data=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
    assert opened(upload)[0] == 200
    link = await now(sandbox.download_url(path, ttl_seconds=0))
    assert opened(link) == (200, b"linked"), opened(link)
    assert opened(link.replace("+more", "+less"))[0] == 401
    assert opened(link.replace("/files/download", "/files/info"))[0] == 401
    await now(sandbox.rotate_signing_key())
    assert opened(link)[0] == 401
    assert opened(await now(sandbox.download_url(path))) == (200, b"linked")


def opened(request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def repositories(git, process) -> None:
    repo, bare, copy = (f"{HOME}/methods-{mode}-{name}" for name in ("repo", "bare.git", "copy"))
    run = lambda command: now(process.exec(command))
    if has(git, "init"):
        await now(git.init(bare, bare=True, initial_branch="main"))
        await now(git.configure_user("A", "a@example.com"))
        await now(git.dangerously_authenticate("u", "p", host="example.com"))
    else:
        await run(f"git init -q --bare -b main {bare}; git config --global user.name A; git config --global user.email a@example.com")
    await run(f"cd /tmp && rm -rf seed && git init -q -b main seed && cd seed && echo one > file && git add . && git commit -qm first && git push -q {bare} main")
    await now(git.clone(bare, repo, branch="main"))
    await run(f"echo two > {repo}/other")
    status = await now(git.status(repo))
    assert status.current_branch == "main" and [file.name for file in status.file_status] == ["other"], status
    await now(git.add(repo, ["other"]))
    made = await now(git.commit(repo, "second", "A", "a@example.com"))
    assert len(made.sha) == 40, made
    await now(git.push(repo))
    await now(git.create_branch(repo, "side"))
    await now(git.checkout_branch(repo, "side"))
    assert set((await now(git.branches(repo))).branches) >= {"main", "side"}
    await now(git.checkout_branch(repo, "main"))
    await now(git.delete_branch(repo, "side"))
    await run(f"cd /tmp/seed && git pull -q {bare} main && echo three > file && git commit -qam third && git push -q {bare} main")
    await now(git.pull(repo))
    assert (await run(f"cat {repo}/file")).result.strip() == "three"
    if not has(git, "init"):
        return
    await now(git.init(copy, initial_branch="main"))
    await now(git.remote_add(copy, "origin", bare, fetch=True))
    assert await now(git.remote_get(copy, "origin")) == bare
    assert [remote.name for remote in (await now(git.remotes(copy))).remotes] == ["origin"]
    await now(git.set_config("some.key", "value", scope="local", path=copy))
    assert await now(git.get_config("some.key", scope="local", path=copy)) == "value"
    assert await now(git.get_config("no.such")) is None
    await run(f"echo changed > {repo}/file")
    await now(git.restore(repo, ["file"]))
    await now(git.reset(repo, mode="hard", target="HEAD~1"))
    assert (await run(f"cat {repo}/file")).result.strip() == "one"


async def language_servers(sandbox, process) -> None:
    project = f"{HOME}/project-{mode}"
    await now(process.exec(f"mkdir -p {project} && printf 'import os\\n\\ndef greet(name):\\n    return os.pa\\n' > {project}/main.py"))
    lsp = Watched(await now(sandbox.create_lsp_server("python", project)))
    await now(lsp.start())
    await now(lsp.did_open(f"{project}/main.py"))
    assert "greet" in [symbol.name for symbol in await now(lsp.document_symbols(f"{project}/main.py"))]
    for method in (lsp.workspace_symbols, lsp.sandbox_symbols):
        assert isinstance(await now(method("greet")), list)
    offers = await now(lsp.completions(f"{project}/main.py", Position(line=3, character=16)))
    assert "path" in [item.label for item in offers.items], offers
    await now(lsp.did_close(f"{project}/main.py"))
    await now(lsp.stop())


async def interpreters(interpreter) -> None:
    context = await now(interpreter.create_context(cwd="/tmp"))
    said: list[str] = []
    await now(interpreter.run_code("import os; answer = 6 * 7", context=context))
    ran = await now(interpreter.run_code("print(answer, os.getcwd(), os.environ['E'])", context=context, envs={"E": "e"}, on_stdout=lambda message: said.append(message.output)))
    assert ran.stdout == "".join(said) == "42 /tmp e\n" and ran.error is None, (ran, said)
    failed = await now(interpreter.run_code("1 / 0", timeout=20))
    assert failed.error.name == "ZeroDivisionError", failed
    assert context.id in [known.id for known in await now(interpreter.list_contexts())]
    await now(interpreter.delete_context(context))


async def computer_use(computer, process, tried) -> None:
    """`tried` is given each call, and decides what is expected of it."""
    part = {name: Watched(value) for name, value in vars(computer.of).items() if type(value).__module__.startswith(PARTS_OF)}
    if await tried(lambda: computer.start()):
        await now(process.exec("setsid mousepad >/dev/null 2>&1 </dev/null &"))
    await tried(lambda: computer.get_status())
    for method in ("get_process_status", "get_process_logs", "get_process_errors"):
        await tried(lambda: getattr(computer, method)("xvfb"))
    display, screenshot, mouse, keyboard = (part[name] for name in ("display", "screenshot", "mouse", "keyboard"))
    await tried(lambda: display.get_info())
    await tried(lambda: display.get_windows())
    region = ScreenshotRegion(x=10, y=20, width=200, height=100)
    options = ScreenshotOptions(fmt="jpeg", quality=60, scale=0.5, show_cursor=True)
    await tried(lambda: screenshot.take_full_screen(show_cursor=True))
    await tried(lambda: screenshot.take_region(region, show_cursor=True))
    await tried(lambda: screenshot.take_compressed(options))
    await tried(lambda: screenshot.take_compressed_region(region, options))
    recording = part.get("recording")
    recorded = await tried(lambda: recording.start("methods")) if recording else None
    await tried(lambda: mouse.move(100, 110))
    await tried(lambda: mouse.get_position())
    await tried(lambda: mouse.click(101, 111))
    await tried(lambda: mouse.drag(100, 100, 200, 200))
    await tried(lambda: mouse.scroll(100, 110, "down", 2))
    await tried(lambda: keyboard.type("hello", 1))
    await tried(lambda: keyboard.press("a", ["shift"]))
    await tried(lambda: keyboard.hotkey("ctrl+c"))
    if has(mouse, "down"):
        await tried(lambda: mouse.down(100, 110))
        await tried(lambda: mouse.up(120, 130))
        await tried(lambda: keyboard.down("shift"))
        await tried(lambda: keyboard.up("shift"))
    if "accessibility" in part:
        nodes = part["accessibility"]

        async def found(**wish) -> str:
            deadline = time.monotonic() + 30
            while True:
                answer = await tried(lambda: nodes.find_nodes(scope="all", **wish))
                if answer is None:
                    return "none"
                if answer.matches:
                    return answer.matches[0].id
                assert time.monotonic() < deadline, wish
                time.sleep(0.1)

        editor = await found(role="text", states=["editable"], limit=5)
        quit = await found(role="menu item", name="Quit", name_match="exact")
        await tried(lambda: nodes.get_tree(scope="all", max_depth=4))
        await tried(lambda: nodes.focus_node(editor))
        await tried(lambda: nodes.set_node_value(editor, "by the tree"))
        await tried(lambda: nodes.invoke_node(quit))
    if recording:
        id = recorded.id if recorded else "none"
        local = os.path.join(tempfile.mkdtemp(), "recording.mp4")
        await tried(lambda: recording.list())
        await tried(lambda: recording.stop(id))
        await tried(lambda: recording.get(id))
        await tried(lambda: recording.download(id, local))
        assert not recorded or os.path.getsize(local) > 0
        await tried(lambda: recording.delete(id))
    await tried(lambda: computer.restart_process("x11vnc"))
    await tried(lambda: computer.stop())


async def on_desktop(call):
    return await now(call())


async def without_desktop(call):
    try:
        return await now(call())
    except DaytonaError as error:
        # Of a refused download the SDK tells the status only.
        if "desktop" not in str(error) and "503" not in str(error):
            failures.append(f"computer use: {error}")


async def attempt(name: str, story) -> None:
    """One that fails does not hide the next."""
    try:
        await story
    except Exception:
        failures.append(f"{name}: {traceback.format_exc()}")


async def play(client) -> None:
    sandbox = await now(client.get(sandbox_id))
    assert await now(sandbox.get_user_root_dir() if not hasattr(sandbox, "get_user_home_dir") else sandbox.get_user_home_dir()) == HOME
    assert await now(sandbox.get_work_dir()) == HOME
    parts = {name: getattr(sandbox, name) for name, _ in inspect.getmembers(type(sandbox), lambda value: isinstance(value, property)) if name.strip("_") == name}
    parts = {name: Watched(value) for name, value in parts.items() if type(value).__module__.startswith(PARTS_OF)}
    process = parts["process"]
    await attempt("commands", commands(process))
    await attempt("sessions", sessions(process))
    await attempt("entrypoint", entrypoint(process))
    await attempt("terminals", terminals(process))
    await attempt("files", files(parts["fs"]))
    await attempt("links to files", file_links(sandbox))
    await attempt("git", repositories(parts["git"], process))
    await attempt("language servers", language_servers(sandbox, process))
    if "code_interpreter" in parts:
        await attempt("interpreters", interpreters(parts["code_interpreter"]))
    await attempt("computer use", computer_use(parts["computer_use"], process, without_desktop))
    if desktop_id:
        desktop = await now(client.get(desktop_id))
        await attempt("computer use on a desktop", computer_use(Watched(desktop.computer_use), desktop.process, on_desktop))
    await attempt("afterwards", afterwards(process))


async def asynchronously(config) -> None:
    async with AsyncDaytona(config) as client:
        await play(client)


config = DaytonaConfig(api_key=key, api_url=f"{base}/api")
if mode == "async":
    asyncio.run(asynchronously(config))
else:
    # Nothing in it waits, so it ends at its first step: no loop runs where the SDK may want one of its own.
    try:
        play(Daytona(config)).send(None)
        raise AssertionError("the synchronous story waited")
    except StopIteration:
        pass
failures += [f"{part}.{method} was not called" for part, method in sorted(offered - called)]
for failure in failures:
    print(failure)
print(f"daytona {version('daytona')} {mode}: {len(called)} of {len(offered)} methods called")
if not failures:
    print("STORY COMPLETE")
sys.exit(bool(failures))
