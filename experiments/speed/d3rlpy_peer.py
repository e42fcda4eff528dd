"""The peer of `learners.py`: updates of d3rlpy's learners, under an interpreter that has them.

A request is one line of JSON: the learner's name, its arrays (`.npz`), its layers and batch size,
whether updates are as `fit` calls them ("fit": draw a batch, update) or alone ("update", on batches
that were drawn before), and how many. The answer is the CPU seconds that they took.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import d3rlpy
import numpy as np
import torch

DRAWN = 64  # batches for updates alone


def main() -> None:
    """Answers until the input ends."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what d3rlpy prints is no answer
    runs: dict[str, dict[str, Callable[[], object]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["name"] not in runs:
            runs[request["name"]] = ways(request)
        run = runs[request["name"]][request["way"]]
        began = time.process_time()
        for _ in range(request["count"]):
            run()
        print(json.dumps({"seconds": time.process_time() - began}), file=answers, flush=True)


def ways(request: dict) -> dict[str, Callable[[], object]]:
    """One update of a learner, in either way."""
    with np.load(request["arrays"]) as columns:
        buffer = d3rlpy.dataset.MDPDataset(
            observations=columns["observation"],
            actions=columns["action"],
            rewards=columns["reward"],
            terminals=columns["is_terminal"],
            timeouts=columns["is_truncated"],
        )
    learner = config(request).create(device="cpu:0")
    silent = {"logger_adapter": d3rlpy.logging.NoopAdapterFactory(), "show_progress": False}
    learner.fit(buffer, n_steps=1, n_steps_per_epoch=1, **silent)  # builds all that it needs
    size = request["batch_size"]
    batches = itertools.cycle([buffer.sample_transition_batch(size) for _ in range(DRAWN)])
    return {
        "fit": lambda: learner.update(buffer.sample_transition_batch(size)),
        "update": lambda: learner.update(next(batches)),
    }


def config(request: dict) -> d3rlpy.base.LearnableConfig:
    """The settings of a learner, of the same sizes and the same work as ours."""
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=request["layers"])
    shared = {"batch_size": request["batch_size"]}
    actor_critic = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder, **shared}
    value_based = {"encoder_factory": encoder, **shared}
    algos = d3rlpy.algos
    configs = {
        "td3_bc": lambda: algos.TD3PlusBCConfig(
            observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(), **actor_critic
        ),
        "iql": lambda: algos.IQLConfig(value_encoder_factory=encoder, **actor_critic),
        "cql": lambda: algos.CQLConfig(
            observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(), **actor_critic
        ),
        "dqn": lambda: algos.DQNConfig(**value_based),
        "bcq_discrete": lambda: algos.DiscreteBCQConfig(share_encoder=False, **value_based),
    }
    return configs[request["name"]]()


if __name__ == "__main__":
    main()
