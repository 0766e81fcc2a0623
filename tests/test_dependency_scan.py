"""The scan of dependencies fails on a vulnerability, and says where it could not look."""

import json
import subprocess
import sys

import dependency_scan
import pytest
from dependency_scan import EXCEPTIONS, NOT_CHECKED, verdict

CVE = "CVE-2025-69872"
DISKCACHE = {"name": "diskcache", "version": "5.6.3", "vulns": [{"id": CVE, "fix_versions": []}]}
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "opro-audio", "skip_reason": "not found"}


def said(*found, errors=""):
    code, lines = verdict(json.dumps({"dependencies": found, "fixes": []}), errors)
    return code, "\n".join(lines)


def test_the_one_exception_passes_under_any_of_its_names_with_its_reason():
    code, text = said(DISKCACHE, CLEAN, UNKNOWN)
    assert code == 0 and f"excepted: diskcache {CVE}: evaluators/cache.py" in text
    assert "2 packages checked" in text and "not known to the service: opro-audio" in text
    alias = {"id": "GHSA-x", "aliases": [CVE], "fix_versions": []}
    assert said(DISKCACHE | {"name": "DiskCache", "vulns": [alias]})[0] == 0
    assert list(EXCEPTIONS) == [("diskcache", CVE)]


@pytest.mark.parametrize(
    "found",
    [
        CLEAN | {"vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]},
        CLEAN | {"vulns": [{"id": CVE, "fix_versions": ["2.1"]}]},  # of another package
        DISKCACHE | {"vulns": [*DISKCACHE["vulns"], {"id": "CVE-2", "fix_versions": ["2.1"]}]},
    ],
)
def test_every_other_finding_fails_and_says_what_to_do(found):
    code, text = said(DISKCACHE, found)
    assert code == 1 and "mended in 2.1: raise its lower bound" in text


def test_an_exception_that_is_not_needed_any_more_is_told():
    code, text = said(CLEAN, DISKCACHE | {"vulns": []})
    assert code == 0 and f"diskcache {CVE} is no longer found" in text
    assert "no longer" not in said(CLEAN)[1]  # it is not even installed


def test_a_service_that_cannot_be_asked_is_told_and_does_not_fail():
    code, text = said(UNKNOWN, DISKCACHE | {"skip_reason": "not found"})
    assert code == 0 and text == f"{NOT_CHECKED} (it knows none of 2 packages)"
    code, lines = verdict("", "Traceback\nrequests.exceptions.ConnectionError: no name")
    assert code == 0 and lines[0].startswith(NOT_CHECKED)


def test_a_scan_that_did_not_run_fails():
    assert verdict("", "/usr/bin/python: No module named pip_audit")[0] == 1
    assert verdict("[]", "")[0] == 1 and verdict("", "KeyError: 'x'")[0] == 1


def test_the_command_asks_pip_audit_and_waits_for_no_dead_service(monkeypatch, capsys):
    asked = []

    def run(command, **more):
        asked.append((command, more))
        return subprocess.CompletedProcess(
            command, 1, json.dumps({"dependencies": [DISKCACHE]}), ""
        )

    monkeypatch.setattr(dependency_scan.subprocess, "run", run)
    assert dependency_scan.main() == 0 and "excepted" in capsys.readouterr().out
    assert asked[0][0][:3] == [sys.executable, "-m", "pip_audit"] and asked[0][1]["timeout"] == 60

    def hangs(command, **more):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(dependency_scan.subprocess, "run", hangs)
    assert dependency_scan.main() == 0 and NOT_CHECKED in capsys.readouterr().out
