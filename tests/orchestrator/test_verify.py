from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import RunError
from orchestrator.progress import Meter
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import METADATA_KEY, View
from orchestrator.upkeep.findings import KINDS, Findings
from orchestrator.upkeep.verify import Verification, verify_run
from stn_core import audit
from stn_core.naming import listed
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.runs import NOISES, MadeRun, invented, plan_of
from workers import counts_table, layout
from workers.store import LocalStore, open_store

CERTIFICATES, CURVES = layout.CERTIFICATES, layout.CURVES


def publish(store: LocalStore, made: MadeRun, **changes: Any) -> LocalStore:
    """Certificates and curves of what is counted; ``changes`` are the view's."""
    reduce_run(store, made.plan, dataclasses.replace(View.of(made.plan.spec), **changes))
    return store


def path_of(store: LocalStore, key: str) -> Path:
    return Path(store.uri) / key


def said(found: Verification) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.where, finding.text) for finding in found.findings]


@pytest.fixture
def whole(made: MadeRun, tmp_path: Path) -> LocalStore:
    """20 digits in three shards, counted and reduced under three protocols."""
    return publish(made.write(tmp_path / "whole"), made, protocols=("paper", "split", "label"))


@pytest.fixture
def half(made: MadeRun, tmp_path: Path) -> LocalStore:
    """The same without the second shard."""
    return publish(made.write(tmp_path / "half", [0, 2]), made)


# --- Runs that are right -------------------------------------------------------------------------------------------


def test_a_complete_run(whole: LocalStore) -> None:
    assert verify_run(whole) == Verification(
        run=whole.uri,
        findings=(),
        lacking=(),
        shards=3,
        shards_counted=3,
        objects=3,
        without_checksum=0,
        images=20,
        images_counted=20,
        images_failed=0,
        certificates=20 * 4 * 3,
        certificates_skipped=0,
    )


@pytest.mark.parametrize("interval", ["clopper_pearson", "randomised"])
@pytest.mark.parametrize("noise", NOISES)
def test_runs_under_any_noise(by_noise: dict[str, MadeRun], tmp_path: Path, noise: str, interval: str) -> None:
    found = verify_run(publish(by_noise[noise].write(tmp_path), by_noise[noise], interval=interval))
    assert (found.findings, found.lacking) == ((), ())
    assert found.certificates == 20 * len(by_noise[noise].plan.spec.certificates)


def test_a_part_of_a_data_set_with_linf_certificates(of_a_part: MadeRun, tmp_path: Path) -> None:
    view = {"certificates": ("renyi_linf", "neyman_pearson_one_class_linf"), "protocols": ("paper_two", "label")}
    found = verify_run(publish(of_a_part.write(tmp_path), of_a_part, **view))
    assert (found.findings, found.lacking, found.certificates) == ((), (), 480)


def test_images_whose_votes_are_nan_and_runs_without_selection(
    with_nan: MadeRun, one_phase: MadeRun, tmp_path: Path
) -> None:
    for name, made in (("nan", with_nan), ("one phase", one_phase)):
        found = verify_run(publish(made.write(tmp_path / name), made))
        assert (found.findings, found.lacking, found.images_counted) == ((), (), 20)


def test_images_that_could_not_be_counted_leave_a_run_incomplete(with_failures: MadeRun, tmp_path: Path) -> None:
    found = verify_run(publish(with_failures.write(tmp_path), with_failures))
    assert (found.findings, found.lacking) == ((), ("2 of 8 images could not be counted",))
    assert (found.images_counted, found.images_failed, found.certificates) == (6, 2, 32)


def test_an_image_whose_label_is_no_class(tmp_path: Path) -> None:
    made = invented(plan_of(), failed=[0], sure=0.3)
    made.tables[0] = changed(made.tables[0], "label", with_first(99))
    found = verify_run(publish(made.write(tmp_path), made, protocols=("paper", "label")))
    assert (found.findings, found.images_failed) == ((), 1)


def test_a_run_that_goes_on(half: LocalStore, made: MadeRun) -> None:
    found = verify_run(half)
    assert (found.findings, found.lacking) == ((), ("1 of 3 shards are not counted: 1",))
    assert (found.shards_counted, found.images_counted, found.certificates) == (2, 12, 48)
    made.commit(half, 1)
    found = verify_run(half)
    assert found.findings == ()
    assert found.lacking == (
        "partial/certificates.parquet is of 12 images of the 20 looked at so far: run `stn reduce`",
    )


def test_votes_without_certificates(made: MadeRun, tmp_path: Path) -> None:
    found = verify_run(made.write(tmp_path))
    assert (found.findings, found.images_counted, found.certificates) == ((), 20, 0)
    assert found.lacking == ("no certificates of this version are published, or they are damaged: run `stn reduce`",)


def test_a_reduce_that_was_interrupted(whole: LocalStore) -> None:
    whole.delete(CURVES)
    found = verify_run(whole)
    assert (found.findings, len(found.lacking)) == ((), 1)


def test_votes_from_before_there_were_checksums(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [1])
    for shard in (0, 2):
        store.create(layout.counts(shard), made.encoded_as_version_1(shard))
    found = verify_run(publish(store, made))
    assert (found.findings, found.lacking) == ((), ())
    assert (found.objects, found.without_checksum) == (3, 2)


def test_runs_in_object_storage_of_which_each_object_is_fetched_once(
    with_failures: MadeRun, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{BUCKET}/verify")
    store.create(layout.PLAN, with_failures.plan.to_json())
    for shard in range(3):
        store.create(layout.counts(shard), with_failures.encoded(shard))
    label = with_failures.rows["label"][1].as_py()
    store.create(layout.retry(0, 1), retried(with_failures, 1, label=label))
    reduce_run(store, with_failures.plan, View.of(with_failures.plan.spec))
    fetched: list[str] = []
    read = type(store).read
    monkeypatch.setattr(type(store), "read", lambda self, key: (fetched.append(key), read(self, key))[1])
    found = verify_run(store)
    assert (found.findings, found.lacking) == ((), ("1 of 8 images could not be counted",))
    votes = [key for key in fetched if key.startswith(layout.COUNTS)]
    assert sorted(votes) == sorted([*map(layout.counts, range(3)), layout.retry(0, 1)])


def test_each_stage_tells_how_far_it_is(whole: LocalStore) -> None:
    stages: list[list[object]] = []

    class Noting:
        def advance(self, amount: int) -> None:
            stages[-1][1] += amount  # type: ignore[operator]

        def note(self, text: str) -> None:
            raise AssertionError(text)

    @contextmanager
    def observe(description: str, total: int, unit: str) -> Iterator[Meter]:
        stages.append([description, 0, total, unit])
        yield Noting()

    verify_run(whole, observe)
    assert stages == [["reading votes", 3, 3, "shards"], ["re-deriving", 240, 240, "certificates"]]


# --- Plan ----------------------------------------------------------------------------------------------------------


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        verify_run(LocalStore(tmp_path))


def test_a_damaged_plan(whole: LocalStore) -> None:
    path_of(whole, layout.PLAN).write_bytes(b"{")
    found = verify_run(whole)
    assert said(found) == [("damaged", layout.PLAN, f"{whole.uri}/plan.json is damaged: not a plan")]
    assert found.shards == 0


def test_the_plan_of_another_run(whole: LocalStore, one_phase: MadeRun) -> None:
    whole.replace(layout.PLAN, dataclasses.replace(one_phase.plan, shard_size=8).to_json())
    found = verify_run(whole)
    assert said(found) == [
        *(("foreign", layout.counts(shard), "its votes are of another run") for shard in range(3)),
        ("certificate", CERTIFICATES, "is damaged: its certificates are of another run"),
    ]


# --- Objects with votes --------------------------------------------------------------------------------------------


def test_bytes_that_changed(made: MadeRun, tmp_path: Path) -> None:
    store, content = made.write(tmp_path), made.encoded(1)
    damaged = 0
    for position in range(5, len(content), len(content) // 100):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        store.replace(layout.counts(1), bytes(changed))
        found = verify_run(store)
        if found.findings:
            ((kind, where, _),) = said(found)
            assert (kind, where, found.images_counted) == ("damaged", layout.counts(1), 12)
            damaged += 1
        else:
            assert counts_table.decode(bytes(changed))[0].equals(made.tables[1]), position
    assert damaged > 40


def test_two_shards_in_each_others_place(whole: LocalStore, made: MadeRun) -> None:
    for shard, other in ((0, 1), (1, 0)):
        whole.replace(layout.counts(shard), made.encoded(other))
    found = verify_run(whole)
    assert said(found) == [
        ("foreign", layout.counts(0), "its votes are those of shard 1"),
        ("foreign", layout.counts(1), "its votes are those of shard 0"),
    ]
    assert found.certificates_skipped == 16 * 12


def test_a_shard_of_another_run(whole: LocalStore, by_noise: dict[str, MadeRun]) -> None:
    whole.replace(layout.counts(2), by_noise["laplace"].encoded(2))
    assert said(verify_run(whole)) == [("foreign", layout.counts(2), "its votes are of another run")]


def test_a_shard_that_was_deleted_after_its_certificates_were_published(whole: LocalStore) -> None:
    whole.delete(layout.counts(1))
    found = verify_run(whole)
    assert found.lacking == ("1 of 3 shards are not counted: 1",)
    assert {(kind, text) for kind, _, text in said(found)} == {("certificate", "has no votes")}
    assert len(found.findings) == 8 * 12
    assert found.findings[0].where == f"{CERTIFICATES}, image 8, renyi under paper"


def test_objects_that_are_no_shards(whole: LocalStore, made: MadeRun) -> None:
    strange = {
        layout.counts(3): "is of a shard that is not planned: there are 3",
        layout.retry(3, 1): "is of a shard that is not planned: there are 3",
        layout.counts(0).replace("000000", "0000000"): "is no object of a run",
        layout.counts(0) + ".bak": "is no object of a run",
        layout.COUNTS + "notes.txt": "is no object of a run",
    }
    for key in strange:
        whole.create(key, made.encoded(0))
    assert said(verify_run(whole)) == sorted(("foreign", key, text) for key, text in strange.items())


def changed(table: pa.Table, name: str, values: Callable[[list[Any]], list[Any]]) -> pa.Table:
    """The table with another column in place of one."""
    field = table.schema.field(name)
    return table.set_column(
        table.schema.names.index(name), field, pa.array(values(table[name].to_pylist()), field.type)
    )


def with_first(value: Any) -> Callable[[list[Any]], list[Any]]:
    """Another first value."""
    return lambda values: [value, *values[1:]]


#: Columns of the second shard, which holds images 8 to 15, made into something else; kind and text of what is found.
VOTES: list[tuple[str, Callable[[list[Any]], list[Any]], list[tuple[str, str]]]] = [
    ("index", with_first(9), [("double", "it has images more than once: 9"), ("gap", "it lacks images 8")]),
    (
        "index",
        with_first(3),
        [("foreign", "it has images that are not the shard's: 3"), ("gap", "it lacks images 8")],
    ),
    ("index", lambda values: [9, 8, *values[2:]], [("damaged", "its images are out of order")]),
    ("label", with_first(10), [("sum", "labels are none of the 10 classes: images 8")]),
    ("label", with_first(-1), [("sum", "labels are none of the 10 classes: images 8")]),
    ("estimation", with_first([]), [("sum", "estimation votes do not add up to the draws: images 8")]),
    ("selection", with_first([]), [("sum", "selection votes do not add up to the draws: images 8")]),
    ("selection", with_first([{"class": 10, "votes": 16}]), [("sum", "selection: its votes are negative, or for")]),
    ("invalid", with_first(-1), [("sum", "estimation votes do not add up to the draws: images 8")]),
    ("ties", with_first(65), [("sum", "estimation ties are more than the votes: images 8")]),
    ("selection_ties", with_first(-1), [("sum", "selection ties are more than the votes: images 8")]),
    (
        "draws",
        lambda values: [63] * 8,
        [
            ("sum", "estimation draws are not the planned ones: images 8, 9, 10, 11, 12, 13, 14, 15"),
            ("sum", "estimation votes do not add up to the draws: images 8, 9, 10, 11, 12, 13, 14, 15"),
        ],
    ),
    (
        "error",
        with_first("undecodable"),
        [
            ("sum", "selection draws are not the planned ones: images 8"),
            ("sum", "estimation draws are not the planned ones: images 8"),
        ],
    ),
]


@pytest.mark.parametrize(("name", "values", "expected"), VOTES)
def test_rows_that_no_worker_writes_under_a_checksum_that_fits(
    whole: LocalStore,
    made: MadeRun,
    name: str,
    values: Callable[[list[Any]], list[Any]],
    expected: list[tuple[str, str]],
) -> None:
    whole.replace(layout.counts(1), made.encoded(1, changed(made.tables[1], name, values)))
    found = verify_run(whole)
    assert [(kind, where) for kind, where, _ in said(found)] == sorted(
        ((kind, layout.counts(1)) for kind, _ in expected), key=lambda one: KINDS.index(one[0])
    )
    for kind, text in expected:
        assert any(one == kind and other.startswith(text) for one, _, other in said(found)), (kind, text)
    assert found.certificates_skipped == 96


def test_a_shard_without_its_last_image(whole: LocalStore, made: MadeRun) -> None:
    whole.replace(layout.counts(1), made.encoded(1, made.tables[1].slice(0, 7)))
    assert said(verify_run(whole)) == [("gap", layout.counts(1), "it lacks images 15")]


def test_images_that_share_their_noise(whole: LocalStore, made: MadeRun) -> None:
    whole.replace(layout.counts(1), made.encoded(1, changed(made.tables[1], "key", with_first(3))))
    kind, where, text = said(verify_run(whole))[0]
    assert (kind, where, text) == ("double", layout.COUNTS, "images 3 and 8 have the same key, and so the same noise")


def test_a_vote_that_went_to_another_class(whole: LocalStore, made: MadeRun) -> None:
    """Every sum is right, the checksum too: only the certificates tell."""
    first, *others = sorted(made.tables[1]["estimation"][0].as_py(), key=lambda vote: -vote["votes"])
    other = others[0]["class"] if others else (first["class"] + 1) % 10
    votes = {vote["class"]: vote["votes"] for vote in (first, *others)}
    votes[first["class"]] -= 1
    votes[other] = votes.get(other, 0) + 1
    moved = [{"class": number, "votes": votes[number]} for number in sorted(votes)]
    whole.replace(layout.counts(1), made.encoded(1, changed(made.tables[1], "estimation", with_first(moved))))
    found = verify_run(whole)
    assert {finding.kind for finding in found.findings} == {"certificate"}
    places = {finding.where for finding in found.findings}
    assert places == {
        f"{CERTIFICATES}, image 8, {certificate} under {protocol}"
        for certificate in made.plan.spec.certificates
        for protocol in ("paper", "split", "label")
    }
    assert any("p1_lower" in finding.text and "too large" in finding.text for finding in found.findings)
    # Published anew, they are right again.
    assert verify_run(publish(whole, made)).findings == ()


# --- Retries -------------------------------------------------------------------------------------------------------


def retried(made: MadeRun, index: int, **changes: Any) -> bytes:
    """What a retry that could count an image commits: here, the votes of image 0."""
    shard = index // made.plan.shard_size
    failed = made.rows.slice(index, 1)
    row = {**made.rows.slice(0, 1).to_pylist()[0], "index": index, "key": failed["key"][0].as_py(), **changes}
    row.setdefault("label", failed["label"][0].as_py())
    return made.encoded(shard, pa.Table.from_pylist([row], schema=counts_table.SCHEMA))


def label_of(made: MadeRun, index: int) -> int:
    return made.rows["label"][index].as_py()


def test_an_image_that_was_tried_again(with_failures: MadeRun, tmp_path: Path) -> None:
    store = publish(with_failures.write(tmp_path), with_failures)
    store.create(layout.retry(0, 1), retried(with_failures, 1, label=label_of(with_failures, 1)))
    found = verify_run(store)
    assert (found.findings, found.objects, found.images_counted) == ((), 4, 7)
    assert found.lacking == (
        "1 of 8 images could not be counted",
        "certificates.parquet is from before 1 images were tried again: run `stn reduce`",
    )
    found = verify_run(publish(store, with_failures))
    assert (found.findings, found.lacking) == ((), ("1 of 8 images could not be counted",))


def test_retries_that_are_wrong(with_failures: MadeRun, tmp_path: Path) -> None:
    store = with_failures.write(tmp_path, [0, 1])
    label = label_of(with_failures, 1)
    store.create(layout.retry(0, 1), retried(with_failures, 1, label=label))
    cases: list[tuple[str, bytes, tuple[str, str, str]]] = [
        (layout.retry(2, 1), b"", ("foreign", layout.retry(2, 1), "is a retry of a shard that is not there")),
        (layout.retry(0, 2), b"", ("damaged", layout.retry(0, 2), "damaged Parquet")),
        (
            layout.retry(0, 2),
            retried(with_failures, 1, label=label),
            ("double", layout.COUNTS, "image 1 has votes in several objects"),
        ),
        (
            layout.retry(0, 2),
            retried(with_failures, 4, label=label),
            ("foreign", layout.retry(0, 2), "its votes are those of shard 1"),
        ),
        (
            layout.retry(1, 1),
            retried(with_failures, 4, label=label, draws=63),
            ("sum", layout.retry(1, 1), "estimation draws are not"),
        ),
        (
            layout.retry(0, 1),
            retried(with_failures, 1, label=label, key=77),
            ("foreign", layout.retry(0, 1), "its images have other keys or labels"),
        ),
        (
            layout.retry(0, 1),
            retried(with_failures, 1, label=(label + 1) % 10),
            ("foreign", layout.retry(0, 1), "its images have other keys or labels"),
        ),
    ]
    for key, content, (kind, where, text) in cases:
        before = store.read(key) if store.exists(key) else None
        store.replace(key, content)
        found = said(verify_run(store))
        assert found[0][:2] == (kind, where)
        assert found[0][2].startswith(text)
        if before is None:
            store.delete(key)
        else:
            store.replace(key, before)
    assert verify_run(store).findings == ()


# --- Certificates --------------------------------------------------------------------------------------------------


def rewrite(
    store: LocalStore,
    key: str,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
    facts: Callable[[dict[str, Any]], object] = lambda facts: None,
) -> None:
    """A published table with other rows, or other facts in its metadata."""
    content = store.read(key)
    values = json.loads(pq.read_metadata(io.BytesIO(content)).metadata[METADATA_KEY])
    facts(values)
    metadata = {METADATA_KEY: json.dumps(values, sort_keys=True).encode()}
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(content))).replace_schema_metadata(metadata), sink)
    store.replace(key, sink.getvalue())


def certified_row(store: LocalStore) -> int:
    """A row of a correct certificate with a radius."""
    table = pq.read_table(io.BytesIO(store.read(CERTIFICATES)))
    return next(i for i, row in enumerate(table.to_pylist()) if row["correct"] and row["radius"] > 0)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("radius", lambda radius: radius * 1.001, "too large for p1_lower"),
        ("radius", lambda radius: radius * 0.99, "allow"),
        ("p1_lower", lambda bound: bound * (1 + 1e-6), "votes"),
        ("p2_upper", lambda bound: bound * (1 - 1e-6), "p2_upper"),
        ("prediction", lambda label: (label + 1) % 10, "certifies class"),
        ("prediction", lambda label: None, "abstains although"),
        ("correct", lambda correct: False, "correct is False, not True"),
        ("key", lambda key: key + 1, "key is"),
        ("label", lambda label: (label + 1) % 10, "label is"),
        ("alpha", lambda alpha: 0.5, "alpha is 0.5, not 0.05"),
        ("norm", lambda norm: "l1", "norm is 'l1', not 'l2'"),
        ("draws", lambda draws: 128, "draws is 128, not 64"),
        ("uniform", lambda uniform: 0.5, "uniform is 0.5, not None"),
        ("certificate", lambda name: "splitting", "was not asked for"),
        ("protocol", lambda name: "exact", "was not asked for"),
        ("index", lambda index: 21, "is no image of the plan"),
        ("index", lambda index: (index + 1) % 20, "is there twice"),
    ],
)
def test_a_certificate_that_was_changed(whole: LocalStore, name: str, change: Callable[[Any], Any], says: str) -> None:
    place = certified_row(whole)
    rewrite(
        whole,
        CERTIFICATES,
        lambda table: changed(
            table, name, lambda values: [*values[:place], change(values[place]), *values[place + 1 :]]
        ),
    )
    found = verify_run(whole)
    certificates = [finding for finding in found.findings if finding.kind == "certificate"]
    assert any(says in finding.text for finding in certificates), found.findings
    assert all(finding.where.startswith(CERTIFICATES) for finding in certificates)
    assert {finding.kind for finding in found.findings} <= {"certificate", "curve"}


def test_variates_that_are_not_the_seeds(made: MadeRun, tmp_path: Path) -> None:
    store = publish(made.write(tmp_path), made, interval="randomised")
    assert verify_run(store).findings == ()
    rewrite(store, CERTIFICATES, lambda table: changed(table, "uniform", with_first(0.999)))
    assert "uniform is 0.999, not 0." in said(verify_run(store))[0][2]


def test_certificates_in_another_order_are_as_good(whole: LocalStore) -> None:
    rewrite(whole, CERTIFICATES, lambda table: table.take(np.random.default_rng(0).permutation(len(table))))
    assert verify_run(whole).findings == ()


def test_certificates_that_are_missing_or_there_twice(whole: LocalStore) -> None:
    rewrite(whole, CERTIFICATES, lambda table: table.slice(1))
    found = said(verify_run(whole))
    assert ("certificate", CERTIFICATES, "has no renyi under paper of images 0") in found
    assert ("curve", f"{CURVES}, renyi under paper at 0.0", "missing is 0, and the certificates give 1") in found
    rewrite(whole, CERTIFICATES, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert said(verify_run(whole))[0][1:] == (f"{CERTIFICATES}, image 1, renyi under paper", "is there twice")


def test_a_table_of_certificates_that_is_no_such_table(whole: LocalStore) -> None:
    good = whole.read(CERTIFICATES)
    for content, says in (
        (b"junk", "is damaged: "),
        (good[:-9], "is damaged: "),
        (whole.read(CURVES), "is damaged: its columns are not those of certificates"),
        (None, "is missing, and curves of it are published"),
    ):
        whole.delete(CERTIFICATES) if content is None else whole.replace(CERTIFICATES, content)
        ((kind, where, text),) = said(verify_run(whole))
        assert (kind, where) == ("certificate", CERTIFICATES)
        assert text.startswith(says)


def test_rows_of_certificates_that_cannot_be_read(whole: LocalStore) -> None:
    content = bytearray(whole.read(CERTIFICATES))
    start = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(9).data_page_offset
    content[start : start + 40] = bytes(40)
    whole.replace(CERTIFICATES, bytes(content))
    assert said(verify_run(whole))[0][:2] == ("certificate", CERTIFICATES)
    assert "is damaged: " in said(verify_run(whole))[0][2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["view"].update(alpha=0.1), "alpha is 0.05, not 0.1"),
        (lambda facts: facts["view"].update(alpha=1.5), "is damaged: alpha must lie inside (0, 1)"),
        (lambda facts: facts["view"].update(interval="randomised"), "uniform is None, not 0."),
        (lambda facts: facts["view"].update(certificates=["splitting"]), "holds for splitting noise"),
        (lambda facts: facts["view"].update(certificates=["renyi"]), "was not asked for"),
        (lambda facts: facts["view"].update(certificates=[]), "makes no sense"),
        (lambda facts: facts["view"].update(certificates=[[]]), "is damaged: "),
        (lambda facts: facts["view"].update(radii=["far"]), "makes no sense"),
        (lambda facts: facts["view"].update(alpha="small"), "is damaged: "),
        (lambda facts: facts["view"].pop("radii"), "is damaged: 'radii'"),
        (lambda facts: facts["summary"].update(failed="none"), "makes no sense"),
        (lambda facts: facts["summary"].update(failed=1), "its summary says failed is 1, not 0"),
        (lambda facts: facts["summary"].update(majority_correct=21), "its summary says majority_correct is 21, not "),
        (lambda facts: facts["summary"].update(ties=5), "its summary says ties is 5, not 0"),
        (lambda facts: facts["summary"].update(people=5), "is damaged: "),
        (lambda facts: facts["identity"].update({"sampling.seed": 2}), "its certificates are of another run"),
    ],
)
def test_what_the_tables_say_of_themselves(
    whole: LocalStore, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    for key in (CERTIFICATES, CURVES):
        rewrite(whole, key, facts=change)
    assert any(says in text for _, _, text in said(verify_run(whole))), said(verify_run(whole))[:3]


def test_a_certificate_that_cannot_be_re_derived_is_told(whole: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(audit._RULES, "renyi")
    found = verify_run(whole)
    assert said(found) == [
        ("certificate", CERTIFICATES, f"renyi under {protocol} is not re-derived: there is no rule for it")
        for protocol in ("paper", "split", "label")
    ]
    assert found.certificates == 180


# --- Curves --------------------------------------------------------------------------------------------------------


def test_every_figure_of_a_curve_is_compared(of_a_part: MadeRun, tmp_path: Path) -> None:
    store = publish(of_a_part.write(tmp_path), of_a_part, certificates=("renyi",))
    good = store.read(CURVES)
    where = f"{CURVES}, renyi under paper at 0.0"
    for name in pq.read_schema(io.BytesIO(good)).names:
        if name in ("certificate", "protocol", "radius"):
            continue
        rewrite(
            store,
            CURVES,
            lambda table, name=name: changed(
                table, name, lambda values: ["l1" if name == "norm" else values[0] + 1, *values[1:]]
            ),
        )
        ((kind, place, text),) = said(verify_run(store))
        assert (kind, place) == ("curve", where)
        assert text.startswith(f"{name} is ")
        store.replace(CURVES, good)
    assert verify_run(store).findings == ()


def test_points_of_a_curve_that_are_missing_twice_or_new(whole: LocalStore) -> None:
    good = whole.read(CURVES)
    rewrite(whole, CURVES, lambda table: table.slice(1))
    assert said(verify_run(whole)) == [("curve", f"{CURVES}, renyi under paper at 0.0", "is missing")]
    whole.replace(CURVES, good)
    rewrite(whole, CURVES, lambda table: pa.concat_tables([table, table.slice(2, 1)]))
    twice = "is there twice, or was not asked for"
    assert said(verify_run(whole)) == [("curve", f"{CURVES}, renyi under paper at 0.1", twice)]
    whole.replace(CURVES, good)
    rewrite(whole, CURVES, lambda table: changed(table, "radius", with_first(0.01)))
    assert [text for _, _, text in said(verify_run(whole))] == [twice, "is missing"]


def test_curves_that_are_damaged_or_of_another_reduce(whole: LocalStore, made: MadeRun) -> None:
    good = {key: whole.read(key) for key in (CERTIFICATES, CURVES)}
    whole.replace(CURVES, b"junk")
    ((kind, where, text),) = said(verify_run(whole))
    assert (kind, where) == ("curve", CURVES)
    assert "is damaged" in text
    publish(whole, made, alpha=0.01)
    whole.replace(CERTIFICATES, good[CERTIFICATES])
    assert said(verify_run(whole)) == [("curve", CURVES, f"is of another reduce than {CERTIFICATES}")]
    whole.replace(CURVES, good[CURVES])
    no_text = pa.array([b"\xff"] * 60, pa.binary()).view(pa.string())
    rewrite(whole, CURVES, lambda table: table.set_column(0, table.schema.field(0), no_text))
    assert said(verify_run(whole))[0][2].startswith("is damaged: 'utf-8' codec can't decode")
    rewrite(whole, CURVES, lambda table: table.drop_columns(["certified"]))
    assert said(verify_run(whole)) == [("curve", CURVES, "is damaged: its columns are not those of curves")]


# --- Many findings -------------------------------------------------------------------------------------------------


def test_all_is_found_and_not_only_the_first(whole: LocalStore, made: MadeRun) -> None:
    whole.replace(layout.counts(0), b"junk")
    whole.replace(layout.counts(2), made.encoded(1))
    whole.create(layout.COUNTS + "notes.txt", b"")
    rewrite(whole, CERTIFICATES, lambda table: changed(table, "alpha", lambda values: [0.5] * len(values)))
    rewrite(whole, CURVES, lambda table: changed(table, "beta", lambda values: [0.5] * len(values)))
    found = verify_run(whole)
    counted = {kind: len([one for one in found.findings if one.kind == kind]) for kind in KINDS}
    assert counted == {
        "damaged": 1,
        "foreign": 2,
        "gap": 0,
        "double": 0,
        "sum": 0,
        "certificate": 8 * 12,
        "curve": 5 * 12,
        "attempt": 0,
        "recount": 0,
    }
    assert (found.certificates, found.certificates_skipped) == (96, 144)


def test_of_very_many_findings_the_first_thousand_are_told() -> None:
    found = Findings()
    for number in range(1234):
        found.add("curve", f"place {number}", "is wrong")
    found.add("damaged", "elsewhere", "is damaged")
    told = found.told()
    assert len(told) == 1002
    assert (told[0].where, told[1].where, told[1000].where) == ("elsewhere", "place 0", "place 999")
    assert (told[-1].kind, told[-1].text) == ("curve", "and 234 more")


def test_numbers_for_people() -> None:
    assert listed([]) == ""
    assert listed([3, 1]) == "3, 1"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed([5, 6, 7], most=1) == "5 and 2 more"


def test_a_large_shard_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.upkeep.votes._DENSE_COUNTS", 70)
    made = invented(plan_of(), failed=[4, 77], sure=0.3)
    found = verify_run(publish(made.write(tmp_path), made, protocols=("paper", "split", "label")))
    assert (found.findings, found.images_counted, found.certificates) == ((), 118, 120 * 12)
