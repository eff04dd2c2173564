"""What somebody asks `vdt sample` for: texts, classes, speeds, and frames to keep."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from vdt import video
from vdt.conditions import Conditions
from vdt.config import Config
from vdt.diffusion import given as given_plans

SLOWEST, FASTEST = 0.01, 1000.0
"""Frames a second that files take."""
Placed = tuple[UInt8[np.ndarray, "b f h w 3"], Float[np.ndarray, "b f h w 1"]]


@dataclasses.dataclass
class Request:
  """What `vdt sample` is asked for: its flags. count: videos, of each of several prompts."""

  count: int = 8
  seed: int = 0
  step: int | None = None
  ema: float | None = None
  task: str | None = None
  given: str | None = None
  given_frames: int | None = None
  image: str | None = None
  keyframes: str | None = None
  video: str | None = None
  mask: str | None = None
  label: str | None = None
  prompt: str | None = None
  prompts: str | None = None
  negative: str | None = None
  audio: str | None = None
  fps: float | None = None
  steps: int | None = None
  guidance: str | None = None

  def __post_init__(self):
    for name in ("given", "image", "keyframes", "video", "mask", "prompts", "audio", "guidance"):
      if getattr(self, name) == "":
        raise ValueError(f"--{name} is empty: say what, or leave it out")
    for name, path in self.files():
      if not epath.Path(path).exists():
        raise FileNotFoundError(f"--{name} {path} is not there: name a file that is")

  def files(self) -> Iterator[tuple[str, str]]:
    """Flags and the files that they name, of --keyframes each by itself."""
    for name in ("given", "image", "video", "mask", "prompts", "audio"):
      if path := getattr(self, name):
        yield name, path
    for part in self.keyframes.split(",") if self.keyframes else ():
      if path := part.strip().partition(":")[2]:
        yield "keyframes", path

  def texts(self) -> list[str] | None:
    """The prompt of each video; None: those of held-out clips. FileNotFoundError or ValueError for a bad file."""
    if self.prompts is None:
      return None if self.prompt is None else [self.prompt] * self.count
    if self.prompt is not None:
      raise ValueError("--prompt and --prompts: name one of them")
    try:
      lines = epath.Path(self.prompts).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise FileNotFoundError(f"--prompts {self.prompts} cannot be read as text ({error})") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
      raise ValueError(f"--prompts {self.prompts} holds no prompt: write one a line")
    return [prompt for prompt in found for _ in range(self.count)]

  def frames(self) -> list[int]:
    """Those that --image and --keyframes give."""
    named = [part.partition(":")[0].strip() for part in self.keyframes.split(",")] if self.keyframes else []
    return [0] * bool(self.image) + [int(number) for number in named]

  def sampler(self, config: Config) -> Any:
    """The experiment's, with what is asked otherwise. ValueError for what cannot be."""
    for flag in ("steps", "guidance"):
      if getattr(self, flag) is not None and not hasattr(config.sampler, flag):
        raise ValueError(f"--{flag} {getattr(self, flag)}: this model does not sample, it reconstructs; leave it out")
    changes: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
    if self.guidance is not None:
      try:
        parts = [part.rpartition("=") for part in self.guidance.split(",")]
        named = [(name.strip(), float(scale)) for name, _, scale in parts]
      except ValueError:
        raise ValueError(f"--guidance {self.guidance}: a number, or NAME=NUMBER,NAME=NUMBER") from None
      if len(dict(named)) < len(named):
        raise ValueError(f"--guidance {self.guidance} says a scale twice: one for each name, and one without")
      if wrong := [name for name, _ in named if name not in ("", *config.model.conditions)]:
        raise ValueError(f"--guidance of {wrong[0]!r}: this model has {', '.join(config.model.conditions) or 'none'}")
      changes["guidance_scale"] = dict(named).get("", config.sampler.guidance_scale)
      changes["guidance"] = tuple((name, scale) for name, scale in named if name)
    return dataclasses.replace(config.sampler, **changes)

  def told(
    self,
    config: Config,
    clips: dict[str, np.ndarray],
    told: Conditions,
    labels: list[str],
    texts: list[str] | None = None,
  ) -> tuple[dict[str, Any], np.ndarray | None]:
    """What the model is told of each video: of held-out clips, but where it is asked otherwise, `texts` by `texts()`;
    and the sound of each (b n), where it hears. ValueError for what this model is not told."""
    model, count = config.model, len(clips["video"])
    rows = dict(clips)
    for flag, name in (
      ("label", "label"),
      ("prompt", "text"),
      ("prompts", "text"),
      ("negative", "text"),
      ("audio", "sound"),
      ("fps", "fps"),
    ):
      known = name in model.conditions and bool({"text": config.text, "sound": config.sound}.get(name, True))
      if getattr(self, flag) is not None and not known:
        raise ValueError(f"--{flag} {getattr(self, flag)}: this model was trained without {name}, leave it out")
    if self.label is not None:
      if self.label not in labels:
        raise ValueError(f"unknown label {self.label!r}: choose from {', '.join(labels)}")
      rows["label"] = np.full(count, labels.index(self.label), np.int32)
    if texts is not None:
      rows["caption"] = np.array(texts)
    if self.fps is not None and not SLOWEST <= self.fps <= FASTEST:
      raise ValueError(f"--fps {self.fps}: {SLOWEST:g} to {FASTEST:g} frames a second")
    if self.audio is not None:
      heard = config.sound.read(self.audio, config.data.clips.frames, self.fps or config.data.clips.fps())
      rows["sound"] = np.tile(heard, (count, 1))
    elif self.fps is not None and config.sound:
      raise ValueError(f"--fps {self.fps}: the held-out sound is of {config.data.clips.fps():g} a second, give --audio")
    if self.fps is not None:
      rows["fps"] = np.full(count, self.fps, np.float32)
    cond = told.told(rows)
    if texts is not None:
      full(texts, cond)
    if self.negative is not None:
      if dict(config.sampler.guidance).get("text", config.sampler.guidance_scale) == 1.0:
        raise ValueError(f"--negative {self.negative}: it counts where texts are guided, add --guidance text=3")
      cond["negative"] = {"text": told.read([self.negative] * count)}
      full([self.negative] * count, cond["negative"]["text"])
    return cond, rows.get("sound") if config.sound else None


def full(texts: list[str], read: dict[str, np.ndarray]) -> None:
  """Says which texts leave no room: what does not fit is cut."""
  for text in dict.fromkeys(texts[row] for row in np.flatnonzero(read["text_seen"].all(1))):
    print(
      f"{text!r} fills the {read['text_seen'].shape[1]} tokens that this model reads, and what is beyond them is cut: "
      f"shorten it, or use words of the training captions",
      file=sys.stderr,
    )


def read(path: str, clips: Any, fps: float | None = None) -> UInt8[np.ndarray, "g h w 3"]:
  """A user's frames, as the data set's clips were made, or at another rate, where the file has one."""
  return video.read_frames(path) if path.endswith(".npy") else clips.clip(path, fps)


def placed(config: Config, ask: Request, count: int) -> Placed:
  """`count` videos that hold the frames of --image, --keyframes and --video where these say, and the mask that says so.

  --video gives its first frames, `given_frames` of them, or half a clip's; with --mask all of them. --mask keeps of all
  that is given what is dark in it.
  ValueError for a frame that is given twice, or that no video has, and FileNotFoundError for a file that is not there.
  """
  clips, frames = config.data.clips, {}

  def put(number: int, frame: np.ndarray, flag: str) -> None:
    if number in frames:
      raise ValueError(f"--{flag} gives frame {number}, which is given already: leave one of them out")
    if not 0 <= number < clips.frames:
      raise ValueError(f"--{flag} gives frame {number}: a video has the frames 0 to {clips.frames - 1}")
    if frame.shape[:2] != tuple(clips.size):
      raise ValueError(f"--{flag}: frames are {frame.shape[:2]}, the model makes {tuple(clips.size)}: resize them")
    frames[number] = frame

  if ask.image:
    put(0, read(ask.image, clips)[0], "image")
  for part in ask.keyframes.split(",") if ask.keyframes else []:
    number, colon, path = part.strip().partition(":")
    if not (colon and number.isdecimal() and path):
      raise ValueError(f"--keyframes has {part!r}: write NUMBER:FILE,NUMBER:FILE, say 0:a.png,{clips.frames - 1}:b.png")
    put(int(number), read(path, clips)[0], "keyframes")
  if ask.video:
    if ask.given_frames is not None and (ask.mask or ask.given_frames < 1):
      raise ValueError(
        f"--given_frames {ask.given_frames} of --video: at least 1, and not beside --mask, of all frames"
      )
    prefix = read(ask.video, clips, ask.fps)
    most = min(len(prefix), max(clips.frames // 2, 1)) if ask.given_frames is None else ask.given_frames
    most = clips.frames if ask.mask else most
    if len(prefix) < most:
      raise ValueError(f"--video {ask.video} has {len(prefix)} frames, {most} are asked for")
    if not ask.mask and most >= clips.frames:
      raise ValueError(f"--given_frames {most} leaves no frame to make: at most {clips.frames - 1}")
    for number in range(most):
      put(number, prefix[number], "video")
  where = np.array(sorted(frames))
  clip, mask = np.zeros((clips.frames, *clips.size, 3), np.uint8), np.zeros((clips.frames, *clips.size, 1), np.float32)
  clip[where], mask[where] = np.stack([frames[number] for number in where]), 1.0
  if ask.mask:
    hole = read(ask.mask, clips)[:1]
    if hole.shape[1:3] != tuple(clips.size):
      raise ValueError(f"--mask is {hole.shape[1:3]}, the model makes {tuple(clips.size)}: resize it")
    mask *= hole.mean(-1, keepdims=True) < 128
    if not mask.any():
      raise ValueError(f"--mask {ask.mask} is light all over: what is dark is kept, and nothing is")
  if clips is not config.data:  # a latent sees its neighbours, so that these are the nearest there are
    clip = clip[where[np.abs(np.arange(len(clip))[:, None] - where).argmin(1)]]
  return np.repeat(clip[None], count, axis=0), np.repeat(mask[None], count, axis=0)


def place(frames: UInt8[np.ndarray, "g h w 3"], config: Config, task: str, ask: Request, count: int) -> Placed:
  """`count` videos that hold a user's frames where the task gives them, and the mask that says where.

  Frames for a whole clip stay at their own times; fewer of them fill the given frames in order.
  """
  shape = (config.data.clips.frames, *config.data.clips.size)
  patch_frames = config.model.patch[0] if config.data.clips is config.data else 1
  if frames.shape[1:3] != shape[1:]:
    raise ValueError(f"given frames are {frames.shape[1:3]}, the model makes {shape[1:]}: resize them")
  given_frames = min(len(frames), shape[0] // 2) if ask.given_frames is None else ask.given_frames
  mask = given_plans.planned(task, ask.seed, (1, *shape), patch_frames, given_frames)
  where = np.flatnonzero(mask.max(axis=(0, 2, 3, 4)))
  if not len(where):
    raise ValueError(
      f"task {task} with {given_frames} given frames gives no whole one: choose another --task, or raise --given_frames"
    )
  if len(where) > len(frames):
    raise ValueError(f"task {task} takes {len(where)} given frames, the file has {len(frames)}")
  clip = np.zeros((*shape, 3), np.uint8)
  clip[where] = frames[where] if len(frames) == len(clip) else frames[: len(where)]
  if config.data.clips is not config.data:  # a latent sees its neighbours, so that these are the nearest there are
    clip = clip[where[np.abs(np.arange(len(clip))[:, None] - where).argmin(1)]]
  return np.repeat(clip[None], count, axis=0), np.repeat(mask, count, axis=0)


def latent_label(label: str | None, classes: int) -> int:
  """The number of a class, of which latents have no names; none by default, but where there is one alone, as in VDT.

  ValueError for what is no number of a class.
  """
  if label is None:
    return 0 if classes == 1 else -1
  if not (label.isdecimal() and int(label) < classes):
    raise ValueError(f"--label {label}: a model of latents takes the number of a class, below {classes}")
  return int(label)
