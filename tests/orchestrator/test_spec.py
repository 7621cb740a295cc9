from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import Spec, load_spec, validate
from stn_core.certificates import CERTIFICATES, certificates_for
from tests.orchestrator.runs import NOISES, digits_spec
from workers.settings import ImageFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good spec."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(digits_spec(training={"dataset": {"kind": "digits", "split": "train"}})))
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The message with which a spec is refused: one line."""
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- Good specs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert load_spec(path).radii


def test_there_are_examples() -> None:
    assert (ROOT / "examples" / "demo.yaml").is_file()


def test_what_is_left_out_has_the_documented_defaults(file: Path) -> None:
    spec = load_spec(file)
    assert spec.noise.kind == "gaussian"
    assert spec.noise.model_dump() == {"kind": "gaussian", "sigma": 0.2, "sampler": "plain"}
    assert spec.certificates == ("renyi", "neyman_pearson_two_class", "neyman_pearson_one_class", "pixeldp")
    assert (spec.confidence.protocol, spec.confidence.alpha) == ("paper", 0.05)
    assert (spec.confidence.interval, spec.confidence.beta) == ("clopper_pearson", 0.01)
    assert (spec.dataset.every, spec.dataset.limit) == (1, 20)
    assert (spec.resources.actors, spec.resources.precision, spec.resources.max_attempts) == ("auto", "float32", 3)
    assert spec.model.checkpoint is None


def test_a_union_takes_the_keys_of_its_kind(file: Path) -> None:
    spec = load_spec(file, ["dataset={kind: image_folder, path: /data, resize: 256, crop: 224, every: 100}"])
    assert spec.dataset == ImageFolder(kind="image_folder", path=Path("/data"), resize=256, crop=224, every=100)


#: Class in stn_core, and its scale, for each of NOISES.
BUILT = {
    "plain": ("Gaussian", 0.2),
    "sound": ("DiscreteGaussian", 0.2),
    "laplace": ("Laplace", 0.15),
    "uniform": ("Uniform", 0.4),
    "splitting": ("Splitting", 0.4),
}


@pytest.mark.parametrize("name", NOISES)
def test_every_kind_of_noise_is_accepted_and_built(name: str) -> None:
    spec = validate(digits_spec(**NOISES[name]), "spec")
    built = spec.noise.build()
    assert (type(built).__name__, built.scale) == BUILT[name]
    assert built.kind == spec.noise.kind
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    assert validate(spec.model_dump(mode="json"), "spec") == spec


@pytest.mark.parametrize("name", NOISES)
def test_certificates_follow_the_kind_of_noise_unless_named(name: str) -> None:
    sections = NOISES[name]
    spec = validate(digits_spec(**sections), "spec")
    assert spec.certificates == certificates_for(spec.noise.kind) != ()
    assert not any(certificate.endswith("_linf") for certificate in spec.certificates)
    every = [key for key, certificate in CERTIFICATES.items() if certificate.noise == spec.noise.kind]
    assert validate(digits_spec(**sections, certificates=every), "spec").certificates == tuple(every)


@pytest.mark.parametrize("name", NOISES)
def test_certificates_of_another_noise_are_refused_naming_those_that_hold(name: str) -> None:
    own = validate(digits_spec(**NOISES[name]), "spec")
    for other, certificate in CERTIFICATES.items():
        if certificate.noise != own.noise.kind:
            with pytest.raises(SpecError) as caught:
                validate(digits_spec(**NOISES[name], certificates=[other]), "spec")
            message = str(caught.value)
            assert f"'{other}' holds for {certificate.noise} noise, the votes' is {own.noise.kind}" in message
            assert message.endswith(f"for that: {', '.join(own.certificates)}")
            assert len(message.splitlines()) == 1


def test_noise_may_be_changed_by_overrides(file: Path) -> None:
    assert load_spec(file, ["noise.sampler=sound"]).noise.model_dump()["sampler"] == "sound"
    assert load_spec(file, ["noise={kind: laplace, scale: 0.3}"]).certificates == certificates_for("laplace")
    exact = ["noise={kind: splitting, scale: 0.1}", "sampling={draws: 51}", "confidence.protocol=exact"]
    assert load_spec(file, exact).certificates == ("splitting",)
    assert load_spec(file, ["confidence.interval=randomised", "confidence.beta=0.2"]).confidence.beta == 0.2


@given(draws=st.integers(2, 2000))
def test_splitting_noise_has_as_many_draws_as_it_has_offsets(draws: int) -> None:
    def splitting(**sampling: int) -> Spec:
        noise = {"kind": "splitting", "scale": draws / 510}
        return validate(digits_spec(noise=noise, sampling=sampling, confidence={"protocol": "exact"}), "spec")

    assert splitting(draws=draws).sampling.draws == draws
    for sampling in ({"draws": draws + 1}, {"draws": draws - 1}, {"draws": draws, "selection_draws": 1}):
        with pytest.raises(SpecError, match=rf"set sampling\.draws to {draws} and sampling\.selection_draws to 0"):
            splitting(**sampling)


def test_overrides_apply_in_order_and_are_yaml(file: Path) -> None:
    spec = load_spec(file, ["noise.sigma=0.5", "noise.sigma=.25", "certificates=[renyi]", "dataset.limit=null"])
    assert (spec.noise.sigma, spec.certificates, spec.dataset.limit) == (0.25, ("renyi",), None)


def test_an_override_may_hold_an_equals_sign_and_begin_a_section(file: Path) -> None:
    spec = load_spec(file, ["store.run=runs/sigma=1", "model.normalization.mean=[0.5]", "model.normalization.std=[1]"])
    assert spec.store.run == "runs/sigma=1"
    assert spec.model.normalization is not None
    assert spec.model.normalization.mean == (0.5,)


def test_an_override_may_repair_the_file(file: Path) -> None:
    file.write_text(file.read_text().replace("sigma: 0.2", "sigma: -1"))
    assert load_spec(file, ["noise.sigma=1"]).noise.sigma == 1


def test_a_spec_survives_json(file: Path) -> None:
    spec = load_spec(file)
    assert Spec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("radii", "expected"),
    [
        ([0.5], (0.5,)),
        ([0, 1, 2.5], (0.0, 1.0, 2.5)),
        ({"stop": 0.3, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"start": 1, "stop": 2, "step": 0.5}, (1.0, 1.5, 2.0)),
        ({"start": 1, "stop": 1, "step": 0.5}, (1.0,)),
        ({"stop": 0.35, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
    ],
)
def test_radii_are_a_list_or_a_range_with_both_ends(radii: Any, expected: tuple[float, ...]) -> None:
    assert validate(digits_spec(radii=radii), "spec").radii == expected


@given(steps=st.integers(0, 300), hundredths=st.integers(1, 100))
def test_a_range_ends_where_it_was_told_to_and_holds_decimals_as_written(steps: int, hundredths: int) -> None:
    stop = steps * hundredths / 100
    radii = validate(digits_spec(radii={"stop": stop, "step": hundredths / 100}), "spec").radii
    assert radii == tuple(i * hundredths / 100 for i in range(steps + 1))


# --- Bad values: refused with file, key and value ------------------------------------------------------------------

NETWORKS = "dataset={kind: parquet, path: x, "

#: (override, key that the message must name, and what else it must say)
BAD: list[tuple[str, str, str]] = [
    # Unknown keys, at every level, with the nearest valid one.
    ("nois.sigma=1", "nois", "did you mean 'noise'"),
    ("noise.sigm=1", "noise.sigm", "did you mean 'sigma'"),
    ("dataset.splt=test", "dataset.splt", "did you mean 'split'"),
    ("dataset.path=/data", "dataset.path", "valid here: indices, every, limit, kind, split"),
    (NETWORKS + "crp: 8}", "dataset.crp", "did you mean 'crop'"),
    ("model.nme=x", "model.nme", "did you mean 'name'"),
    ("model.normalization={mean: [0], std: [1], men: [0]}", "model.normalization.men", "did you mean 'mean'"),
    ("sampling.draw=1", "sampling.draw", "did you mean 'draws'"),
    ("confidence.alph=0.1", "confidence.alph", "did you mean 'alpha'"),
    ("resources.actor=1", "resources.actor", "did you mean 'actors'"),
    ("training.epoch=1", "training.epoch", "did you mean 'epochs'"),
    ("training.dataset.splt=x", "training.dataset.splt", "did you mean 'split'"),
    # Unknown names.
    (
        "dataset.kind=digit",
        "dataset.kind",
        "got 'digit', did you mean 'digits'?; valid: digits, mnist, cifar10, image_folder, imagenet, webdataset",
    ),
    ("training.dataset.kind=mnits", "training.dataset.kind", "did you mean 'mnist'"),
    ("dataset.kind=3", "dataset.kind", "valid: digits"),
    ("certificates=[renyii]", "certificate", "'renyii', did you mean 'renyi'"),
    ("certificates=[renyi, nothing_like_it]", "certificate", "'nothing_like_it'; valid: renyi"),
    ("confidence.protocol=papr", "confidence.protocol", "got 'papr'"),
    ("noise.kind=lapalce", "noise.kind", "got 'lapalce', did you mean 'laplace'?; valid: gaussian, laplace, uniform"),
    ("noise.kind=cauchy", "noise.kind", "got 'cauchy'; valid: gaussian, laplace, uniform, splitting"),
    ("noise.kind=[1]", "noise.kind", "got [1]; valid: gaussian, laplace, uniform, splitting"),
    ("noise.kind={a: 1}", "noise.kind", "valid: gaussian, laplace, uniform, splitting"),
    ("noise.kind=3", "noise.kind", "got 3; valid: gaussian, laplace, uniform, splitting"),
    ("noise.sampler=sond", "noise.sampler", "got 'sond', did you mean 'sound'?; valid: 'plain' or 'sound'"),
    ("noise.sampler=true", "noise.sampler", "got True; valid: 'plain' or 'sound'"),
    ("confidence.interval=randomized", "confidence.interval", "did you mean 'randomised'"),
    # Keys of another kind of noise.
    ("noise.kind=laplace", "noise.sigma", "unknown key noise.sigma; valid here: kind, scale"),
    ("noise.kind=uniform", "noise.sigma", "unknown key noise.sigma; valid here: kind, scale"),
    ("noise.kind=splitting", "noise.sigma", "unknown key noise.sigma; valid here: kind, scale"),
    ("noise={scale: 1}", "noise.scale", "unknown key noise.scale"),
    ("noise={scale: 1}", "noise.scale", "valid here: kind, sigma, sampler"),
    ("noise={kind: laplace, scale: 1, sampler: sound}", "noise.sampler", "valid here: kind, scale"),
    ("training.method=noisy", "training.method", "got 'noisy'"),
    ("resources.precision=float64", "resources.precision", "got 'float64'"),
    # Missing.
    (
        "dataset={split: test}",
        "dataset.kind",
        "is missing; valid: digits, mnist, cifar10, image_folder, imagenet, web",
    ),
    ("dataset={kind: mnist}", "dataset.path", "is missing"),
    ("training.dataset={kind: image_folder}", "training.dataset.path", "is missing"),
    ("store={}", "store.run", "is missing"),
    ("model={}", "model.name", "is missing"),
    ("model.normalization={mean: [0.5]}", "model.normalization.std", "is missing"),
    ("noise={}", "noise.sigma", "is missing"),
    ("noise={kind: gaussian}", "noise.sigma", "is missing"),
    ("noise={kind: laplace}", "noise.scale", "is missing"),
    ("noise={kind: uniform}", "noise.scale", "is missing"),
    ("noise={kind: splitting}", "noise.scale", "is missing"),
    # Wrong types.
    ("noise=3", "noise", "got 3; must be a section with keys: kind, sigma"),
    ("noise=0.5", "noise", "got 0.5; must be a section with keys: kind, sigma"),
    ("noise=gaussian", "noise", "got 'gaussian'; must be a section with keys: kind, sigma"),
    ("noise=[1]", "noise", "got [1]; must be a section"),
    ("noise=null", "noise", "got None; must be a section"),
    ("noise={kind: uniform, scale: wide}", "noise.scale", "got 'wide'"),
    ("dataset=digits", "dataset", "got 'digits'"),
    ("sampling=[1]", "sampling", "got [1]"),
    ("training=3", "training", "got 3"),
    ("noise.sigma=abc", "noise.sigma", "got 'abc'"),
    ("noise.sigma=", "noise.sigma", "got None"),
    ("noise.sigma=[1]", "noise.sigma", "got [1]"),
    ("sampling.draws=1.5", "sampling.draws", "got 1.5"),
    ("store.run=3", "store.run", "got 3"),
    ("model.checkpoint=3", "model.checkpoint", "got 3"),
    ("certificates=renyi", "certificates", "got 'renyi'"),
    ("radii=0.5", "radii", "got 0.5"),
    ("radii=[a]", "radii.0", "got 'a'"),
    ("resources.actors=many", "resources.actors", "got 'many'"),
    # Out of range.
    ("noise.sigma=-1", "noise.sigma", "got -1"),
    ("noise.sigma=0", "noise.sigma", "got 0"),
    ("noise.sigma=.nan", "noise.sigma", "got nan"),
    ("noise.sigma=.inf", "noise.sigma", "got inf"),
    ("noise={kind: laplace, scale: 0}", "noise.scale", "got 0"),
    ("noise={kind: uniform, scale: -1}", "noise.scale", "got -1"),
    ("noise={kind: uniform, scale: .inf}", "noise.scale", "got inf"),
    ("noise={kind: splitting, scale: .nan}", "noise.scale", "got nan"),
    ("noise={kind: splitting, scale: 0.1001}", "noise", "got scale = 0.1001; the nearest is 0.1"),
    ("noise={kind: splitting, scale: 0.001}", "noise", "the nearest is 0.00392156862745098"),
    ("noise={kind: splitting, scale: 1.0e+308}", "noise", ""),
    ("noise={sigma: 65, sampler: sound}", "noise", "1e-6 … 64"),
    ("confidence.beta=0", "confidence.beta", "got 0"),
    ("confidence.beta=1", "confidence.beta", "got 1"),
    ("confidence.beta=.nan", "confidence.beta", "got nan"),
    ("sampling.draws=0", "sampling.draws", "got 0"),
    ("sampling.selection_draws=-1", "sampling.selection_draws", "got -1"),
    ("sampling.seed=-1", "sampling.seed", "got -1"),
    (f"sampling.seed={2**63}", "sampling.seed", f"got {2**63}"),
    ("confidence.alpha=0", "confidence.alpha", "got 0"),
    ("confidence.alpha=1", "confidence.alpha", "got 1"),
    ("confidence.alpha=.nan", "confidence.alpha", "got nan"),
    ("dataset.limit=0", "dataset.limit", "got 0"),
    ("dataset.every=0", "dataset.every", "got 0"),
    (NETWORKS + "resize: 0}", "dataset.resize", "got 0"),
    ("model.num_classes=1", "model.num_classes", "got 1"),
    ("model.normalization={mean: [0.5], std: [0]}", "model.normalization.std.0", "got 0"),
    ("resources.shard_size=0", "resources.shard_size", "got 0"),
    ("resources.gpus_per_actor=-1", "resources.gpus_per_actor", "got -1"),
    ("resources.max_attempts=0", "resources.max_attempts", "got 0"),
    ("training.gamma=-1", "training.gamma", "got -1"),
    ("training.epochs=0", "training.epochs", "got 0"),
    ("training.learning_rate=0", "training.learning_rate", "got 0"),
    ("training.workers=0", "training.workers", "got 0; must be a number from 1, or bounds such as {min: 1, max: 4}"),
    ("training.workers=auto", "training.workers", "got 'auto'; must be a number from 1, or bounds such as {min: 1,"),
    ("training.workers={min: 3, max: 2}", "training.workers", "min 3 is more than max 2"),
    ("training.workers={min: 0, max: 2}", "training.workers.min", "got 0"),
    ("training.workers={min: 1}", "training.workers.max", "is missing"),
    ("training.workers={most: 2}", "training.workers.most", "valid here: min, max"),
    ("training.gpus_per_worker=2", "training.gpus_per_worker", "got 2; valid: 'auto', 0 or 1"),
    ("training.checkpoint_s=-1", "training.checkpoint_s", "got -1"),
    ("store.run=''", "store.run", "got ''"),
    # Things that do not go together.
    ("confidence.protocol=exact", "protocol 'exact'", "needs splitting noise"),
    ("noise={kind: splitting, scale: 0.4}", "votes under splitting noise", "use protocol 'exact' instead of 'paper'"),
    ("certificates=[splitting]", "certificate 'splitting'", "for that: renyi, neyman_pearson_two_class"),
    ("certificates=[renyi, renyi_laplace]", "certificate 'renyi_laplace'", "for that: renyi, neyman_pearson_two_class"),
    ("model.normalization={mean: [0.5, 0.5], std: [1]}", "model.normalization", "one value per channel"),
    (
        "training={method: gaussian, gamma: 1, dataset: {kind: digits}}",
        "training",
        "gamma belongs to methods alp, consistency, stn and trades, and method gaussian has none",
    ),
    (
        "training={method: clean, sigma: 1, dataset: {kind: digits}}",
        "training",
        "sigma belongs to methods consistency, gaussian, smoothadv and stn, and",
    ),
    (
        "training={attack: {epsilon: 1}, dataset: {kind: digits}}",
        "training",
        "attack belongs to methods alp, madry, smoothadv and trades,",
    ),
    (
        "training={method: trades, dataset: {kind: digits}}",
        "training",
        "method trades needs an attack, such as attack: {norm",
    ),
    ("training.attack={norm: l1, epsilon: 1}", "training.attack.norm", "'l2' or 'linf'"),
    ("training.attack={epsilon: 0}", "training.attack.epsilon", "greater than 0"),
    ("training.augment={crop: -1}", "training.augment.crop", "got -1"),
    ("training.optimizer=adam", "training.optimizer", "'adamw'"),
    ("radii=[0.2, 0.1]", "radii", "must increase"),
    ("radii=[0.1, 0.1]", "radii", "must increase"),
    ("radii=[]", "radii", "at least 1"),
    ("radii=[-1, 1]", "radii.0", "got -1"),
    ("radii=[.nan]", "radii.0", "got nan"),
    ("radii={stop: 1}", "radii", "stop and step"),
    ("radii={stop: 1, step: 0.1, stpe: 2}", "radii", "stop and step"),
    ("radii={stop: 1, step: 0}", "radii", "step > 0"),
    ("radii={stop: 1, step: .nan}", "radii", "step > 0"),
    ("radii={stop: .inf, step: 1}", "radii", "stop >= start"),
    ("radii={start: 2, stop: 1, step: 0.1}", "radii", "stop >= start"),
    ("radii={stop: abc, step: 1}", "radii", "abc"),
    ("radii={stop: null, step: 1}", "radii", ""),
    ("radii={stop: [1], step: 1}", "radii", ""),
    (f"radii={{stop: 1{'0' * 400}, step: 1}}", "radii", ""),
    ("certificates=[]", "certificates", "none are named"),
]


@pytest.mark.parametrize(("override", "key", "says"), BAD, ids=lambda value: str(value)[:50])
def test_a_bad_value_is_refused_naming_file_key_and_value(file: Path, override: str, key: str, says: str) -> None:
    message = refusal(file, override)
    assert message.startswith(f"{file}: ")
    assert key in message.split(": ", 1)[1]
    assert says in message


def test_a_spec_without_noise_has_no_certificates_and_reads_back(file: Path) -> None:
    plain = load_spec(
        file,
        [
            *("noise={kind: none}", "sampling={draws: 1}", "confidence={protocol: paper}"),
            *("training=null", "certificates=[]"),
        ],
    )
    assert plain.certificates == ()
    assert validate(plain.model_dump(mode="json"), "again") == plain


@pytest.mark.parametrize("section", ["dataset", "model", "noise", "sampling", "radii", "store"])
def test_a_missing_section_is_named(file: Path, section: str) -> None:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    del content[section]
    file.write_text(yaml.safe_dump(content))
    assert refusal(file) == f"{file}: {section} is missing"


def test_split_needs_selection_draws(file: Path) -> None:
    message = refusal(file, "confidence.protocol=split", "sampling.selection_draws=0")
    assert "'split'" in message
    assert "sampling.selection_draws" in message
    assert load_spec(file, ["confidence.protocol=split"]).confidence.protocol == "split"


def test_gamma_belongs_to_stability_training(file: Path) -> None:
    for method in ("gaussian", "clean"):
        assert "gamma" in refusal(file, f"training.method={method}", "training.gamma=1")
        assert load_spec(file, [f"training.method={method}"]).training is not None


def test_of_several_mistakes_the_first_is_described_and_the_rest_counted(file: Path) -> None:
    message = refusal(file, "noise.sigma=-1", "sampling.draws=0", "dataset.limit=0")
    assert "dataset.limit" in message
    assert "(and 2 more)" in message


@pytest.mark.parametrize("key", ["1", "null", "2001-01-01"])
def test_a_key_that_is_no_text_is_refused(file: Path, key: str) -> None:
    file.write_text(f"{file.read_text()}\n{key}: 2\n")
    assert "keys should be strings" in refusal(file)


# --- Files that hold no spec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must hold sections"),
        (b"# nothing but a comment\n", "must hold sections"),
        (b"- dataset\n- model\n", "must hold sections"),
        (b"42", "must hold sections"),
        (b"noise: [", "not valid YAML"),
        (b"noise: {sigma: 1", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"noise:\n\tsigma: 1\n", "not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"when: 2001-99-99\n", "not valid YAML"),
        (b"a: !!int many\n", "not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
        (bytes(range(256)), "not a text file"),
        (b"PAR1\x00\x00", "not valid YAML"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else "",
)
def test_a_file_that_is_no_spec_is_refused_naming_it(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert says in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "nowhere.yaml") == f"cannot read spec {tmp_path / 'nowhere.yaml'}: No such file or directory"
    )
    assert refusal(tmp_path) == f"cannot read spec {tmp_path}: Is a directory"


# --- Overrides that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("noise.sigma", "expected section.key=value"),
        ("=1", "expected section.key=value"),
        ("noise.=1", "expected section.key=value"),
        (".sigma=1", "expected section.key=value"),
        ("noise..sigma=1", "expected section.key=value"),
        ("", "expected section.key=value"),
        ("noise.sigma.x=1", "sigma has no keys below it"),
        ("radii.0=1", "radii has no keys below it"),
        ("noise.sigma=[", "'[' is not valid YAML"),
        ("noise.sigma=!!python/name:os.getcwd", "is not valid YAML"),
        ("noise.sigma=2001-99-99", "is not valid YAML"),
        ("noise.sigma=!!int x", "is not valid YAML"),
    ],
)
def test_an_override_that_is_none_is_refused_as_it_was_typed(file: Path, override: str, says: str) -> None:
    message = refusal(file, override)
    assert message.startswith(f"--set {override}: ")
    assert says in message


# --- Whatever comes ------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


def _paths(content: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in content.items():
        found.append((*prefix, key))
        if isinstance(value, Mapping):
            found += _paths(value, (*prefix, key))
    return found


#: Sections with every key that noise and confidence may have.
_FULL: dict[str, Any] = {
    "radii": {"start": 0, "stop": 1, "step": 0.5},
    "noise": {"kind": "gaussian", "sigma": 0.2, "sampler": "sound", "scale": 0.4},
    "confidence": {"protocol": "paper", "alpha": 0.05, "interval": "randomised", "beta": 0.1},
}


@given(path=st.sampled_from(_paths(digits_spec(**_FULL))), value=_VALUES, kind=st.sampled_from(sorted(NOISES)))
def test_any_value_anywhere_is_accepted_or_refused_in_one_line(path: tuple[str, ...], value: Any, kind: str) -> None:
    content = copy.deepcopy(digits_spec(**{**_FULL, **NOISES[kind]}))
    section: Any = content
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    message = "spec: accepted"
    try:
        validate(content, "spec")
    except SpecError as error:
        message = str(error)
    assert message.startswith("spec: ")
    assert len(message.splitlines()) == 1
