"""CONTRIBUTING.md speaks of what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_and_target_that_it_names_exists() -> None:
    files = set(re.findall(r"`((?:\.?[a-z_]+/)[\w./]*)`", TEXT)) | set(re.findall(r"\]\(([^)]+)\)", TEXT))
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists()] == []
    targets = set(re.findall(r"make ([a-z-]+)", TEXT))
    assert {"test", "lint", "docs", "wheel-test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_what_it_says_to_edit_is_in_the_file_that_it_names() -> None:
    for name, file in {
        "Certificate": "stn_core/certificates/certificate.py",
        "_RULES": "stn_core/audit.py",
        "perturb": "stn_core/attacks/attack.py",
        "Attack": "workers/attack_settings.py",
        "ATTACKS": "tests/stn_core/test_attacks.py",
        "Dataset": "workers/settings.py",
        "EncodedDataset": "workers/settings.py",
        "Arrays": "workers/datasets/arrays.py",
        "open_dataset": "workers/images.py",
    }.items():
        assert f"`{name}`" in TEXT, name
        assert re.search(rf"^\s*(def |class )?{name}\b", (ROOT / file).read_text(), re.MULTILINE), name
