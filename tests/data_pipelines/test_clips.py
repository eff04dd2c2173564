import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines.clips import SimulatedClips
from data_pipelines.shuffle import permute


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1003, 65536, 100_003])
def test_a_shuffle_is_a_permutation_that_mixes(count):
  order = permute(np.arange(count), count, seed=0, epoch=0)
  assert np.array_equal(np.sort(order), np.arange(count))
  assert np.array_equal(permute(np.arange(count)[::-1], count, 0, 0), order[::-1]), "each index on its own"
  if count > 1000:
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.1 and (np.diff(order) == 1).mean() < 0.01


def test_epochs_and_seeds_do_not_repeat():
  orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(20) for epoch in range(100)}
  assert len(orders) == 2000


@pytest.fixture(scope="module")
def clips(data_dir):
  clips = SimulatedClips("sprites16", frames=5, size=(16, 16), batch_size=12, data_dir=data_dir, flip=True)
  clips.prepare()
  return clips


def assert_same(mine, theirs):
  assert mine.keys() == theirs.keys()
  for name in mine:
    np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize("start", [0, 7, 170])
def test_read_ahead_is_batch_by_batch_the_pure_function_on_any_number_of_hosts(clips, start):
  whole = [clips.batch(step) for step in range(start, start + 3)]
  for hosts in (1, 3):
    parts = [list(itertools.islice(clips.batches(start, [host], hosts), 3)) for host in range(hosts)]
    for step, batch in enumerate(whole):
      joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
      assert_same(joined, batch)


def test_an_epoch_reads_every_clip_once_and_the_next_in_another_order(clips):
  count = len(clips)
  ids = np.concatenate([clips.batch(step)["id"] for step in range(2 * count // 12)])
  first, second = ids[:count], ids[count : 2 * count]
  assert len(set(first)) == count and set(second) <= set(first) and list(first[:100]) != list(second[:100])


def test_crops_and_flips_are_keyed_by_the_position(clips):
  again = dataclasses.replace(clips)
  assert_same(again.batch(3), clips.batch(3))
  reseeded = dataclasses.replace(clips, seed=1)
  assert list(reseeded.batch(3)["id"]) != list(clips.batch(3)["id"])
  plain = dataclasses.replace(clips, flip=False)
  flipped = [
    not np.array_equal(a, b) and np.array_equal(a, b[:, :, ::-1])
    for step in range(8)
    for a, b in zip(clips.batch(step)["video"], plain.batch(step)["video"])
  ]
  assert 0.3 < np.mean(flipped) < 0.7
  turned = dataclasses.replace(plain, turn=True)
  turns = [
    [np.array_equal(np.rot90(a, k, axes=(1, 2)), b) for k in range(4)]
    for a, b in zip(plain.batch(0)["video"], turned.batch(0)["video"])
  ]
  assert all(map(any, turns)) and len({each.index(True) for each in turns}) > 2
  test = dataclasses.replace(clips, split="test", frames=8)
  start = dataclasses.replace(clips, split="test", frames=5)
  np.testing.assert_array_equal(test.batch(0)["video"][:, :5], start.batch(0)["video"])
