"""Build contexts uploaded by the unmodified Python SDK. Arguments: API key, three node base URLs.

The cluster's authority must be among the system's: the SDK empties the environment while it opens its S3 client."""

import asyncio
import io
import os
import sys
import tarfile
import tempfile

import obstore
from daytona import AsyncDaytona, Daytona, DaytonaConfig, Image
from daytona._async.snapshot import AsyncSnapshotService
from daytona._sync.snapshot import SnapshotService
from obstore.store import S3Store

key, first, second, third = sys.argv[1:]


def access(base: str):
    return Daytona(DaytonaConfig(api_key=key, api_url=f"{base}/api"))._object_storage_api


def bucket(shown, url: str) -> S3Store:
    return S3Store(
        bucket=shown.bucket, endpoint=url, region=shown.region, access_key_id=shown.access_key,
        secret_access_key=shown.secret, session_token=shown.session_token,
    )


folder = tempfile.mkdtemp()
small, large = os.path.join(folder, "small.txt"), os.path.join(folder, "large")
with open(small, "wb") as file:
    file.write(os.urandom(100))
# More than two of the SDK's parts.
with open(large, "wb") as file:
    file.write(os.urandom(12_000_000))

image = Image.base("debian:12").add_local_file(small, "/a/small.txt").add_local_dir(folder, "/all")
hashes = SnapshotService.process_image_context(access(first), image)
assert len(hashes) == 2 and len(set(hashes)) == 2, hashes

shown = access(first).get_push_access()
assert shown.storage_url.startswith("https://"), shown.storage_url
store = bucket(shown, shown.storage_url)


def read(hash: str) -> dict[str, bytes]:
    content = bytes(store.get(f"{shown.organization_id}/{hash}/context.tar").bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


expected = {path.lstrip("/"): open(path, "rb").read() for path in (small, large)}
assert read(hashes[0]) == {small.lstrip("/"): expected[small.lstrip("/")]}
assert read(hashes[1]) == expected
head = store.head(f"{shown.organization_id}/{hashes[1]}/context.tar")
middle = store.get_range(head["path"], start=6_000_000, length=1000)
assert bytes(middle) == bytes(store.get(head["path"]).bytes())[6_000_000:6_001_000]
listed = [item["path"] for page in store.list(f"{shown.organization_id}/") for item in page]
assert {f"{shown.organization_id}/{hash}/context.tar" for hash in hashes} <= set(listed), listed

# What is there is not uploaded again: the answer to HEAD has not become younger.
assert SnapshotService.process_image_context(access(first), image) == hashes
assert store.head(head["path"])["last_modified"] == head["last_modified"]

# Credentials that another node gave, and a single PUT.
foreign = bucket(access(second).get_push_access(), shown.storage_url)
path = f"{shown.organization_id}/{'ab' * 16}/context.tar"
obstore.put(foreign, path, b"one request", use_multipart=False)
assert bytes(store.get(path).bytes()) == b"one request"

# Nothing but the organization's own.
other = path.replace(shown.organization_id, "0" * 8 + shown.organization_id[8:])
for denied in (lambda: store.head(other), lambda: obstore.put(store, other, b"x", use_multipart=False)):
    try:
        denied()
        raise AssertionError("not refused")
    except obstore.exceptions.PermissionDeniedError:
        pass


async def asynchronously() -> list[str]:
    with open(small, "ab") as file:
        file.write(b"changed")
    async with AsyncDaytona(DaytonaConfig(api_key=key, api_url=f"{third}/api")) as daytona:
        image = Image.base("debian:12").add_local_file(small, "/a/small.txt")
        return await AsyncSnapshotService.process_image_context(daytona._object_storage_api, image)


assert asyncio.run(asynchronously())[0] not in hashes
print("STORY COMPLETE")
