"""A checkpoint to the experiment's metrics, once; the training loop calls the same function as it goes."""

import dataclasses
import functools
import json
import sys
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from vdt import conditions, distributed, space
from vdt.conditions import Conditions, absent
from vdt.config import Config
from vdt.diffusion import given as plans
from vdt.distributed import in_chunks
from vdt.evals import Run, Table, card, cell, first, nth_caption, pixels
from vdt.sample import generate, load
from vdt.space import Space
from vdt.workdirs import environment

CARDS, EVALUATION = "cards.json", "evaluation.json"
FEW = 8
"""Clips that a feature network takes at once: it sees them larger than they are."""


def evaluate(
  config: Config, network: Any, params: Any, evals: dict[str, Any], between: Space, told: Conditions, seed: int = 0
) -> dict[str, Table]:
  """The table of each eval, by its name in the experiment, from samples of `seed`. between: as `space.of`, told: as
  `conditions.of`."""

  @functools.cache
  def data(split: str) -> Any:
    return dataclasses.replace(config.data, split=split)

  def clips(split: str) -> Any:
    return data(split).clips.each()

  def sample(
    count: int,
    task: str = "generation",
    split: str = "test",
    repeats: int = 1,
    given_frames: int | None = None,
    paste: bool = True,
    swapped: tuple[str, ...] = (),
    caption: int = 0,
    fps: float | None = None,
  ) -> np.ndarray:  # cached, whatever was left out
    return sampled(count, task, split, repeats, given_frames, paste, swapped, caption, fps)

  def given(count: int, task: str, split: str = "test", given_frames: int | None = None) -> np.ndarray:
    like = clips(split)
    patch_frames = config.model.patch[0] if between.autoencoder is None else 1
    return plans.planned(task, seed, (count, like.frames, *like.size), patch_frames, given_frames)

  @functools.cache
  def sampled(
    count: int,
    task: str,
    split: str,
    repeats: int,
    given_frames: int | None,
    paste: bool,
    swapped: tuple[str, ...],
    caption: int,
    fps: float | None,
  ) -> np.ndarray:
    rows = first(data(split), count)
    if fps is not None:
      rows["fps"] = np.full(count, fps, np.float32)
    if "captions" in rows or caption:  # in training one is drawn
      rows["caption"] = nth_caption(rows.get("captions", rows["caption"]), caption)
    rows |= {name: np.roll(rows[name], -1, axis=0) for name in swapped}
    mask = between.mask(np.repeat(given(count, task, split, given_frames), repeats, axis=0))
    videos = generate(
      config,
      network,
      params,
      pixels(np.repeat(rows["video"], repeats, axis=0)),
      jax.tree.map(lambda each: np.repeat(each, repeats, axis=0), told.told(rows)),
      task=task,
      given=mask,
      seed=seed,
      paste=paste,
    )
    videos = between.to_pixels(videos)
    return videos.reshape(count, repeats, *videos.shape[1:])

  losses = lambda *inputs: in_chunks(partial(chunk_losses, network.apply, config.diffusion, params), inputs)
  each_row = lambda function, *inputs: in_chunks(jax.jit(function), inputs, FEW)

  def reconstruct(videos: np.ndarray) -> np.ndarray:
    if between.autoencoder:
      return between.to_pixels(between.to_model(videos))
    return generate(config, network, params, videos, absent(config, len(videos)), seed=seed)

  inputs = data if between.autoencoder else None
  run = Run(
    losses,
    config.model.patch[0],
    clips,
    sample,
    each_row,
    reconstruct=reconstruct,
    inputs=inputs,
    told=told.told,
    given=given,
  )
  return {name: each(run) for name, each in evals.items()}


def cards(config: Config, evals: dict[str, Any], seed: int = 0, ema: float | None = None) -> dict[str, dict[str, Any]]:
  """The card of each eval: all that its figures depend on beside the weights."""
  how = {
    **config.sampler.card(),
    "seed of samples": seed,
    "average of weights": f"decay {config.ema}" if ema is None else f"relative length {ema}",
  }
  data = lambda split: dataclasses.replace(config.data, split=split)
  if config.autoencoder:
    how["latents"] = data("test").made_by()
  clips = lambda split: data(split).clips.each()
  run = Run(lambda *_: None, config.model.patch[0], clips, lambda *_: None, how=how, inputs=data)
  found = {name: each.card(run) if hasattr(each, "card") else card(each, run) for name, each in evals.items()}
  return json.loads(json.dumps(found))


@partial(jax.jit, static_argnums=(0, 1))
def chunk_losses(
  apply: Any, diffusion: Any, params: Any, x0: jax.Array, noise: jax.Array, t: jax.Array, cond: dict
) -> jax.Array:
  """Each video's loss, compiled once for each network and diffusion."""
  return diffusion.losses(partial(apply, params), x0, noise, t, cond)


def run(config: Config, workdir: str, step: int | None, ema: float | None, seed: int, path: str | None) -> None:
  """`vdt evaluate`: prints the tables, and writes them to evaluation.json in the workdir (and to `path`).

  OSError before anything is computed where `path` cannot be written.
  """
  if path and distributed.first():
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with epath.Path(path).open("a"):  # a whole file that is there stays until the figures are
      pass
  mesh, network, params, step = load(config, workdir, step, ema, seed=seed)
  with jax.set_mesh(mesh):
    tables = evaluate(config, network, params, config.evals, space.of(config), conditions.of(config, workdir), seed)
  if not distributed.first():
    return
  made_by = cards(config, config.evals, seed, ema)
  print(text(tables))
  for name, lines in made_by.items():
    print(f"\ncard of {name}\n" + "\n".join(f"  {line}: {value}" for line, value in lines.items()))
  content = json.dumps(
    {"step": step, "seed": seed, "ema": ema, "environment": environment(), "tables": tables, "cards": made_by}, indent=2
  )
  for file in filter(None, (epath.Path(workdir) / EVALUATION, path)):
    epath.Path(file).write_text(content)
    print(f"written to {file}", file=sys.stderr)


def flat(tables: dict[str, Table]) -> dict[str, float]:
  """Tables to one row: "eval/metric/column"."""
  return {
    f"{name}/{metric}/{column}": value
    for name, table in tables.items()
    for metric, columns in table.items()
    for column, value in columns.items()
  }


def text(tables: dict[str, Table]) -> str:
  """Tables as the terminal shows them."""
  blocks = []
  for name, table in tables.items():
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    width = max(map(len, [name, *table])) + 2
    widths = [max(len(column), 9) + 2 for column in columns]
    lines = [name.ljust(width) + "".join(column.rjust(w) for column, w in zip(columns, widths))]
    for metric, row in table.items():
      lines.append(metric.ljust(width) + "".join(cell(row, column).rjust(w) for column, w in zip(columns, widths)))
    blocks.append("\n".join(lines))
  return "\n\n".join(blocks)


if __name__ == "__main__":
  from vdt import cli

  cli.main(["evaluate", *sys.argv[1:]])
