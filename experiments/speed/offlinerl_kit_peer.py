"""The peer of `imagination.py`: OfflineRL-Kit's MOPO, under an interpreter that has torch.

    offlinerl_kit_peer.py CORE FOLDER

FOLDER is a checkout of yihaosun1124/OfflineRL-Kit. Its simulators and loggers are not needed here,
so what it imports of them is a stand-in. A request is one line of JSON: the arrays (`.npz`), the
sizes, whether updates or refreshes are asked for ("updates", "refresh"), and how many. The answer
is the CPU seconds that they took. Both are done as the kit's trainer does them, with the settings
of its `run_mopo.py`.
"""

import json
import os
import sys
import time
import unittest.mock
from collections.abc import Callable

import numpy as np
import torch

STAND_INS = ("gym", "gym.envs", "gym.envs.mujoco", "torch.utils.tensorboard")


def main() -> None:
    """Answers until the input ends."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the kit prints is no answer
    sys.path.insert(0, sys.argv[2])
    sys.modules.update({name: unittest.mock.MagicMock() for name in STAND_INS})
    runs: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        runs = runs or ways(request)
        run = runs[request["way"]]
        began = time.process_time()
        for _ in range(request["count"]):
            run()
        print(json.dumps({"seconds": time.process_time() - began}), file=answers, flush=True)


def ways(request: dict) -> dict[str, Callable[[], None]]:
    """A policy's update, and a refresh of the imagined rows."""
    from offlinerlkit.buffer import ReplayBuffer

    with np.load(request["arrays"]) as columns:
        data = {name: columns[name] for name in columns.files}
    observations = data["observations"]
    shapes = {
        "obs_shape": observations.shape[1:],
        "obs_dtype": np.float32,
        "action_dim": data["actions"].shape[1],
        "action_dtype": np.float32,
    }
    starts, horizon = request["starts"], request["horizon"]
    real = ReplayBuffer(buffer_size=len(observations), **shapes)
    real.load_dataset(data)
    imagined = ReplayBuffer(buffer_size=starts * horizon * request["retain"], **shapes)
    policy = mopo(observations, data["actions"], request)

    def refresh() -> None:
        first = real.sample(starts)["observations"].cpu().numpy()
        rows, _ = policy.rollout(first, horizon)
        imagined.add_batch(**rows)

    num_real = int(request["batch_size"] * request["real_fraction"])

    def update() -> None:
        fake = imagined.sample(request["batch_size"] - num_real)
        policy.learn({"real": real.sample(num_real), "fake": fake})

    refresh()
    policy.train()
    return {"updates": update, "refresh": refresh}


def mopo(observations: np.ndarray, actions: np.ndarray, request: dict) -> object:
    """The policy of `run_mopo.py`, whose model is not trained."""
    from offlinerlkit.dynamics import EnsembleDynamics
    from offlinerlkit.modules import (
        ActorProb,
        Critic,
        EnsembleDynamicsModel,
        TanhDiagGaussian,
    )
    from offlinerlkit.nets import MLP
    from offlinerlkit.policy import MOPOPolicy
    from offlinerlkit.utils.scaler import StandardScaler

    size, action_size = observations.shape[1], actions.shape[1]
    layers = request["layers"]
    backbone = MLP(input_dim=size, hidden_dims=layers)
    head = TanhDiagGaussian(
        latent_dim=backbone.output_dim,
        output_dim=action_size,
        unbounded=True,
        conditioned_sigma=True,
    )
    actor = ActorProb(backbone, head)
    critics = [Critic(MLP(input_dim=size + action_size, hidden_dims=layers)) for _ in range(2)]
    model = EnsembleDynamicsModel(
        obs_dim=size,
        action_dim=action_size,
        hidden_dims=request["model_layers"],
        num_ensemble=request["members"],
        num_elites=request["elites"],
        weight_decays=[2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4],
    )
    model.eval()
    scaler = StandardScaler()
    scaler.fit(np.concatenate([observations, actions], axis=1))
    dynamics = EnsembleDynamics(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        scaler,
        lambda observation, action, following: np.zeros((len(observation), 1), bool),
        penalty_coef=request["penalty_coef"],
    )
    log_alpha = torch.zeros(1, requires_grad=True)
    return MOPOPolicy(
        dynamics,
        actor,
        *critics,
        torch.optim.Adam(actor.parameters(), lr=1e-4),
        *[torch.optim.Adam(critic.parameters(), lr=3e-4) for critic in critics],
        alpha=(-action_size, log_alpha, torch.optim.Adam([log_alpha], lr=1e-4)),
    )


if __name__ == "__main__":
    main()
