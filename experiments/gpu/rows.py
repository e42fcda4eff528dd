"""What every row of the scripts for a GPU says of where it was made."""

import json
import shlex
import sys
from typing import NamedTuple

import jax

from offline_mbrl import provenance


class Origin(NamedTuple):
    """The end of every row."""

    device: str  # its kind, as JAX names it
    small: int  # 1: of the form that shows that a script runs, whose figures say nothing
    versions: str  # of libraries, as JSON
    revision: str
    command: str


def origin(script: str, *, small: bool) -> Origin:
    """This process's.

    Args:
      script: its path in the repository.
      small: whether it does little of everything.
    """
    return Origin(
        device=jax.devices()[0].device_kind,
        small=int(small),
        versions=json.dumps(provenance.versions()),
        revision=provenance.revision() or "not under version control",
        command=shlex.join(["python", script, *sys.argv[1:]]),
    )
