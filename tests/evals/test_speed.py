"""Whether objects move as fast as is asked for: real clips do, and a model that does not listen is found out."""

import dataclasses

import numpy as np
import pytest
from short import get_config

from data_pipelines.scenes import simulate
from vdt.evals import Run, pixels
from vdt.evals.speed import Speed, speeds, strides

STORED = np.stack([simulate("drifting", "test", index, frames=15, size=16, seed=0).video for index in range(24)])
TRUE = np.stack(
  [simulate("drifting", "test", index, frames=15, size=16, seed=0).truth["positions"] for index in range(24)]
)


@dataclasses.dataclass
class Clips:
  strides: tuple[int, ...] = (2, 1)
  frames: int = 8
  batch_size: int = 24
  split: str = "test"
  blank: bool = False
  stored = (15, 16, 16)

  def __len__(self):
    return len(STORED)

  def fps(self):
    return 8.0 / min(self.strides)

  def batch(self, step):
    stride = min(self.strides)
    return {"video": 0 * STORED[:, :8] if self.blank else STORED[:, : 8 * stride : stride]}


def table(sample):
  made = lambda count, split, fps: pixels(sample(round(8 / fps)))[:count, None]
  return Speed(count=24)(Run(None, 1, lambda split: Clips(), made))


def test_speeds_are_those_of_the_truth_and_a_model_that_does_not_listen_is_found_out():
  true = np.linalg.norm(np.diff(TRUE[:, :8, 0], axis=1), axis=-1).mean(1)
  np.testing.assert_allclose(speeds(pixels(STORED[:, :8])), true, atol=0.06)
  right = table(lambda stride: STORED[:, : 8 * stride : stride])
  assert set(right) == {"8 a second", "4 a second", "4 over 8"}
  for row in right.values():
    assert row["samples"] == pytest.approx(row["real"]) and row["low"] < row["samples"] < row["high"]
  assert right["4 over 8"]["real"] == pytest.approx(2.0, abs=0.05)
  assert right["8 a second"]["samples"] == pytest.approx(true.mean(), abs=0.03) and right["4 a second"]["seen"] == 1

  deaf = table(lambda stride: STORED[:, :8])["4 over 8"]
  assert deaf["samples"] == deaf["high"] == 1.0 and deaf["real"] > 1.9
  half = table(
    lambda stride: np.where(np.arange(24)[:, None, None, None, None] % 2, STORED[:, : 8 * stride : stride], 20)
  )
  assert half["4 a second"]["seen"] == 0.5 and 1.8 < half["4 over 8"]["samples"] < 2.2, "nothing there is left out"
  nothing = table(lambda stride: np.full_like(STORED[:, :8], 20))
  assert {*nothing} == {"8 a second", "4 a second"} and nothing["4 a second"] == {
    "real": right["4 a second"]["real"],
    "seen": 0.0,
  }
  still = table(lambda stride: STORED[:, :1].repeat(8, 1))
  assert still["8 a second"]["samples"] == still["8 a second"]["high"] == 0 and "4 over 8" not in still
  assert strides(Clips((1, 2, 3))) == strides(Clips((2, 1, 1))) == [1, 2], "what does not fit is never drawn"
  blank = lambda split: dataclasses.replace(Clips(), blank=True)
  with pytest.raises(ValueError, match="no single object moves in the real clips"):
    Speed(count=24)(Run(None, 1, blank, lambda count, split, fps: pixels(STORED[:, None, :8])))


def test_it_needs_a_model_that_is_told_and_several_rates(data_dir):
  config = get_config()
  config.data.data_dir, config.evals = data_dir, {"speed": Speed(count=8)}
  with pytest.raises(ValueError, match="needs a model that is told fps"):
    config.prepare()
  config.model.fps = True
  with pytest.raises(ValueError, match=r"here of strides \[1\]: give data.strides"):
    config.prepare()
  Speed().prepare(Clips())
