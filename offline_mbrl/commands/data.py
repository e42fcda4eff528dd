"""`offline-mbrl data list|info|build|audit`: datasets, their contents, and their faults."""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl.commands import arguments, datasets
from offline_mbrl.data import audit, specs, steps
from offline_mbrl.data.catalog import bounded, names, official
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.store import atomic
from offline_mbrl.data.store import read as store
from offline_mbrl.data.store import write as columns
from offline_mbrl.types import UsageError

PROG = "offline-mbrl data"
LIST_NOTE = (
    "local/ datasets are generated here, the others are official and fetched by TFDS (every name: "
    "--all). Variants: local/catch-noise0.1-fraction10-episodes200-seed1, "
    "local/atari/Pong-steps30000-seed1 (any game), local/control/cheetah_run-episodes30-seed1, "
    "rlu_atari_checkpoints_ordered/Pong_run_1-checkpoints0-4-percent10-unclipped. Your own: an "
    "RLDS or Minari directory, a D4RL-style .hdf5 file, minari:<id>."
)
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]


@dataclasses.dataclass(frozen=True)
class List:
    """Datasets by name, and which of them are built."""

    all: bool = False  # every official name, one a line


@dataclasses.dataclass(frozen=True)
class Info:
    """Counts, spec, origin and fingerprint of a dataset; builds it if it is absent."""

    # from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    name: Name
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    verify: Literal["touched", "full"] = "touched"  # full compares every chunk with its hash
    json: bool = False  # the manifest as JSON


@dataclasses.dataclass(frozen=True)
class Build:
    """Makes a dataset's column store; `local/` datasets are generated first."""

    # from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    name: Name
    # local/: probability that the environment replaces an action by a uniform one
    noise: float | None = None
    episodes: int | None = None  # local/: episodes of the behavior's run
    # local/: percent of those episodes that are kept, spread over the whole run; one in 20 of the
    # kept ones is held out for validation
    fraction: int | None = None
    seed: int | None = None  # local/: fixes everything
    steps: int | None = None  # local/atari/: agent steps in all
    force: bool = False  # make it anew even if it is there


@dataclasses.dataclass(frozen=True)
class Audit:
    """Faults of a dataset. The exit code is 1 where there are errors, not for warnings alone."""

    # from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    name: Name
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    verify: Literal["touched", "full"] = "touched"  # full compares every chunk with its hash


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    commands = {
        "list": (List, run_list),
        "info": (Info, run_info),
        "build": (Build, run_build),
        "audit": (Audit, run_audit),
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} {{{'|'.join(commands)}}} ...\n")
        for name, (options, _) in commands.items():
            print(f"  {name:<6} {(options.__doc__ or '').splitlines()[0]}")
        return 0
    if argv[0] not in commands:
        close = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(commands)}"
        raise UsageError(f"unknown command 'data {argv[0]}'; {hint}")
    options, run = commands[argv[0]]
    return run(arguments.parse(options, argv[1:], prog=f"{PROG} {argv[0]}"), Console())


def run_list(options: List, console: Console) -> int:
    """Prints names."""
    if options.all:
        print("\n".join(names.names()))
        return 0
    table = Table("dataset", "simulator", "here", box=None)
    for column in table.columns:
        column.overflow = "fold"
    built = _built()
    for name in [name for name in names.names() if name.startswith("local/")]:
        table.add_row(name, names.lookup(name).simulator, built.get(name, "not built"))
    for name, size in sorted(built.items()):
        if name not in names.names():
            table.add_row(name, None, size)
    for family in dict.fromkeys(
        name.split("/")[0] for name in names.names() if not name.startswith("local/")
    ):
        listed = [name for name in names.names() if name.startswith(f"{family}/")]
        here = f"{sum(name in built for name in listed)} of {len(listed)}"
        table.add_row(listed[0] + ", ...", names.lookup(listed[0]).simulator, here)
    console.print(table, highlight=False)
    console.print(LIST_NOTE, highlight=False)
    return 0


def run_info(options: Info, console: Console) -> int:
    """Prints a dataset's manifest."""
    dataset = bounded.joined(options.name, options.action_bounds)
    opened = _open(dataset, options.verify)
    manifest = opened.manifest
    if options.json:
        shown = {name: value for name, value in manifest.items() if name != "columns"}
        print(json.dumps(shown, indent=1))
        return 0
    table = Table("", "", show_header=False, box=None)
    table.columns[1].overflow = "fold"
    for name, value in _summary(dataset, opened).items():
        table.add_row(name, str(value))
    for split in opened.columns:
        for path, column in opened.columns[split].items():
            shape = "x".join(map(str, column.shape))
            table.add_row(f"{split} {'/'.join(path[1:] or path)}", f"{column.dtype.name} {shape}")
    console.print(table, highlight=False)
    return 0


def _summary(name: str, opened: store.Store) -> dict[str, object]:
    """Rows of `data info` before those of the columns."""
    manifest = opened.manifest
    spec = specs.from_json(manifest["spec"])
    counts = manifest["counts"]
    simulator = catalog.lookup(name).simulator or manifest["simulator"]
    dropped = [f"{count} {reason}" for reason, count in counts["dropped"].items()]
    num_validation = len(_ends(opened, "validation"))
    return {
        "name": manifest["name"],
        "store": opened.directory,
        "fingerprint": manifest["fingerprint"],
        "simulator": simulator or "none: evaluation is skipped",
        "episodes": f"{counts['episodes']} ({num_validation} of them for validation)",
        "for training": _share(catalog.lookup(name), counts["episodes"], num_validation),
        "transitions": counts["transitions"],
        "steps read": counts["steps"],
        "steps dropped": ", ".join(dropped) or "none",
        "observation": spec.observation,
        "action": spec.action,
        "gamma": "unknown" if spec.gamma is None else spec.gamma,
        "horizon": spec.horizon or "unknown",
        "semantics": "; ".join(_semantics(opened)) or "not stated",
        "origin": json.dumps(manifest["provenance"]),
    }


def _share(entry: names.Entry, num_episodes: int, num_validation: int) -> str:
    """How many episodes learners see: of those there are, or of the run that some were kept of."""
    facts = official.local(entry.location) if entry.kind == "local" else None
    is_run = facts is not None and "fraction" in facts.variants
    total = entry.variant.episodes if is_run else num_episodes
    trained = num_episodes - num_validation
    whose = "the run's " if is_run else ""
    return f"{trained} of {whose}{total} episodes ({100 * trained / total:.3g} %)"


def run_build(options: Build, console: Console) -> int:
    """Builds a dataset."""
    name = options.name
    flags = {
        flag: getattr(options, flag)
        for flag in names.Variant._fields
        if getattr(options, flag) is not None
    }
    if flags:
        entry = names.lookup(name)
        if entry.kind != "local":
            raise UsageError(
                f"--{next(iter(flags))} is for local/ datasets, which are generated; {name} is not"
            )
        variant = entry.variant._replace(**flags)
        names.check(name, entry.location, variant)
        name = names.local_name(entry.location, variant, entry.task)
    directory = catalog.build(
        name, collect=datasets.collector(Console(stderr=True)), force=options.force
    )
    counts = store.open_store(directory).manifest["counts"]
    sizes = f"{_count(counts, 'episode')}, {_count(counts, 'transition')}"
    console.print(f"{name}: {sizes} in {directory}", highlight=False, soft_wrap=True)
    return 0


def run_audit(options: Audit, console: Console) -> int:
    """Prints what is wrong with a dataset."""
    opened = _open(bounded.joined(options.name, options.action_bounds), options.verify)
    spec = specs.from_json(opened.manifest["spec"])
    parts = {split: store.aligned(opened, split) for split in opened.columns}
    summaries = {split: audit.episodes(part) for split, part in parts.items() if part}
    summary = Table("", *summaries, box=None)
    for statistic in summaries["train"]:
        summary.add_row(statistic, *(f"{values[statistic]:g}" for values in summaries.values()))
    console.print(summary, highlight=False)
    longest = int(max(values["length_max"] for values in summaries.values()))
    findings = {
        split: audit.findings(part, spec, longest=longest) for split, part in parts.items() if part
    }
    for sentence in _semantics(opened):
        console.print(f"semantics: {sentence}", highlight=False, markup=False, soft_wrap=True)
    rule = columns.held_out_after(opened.manifest.get("train_episodes"))
    lines = [line for split in findings for line in _described(parts, split, findings[split], rule)]
    console.print("\n".join(lines) or "nothing found", highlight=False, markup=False)
    listed = list(itertools.chain.from_iterable(findings.values()))
    if any(finding.row is not None for finding in listed):
        dropped = " that hold a transition" if opened.manifest["counts"]["dropped"] else ""
        console.print(
            f"(counted from 0 over the source's episodes{dropped}, in the source's order)",
            highlight=False,
        )
    return int(any(finding.severity == audit.ERROR for finding in listed))


def _described(
    parts: Mapping[str, steps.Aligned | None],
    split: str,
    findings: list[audit.Finding],
    is_held_out: Callable[[int], bool],
) -> Iterator[str]:
    """A line for each finding, that names its place in the source."""
    ends = {name: part.episode_ends for name, part in parts.items() if part}
    rows = [finding.row for finding in findings if finding.row is not None]
    locations = iter(columns.locate(ends, split, rows, is_held_out))
    for finding in findings:
        where = ""
        if finding.row is not None:
            where = "episode {}, step {}, row {}, ".format(*next(locations))
        yield f"{finding.severity}: {finding.field} ({where}{split} split): {finding.message}"


def _open(name: str, verify: str) -> store.Store:
    opened = catalog.open_named(name, collect=datasets.collector(Console(stderr=True)))
    if verify == "full":
        chunks = store.verify_all(opened)
        Console(stderr=True).print(f"{chunks} chunks verified")
    return opened


def _semantics(opened: store.Store) -> list[str]:
    """What the source states about the meaning of its rows."""
    return opened.manifest["provenance"].get("semantics", [])


def _ends(opened: store.Store, split: str):
    return store.read(opened.columns[split][store.ENDS]) if split in opened.columns else ()


def _count(counts: Mapping[str, int], noun: str) -> str:
    number = counts[f"{noun}s"]
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _built() -> dict[str, str]:
    """Name -> size of every store on this machine."""
    root: Path = atomic.root() / "store"
    sizes = {}
    for path in sorted(root.rglob(store.MANIFEST)) if root.is_dir() else []:
        try:
            manifest = store.open_store(path.parent).manifest
        except UsageError:
            sizes[str(path.parent.relative_to(root))] = "damaged"
            continue
        sizes[manifest["name"]] = _count(manifest["counts"], "transition")
    return sizes
