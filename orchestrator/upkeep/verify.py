"""Whether what a run's store holds is what it claims to be: objects, votes, certificates, curves.

Nothing in the store is trusted but the plan. Bounds and radii are re-derived from the votes by ``stn_core.audit``,
which shares no code with what computed them. In memory are a few hundred bytes of each image, the votes of one shard,
and a table of certificates as it is stored. Certificates take a few milliseconds for each different pair of counts on
a line, or for each image and line where intervals are randomised.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import RunError
from orchestrator.reducing.runs import read_plan
from orchestrator.upkeep.attempts import check_attempts
from orchestrator.upkeep.findings import Finding, Findings, Observe, unobserved
from orchestrator.upkeep.tables import Audit, open_published
from orchestrator.upkeep.votes import Votes, shard_objects
from stn_core import audit
from stn_core.naming import listed
from workers import layout
from workers.store import Store


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what was found.

    Attributes:
        run: where it is.
        findings: what is wrong: the first thousand of each kind, and how many more.
        lacking: what is not there yet, in words; what is there may be right all the same.
        shards, shards_counted: in the plan, and committed.
        objects: objects with votes that could be read.
        without_checksum: those of them that are from before there were checksums.
        images, images_counted, images_failed: in the plan, with votes, and those that could not be counted.
        certificates: published certificates held against their votes.
        certificates_skipped: those that could not be, because the votes are damaged.
        attempts: objects with attempts of attacks.
    """

    run: str
    findings: tuple[Finding, ...]
    lacking: tuple[str, ...] = ()
    shards: int = 0
    shards_counted: int = 0
    objects: int = 0
    without_checksum: int = 0
    images: int = 0
    images_counted: int = 0
    images_failed: int = 0
    certificates: int = 0
    certificates_skipped: int = 0
    attempts: int = 0


def verify_run(store: Store, observe: Observe = unobserved) -> Verification:
    """Hold everything that a run's store has against everything else.

    Args:
        store: the run.
        observe: opens a meter for each stage.

    Raises:
        RunError: there is no run.
    """
    found = Findings()
    try:
        plan = read_plan(store)
    except RunError as error:
        if not store.exists(layout.PLAN):
            raise
        found.add("damaged", layout.PLAN, str(error))
        return Verification(store.uri, found.told())

    opened = [open_published(store, plan, folder, found) for folder in ("", layout.PARTIAL)]
    tables = [one for one in opened if one is not None]
    lines = {line for one in tables for line in one.view.lines}
    votes = Votes(plan, {line.protocol for line in lines if audit.has_rule(line.certificate, line.protocol)})
    objects, others = shard_objects((stored.key for stored in store.list(layout.COUNTS)), plan)
    for other in others:
        found.add(other.kind, other.where, other.text)
    with observe("reading votes", len(objects), "shards") as progress:
        for shard, keys in objects.items():
            votes.read(store, shard, keys, found)
            progress.advance(1)
    for text in votes.doubles():
        found.add("double", layout.COUNTS, text)

    lacking = []
    if missing := sorted(set(range(plan.shards)) - objects.keys()):
        lacking.append(f"{len(missing)} of {plan.shards} shards are not counted: {listed(missing)}")
    if failed := int(votes.failed.sum()):
        lacking.append(f"{failed} of {plan.images} images could not be counted")
    if votes.undecided:
        lacking.append(f"{votes.undecided} of {plan.images} images need more draws to be decided")
    attacked, unattacked = check_attempts(store, plan, found, observe)
    lacking += unattacked
    rederived = skipped = 0
    for one in tables:
        audited = Audit(one, plan, votes, found)
        with observe("re-deriving", one.file.metadata.num_rows, "certificates") as progress:
            for rows in one.rows(found):
                for row in rows:
                    audited.add(row)
                progress.advance(len(rows))
        lacking += audited.finish()
        rederived, skipped = rederived + audited.rederived, skipped + audited.skipped
    if not tables:
        lacking.append("no certificates of this version are published, or they are damaged: run `stn reduce`")
    return Verification(
        run=store.uri,
        findings=found.told(),
        lacking=tuple(lacking),
        shards=plan.shards,
        shards_counted=len(objects),
        objects=votes.objects,
        without_checksum=votes.without_checksum,
        images=plan.images,
        images_counted=int(votes.counted.sum()),
        images_failed=failed,
        certificates=rederived,
        certificates_skipped=skipped,
        attempts=attacked,
    )
