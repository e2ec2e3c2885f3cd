"""bandit and pip-audit, judged: a finding fails `make check` unless it is listed here with the reason why it may stay.

    python -m tests.audit

pip-audit asks a service on the network. Where none answers, or the one that answers knows no packages, one line says
that nothing was audited, and the check goes on.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCES = ("ebm_core", "workers", "orchestrator", "benchmarks")
TIMEOUT_S = 300

BANDIT: dict[tuple[str, str], str] = {
    ("B101", "*"): "an assert states what its file guarantees; wrong input meets an exception of ours",
    ("B105", "benchmarks/catalog.py"): "the credentials of a test server in the same process, which checks none",
    (
        "B108",
        "orchestrator/cli/metrics.py",
    ): "Ray's own default folder, as the default of an option; nothing is written",
    ("B108", "benchmarks/control_plane.py"): "mkdtemp's own private folder; Ray's sockets need a short path",
    ("B108", "orchestrator/cli/doctor.py"): "the name of the shared memory's mount, asked for its free space",
    ("B108", "orchestrator/monitoring/values.py"): "Ray's own default folder, in a configuration that Prometheus reads",
    ("B310", "benchmarks/control_plane.py"): "http to a server that the program itself has started on loopback",
    ("B311", "benchmarks/sweep_kills.py"): "moments of kills in an experiment",
    ("B311", "orchestrator/storage/s3.py"): "jitter of retries",
    ("B311", "orchestrator/sweeps/ranges.py"): "draws of a random search, which must repeat",
    (
        "B403",
        "ebm_core/data/small.py",
    ): "CIFAR is published as pickles: MD5 sum first, then an unpickler of arrays only",
    ("B404", "ebm_core/fast/native.py"): "the C++ compiler, asked for by engine.compile=true or engine.winograd=true",
    ("B404", "benchmarks/*"): "programs that measure start programs",
    ("B603", "ebm_core/fast/native.py"): "fixed options, without a shell; $CXX is the user's own, as for torch.compile",
    ("B603", "benchmarks/*"): "fixed commands, without a shell",
    ("B704", "orchestrator/reports/charts.py"): "drawings of ours; every text in them is escaped before",
    ("B704", "orchestrator/reports/page.py"): "our style sheet, without any value of a run",
    ("B704", "orchestrator/reports/parallel.py"): "drawings of ours; every text in them is escaped before",
}
"""{(test, file): reason}; * stands for any file, alone or below a package."""

VULNERABILITIES: dict[str, str] = {}
"""{identifier of a known vulnerability of a dependency: reason why it does not touch us}."""

Finding = tuple[str, str, str]
"""Test or identifier, place, what it says."""


def bandit_findings() -> list[Finding]:
    """What bandit has to say about the sources."""
    command = [sys.executable, "-m", "bandit", "--quiet", "--recursive", "--format", "json", *SOURCES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    report = json.loads(done.stdout)
    if report["errors"]:
        raise SystemExit(f"bandit could not read {report['errors']}")
    return [(r["test_id"], f"{r['filename']}:{r['line_number']}", r["issue_text"]) for r in report["results"]]


def judge(findings: Iterable[Finding], accepted: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """A line for each finding that is not accepted, and for each acceptance that nothing needs any more."""
    used: set[tuple[str, str]] = set()
    for test, place, text in findings:
        path = place.removeprefix("./").rpartition(":")[0]
        known = [(t, p) for t, p in accepted if t == test and p in (path, path.partition("/")[0] + "/*", "*")]
        used.update(known)
        if not known:
            yield f"bandit {test} {place}: {text}"
    for test, path in accepted.keys() - used:
        yield f"bandit {test} {path}: accepted in tests/audit.py and found no more; remove it there"


def ask_pip_audit(*arguments: str) -> dict[str, Any] | None:
    """pip-audit's report; None where its service cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    try:
        return json.loads(done.stdout)
    except ValueError:
        if "ConnectionError" in done.stderr or "ServiceError" in done.stderr or "Timeout" in done.stderr:
            return None
        raise SystemExit(f"pip-audit: {(done.stderr.splitlines() or ['said nothing'])[-1]}") from None


def vulnerable(report: Mapping[str, Any], accepted: Mapping[str, str]) -> Iterator[str]:
    """A line for each known vulnerability that is not accepted."""
    for package in report["dependencies"]:
        for found in package.get("vulns", ()):
            if not {found["id"], *found.get("aliases", ())} & accepted.keys():
                fixed = ", ".join(found["fix_versions"]) or "no version"
                yield f"pip-audit {package['name']} {package['version']}: {found['id']}, mended in {fixed}"


def num_audited(report: Mapping[str, Any] | None) -> int:
    """How many packages the service knew."""
    return sum("skip_reason" not in package for package in report["dependencies"]) if report else 0


def audit_dependencies() -> Iterator[str]:
    """The lines of `vulnerable` for this environment. One question about pip first: who knows it not, knows none."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("pip==25.0\n")
        file.flush()
        if not num_audited(ask_pip_audit("--requirement", file.name, "--no-deps", "--disable-pip")):
            print("pip-audit: no service with known vulnerabilities answers here, nothing was audited")
            return
    report = ask_pip_audit("--local", "--skip-editable")
    if report is None:
        print("pip-audit: the service stopped answering, nothing was audited")
        return
    print(f"pip-audit: {num_audited(report)} of {len(report['dependencies'])} packages are known to the service")
    yield from vulnerable(report, VULNERABILITIES)


def main() -> int:
    """Print what is wrong; status 1 if anything is."""
    lines = [*judge(bandit_findings(), BANDIT), *audit_dependencies()]
    for line in lines:
        print(line)
    print(f"bandit and pip-audit: {len(lines)} findings that tests/audit.py does not explain")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
