"""cluster.yaml and deploy/, checked without a network, beyond what Ray checks itself. Run it after your own changes."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.model
import botocore.validate
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTERS = ("cluster.yaml", "deploy/local.yaml")

#: What Ray reads of a provider's section. Its schema lets anything through there.
PROVIDER_KEYS = {
    "aws": {
        *("type", "region", "availability_zone", "aws_credentials", "key_pair", "security_group", "use_internal_ips"),
        *("cache_stopped_nodes", "cloudwatch", "disable_node_updaters"),
    },
    "local": {"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}

#: What Ray takes out of a node's configuration before it asks EC2.
RAYS_OWN_NODE_KEYS = {"SubnetIds"}

Document = dict[str, Any]


def read(name: str) -> Document:
    document: Document = yaml.safe_load((ROOT / name).read_text())
    return document


@pytest.fixture(scope="module")
def run_instances() -> botocore.model.Shape:
    """What EC2 takes when it is asked for instances."""
    ec2 = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    shape = botocore.model.ServiceModel(ec2).operation_model("RunInstances").input_shape
    assert shape is not None
    return shape


def unknown_values(value: Any, shape: botocore.model.Shape, at: str) -> Iterator[str]:
    """Strings that are not among those a shape lists; botocore leaves that to the server."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in shape.members:
                yield from unknown_values(inner, shape.members[key], f"{at}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from unknown_values(inner, shape.member, f"{at}[{number}]")
    elif shape.type_name == "string" and getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{at}: {value!r} is none of EC2's {shape.name}"


def findings(config: Document, run_instances: botocore.model.Shape) -> list[str]:
    """What is wrong with a cluster's file, first by Ray, then by us."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (jsonschema.ValidationError, ValueError) as error:
        return [str(error)]
    provider = config["provider"]
    found = [f"provider.{key} is unknown" for key in provider.keys() - PROVIDER_KEYS[provider["type"]]]
    if provider["type"] == "aws":
        for name, node_type in config["available_node_types"].items():
            node = {key: value for key, value in node_type["node_config"].items() if key not in RAYS_OWN_NODE_KEYS}
            request = {**node, "MinCount": 1, "MaxCount": 1}
            report = botocore.validate.ParamValidator().validate(request, run_instances)
            if report.has_errors():
                found.append(f"{name}: {report.generate_report()}")
            else:
                found.extend(unknown_values(node, run_instances, name))
    return found


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_what_ray_and_its_provider_take(name: str, run_instances: botocore.model.Shape) -> None:
    assert findings(read(name), run_instances) == []


def needed_to_install() -> set[str]:
    """What of the checkout an installation takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {package.partition(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    described = {project["project"]["readme"], *project["project"]["license-files"]}
    return {"pyproject.toml", "constraints.txt", *described, *packages}


def typo(*path: str, into: Any) -> Callable[[Document], None]:
    """Set what is at ``path``."""

    def change(config: Document) -> None:
        *above, last = path
        for key in above:
            config = config[key]
        config[last] = into

    return change


AWS_NODE = ("available_node_types", "worker", "node_config")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cluster.yaml", typo("max_worker", into=3), "max_worker"),
        ("cluster.yaml", typo("provider", "availability_zones", into="us-west-2a"), "availability_zones"),
        ("cluster.yaml", typo("available_node_types", "worker", "min_worker", into=1), "min_worker"),
        ("cluster.yaml", typo("head_node_type", into="heads"), "head_node_type"),
        ("cluster.yaml", typo(*AWS_NODE, "InstanceTyp", into="g5.xlarge"), "InstanceTyp"),
        ("cluster.yaml", typo(*AWS_NODE, "InstanceType", into="g5.xlrage"), "g5.xlrage"),
        ("cluster.yaml", typo(*AWS_NODE, "InstanceMarketOptions", into={"MarketType": "spott"}), "spott"),
        ("cluster.yaml", typo(*AWS_NODE, "IamInstanceProfile", into={"Names": "stn"}), "Names"),
        ("cluster.yaml", typo(*AWS_NODE, "IamInstanceProfile", into="stn"), "stn"),
        ("deploy/local.yaml", typo("provider", "worker_ip", into=[]), "worker_ip"),
        ("deploy/local.yaml", typo("setup_command", into=[]), "setup_command"),
    ],
)
def test_a_typo_is_found(
    name: str, change: Callable[[Document], None], said: str, run_instances: botocore.model.Shape
) -> None:
    config = read(name)
    change(config)
    assert said in "\n".join(findings(config, run_instances))


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_up_is_this_checkout(name: str) -> None:
    config = read(name)
    mounted = {path: source for path, source in config["file_mounts"].items() if path.startswith("~/stn/")}
    assert all(path == f"~/stn/{source}" and (ROOT / source).exists() for path, source in mounted.items())
    assert needed_to_install() <= set(mounted.values())
    assert config["setup_commands"][-1].endswith(" --constraint constraints.txt --editable '.[cluster]'")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert all(command.startswith("source ~/stn-env/bin/activate && ") for command in commands)
        assert "RAY_AUTH_MODE=token" in commands[-1]


def test_roles_of_the_cluster_are_those_described() -> None:
    profiles = {
        node["node_config"]["IamInstanceProfile"]["Name"]
        for node in read("cluster.yaml")["available_node_types"].values()
    }
    described = (ROOT / "deploy" / "README.md").read_text()
    assert profiles == {"stn-head", "stn-worker"}
    assert all(profile in described for profile in profiles)
    for policy in sorted((ROOT / "deploy" / "aws").glob("*.json")):
        for statement in json.loads(policy.read_text())["Statement"]:
            assert statement.keys() == {"Effect", "Action", "Resource"}
    passed = json.loads((ROOT / "deploy" / "aws" / "head.json").read_text())["Statement"][-1]
    assert passed["Action"] == "iam:PassRole"
    assert passed["Resource"].endswith("role/stn-worker")


@pytest.fixture(scope="module")
def ray_job_schema() -> Mapping[str, Any]:
    schema: dict[str, Any] = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def test_the_ray_job_is_one(ray_job_schema: Mapping[str, Any]) -> None:
    job = read("deploy/rayjob.yaml")
    jsonschema.validate(job, ray_job_schema)
    yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    pods = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert len({container["image"] for pod in pods for container in pod["template"]["spec"]["containers"]}) == 1
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in constraints


@pytest.mark.parametrize(
    "change",
    [
        typo("spec", "backofLimit", into=3),
        typo("spec", "rayClusterSpec", "enableInTreeAutoscaling", into="yes"),
        typo("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", into={"num-cpus": 0}),
        typo("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica", into=0),
        typo("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount", into=[]),
    ],
)
def test_a_typo_in_the_ray_job_is_found(change: Callable[[Document], None], ray_job_schema: Mapping[str, Any]) -> None:
    job = read("deploy/rayjob.yaml")
    change(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, ray_job_schema)


def test_the_image_holds_the_project() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert all((ROOT / source).exists() for source in sources)
    assert needed_to_install() <= sources
