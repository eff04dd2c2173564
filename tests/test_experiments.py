"""Every experiment's `:tiny` variant trains, samples and reports."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from emojis import package, stems

from data_pipelines import emoji
from vdt import cli

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
MORE = [("contacts", "tiny_occlusion"), ("published", "tiny-vdt"), ("published", "tiny-latte-1")]
MORE = [(ROOT / "experiments" / f"{name}.py", variant) for name, variant in MORE]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
  """A data set made of video files of our own, by the command a user runs."""
  import av

  folder, out = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("data") / "real_clips"
  for number in range(6):
    with av.open(str(folder / f"film_{number}.mp4"), "w") as container:
      stream = container.add_stream("libx264", rate=8)
      stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
      for index in range(40):
        picture = np.full((40, 48, 3), 40 + 10 * number, np.uint8)
        cv2.circle(picture, ((3 * index + 7 * number) % 48, 20), 6, (200, 80, 40), -1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
      container.mux(stream.encode())
  held_out = folder / "held_out.txt"
  held_out.write_text("film_4.mp4\nfilm_5.mp4\n")
  options = "--size 32 --fps 8 --frames 8 --stride 2 --format png".split()
  cli.main(["ingest", str(folder), "--out", str(out), *options, "--test-sources", str(held_out)])
  names = [name for thing in ("1f52c", "1f680", "1f527") for name in stems(thing)]
  films = emoji.make([package(folder / "emoji.tgz", names)], folder / "emoji", size=32, still="wrench")
  options += ["--captions", str(films / "captions.csv"), "--test-sources", str(films / "held_out.txt")]
  cli.main(["ingest", str(films), "--out", str(out.with_name("emoji")), *options])
  return str(out.parent)


def test_there_are_experiments():
  assert {path.stem for path in EXPERIMENTS} >= {"bouncing", "contacts", "real_clips"}


@pytest.mark.parametrize("path, variant", [*((path, "tiny") for path in EXPERIMENTS), *MORE])
def test_tiny(path, variant, tmp_path, data_dir, ingested, monkeypatch):
  monkeypatch.chdir(tmp_path.parent)
  text = path.read_text()
  fields = {"steps": 4, "log_every": 2, "save_every": 4, "data.batch_size": 4, "mesh.data": 1}
  if "Reconstruct(" not in text:
    fields["sampler.steps"] = 2
  fields["data.data_dir"] = ingested if 'Clips(name="real_clips' in text or "emoji" in text else data_dir
  if "Buckets(" in text:  # its parts have these fields, and are read from where they are by default
    fields = {name: value for name, value in fields.items() if not name.startswith("data.")}
    if Path("data").absolute() != Path(data_dir):
      Path("data").symlink_to(data_dir)
  for name in ("loss", "loss_combinatorial", "loss_ood", "motion", "physics", "memorisation", "prediction"):
    if f'"{name}":' in text:
      fields[f"evals.{name}.count"] = 4
  cli.main(
    [
      "train",
      f"--config={path}:{variant}",
      f"--workdir={tmp_path.name}",
      *(f"--config.{k}={v}" for k, v in fields.items()),
    ]
  )
  page = (tmp_path / "report.html").read_text()
  assert "data:image/webp;base64," in page and "data:image/svg+xml;base64," in page
  assert "http://" not in page.replace("http://www.w3.org", "") and 'src="https://' not in page, "it opens offline"
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "loss" in row] == [2, 4]
  assert all(row["utilisation"] > 0 and row["data_wait"] >= 0 for row in rows if "loss" in row)
