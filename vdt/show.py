"""`vdt show-batch`: a batch of training exactly as the model sees it, as a page for people."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from etils import epath

from vdt import conditions, space, video
from vdt.config import Config
from vdt.report import embed
from vdt.train import inputs

GREY = 0.35
"""How much of what is not given is shown beside what is."""


def run(config: Config, step: int, out: str, count: int) -> None:
  """Writes a page with the first `count` rows of the batch of `step`: the clip, what is given of it, the noised one.

  All is what `vdt train` computes for this step with the config's seed: crops and flips, the task, the diffusion time,
  which labels are dropped. ValueError or FileNotFoundError where the data are not there.
  """
  config.check()
  config.prepare()
  between = space.of(config)
  batch = config.data.batch(step)
  told = conditions.begun(config)
  _, train_key = jax.random.split(jax.random.key(config.seed))
  row = {"video": batch["video"], "cond": told.arrays(batch)}
  seen = jax.jit(partial(inputs, config))(train_key, jnp.int32(step), row)
  x0, noise, t, cond = jax.tree.map(lambda x: np.asarray(x)[:count], seen)
  frames = config.data.clips.fps()
  show = lambda made: video.to_uint8(between.to_pixels(np.ascontiguousarray(made, np.float32)))
  pictures = {"clip": (clean := show(x0))}
  if hasattr(config.diffusion, "corrupt"):  # an autoencoder's objective has no noise
    shade = GREY + (1 - GREY) * mask(cond["given"], clean.shape)
    pictures["given"] = np.round(clean * shade).astype(np.uint8)
    pictures["with its noise"] = show(noisy(config, x0, noise, t, cond["given"]))
  labels = config.data.labels()
  rows = [
    {
      "id": str(batch["id"][row]),
      "label": labels[batch["label"][row]] if config.model.classes else "",
      "dropped": ", ".join(name for name, null in cond["null"].items() if null[row]),
      "caption": str(batch["caption"][row]) if "caption" in batch else "",
      "time": f"{float(t[row]):.3f}" if np.ndim(t) == 1 and len(pictures) > 1 else "",
      "given": f"{100 * float(cond['given'][row].mean()):.0f} %",
      "videos": {name: embed(video.webp(each[row], frames), "webp") for name, each in pictures.items()},
    }
    for row in range(len(x0))
  ]
  facts = {
    "step": step,
    "rows": f"{len(rows)} of {len(batch['video'])}",
    "what the model sees": f"{batch['video'].dtype} {batch['video'].shape[1:]}",
    "mean and spread of it": f"{x0.mean():.3f}, {x0.std():.3f}",
    "by channel": ", ".join(f"{m:.2f} ({s:.2f})" for m, s in zip(x0.mean((0, 1, 2, 3)), x0.std((0, 1, 2, 3)))),
    "frames a second": f"{frames:g}",
    **{f"bucket {number}": line for number, line in enumerate(getattr(config.data, "census", list)())},
  }
  page = jinja2.Environment(loader=jinja2.PackageLoader("vdt"), autoescape=True).get_template("batch.html.j2")
  path = epath.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(page.render(rows=rows, facts=facts))
  print(path)


def noisy(config: Config, x0: np.ndarray, noise: np.ndarray, t: np.ndarray, given: np.ndarray) -> np.ndarray:
  """What goes into the network in the place of the clip, but for `anomaly` and `scale`: given positions are clean."""
  x0, noise, t, given = map(jnp.asarray, (x0, noise, t, given))
  relative, back = config.diffusion.relative(x0, given)
  return np.asarray(back(jnp.where(given > 0, relative, config.diffusion.corrupt(relative, noise, t))))


def mask(given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A mask of latents, or of pixels, over the pixels that it stands for."""
  f, h, w = shape[1:4]
  place = lambda count, of: np.minimum(np.arange(of) * count // of, count - 1)
  times = place(given.shape[1], f) if f == given.shape[1] else np.ceil(np.arange(f) * (given.shape[1] - 1) / (f - 1))
  return given[:, times.astype(int)][:, :, place(given.shape[2], h)][:, :, :, place(given.shape[3], w)]


if __name__ == "__main__":
  from vdt import cli

  cli.main(["show-batch", *sys.argv[1:]])
