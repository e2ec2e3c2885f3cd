"""The paper's studies of a trained model: out-of-distribution detection, long chains, composition.

To add a study, write a file that ends with `STUDY = Study(...)` and name it in STUDIES. The command line, the settings
and the driver of an evaluation read this table.
"""

from typing import Any

from workers.studies import chains_study, composition, ood_study
from workers.studies.study import Study

STUDIES: dict[str, Study[Any]] = {
    "ood": ood_study.STUDY,
    "chains": chains_study.STUDY,
    "composition": composition.STUDY,
}
"""What can be asked for beside the scores of `workers.metrics.registry.METRICS`."""
