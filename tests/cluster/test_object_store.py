"""A run in object storage, on a real cluster and server: killed, continued, and the same bytes as in a folder."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.cluster import stn
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from workers import layout
from workers.s3 import S3Store
from workers.store import LocalStore, Store

pytestmark = pytest.mark.timeout(600)


def content(store: Store) -> dict[str, bytes]:
    """All objects of a run; of drivers, a killed one leaves a record, which the next one clears away."""
    return {found.key: store.read(found.key) for found in store.list("") if not found.key.startswith(layout.DRIVERS)}


def test_a_killed_run_goes_on_and_ends_as_one_in_a_folder(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    spec = stn.write_spec(tmp_path, "folder", model={"name": "tests.networks:slow"})
    whole = stn.run("certify", spec)
    assert whole.returncode == 0, whole.stderr

    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}/run"
    store = S3Store(uri)
    first = stn.start("certify", spec, "--run", uri)
    try:
        stn.wait_for(lambda: len(list(store.list(layout.COUNTS))) >= 2, "second shard")
    finally:
        stn.end(first)
    kept = content(store)
    assert not store.exists(layout.CURVES)

    second = stn.run("-v", "certify", spec, "--run", uri)
    assert second.returncode == 0, second.stderr
    found, expected = content(store), content(LocalStore(tmp_path / "folder"))
    assert {key: found[key] for key in kept} == kept, "what was committed is kept as it was"
    # The plan names the place; all that follows from votes is the same to the byte.
    del found[layout.PLAN], expected[layout.PLAN]
    assert found == expected

    again = stn.run("certify", spec, "--run", uri)
    assert again.stdout.startswith("already complete")
    for said in (second.stdout, second.stderr, *map(repr, content(store).values())):
        assert SECRET_KEY not in said
