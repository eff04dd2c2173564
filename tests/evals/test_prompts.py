"""Whether captions are shown: the judge is right on real clips, and sees what samples have wrong."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.scenes import simulate
from vdt.evals import Run, nth_caption, pixels
from vdt.evals.prompts import Prompts
from vdt.evals.statistics import wilson

SAYS = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "text_bouncing.py"))["SAYS"]


class Clips:
  batch_size = 16

  def __init__(self, split, count):
    self.split, self.frames, self.size = split, 8, (16, 16)
    made = [simulate("sprites", split, index, frames=8, size=16, seed=0) for index in range(count)]
    self.video, self.caption = np.stack([each.video for each in made]), np.array([each.caption for each in made])

  def __len__(self):
    return len(self.video)

  def batch(self, step):
    index = np.arange(step * 16, step * 16 + 16) % len(self)
    return {"video": self.video[index], "caption": self.caption[index]}


DATA = {"train": Clips("train", 192), "combinatorial": Clips("combinatorial", 32)}


def table(change=lambda videos: videos):
  real = pixels(DATA["combinatorial"].video)
  sample = lambda count, **_: change(real[:count].copy())[:, None]
  return Prompts(SAYS, count=32, judged_by=192, split="combinatorial")(Run(None, 1, DATA.__getitem__, sample))


def test_the_judge_knows_real_clips_and_what_samples_have_wrong():
  found = table()
  assert min(found["all"]["samples"], found["all"]["real"]) > 0.95 and set(found) == {
    "colour",
    "shape",
    "direction",
    "all",
  }
  assert found["all"]["shuffled"] < 0.2 and found["direction"]["shuffled"] < 0.6
  assert found["all"]["low"] < found["all"]["samples"] <= found["all"]["high"] <= 1

  mirrored, still, grey = (
    table(change)
    for change in (
      lambda videos: videos[:, ::-1],  # time reversed: another direction
      lambda videos: np.full_like(videos, -0.9),  # nothing is there
      lambda videos: videos[..., [1, 2, 0]],  # other colours
    )
  )
  assert mirrored["direction"]["samples"] == 0 and mirrored["colour"]["samples"] > 0.95
  assert all(row["samples"] == 0 for row in still.values())
  assert grey["colour"]["samples"] < 0.2 and grey["shape"]["samples"] > 0.9
  twice = table(lambda videos: np.maximum(videos, np.roll(videos, 8, 2)))
  assert twice["all"]["samples"] < 0.2, "two of them are not what was asked"


def test_captions_have_all_that_is_judged():
  with pytest.raises(ValueError, match="says no colour"):
    Prompts((("colour", ("puce",)),)).words(DATA["train"].caption)
  with pytest.raises(ValueError, match="know no mood"):
    Prompts((("mood", ("glad",)),))
  with pytest.raises(ValueError, match="no single object"):
    blank = {name: Clips(name, 16) for name in ("train", "test")}
    blank["train"].video[:] = 20
    Prompts(SAYS, count=16)(Run(None, 1, blank.__getitem__, None))


def test_the_model_may_read_another_caption_than_the_judge():
  clips = Clips("combinatorial", 32)
  clips.caption = np.array([f"{each}\nsomething" for each in clips.caption])
  asked = {}

  def sample(count, **how):
    asked.update(how)
    return pixels(clips.video[:count])[:, None]

  data = {"train": DATA["train"], "combinatorial": clips}
  judged = Prompts(SAYS, count=32, judged_by=192, split="combinatorial", caption=1, task="first_frame", given_frames=1)
  given = lambda count, **how: (np.arange(8) == 0)[None, :, None, None, None].repeat(count, 0)
  found = judged(Run(None, 1, data.__getitem__, sample, given=given))
  assert found["all"]["samples"] > 0.95 and asked["caption"] == 1
  assert found["direction"]["copy"] < 0.6 < found["colour"]["copy"], "a frame does not tell where it goes"
  assert nth_caption(clips.caption, 1).tolist() == ["something"] * 32
  with pytest.raises(ValueError, match="caption 2 was asked for, a clip has 2, from 0: a"):
    nth_caption(clips.caption, 2)


def test_wilson():
  """Of Wilson's (1927) interval: 8 of 10, and never beyond a share."""
  assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
  assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
