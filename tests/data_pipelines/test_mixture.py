"""Several data sets as one: pure functions of the step, in the shares asked for, whatever the number of hosts."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from data_pipelines.clips import SimulatedClips
from data_pipelines.mixture import PERIOD, Buckets, Mixture, Turns


@pytest.fixture(scope="module")
def parts(data_dir):
  fields = dict(size=(16, 16), data_dir=data_dir, flip=True)
  balls = SimulatedClips("bouncing16", frames=5, batch_size=8, **fields)
  sprites = SimulatedClips("sprites16", frames=5, batch_size=8, **fields)
  return balls, sprites


def digest(batches):
  found = hashlib.sha256()
  for batch in batches:
    for name in sorted(batch):
      found.update(batch[name].tobytes())
  return found.hexdigest()


def stream(data, start, stop, hosts):
  """What so many hosts read, put together in the order of the global batch."""
  readers = [data.batches(start, [host], hosts) for host in range(hosts)]
  for _ in range(start, stop):
    local = [next(reader) for reader in readers]
    yield {name: np.concatenate([part[name] for part in local]) for name in local[0]}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 1.0)])
def test_turns_are_counted_without_a_state_and_evenly_spread(weights):
  turns = Turns(weights)
  whose, ordinals = turns(np.arange(3 * PERIOD))
  for number, share in enumerate(turns.shares):
    assert abs(share - weights[number] / sum(weights)) <= 1 / PERIOD
    mine = np.flatnonzero(whose == number)
    np.testing.assert_array_equal(ordinals[mine], np.arange(len(mine)))
    assert np.diff(mine).max() <= 2 / share + 1, "no long waits"
  periods, place = divmod(10**12 + 7, PERIOD)
  (far,), (ordinal,) = turns(np.array([10**12 + 7]))
  assert far == whose[place] and ordinal == periods * turns.each[far] + ordinals[place]


@pytest.mark.parametrize("kind", ["mixture", "buckets", "clips"])
def test_the_stream_is_the_same_for_1_2_4_and_8_hosts_and_after_a_change_in_the_middle(parts, kind):
  balls, sprites = parts
  pictures = dataclasses.replace(sprites, frames=1, batch_size=16)
  data = {
    "mixture": Mixture((balls, sprites), (0.75, 0.25), batch_size=16),
    "buckets": Buckets((balls, pictures), (2.0, 1.0)),
    "clips": balls,
  }[kind]
  data.prepare()
  whole = digest(data.batch(step) for step in range(5, 13))
  assert whole == digest(data.batch(step) for step in range(5, 13))
  for hosts in (1, 2, 4, 8):
    assert digest(stream(data, 5, 13, hosts)) == whole
  changed = itertools.chain(stream(data, 5, 8, 4), stream(data, 8, 10, 8), stream(data, 10, 13, 1))
  assert digest(changed) == whole


def test_a_mixture_has_its_shares_and_reads_each_part_in_its_own_order(parts):
  balls, sprites = parts
  mixture = Mixture((balls, sprites), (0.75, 0.25), batch_size=16)
  mixture.prepare()
  batches = [mixture.batch(step) for step in range(8)]
  names = mixture.labels()
  of_sprites = np.concatenate([[names[label] in sprites.labels() for label in batch["label"]] for batch in batches])
  assert of_sprites.mean() == 0.25
  ids = np.concatenate([batch["id"] for batch in batches])
  alone = dataclasses.replace(sprites, seed=1, batch_size=32)  # the second part's number is added to its seed
  np.testing.assert_array_equal(ids[of_sprites], alone.batch(0)["id"])
  reseeded = dataclasses.replace(mixture, seed=1)
  assert list(reseeded.batch(0)["id"]) != list(mixture.batch(0)["id"])
  held_out = dataclasses.replace(mixture, split="test")
  np.testing.assert_array_equal(held_out.batch(0)["id"][:8], dataclasses.replace(balls, split="test").batch(0)["id"])
  assert mixture.fingerprint() != dataclasses.replace(mixture, weights=(0.5, 0.5)).fingerprint()
  held_out, own = (dataclasses.replace(each, split="test") for each in (mixture, mixture.parts[0]))
  assert (held_out.fingerprint(), held_out.rule()) == (own.fingerprint(), own.rule()), "its figures are ranked beside"


def test_each_record_is_counted_once_whatever_the_shares(parts):
  balls, sprites = parts
  mixture = Mixture((balls, sprites), (0.95, 0.05), batch_size=16)
  each = mixture.each()
  total = len(balls) + len(sprites)
  assert len(each) == total
  ids = each.read(np.arange(total))["id"]
  assert len(set(ids)) == total
  assert set(each.read(total + np.arange(total))["id"]) == set(ids)
  alike = Buckets((balls, dataclasses.replace(sprites, frames=1, batch_size=16))).each()
  assert len(alike) == len(balls), "of one shape"


def test_a_limit_leaves_the_first_clips_of_training_and_all_that_is_held_out(parts):
  balls, _ = parts
  few = dataclasses.replace(balls, limit=5)
  few.prepare()
  seen = np.concatenate([few.batch(step)["id"] for step in range(10)])
  first = balls.records(np.arange(5))
  assert {*seen.tolist()} == {*first["id"].tolist()} and len(few) == 5
  assert few.captions() == first["caption"].tolist()
  assert all(np.unique(seen[5 * epoch :][:5]).size == 5 for epoch in range(16)), "each once an epoch"
  assert len(dataclasses.replace(few, split="test")) == len(dataclasses.replace(balls, split="test"))
  with pytest.raises(ValueError, match=r"data\.limit is 6001: at least 0, and at most the 6000 clips"):
    dataclasses.replace(balls, limit=6001).prepare()


def test_held_out_clips_have_the_least_stride(parts):
  balls, _ = parts
  plain = dataclasses.replace(balls, split="test", frames=6)
  strided = dataclasses.replace(balls, split="test", frames=3, strides=(2, 3))
  np.testing.assert_array_equal(strided.batch(0)["video"], plain.batch(0)["video"][:, ::2])
  assert strided.fps() == plain.fps() / 2


def test_buckets_have_static_shapes_and_shares_of_steps(parts):
  balls, sprites = parts
  buckets = Buckets((balls, dataclasses.replace(sprites, frames=1, batch_size=16)), (3.0, 1.0))
  shapes = [each.batch(0)["video"].shape for each in buckets.members]
  drawn = [shapes.index(buckets.batch(step)["video"].shape) for step in range(16)]
  assert drawn.count(1) == 4
  assert [shapes.index(buckets.batch(step)["video"].shape) for step in buckets.firsts()] == [0, 1]
  assert [(each.share, each.batch_size, each.frames) for each in buckets.shapes()] == [(0.75, 8, 5), (0.25, 16, 1)]


def test_a_census_of_the_buckets_and_none_is_empty(parts, monkeypatch):
  balls, sprites = parts
  buckets = Buckets((balls, dataclasses.replace(sprites, frames=1, batch_size=16)), (3.0, 1.0))
  assert buckets.census() == [
    "5 x 16 x 16: 6000 clips of bouncing16, 75.0% of steps, 8 each",
    "1 x 16 x 16: 2000 clips of sprites16, 25.0% of steps, 16 each",
  ]
  monkeypatch.setattr(SimulatedClips, "__len__", lambda self: 6000 * (self.name == "bouncing16"))
  with pytest.raises(ValueError, match="sprites16, data set 1 of 2, has no clips: leave it out"):
    buckets.prepare()


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda a, b: Mixture((a, dataclasses.replace(b, frames=3)), batch_size=4), "take one shape, or Buckets"),
    (lambda a, b: Mixture((a, b), (1.0,), batch_size=4), "2 data sets with 1 weights"),
    (lambda a, b: Mixture((a, b), (1.0, -1.0), batch_size=4), "at least 0 each"),
    (lambda a, b: Mixture((a, b), (1.0, 1e-5), batch_size=4), "or left out"),
  ],
)
def test_what_does_not_go_together_is_refused(parts, make, message):
  with pytest.raises(ValueError, match=message):
    make(*parts).prepare()


def test_windows_and_strides_are_keyed_by_the_position(parts):
  balls, _ = parts
  plain = dataclasses.replace(balls, flip=False, frames=2)
  cut = dataclasses.replace(plain, size=(8, 12), strides=(1, 3))
  cut.prepare()
  stored = {
    name: video
    for name, video in zip(
      *(dataclasses.replace(plain, frames=8, batch_size=len(plain)).batch(0)[k] for k in ("id", "video"))
    )
  }
  found = set()
  for name, video in zip(*(cut.batch(step)[key] for key in ("id", "video") for step in (2,))):
    whole = stored[name]
    places = [
      (stride, start, top, left)
      for stride in (1, 3)
      for start in range(8 - stride)
      for top in range(9)
      for left in range(5)
      if np.array_equal(whole[start : start + stride + 1 : stride, top : top + 8, left : left + 12], video)
    ]
    assert places, "it is a window of what is stored"
    found |= {place[0] for place in places if len(places) == 1}
  assert found == {1, 3}
  with pytest.raises(ValueError, match="strides"):
    dataclasses.replace(balls, frames=8, strides=(2,)).prepare()
