"""What is wrong with a run, all of it at once, before anything is built."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lvmmed_monai.data.datalist import read_datalist
from lvmmed_monai.errors import UserError
from lvmmed_monai.methods import build_method
from lvmmed_monai.networks import load_encoder

__all__ = ["check_start"]

_EVALUATION = ("validation", "test")


def check_start(
    name: str,
    method_options: Mapping[str, Mapping[str, Any] | None] | None = None,
    *,
    datalists: Sequence[str | Path],
    cache_dir: str | Path,
    batch_size: int,
    accumulate: int = 1,
    neighbours: int = 1,
    pretrained_encoder: str | Path | None = None,
    labelled_datalists: Sequence[str | Path] = (),
    **common: Any,
) -> None:
    """Refuse a 2D pre-training that cannot go well; nothing is written or decoded, no random number is used up.

    Args:
        name, method_options, **common: of `build_method`.
        datalists: trained on, by their training sections.
        cache_dir: folder of the slice cache.
        batch_size: pictures a step and process.
        accumulate: parts that a batch is cut into.
        neighbours: length of the runs of neighbouring slices in a batch.
        pretrained_encoder: file of initial weights, or None.
        labelled_datalists: whose validation and test sections the encoder will be judged by, too.

    Raises:
        UserError: one problem in its own sentence; several as numbered lines.
    """
    problems: list[UserError] = []

    def tried(act: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What ``act`` gives; None, and the refusal in the list, where it is refused."""
        try:
            return act(*arguments, **options)
        except UserError as error:
            problems.append(error)
            return None

    with torch.random.fork_rng(devices=[]):
        method = tried(build_method, name, method_options, **common)
        if method and pretrained_encoder is not None:
            # Into a network that is thrown away.
            tried(load_encoder, pretrained_encoder, method.encoder())
    every = dict.fromkeys(map(str, [*datalists, *labelled_datalists]))
    contents = {path: content for path in every if (content := tried(read_datalist, path))}
    problems += map(UserError, _batch_problems(method, batch_size, accumulate, neighbours))
    problems += map(UserError, _shared_subjects(contents, [str(path) for path in datalists]))
    if method and all(str(path) in contents for path in datalists):
        tried(_check_space, method, datalists, Path(cache_dir))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "".join(f"\n{number}. {problem}" for number, problem in enumerate(problems, start=1))
        raise UserError(f"{len(problems)} things are wrong; pre-training; correct each of them:{lines}")


def _batch_problems(method: Any, batch_size: int, accumulate: int, neighbours: int) -> Iterator[str]:
    if batch_size < 1 or accumulate < 1 or batch_size % accumulate:
        yield (
            f"a batch of {batch_size} cannot be cut into {accumulate} parts; accumulate; "
            "use a batch size of at least 1 that is a multiple of accumulate"
        )
        return
    if neighbours < 1 or batch_size % neighbours:
        yield (
            f"the batch size {batch_size} is not made of runs of {neighbours} neighbouring slices; neighbours; "
            "use a batch size that is a multiple of it"
        )
    problem = method and method.batch_problem(batch_size // accumulate)
    if problem:
        yield problem


def _shared_subjects(contents: Mapping[str, Mapping[str, Any]], trained: Sequence[str]) -> Iterator[str]:
    """Subjects of evaluation sections in the training section of another datalist; within one it is refused anyway."""
    training = {path: _subjects(contents[path], "training") for path in trained if path in contents}
    for path, section in product(contents, _EVALUATION):
        judged = _subjects(contents[path], section)
        for other, learnt in training.items():
            both = len(judged & learnt)
            if both and other != path:
                yield (
                    f"{both} of the {len(judged)} subjects in {section} of {path} are in training of {other}; "
                    "datalists; take them out of training, or rename those that are other people"
                )


def _subjects(content: Mapping[str, Any], section: str) -> set[str]:
    return {item["subject"] for item in content[section]}


def _check_space(method: Any, datalists: Sequence[str | Path], folder: Path) -> None:
    need = method.missing_space(datalists, "training", folder)
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise UserError(
            f"too little disk space for the slice cache: {need / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; "
            f"{folder}; free some space or choose another cache_dir"
        )
