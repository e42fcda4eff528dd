"""How an algorithm's explicit model ends episodes, by one setting."""

from typing import Any

from offline_mbrl.environments import termination as rules
from offline_mbrl.models import explicit
from offline_mbrl.types import EnvironmentSpec


def model_options(termination: str, spec: EnvironmentSpec) -> dict[str, Any]:
    """Arguments of `models.kinds.make` and `models.kinds.stage`.

    Args:
      termination: "learned", by a head of the model; "never"; or a task's or a dataset's name in
        `environments.termination`, whose rule is then used.
      spec: of the data.

    Raises:
      UsageError: no rule is known by this name.
    """
    if termination == "learned":
        return {"continuation": explicit.learned_continuation(spec)}
    if termination == "never":
        return {"terminate": rules.never}
    return {"terminate": rules.lookup(termination)}
