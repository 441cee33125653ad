"""Images that the unmodified Python SDK describes and a node builds. Arguments: API key, three node base URLs.

The cluster's authority must be among the system's, as local files are uploaded."""

import asyncio
import os
import sys
import tempfile
import uuid

from daytona import (
    AsyncDaytona,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    CreateSnapshotParams,
    Daytona,
    DaytonaConfig,
    DaytonaError,
    Image,
    ListSandboxesQuery,
    Resources,
)

key, first, second, third = sys.argv[1:]
mark = uuid.uuid4().hex


def client(base: str) -> Daytona:
    return Daytona(DaytonaConfig(api_key=key, api_url=f"{base}/api"))


one, two = client(first), client(second)
base = next(snapshot.name for snapshot in one.snapshot.list().items if snapshot.general)

folder = tempfile.mkdtemp()
os.makedirs(os.path.join(folder, "app/deep"))
with open(os.path.join(folder, "app/deep/file.txt"), "w") as file:
    file.write(mark)
with open(os.path.join(folder, "one.txt"), "w") as file:
    file.write("one")

image = (
    Image.base(base)
    .run_commands("mkdir -p /srv/app", f"echo {mark} > /srv/app/ran")
    .add_local_file(os.path.join(folder, "one.txt"), "/srv/app/one.txt")
    .add_local_dir(os.path.join(folder, "app"), "/srv/app/tree")
    .env({"MARK": mark})
    .workdir("/srv/app")
    .dockerfile_commands(["RUN chown -R daytona /srv/app"])
    .cmd(["sleep", "infinity"])
)
expected = f"{mark}\none{mark}{mark}\n/srv/app\n"
proof = "cat ran one.txt tree/deep/file.txt; echo $MARK; pwd"

# A sandbox from an image, its build followed.
lines: list[str] = []
sandbox = one.create(
    CreateSandboxFromImageParams(image=image, resources=Resources(cpu=1, memory=1, disk=3), labels={"a": "b"}),
    timeout=120,
    on_snapshot_create_logs=lines.append,
)
assert sandbox.state == "started" and sandbox.memory == 1, (sandbox.state, sandbox.memory)
log = "\n".join(lines)
assert "RUN mkdir -p /srv/app" in log and "Built" in log, log
ran = two.get(sandbox.id).process.exec(proof)
assert (ran.exit_code, ran.result) == (0, expected), ran
assert sandbox.build_info.dockerfile_content == image.dockerfile()

# The same again is not built again.
lines.clear()
again = two.create(CreateSandboxFromImageParams(image=image), timeout=60, on_snapshot_create_logs=lines.append)
assert lines == [] and again.process.exec(proof).result == expected, lines

# A snapshot from an image, and a sandbox from that.
name = f"python-built-{mark}"
lines.clear()
snapshot = two.snapshot.create(
    # Longer than the SDK waits between two looks, or it would show no log.
    CreateSnapshotParams(
        name=name,
        image=image.run_commands("sleep 3").entrypoint(["sleep", "infinity"]),
        resources=Resources(cpu=1, memory=1, disk=3),
    ),
    on_logs=lines.append,
    timeout=120,
)
assert snapshot.state == "active" and any("Built" in line for line in lines), lines
assert one.snapshot.get(name).id == snapshot.id
made = one.create(CreateSandboxFromSnapshotParams(snapshot=name), timeout=60)
assert made.process.exec(proof).result == expected
one.snapshot.delete(snapshot)

# What cannot be built says why.
broken = Image.base(base).run_commands(f"echo {mark} is broken >&2; exit 3")
try:
    one.create(CreateSandboxFromImageParams(image=broken, labels={"broken": mark}), timeout=120)
    raise AssertionError("built")
except DaytonaError as error:
    assert "BUILD_FAILED" in str(error), error
# When the SDK hears of the failure by an event, its error has no reason yet.
(failed,) = one.list(ListSandboxesQuery(labels={"broken": mark}))
reason = one.get(failed.id).error_reason
assert f"{mark} is broken" in reason and "exit code 3" in reason, reason


async def asynchronously() -> None:
    async with AsyncDaytona(DaytonaConfig(api_key=key, api_url=f"{third}/api")) as daytona:
        async_image = Image.base(base).run_commands(f"echo {mark} > /async")
        lines.clear()
        sandbox = await daytona.create(
            CreateSandboxFromImageParams(image=async_image), timeout=120, on_snapshot_create_logs=lines.append
        )
        assert (await sandbox.process.exec("cat /async")).result == f"{mark}\n"
        assert any("Built" in line for line in lines), lines
        await sandbox.delete()


asyncio.run(asynchronously())
for done in (sandbox, again, made):
    done.delete()
for failed in one.list():
    if failed.state == "build_failed":
        failed.delete()
print("STORY COMPLETE")
