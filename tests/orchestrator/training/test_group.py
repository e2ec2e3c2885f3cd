"""The workers' process group speaks over the interface that has the node's address."""

import pytest
import ray.util

from orchestrator.training import group

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's environment, for the test alone."""
    found: dict[str, str] = {}
    monkeypatch.setattr(group.os, "environ", found)
    return found


def chosen(variables: dict[str, str]) -> list[str | None]:
    """The interfaces of gloo and of nccl."""
    return [variables.get(name) for name in NAMES]


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)


def test_the_interface_is_the_one_with_the_nodes_address(variables, monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "127.0.0.1")
    group.use_nodes_interface()
    assert chosen(variables) == ["lo", "lo"]


def test_an_interface_that_the_user_chose_stays(variables, monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "127.0.0.1")
    variables["GLOO_SOCKET_IFNAME"] = "eth7"
    group.use_nodes_interface()
    assert chosen(variables) == ["eth7", "lo"]


def test_an_address_that_no_interface_has_leaves_the_choice_to_the_library(variables, monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "192.0.2.1")  # reserved for documentation, RFC 5737
    group.use_nodes_interface()
    assert chosen(variables) == [None, None]
