"""An attack on a run in object storage, on a real cluster and server: killed, continued, and the same bytes as in a
folder."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.cluster import stn
from tests.object_store import BUCKET, ObjectStore
from workers import layout
from workers.s3 import S3Store
from workers.store import LocalStore, Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ATTACK = {
    "draws": 200,
    "keep": 1,
    "attacks": {
        "pgd": {"kind": "pgd", "norm": "linf", "sizes": [0.02, 0.1], "steps": 40, "draws": 16},
        "square": {"kind": "square", "norm": "linf", "sizes": [0.1], "queries": 20, "draws": 4},
    },
}


def attempts(store: Store) -> dict[str, bytes]:
    return {found.key: store.read(found.key) for found in store.list(layout.ATTACKS)}


def test_a_killed_attack_goes_on_and_ends_as_one_in_a_folder(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    spec = stn.write_spec(tmp_path, "folder", attack=ATTACK)
    whole = stn.run("attack", spec, "--json")
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["shards_attacked"] == 2 * 12

    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}/run"
    store = S3Store(uri)
    first = stn.start("attack", spec, "--run", uri)
    try:
        stn.wait_for(lambda: len(list(store.list(layout.ATTACKS))) >= 2 + 2, "second shard")
    finally:
        stn.end(first)
    kept = attempts(store)
    assert not store.exists(layout.ROBUSTNESS), "it was killed too late to show anything"

    second = stn.run("attack", spec, "--run", uri, "--json")
    assert second.returncode == 0, second.stderr
    done = sum(layout.attempts_of(key) is not None for key in kept)
    # Workers may commit what they were at when the driver was killed.
    assert 0 < json.loads(second.stdout)["shards_attacked"] <= 2 * 12 - done
    found = attempts(store)
    assert {key: found[key] for key in kept} == kept, "what was committed is kept as it was"
    folder = LocalStore(tmp_path / "folder")
    assert found == attempts(folder)
    for key in (layout.ATTEMPTS, layout.ROBUSTNESS):
        assert store.read(key) == folder.read(key)
