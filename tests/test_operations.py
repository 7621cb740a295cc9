"""What docs/operations.md says a job asks of object storage, counted at the client."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest

from orchestrator.counting.certification import certify_run
from orchestrator.spec import validate
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.inline import hire_inline
from tests.orchestrator.runs import digits_spec
from tests.workers.samples import encoded, noise_image

PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
IMAGES, FIRST_LOOKED_AT = 24, 20


@pytest.fixture
def requests(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Requests by operation and the first part of the key below a run or data set."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    for number in range(IMAGES):
        key = f"asked/images/{number % 2}/{number}.png"
        client.put_object(Bucket=BUCKET, Key=key, Body=encoded(noise_image(number)))
    found: Counter[tuple[str, str]] = Counter()
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        key = str(arguments.get("Key") or arguments.get("Prefix"))
        found[operation, re.sub("^asked/(runs/[^/]+/)?", "", key).split("/")[0]] += 1
        return real(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    return found


def asked(requests: Counter[tuple[str, str]], shard_size: int) -> Counter[tuple[str, str]]:
    """What a whole job asks for."""
    requests.clear()
    spec = digits_spec(
        dataset={"kind": "image_folder", "path": f"s3://{BUCKET}/asked/images"},
        model={"name": "tests.networks:tiny_rgb", "num_classes": 10},
        resources={"shard_size": shard_size},
        store={"run": f"s3://{BUCKET}/asked/runs/{shard_size}"},
    )
    assert certify_run(validate(spec, "spec"), hire=hire_inline).complete
    return Counter(requests)


def test_a_job_asks_for_what_the_page_says(requests: Counter[tuple[str, str]]) -> None:
    few, many = asked(requests, IMAGES // 2), asked(requests, IMAGES // 8)
    a_shard = {key: (many[key] - few[key]) / 6 for key in many if many[key] != few[key]}
    assert a_shard == {("HeadObject", "counts"): 1, ("PutObject", "counts"): 1, ("GetObject", "counts"): 1}
    images = sum(count for (_, where), count in few.items() if where == "images" and count)
    a_call = few.total() - images - 2 * 3
    listed = few["ListObjectsV2", "images"]
    # Each once for its votes; the first ones before, to see that the network takes them, and one by each worker.
    assert images - listed == IMAGES + FIRST_LOOKED_AT + 1
    assert "| a shard | one HEAD, one PUT, one GET |" in PAGE
    assert "| an image kept by itself | one GET |" in PAGE
    (most,) = re.findall(r"\| a call of `stn certify` \| some (\d+)", PAGE)
    assert a_call + FIRST_LOOKED_AT <= int(most)
