import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.physics import BACKGROUND, COLOURS
from data_pipelines.scenes import HELD_OUT, SCENES, SPLITS, TOWARDS, gravity, simulate
from data_pipelines.simulated import CONFIGS, Simulated, SimulatedConfig, prepare

SIZES = {"bouncing": (8, 16), "occlusion": (8, 16), "sprites": (8, 16)}


@functools.cache
def clips(scene, split="train", count=60):
  frames, size = SIZES.get(scene, (16, 64))
  return [simulate(scene, split, i, frames=frames, size=size, seed=0) for i in range(count)]


def words(caption):
  """(colour, shape, direction) of every body whose motion a caption tells."""
  for sentence in caption.split(" while "):
    said = sentence.removesuffix(" and bounces").split()
    yield said[1], said[2], next(word for word in said if word in TOWARDS)


def weights(clip):
  """How much each pixel departs from the background, (f, h, w), and its x and y."""
  departs = np.abs(clip.video.astype(float) - BACKGROUND).sum(-1)
  y, x = np.mgrid[: departs.shape[1], : departs.shape[2]] + 0.5
  return departs, x, y


def velocities(clip, body):
  return np.diff(clip.truth["positions"][:, body], axis=0)


@pytest.mark.parametrize("scene", SCENES)
def test_clip_is_function_of_its_arguments(scene):
  alone = simulate(scene, "test", 7, frames=8, size=16, seed=3)
  others = [simulate(scene, split, i, frames=8, size=16, seed=3) for split, i in (("test", 6), ("train", 7))]
  others.append(simulate(scene, "test", 7, frames=8, size=16, seed=4))
  again = simulate(scene, "test", 7, frames=8, size=16, seed=3)
  np.testing.assert_array_equal(alone.video, again.video)
  np.testing.assert_equal(alone.truth, again.truth)
  assert alone.caption == again.caption
  assert not any(np.array_equal(alone.video, other.video) for other in others)


def test_unknown_scene_and_split_are_named():
  with pytest.raises(ValueError, match="unknown scene 'juggling'"):
    simulate("juggling", "train", 0, frames=8, size=16, seed=0)
  with pytest.raises(ValueError, match="unknown split 'validation'"):
    simulate("bouncing", "validation", 0, frames=8, size=16, seed=0)


@pytest.mark.parametrize("scene", ["bouncing", "tumbling", "sprites"])
def test_pixels_lie_where_the_truth_says(scene):
  checked = 0
  for clip in clips(scene):
    if np.isfinite(clip.truth["radius"]).sum() > 1:
      continue
    shown = clip.truth["visible"][:, 0] == 1
    departs, x, y = weights(clip)
    centre = np.stack([(departs * axis).sum((1, 2)) for axis in (x, y)], 1) / departs.sum((1, 2))[:, None]
    np.testing.assert_allclose(centre[shown], clip.truth["positions"][shown, 0], atol=0.1)
    checked += shown.sum()
  assert checked > 200


def test_area_of_pixels_is_visible_share_of_mass():
  for clip in clips("bouncing"):
    colour = np.abs(np.subtract(COLOURS[clip.label], BACKGROUND)).sum()
    share = weights(clip)[0].sum((1, 2)) / colour / clip.truth["mass"][0]
    np.testing.assert_allclose(share, clip.truth["visible"][:, 0], atol=0.03)


@pytest.mark.parametrize("split", SPLITS)
def test_free_flight_has_stated_gravity(split):
  flights = 0
  for clip in clips("bouncing", split):
    assert clip.truth["gravity"] == np.float32(0.525 if split == "ood" else 0.35)
    if not clip.truth["contact"].any():
      path = clip.truth["positions"][:, 0]
      time = np.arange(len(path))
      fit = np.polyfit(time, path, 2)
      np.testing.assert_allclose(2 * fit[0], [0, clip.truth["gravity"]], atol=1e-5)
      np.testing.assert_allclose(np.vander(time, 3) @ fit, path, atol=1e-4)
      flights += 1
  assert flights > 20


def test_bounces_keep_seven_tenths_of_the_speed():
  ratios = []
  for clip in clips("bouncing", count=200):
    path, g, contact = clip.truth["positions"][:, 0], clip.truth["gravity"], clip.truth["contact"][:, 0]
    floor = 16 - clip.truth["radius"][0]
    steps = np.flatnonzero(contact)
    meets_no_wall = np.ptp(velocities(clip, 0)[:, 0]) < 1e-3
    if len(steps) == 1 and 2 <= steps[0] <= 5 and meets_no_wall:
      # Speed at the floor from the energy of free flight on either side: v^2 + 2 g (height above the floor).
      speed = np.diff(path[:, 1])
      middle = (path[1:, 1] + path[:-1, 1]) / 2
      energy = speed**2 + 2 * g * (floor - middle) - g**2 / 4
      np.testing.assert_allclose(energy[: steps[0] - 1], energy[0], atol=1e-3)
      ratios.append(np.sqrt(energy[steps[0]] / energy[steps[0] - 2]))
  assert len(ratios) > 20
  np.testing.assert_allclose(ratios, 0.7, atol=0.05)


@pytest.mark.parametrize("split", SPLITS)
def test_collisions_conserve_momentum_and_lose_energy(split):
  for clip in clips("collisions", split):
    mass, contact = clip.truth["mass"], clip.truth["contact"]
    assert contact.any(0).all() and (contact[:, 0] == contact[:, 1]).all()
    first, last = np.flatnonzero(contact[:, 0])[[0, -1]] - 1
    speeds = np.stack([velocities(clip, 0), velocities(clip, 1)], 1)
    momentum = (mass[:, None] * speeds).sum(1)
    np.testing.assert_allclose(momentum, momentum[:1].repeat(len(momentum), 0), atol=2e-3 * np.abs(momentum).max())
    before, after = (mass[:, None] * speeds[i] ** 2 for i in (first - 1, min(last + 1, len(speeds) - 1)))
    assert after.sum() < before.sum()
    assert not np.allclose(before, after, rtol=0.01)


def test_body_passes_behind_occluder_at_constant_velocity():
  for clip in clips("occlusion"):
    path, share = clip.truth["positions"][:, 0], clip.truth["visible"][:, 0]
    assert share.min() < 0.01 and share[0] > 0.85 and share[-1] > 0.85
    steady = path[0] + np.arange(len(path))[:, None] * (path[1] - path[0])
    np.testing.assert_allclose(path, steady, atol=1e-4)
    colour = np.array(COLOURS[clip.label.split()[0]], float) - BACKGROUND
    grey = np.ptp(clip.video.astype(int), axis=-1)[..., None] <= 8  # the background and the occluder
    seen = np.where(grey, 0, clip.video - np.array(BACKGROUND, float)) @ colour / (colour @ colour)
    np.testing.assert_allclose(seen.sum((1, 2)), share * clip.truth["mass"][0], atol=0.12 * clip.truth["mass"][0])
    y, x = np.mgrid[:16, :16] + 0.5
    for frame in np.flatnonzero(share > 0.999):
      centre = np.array([(seen[frame] * x).sum(), (seen[frame] * y).sum()]) / seen[frame].sum()
      np.testing.assert_allclose(centre, steady[frame], atol=0.1)


@pytest.mark.parametrize("scene", SCENES)
def test_splits_keep_their_rules(scene):
  seen = {split: [list(words(clip.caption)) for clip in clips(scene, split)] for split in SPLITS}
  pairs = lambda body: {(body[0], body[1]), (body[0], body[2])}
  for split in ("train", "test", "ood"):
    assert not any(pairs(body) & HELD_OUT for bodies in seen[split] for body in bodies)
  assert all(pairs(bodies[0]) & HELD_OUT for bodies in seen["combinatorial"])
  trained = {word for bodies in seen["train"] for body in bodies for word in body}
  scene_words = {*SCENES[scene].colours, *SCENES[scene].shapes, *SCENES[scene].directions}
  assert trained == scene_words
  trains = {clip.video.tobytes() for clip in clips(scene, "train")}
  assert not any(clip.video.tobytes() in trains for split in SPLITS[1:] for clip in clips(scene, split))


@pytest.mark.parametrize("scene", ["bouncing", "tumbling", "collisions", "occlusion", "sprites"])
def test_captions_tell_speed_and_direction(scene):
  speeds = {"fast": [], "slowly": [], "ood": []}
  for split in SPLITS:
    for clip in clips(scene, split):
      _, _, direction = next(words(clip.caption))
      start = velocities(clip, 0)[0]
      if clip.truth["contact"][1, 0]:
        continue
      along = float(start @ TOWARDS[direction])
      assert along > 0
      first = clip.caption.split(" while ")[0]
      speeds["ood" if split == "ood" else "fast" if "fast" in first else "slowly"].append(along)
      if scene in ("bouncing", "tumbling"):
        assert first.endswith(" and bounces") == clip.truth["contact"][:, 0].any()
  assert min(speeds["fast"]) > max(speeds["slowly"])
  assert min(speeds["ood"]) > max(speeds["fast"])
  assert gravity("ood", 8, 16) > gravity("train", 8, 16)


@pytest.mark.parametrize("scene", ["bouncing", "tumbling", "collisions", "sprites", "mixed"])
def test_captions_tell_colour(scene):
  for clip in clips(scene):
    colour, shape, _ = next(words(clip.caption))
    assert clip.label in (colour, f"{colour} {shape}") and clip.label in SCENES[scene].labels
    x, y = clip.truth["positions"][0, 0].astype(int)
    if shape in ("ball", "box") and 1 < min(x, y) and max(x, y) < clip.video.shape[1] - 1:
      np.testing.assert_array_equal(clip.video[0, y, x], COLOURS[colour])


def test_most_bouncing_clips_have_a_long_free_flight():
  contact = np.stack([clip.truth["contact"][:, 0] for clip in clips("bouncing", count=200)])
  free = [max(map(len, "".join("x" if touch else "." for touch in row[1:]).split("x"))) + 1 for row in contact]
  assert np.mean(np.array(free) >= 5) > 0.75
  assert 0.2 < contact.any(1).mean() < 0.5


def tiny(scene):
  return SimulatedConfig(name="tiny", scene=scene, frames=8, size=16, train=5, test=2, combinatorial=2, ood=2, seed=5)


@pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")  # TFDS 4.9.10 with protobuf 6
@pytest.mark.parametrize("scene", ["bouncing", "mixed"])
def test_prepared_data_set_reads_back_bit_for_bit(scene, tmp_path, capfd):
  import tensorflow_datasets as tfds

  config = tiny(scene)
  directory = prepare(config, tmp_path)
  assert capfd.readouterr().out == ""
  stamp = (directory / "dataset_info.json").stat().st_mtime_ns
  builder = tfds.builder_from_directory(directory)
  assert builder.info.metadata["frames"] == 8 and builder.info.metadata["size"] == [16, 16]
  for split, count in config.counts().items():
    source = builder.as_data_source(split)
    assert len(source) == count
    for index in range(count):
      record, clip = source[index], simulate(scene, split, index, frames=8, size=16, seed=5)
      np.testing.assert_array_equal(record["video"].reshape(clip.video.shape), clip.video)
      np.testing.assert_equal(record["truth"], clip.truth)
      assert builder.info.features["label"].int2str(int(record["label"])) == clip.label
      said = [text.decode() if isinstance(text, bytes) else text for text in (record["caption"], record["id"])]
      assert said == [clip.caption, f"{scene}/{split}/{index:06d}"]
  assert prepare(config, tmp_path) == directory
  with pytest.raises(ValueError, match="was rendered to another recipe: remove it"):
    prepare(dataclasses.replace(config, seed=6), tmp_path)
  assert (directory / "dataset_info.json").stat().st_mtime_ns == stamp


def test_two_processes_prepare_the_same_set(tmp_path):
  program = (
    "import sys; from data_pipelines.simulated import SimulatedConfig, prepare\n"
    "config = SimulatedConfig(name='tiny', frames=8, size=16, train=200, test=2, combinatorial=2, ood=2)\n"
    "print(prepare(config, sys.argv[1])); assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
  )
  command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
  started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
  results = [process.communicate(timeout=60) for process in started]
  assert [process.returncode for process in started] == [0, 0], results
  assert {out for out, _ in results} == {f"{tmp_path}/simulated/tiny/{Simulated.VERSION}\n"}
  assert sorted("Rendering" in err for _, err in results) == [False, True]


def test_configurations_are_known_by_name(tmp_path):
  names = {"bouncing16", "collisions16", "occlusion16", "sprites16", "drifting16", "drifting16x15"}
  names |= {*(f"{scene}64" for scene in SCENES), "mixed64x17", "sounding16", "sounding16x6000", "sounding64"}
  assert {config.name for config in CONFIGS} == names
  with pytest.raises(ValueError, match=r"unknown simulated data set 'bouncing17': choose one of bouncing16, "):
    prepare("bouncing17", tmp_path)
