"""A package of animated emoji of our own."""

import io
import tarfile

import numpy as np
from PIL import Image

from data_pipelines import emoji


def stems(thing):
  """The names of all people in all tones with a thing."""
  tones = ("", *(f"-{ord(tone):x}" for tone in emoji.TONES))
  return [f"{ord(person):x}{tone}-200d-{thing}" for person in emoji.PEOPLE for tone in tones]


def package(path, names, size=32, seconds=1.5):
  """A package of animations that go from the colour of their name to white, beside a left half of thin black."""
  with tarfile.open(path, "w:gz") as tar:
    for number, name in enumerate(names):
      pictures = []
      for shade in (0.0, 0.5, 1.0):
        picture = np.tile(np.array([0, 0, 0, 51], np.uint8), (size, size, 1))
        colour = np.array([40 + 10 * (number % 6), 60 * (number // 6 % 3), 200 * (number // 18 % 2)])
        picture[:, size // 2 :, :3], picture[:, size // 2 :, 3] = (1 - shade) * colour + 255 * shade, 255
        pictures.append(Image.fromarray(picture))
      content = io.BytesIO()
      rest = dict(save_all=True, append_images=pictures[1:], duration=round(1000 * seconds / 3), lossless=True)
      pictures[0].save(content, "WEBP", **rest)
      entry = tarfile.TarInfo(f"package/assets/{name}.webp")
      entry.size = content.tell()
      content.seek(0)
      tar.addfile(entry, content)
  return str(path)
