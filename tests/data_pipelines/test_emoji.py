"""Packages of animated emoji: what a name shows, what is held out, and pictures that are what they were."""

import dataclasses

import numpy as np
import pytest
from emojis import package, stems

from data_pipelines import emoji, ingest, video
from data_pipelines.clips import Clips
from data_pipelines.emoji import Emoji, parse


@pytest.mark.parametrize(
  "stem, shows",
  [
    ("1f468-1f3fd-200d-1f3a8", Emoji("man", "medium", "artist palette")),
    ("1f9d1-200d-2708-fe0f", Emoji("person", "yellow", "airplane")),
    ("1f6b4-1f3ff-200d-2640-fe0f", Emoji("woman", "dark", "bicyclist")),
    ("1f6b4-1f3fb", Emoji("person", "light", "bicyclist")),
    ("1f469-1f3fb", None),
    ("1f469-200d-1f9b0", None),
    ("1f468-200d-1f469-200d-1f466", None),
    ("1f3f4-e0067_e0062", None),
    ("ffffffff", None),
  ],
)
def test_a_name_says_who_does_what(stem, shows):
  assert parse(stem) == shows


def test_packages_become_captioned_videos_and_every_test_clip_is_of_known_parts(tmp_path):
  whole, missing = stems("1f3a8") + stems("1f680"), stems("1f527")[1:]
  packages = [package(tmp_path / "a.tgz", whole[:20]), package(tmp_path / "b.tgz", whole[20:] + missing)]
  films = emoji.make(packages, tmp_path / "films", size=16)
  settings = ingest.Settings(size=(16, 16), fps=8, frames=8, stride=4, format="png")
  ingest.ingest(films, tmp_path / "emoji", settings, films / "captions.csv", films / "held_out.txt")
  data = Clips("emoji", 8, (16, 16), 4, data_dir=str(tmp_path))
  both = [dataclasses.replace(data, split=split).captions() for split in ("train", "test")]
  assert all(each.split("\n")[1] == each.split("\n")[0].split(", ")[1] for captions in both for each in captions)
  seen, tests = ([each.split("\n")[0] for each in captions] for captions in both)
  rows = [data.batch(step) for step in range(60)]
  drawn, all_of = (np.concatenate([row[name] for row in rows]) for name in ("caption", "captions"))
  assert (
    all(one in lines.split("\n") for one, lines in zip(drawn, all_of)) and 0.3 < np.mean(drawn == "rocket") * 2 < 0.7
  )
  np.testing.assert_array_equal(dataclasses.replace(data, prefetch=1).batch(7)["caption"], rows[7]["caption"])
  assert {*dataclasses.replace(data, split="test").batch(0)["caption"]} <= {*tests}, "the first, where it is held out"
  assert len({*seen}) == 30 and len({*tests}) == 6 and not {*seen} & {*tests}
  assert "a man with medium-dark skin, rocket" in {*seen} | {*tests} and not any("wrench" in each for each in seen)
  parts = lambda captions: (
    {each.partition(",")[0] for each in captions},
    {each.partition(",")[2] for each in captions},
  )
  assert all(few <= all_of for few, all_of in zip(parts(tests), parts(seen))), "people with tones, and actions"
  clip = video.read_clip(films / "man-yellow-rocket.mkv", 12, (16, 16), 8)
  assert len(clip) == 12 and (clip[:, :, :7] == 204).all() and (clip[-1, :, 9:] == 255).all()
  number = whole.index("1f468-200d-1f680") - 20  # in its package
  colour = [40 + 10 * (number % 6), 60 * (number // 6 % 3), 200 * (number // 18 % 2)]
  np.testing.assert_array_equal(clip[0, :, 9:], np.broadcast_to(colour, (16, 7, 3)))
  np.testing.assert_allclose(clip[4, :, 9:].astype(int), (np.array(colour) + 255) // 2 * np.ones((16, 7, 1)), atol=1)


def test_a_still_is_who_it_is_and_not_what_comes(tmp_path):
  names = stems("1f3a8") + stems("1f680")
  films = emoji.make([package(tmp_path / "a.tgz", names)], tmp_path / "films", size=16, still="artist palette")
  assert len([*films.glob("*.mkv")]) == 18 and not [*films.glob("*palette*")]
  for person, stem in (("man-dark", "1f468-1f3ff-200d-"), ("woman-yellow", "1f469-200d-")):
    clip = video.read_clip(films / f"{person}-rocket.mkv", 8, (16, 16), 6)
    for frame, thing in ((0, "1f3a8"), (1, "1f680")):
      number = names.index(stem + thing)
      colour = [40 + 10 * (number % 6), 60 * (number // 6 % 3), 200 * (number // 18 % 2)]
      np.testing.assert_array_equal(clip[frame, :, 9:], np.broadcast_to(colour, (16, 7, 3)))
  with pytest.raises(ValueError, match="no 'wrench' is there of all people"):
    emoji.make([package(tmp_path / "b.tgz", names)], tmp_path / "none", still="wrench")


def test_what_is_no_package_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no package nowhere\.tgz"):
    emoji.make(["nowhere.tgz"], tmp_path / "out")
  (tmp_path / "bad.tgz").write_bytes(b"nothing of the kind")
  with pytest.raises(ValueError, match="is no package of npm"):
    emoji.make([str(tmp_path / "bad.tgz")], tmp_path / "out")
  with pytest.raises(ValueError, match="no action is there of all people"):
    emoji.make([package(tmp_path / "few.tgz", stems("1f3a8")[:5])], tmp_path / "out")
