"""What `deploy/` says is true of the service: its settings, limits and times, and the packages it was tested with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types

from cbemail import errors
from cbemail.api.operation import UPLOAD_SECONDS
from cbemail.api.problems import problem_of
from cbemail.api.routes import SEND_SECONDS
from cbemail.app import DRAIN_SECONDS, LAST_SECONDS
from cbemail.settings import Settings
from tests.integration.front import DEPLOY, TEMPLATE
from tests.integration.servers import program

ROOT = DEPLOY.parent
SITE = TEMPLATE.read_text()
UNIT = (DEPLOY / "systemd" / "cbemail.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = {
    manifest["kind"]: manifest
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
}
LATEST_END = DRAIN_SECONDS + 2 * LAST_SECONDS  # of the process, from SIGTERM on


def locked(file: Path) -> dict[str, str]:
    """The packages a lock file has, and their versions."""
    return dict(re.findall(r"^([\w.-]+)==(\S+) \\$", file.read_text(), re.MULTILINE))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# ---- packages


def test_the_image_has_the_packages_that_were_tested_and_those_only() -> None:
    image, tested = locked(DEPLOY / "requirements.lock"), locked(ROOT / "requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required, for_tests = (
        {re.split(r"[^\w-]", line)[0].lower() for line in lines}
        for lines in (project["dependencies"], project["optional-dependencies"]["dev"])
    )

    assert image.items() <= tested.items()
    assert required <= image.keys()
    assert not for_tests & image.keys()


def test_a_lock_file_names_no_registry() -> None:
    for file in (DEPLOY / "requirements.lock", ROOT / "requirements.lock"):
        assert not re.search(r"https?:|index-url|find-links", file.read_text())


# ---- settings


def test_whatever_is_set_is_a_setting() -> None:
    known = Settings.variables().keys()
    environment = re.search(r"^ENV PATH=(.*?)\n\w", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert environment is not None
    given = {
        "Dockerfile": set(re.findall(r"\b([A-Z_]{3,})=", environment[1]))
        - {"PYTHONDONTWRITEBYTECODE"},
        "compose": set(COMPOSE["services"]["cbemail"]["environment"]),
        "systemd": set(
            re.findall(r"(\w+)=\S+", re.findall(r"^Environment=(.*)$", UNIT, re.MULTILINE)[0])
        ),
        "kubernetes": set(MANIFESTS["ConfigMap"]["data"]),
    }

    assert {where: names - known for where, names in given.items()} == {
        where: set() for where in given
    }
    assert all("DB_PATH" in names for names in given.values())


def test_every_value_of_the_template_is_given_to_nginx() -> None:
    assert set(re.findall(r"\$\{(\w+)\}", SITE)) == set(COMPOSE["services"]["nginx"]["environment"])


# ---- limits and times


def test_nginx_takes_what_the_service_takes() -> None:
    environment = COMPOSE["services"]["nginx"]["environment"]
    largest_message = int(Settings.variables()["MAX_MESSAGE_MB"].default)

    assert environment["MAX_BATCH_MB"].endswith(
        f":-{Settings.variables()['MAX_BATCH_MB'].default}}}"
    )
    # outgoing.max_send_body, in whole megabytes
    assert environment["MAX_REQUEST_MB"].endswith(f":-{-(-largest_message * 3 // 2) + 1}}}")


def test_nginx_waits_longer_than_the_service_takes() -> None:
    waits = [seconds(value) for value in re.findall(r"proxy_read_timeout (\w+);", SITE)]

    assert waits == sorted(waits)
    assert (waits[0] > SEND_SECONDS, waits[1] > UPLOAD_SECONDS) == (True, True)


def test_a_service_that_is_stopped_has_the_time_to_finish() -> None:
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    [systemd] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    given = [
        float(systemd),
        seconds(COMPOSE["services"]["cbemail"]["stop_grace_period"]),
        float(pod["terminationGracePeriodSeconds"]),
    ]

    assert min(given) > LATEST_END + 2


# ---- what NGINX says in the service's place


@pytest.mark.parametrize(
    "kind",
    [errors.PinRequired, errors.PayloadTooLarge, errors.Overloaded, errors.RouteNotFound],
    ids=lambda kind: kind.code,
)
def test_an_answer_of_nginx_is_the_problem_the_service_would_give(
    kind: type[errors.CbemailError],
) -> None:
    [(status, said)] = [
        (int(status), document) for status, document in _problems() if document["code"] == kind.code
    ]

    problem = problem_of(kind)
    assert (status, said["status"]) == (problem.status, problem.status)
    assert (said["type"], said["title"]) == (f"/problems/{kind.code}", problem.title)


def _problems() -> Iterator[tuple[str, dict[str, Any]]]:
    for status, document in re.findall(r"return (\d+) '(\{.*?\})';", SITE):
        yield status, json.loads(document)


# ---- the machine's own judges


def test_systemd_understands_the_unit_and_finds_it_confined(tmp_path: Path) -> None:
    unit = tmp_path / "cbemail.service"
    unit.write_text(UNIT.replace("/opt/cbemail/bin/cbemail", sys.executable))
    analyze = [program("systemd-analyze"), "--no-pager"]

    verified = subprocess.run(
        [*analyze, "verify", unit], check=False, capture_output=True, text=True
    )
    judged = subprocess.run(
        [*analyze, "security", "--offline=true", "--threshold=15", unit],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (verified.returncode, verified.stderr) == (0, "")
    assert judged.returncode == 0, judged.stdout[-200:]  # an exposure of 1.5 of 10 at most


def test_the_manifests_of_kubernetes_fit_together() -> None:
    deployment, labels = MANIFESTS["Deployment"]["spec"], {"app.kubernetes.io/name": "cbemail"}
    [container] = deployment["template"]["spec"]["containers"]
    [rule] = MANIFESTS["Ingress"]["spec"]["rules"]

    assert deployment["template"]["metadata"]["labels"] == labels
    assert deployment["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert [port["name"] for port in container["ports"]] == ["http"]
    assert rule["host"] in MANIFESTS["Ingress"]["spec"]["tls"][0]["hosts"]
    files = {file.name for file in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(MANIFESTS["Kustomization"]["resources"]) == files - {"kustomization.yaml"}


def test_the_policy_lets_out_to_every_port_of_mail() -> None:
    *_, mail = MANIFESTS["NetworkPolicy"]["spec"]["egress"]

    ports = {str(each["port"]) for each in mail["ports"]}

    assert ports == {*Settings.variables()["ALLOW_MAIL_PORTS"].default.split(","), "443"}
