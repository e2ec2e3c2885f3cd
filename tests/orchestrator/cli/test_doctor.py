"""What the doctor calls sound, and what it warns of."""

from pathlib import Path

import pytest

from orchestrator.cli import doctor


def states(findings) -> list[str]:
    return [finding.state for finding in findings]


def test_a_socket_on_every_address_is_exposed_and_loopback_is_not():
    table = {
        "1": ("0100007F", 1001),  # 127.0.0.1
        "2": ("00000000", 1002),  # 0.0.0.0
        "3": ("0100000A", 1003),  # 10.0.0.1
        "4": ("00000000000000000000000001000000", 1004),  # ::1
        "5": ("00000000000000000000000000000000", 1005),  # ::
        "6": ("0000000000000000FFFF00000100007F", 1006),  # ::ffff:127.0.0.1
        "7": ("00000000", 1007),  # another program's
    }
    assert doctor._exposed_ports(table, ["1", "2", "3", "4", "5", "6", "99"]) == {1002, 1003, 1005}


def test_listening_sockets_are_read_from_the_kernels_table(tmp_path: Path):
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4242 1 0 100 0 0 10 0\n"
        "   1: 0100007F:18EC 0100007F:9999 01 00000000:00000000 00:00000000 00000000  0 0 4243 1 0 100 0 0 10 0\n"
    )
    assert doctor._listening(str(table)) == {"4242": ("0100007F", 6379)}


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
    listening = {str(i): ("00000000" if i % 2 else "0100007F", 7000 + i) for i in range(40)}
    monkeypatch.setattr(doctor, "_listening", lambda table: listening if table.endswith("tcp") else {})
    monkeypatch.setattr(doctor, "_ray_sockets", lambda: set(listening))
    (finding,) = doctor._ray_listeners()
    assert finding.state == "WARN"
    for i in range(40):
        assert (str(7000 + i) in finding.what) == (i % 2 == 1)
    monkeypatch.setattr(doctor, "_ray_sockets", lambda: {"0", "2"})
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
