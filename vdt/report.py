"""report.html: one page that opens offline, with all that a person wants to see of a run."""

import base64
import dataclasses
import io
import json
from typing import Any

import jinja2
import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from vdt import distributed, ledger, video, workdirs
from vdt.conditions import Conditions
from vdt.config import Config
from vdt.evals import Table, cell, first, pixels
from vdt.sample import generate
from vdt.space import Space
from vdt.writer import read_rows

SHOWN = 16
matplotlib.use("Agg")


def write_report(
  config: Config, network: Any, params: Any, tables: dict[str, Table], workdir: str, between: Space, told: Conditions
) -> str:
  """Writes the page and samples/, a folder of WebP for each task; returns the page's path. between: as `space.of`,
  told: as `conditions.of`."""
  held_out = dataclasses.replace(config.data, split="test")
  rows = {"real, held out": first(held_out.clips, SHOWN)["video"]}
  clips, shape = first(held_out, SHOWN), rows["real, held out"].shape[:4]
  real, cond = pixels(clips["video"]), told.told(clips)
  if between.autoencoder:
    rows["reconstructions"] = video.to_uint8(between.to_pixels(real))
  for task in [name for name, weight in dataclasses.asdict(config.tasks).items() if weight]:
    given = between.plan(task, 0, shape, None)
    made = between.to_pixels(generate(config, network, params, real, cond, task=task, given=given))
    rows[config.sampler.title(task)] = video.to_uint8(made)
  path = epath.Path(workdir) / "report.html"
  if not distributed.first():
    return str(path)
  folder = epath.Path(workdir) / "samples"
  webp = {name: [video.webp(each, held_out.fps()) for each in made] for name, made in rows.items()}
  for name, videos in rows.items():
    short = name.split(": ")[-1].split(",")[0]
    (folder / short).mkdir(parents=True, exist_ok=True)
    (folder / f"{short}.png").write_bytes(video.png(video.contact_sheet(videos)))
    for number, each in enumerate(webp[name]):
      (folder / short / f"{number:04d}.webp").write_bytes(each)  # of the same clips and noise in every run
  stored, metrics = workdirs.read(workdir), read_rows(workdir)
  page = jinja2.Environment(loader=jinja2.PackageLoader("vdt"), autoescape=True).get_template("report.html.j2")
  html = page.render(
    title=" ".join(stored["origin"]) or workdir,
    curves=curves(metrics),
    named=[f"{row['step']} ({what})" for row in metrics for what in ("skipped", "spike") if what in row],
    videos={name: [embed(each, "webp") for each in made] for name, made in webp.items()},
    captions=clips["caption"].tolist() if config.text else [],
    tables={name: columns(table) for name, table in tables.items()},
    ledger={name: f"{value:.4g}" for name, value in ledger.summary(ledger.read(workdir)).items()},
    environment=stored["environment"],
    config=json.dumps(stored["config"], indent=2),
    last=next((row for row in reversed(metrics) if "loss" in row), {}),
  )
  path.write_text(html)
  return str(path)


def columns(table: Table) -> tuple[list[str], dict[str, list[str]]]:
  """The names of all columns, and each row's cells as text."""
  names = list(dict.fromkeys(name for row in table.values() for name in row))
  return names, {metric: [cell(row, name) for name in names] for metric, row in table.items()}


def embed(data: bytes, kind: str) -> str:
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def curves(rows: list[dict[str, Any]]) -> str:
  """Loss (with its running mean), gradient norm and step time over steps, as one picture."""
  rows = [row for row in rows if "loss" in row]
  figure = Figure(figsize=(12, 3), layout="constrained")
  steps = np.array([row["step"] for row in rows])
  for axis, (name, log) in zip(figure.subplots(1, 3), (("loss", True), ("grad_norm", True), ("step_time", False))):
    values = np.array([row[name] for row in rows])
    axis.plot(steps, values, alpha=0.35, lw=0.8)
    width = max(len(values) // 20, 1)
    if len(values) > width:
      axis.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"))
    axis.set(title=name + (" (s)" if name == "step_time" else ""), xlabel="step", yscale="log" if log else "linear")
    axis.grid(alpha=0.2)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="svg")
  return embed(buffer.getvalue(), "svg+xml")
