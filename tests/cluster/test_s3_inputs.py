"""Data, weights and run in object storage, on a real cluster and server: the same votes to the byte as from folders."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import safetensors.torch

from tests.cluster import stn
from tests.networks import tiny_rgb
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from tests.workers.samples import encoded, noise_image, write_folder
from workers import layout
from workers.s3 import S3Store
from workers.store import LocalStore, S3Options, Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def spec_at(folder: Path, name: str, place: str, endpoint: str | None = None) -> Path:
    """A spec of data, weights and run below ``place``."""
    return stn.write_spec(
        folder,
        name,
        dataset={"kind": "image_folder", "path": f"{place}/data"},
        model={"name": "tests.networks:tiny_rgb", "checkpoint": f"{place}/model.safetensors", "num_classes": 10},
        store={"run": f"{place}/run", "endpoint_url": endpoint},
    )


def votes_and_tables(store: Store) -> dict[str, bytes]:
    """All but the plan, which names places, and what drivers leave for each other."""
    kinds = (layout.COUNTS, layout.CERTIFICATES, layout.CURVES, layout.PARTIAL, layout.FAILED)
    return {found.key: store.read(found.key) for found in store.list("") if found.key.startswith(kinds)}


def test_a_run_whose_all_is_in_object_storage_has_the_bytes_of_one_in_folders(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        if name != "AWS_ENDPOINT_URL":  # the spec says it, to driver and workers
            monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    bucket = S3Store(uri, S3Options(endpoint_url=object_store.url))
    files = {f"{'abc'[seed % 3]}/{seed}.png": encoded(noise_image(seed)) for seed in range(20)}
    write_folder(tmp_path / "data", {**files, "b/broken.png": b"no image at all"})
    weights = {name: tensor / 2 for name, tensor in tiny_rgb().state_dict().items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    for found in LocalStore(tmp_path).list(""):
        bucket.create(found.key, LocalStore(tmp_path).read(found.key))

    said = []
    for spec in (
        spec_at(tmp_path, "folders", str(tmp_path)),
        spec_at(tmp_path, "bucket", uri, object_store.url),
    ):
        done = stn.run("-v", "certify", spec)
        assert done.returncode == 3, done.stderr  # one image is broken
        said += [done.stdout, done.stderr]
    run = S3Store(f"{uri}/run", S3Options(endpoint_url=object_store.url))
    found, expected = votes_and_tables(run), votes_and_tables(LocalStore(tmp_path / "run"))
    assert sum(key.startswith(layout.COUNTS) for key in expected) == 3
    assert found == expected
    for text in (*said, *(repr(bucket.read(found.key)) for found in bucket.list(""))):
        assert SECRET_KEY not in text
