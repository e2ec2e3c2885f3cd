import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_core.errors import DataError
from workers.calls import Here, call
from workers.evaluator import Evaluator

ROOT = Path(__file__).parents[2]


class Counter:
    """Counts from a number."""

    def __init__(self, start: int) -> None:
        self.start = start

    def up(self, by: int, times: int = 1) -> int:
        if by < 0:
            raise DataError(f"{by} is not up")
        return self.start + by * times


def root(counter: Counter, power: int) -> float:
    return counter.start ** (1 / power)


def test_a_call_is_a_function_of_its_subject_whether_a_method_or_not():
    assert call(Counter.up, 2, times=3)(Counter(10)) == 16
    assert call(root, 2)(Counter(9)) == 3


def test_a_call_travels_by_the_name_of_its_function():
    asked = call(Evaluator.score_shard, ["energy_gap"], 0, 8, seed=3)
    again = pickle.loads(pickle.dumps(asked))
    assert again == asked
    assert again.function is Evaluator.score_shard
    assert len(pickle.dumps(asked)) < 300  # a name, not the function's code


def test_calls_here_are_made_in_order_and_hand_errors_over():
    here, heard = Here(Counter(1)), []
    calls = {key: call(Counter.up, key) for key in (3, 1, 2)}
    assert list(here.run(calls).items()) == [(3, 4), (1, 2), (2, 3)]
    assert here.run(calls, lambda key, answer: heard.append((key, answer))) == {}
    assert heard == [(3, 4), (1, 2), (2, 3)]
    with pytest.raises(DataError, match="-1 is not up"):
        here.run({0: call(Counter.up, -1)})


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ("Evaluator.score_shard, ['fid'], 0, 8, 0", None),
        ("Evaluator.score_shard, ['fid'], 'first', 8", 'cannot be assigned to parameter "shard"'),
        ("Evaluator.score_shard, ['fid'], 0", 'missing for parameter "num_images"'),
        ("Evaluator.score_shards, ['fid'], 0, 8", 'Cannot access attribute "score_shards"'),
    ],
)
@pytest.mark.full
def test_a_type_checker_sees_the_method_and_its_arguments(tmp_path: Path, arguments: str, wrong: str | None):
    file = tmp_path / "asked.py"
    file.write_text(
        f"from workers.calls import call\nfrom workers.evaluator import Evaluator\nasked = call({arguments})\n"
    )
    settings = {"venvPath": str(Path(sys.prefix).parent), "venv": Path(sys.prefix).name, "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(str(settings).replace("'", '"'))
    pyright = [sys.executable, "-m", "pyright", "-p", str(tmp_path)]
    done = subprocess.run(pyright, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (wrong is None), done.stdout
    assert wrong is None or wrong in done.stdout
