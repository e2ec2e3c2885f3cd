"""What the doctor calls sound, and what it warns of."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.cli import doctor


def states(findings) -> list[str]:
    return [finding.state for finding in findings]


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::1", True),
        ("::", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_only_loopback_is_out_of_reach(address: str, inside: bool):
    assert doctor._is_loopback(address) == inside


def test_a_process_is_seen_to_listen_where_it_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as caller:
        found = set(doctor._listening([psutil.Process()]))
        assert listener.getsockname() in found
        assert caller.getsockname() not in found


def test_a_process_that_has_ended_listens_nowhere():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
    assert list(doctor._listening([process])) == []


def test_a_ray_process_is_known_by_its_command_line():
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "ray::Evaluator"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = {process.pid for process in doctor._ray_processes()}
        child.kill()
    assert child.pid in found
    assert os.getpid() not in found


def test_a_storage_folder_that_can_be_made_is_sound_and_not_made(tmp_path: Path):
    assert states(doctor._storage(str(tmp_path / "a" / "b"))) == ["OK"]
    assert not (tmp_path / "a").exists()


def test_a_storage_below_a_file_fails_with_a_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (finding,) = doctor._storage(str(tmp_path / "file" / "runs"))
    assert finding.state == "FAIL"
    assert finding.remedy


def test_disabled_authentication_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert states(doctor._ray_token()) == ["WARN"]


def test_a_demanded_token_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert states(doctor._ray_token()) == ["FAIL"]


def test_no_token_at_all_is_a_warning_that_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (finding,) = doctor._ray_token()
    assert finding.state == "WARN"
    assert "lets anyone who reaches it run code" in finding.what
    assert "ray get-auth-token --generate" in finding.remedy


def test_each_exposed_port_of_a_ray_is_named(monkeypatch: pytest.MonkeyPatch):
    sockets = [("0.0.0.0" if i % 2 else "127.0.0.1", 7000 + i) for i in range(40)]
    monkeypatch.setattr(doctor, "_listening", lambda processes: sockets)
    (finding,) = doctor._ray_listeners()
    assert finding.state == "WARN"
    for i in range(40):
        assert (str(7000 + i) in finding.what) == (i % 2 == 1)
    monkeypatch.setattr(doctor, "_listening", lambda processes: sockets[::2])
    assert states(doctor._ray_listeners()) == ["OK"]


def test_a_token_that_others_can_read_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert states(doctor._ray_token()) == ["WARN"]
    token.chmod(0o600)
    assert states(doctor._ray_token()) == ["OK"]


def test_checksums_that_break_other_s3_servers_are_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION", raising=False)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    (finding,) = doctor._checksums()
    assert finding.state == "WARN"
    assert "export AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in finding.remedy


def test_a_missing_package_fails_with_the_command_that_gets_it():
    finding = doctor._package("no-such-package-anywhere", (1, 2))
    assert finding == (
        "FAIL",
        "no-such-package-anywhere is not installed",
        "pip install 'no-such-package-anywhere>=1.2'",
    )


def test_an_old_package_fails():
    assert doctor._package("numpy", (99,)).state == "FAIL"
