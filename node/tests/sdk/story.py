"""One story by the unmodified Python SDK, each step through another node. Arguments: API key, three node base URLs."""

import sys
import urllib.parse
import urllib.request

from daytona import CreateSandboxFromSnapshotParams, Daytona, DaytonaConfig, SessionExecuteRequest


def client(base: str) -> Daytona:
    return Daytona(DaytonaConfig(api_key=key, api_url=f"{base}/api"))


key, first, second, third = sys.argv[1:]

# create on 1
params = CreateSandboxFromSnapshotParams(
    name="python-story", language="python", env_vars={"GREETING": "hello"}, labels={"story": "python"}
)
made = client(first).create(params)
assert made.state.value == "started", made.state

# exec and files on 2: found at once, by id and by name
two = client(second)
sandbox = two.get(made.id)
assert two.get("python-story").id == made.id
assert sandbox.labels["story"] == "python", sandbox.labels

answer = sandbox.process.exec("echo $GREETING from $(whoami)")
assert answer.exit_code == 0 and answer.result.strip() == "hello from daytona", answer
assert sandbox.process.exec("exit 7").exit_code == 7
assert sandbox.process.code_run("print(6 * 7)").result.strip() == "42"

home = sandbox.get_user_home_dir()
assert home == "/home/daytona", home
sandbox.fs.create_folder(f"{home}/work", "755")
sandbox.fs.upload_file(b"one\n", f"{home}/work/one.txt")
assert sandbox.fs.download_file(f"{home}/work/one.txt") == b"one\n"
assert [entry.name for entry in sandbox.fs.list_files(f"{home}/work")] == ["one.txt"]
assert sandbox.fs.get_file_info(f"{home}/work/one.txt").size == 4
sandbox.fs.move_files(f"{home}/work/one.txt", f"{home}/work/two.txt")
sandbox.fs.delete_file(f"{home}/work/two.txt")

sandbox.process.create_session("s1")
run = lambda command: sandbox.process.execute_session_command("s1", SessionExecuteRequest(command=command))
run("cd /tmp")
assert run("pwd").stdout.strip() == "/tmp"
sandbox.process.delete_session("s1")

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

# stop and start on 3, delete on 2
three = client(third).get(made.id)
three.stop()
assert three.state.value == "stopped", three.state
three.start()
assert three.state.value == "started", three.state
assert three.process.exec("cat /tmp/index.html").result.strip() == "preview-works"
assert made.id in [item.id for item in client(third).list()]
two.get(made.id).delete()
print("STORY COMPLETE")
