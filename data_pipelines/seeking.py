"""Where a video can be entered: a table of the timestamps of its key frames, from one pass over its packets."""

import itertools
from typing import NamedTuple

import av

LEFT_OUT = {"avi", "gif"}  # no presentation times; frames that are drawn over those before


class Table(NamedTuple):
  """The file's first frame and its key frames, earliest first, in ticks: when each is shown, and its place (dts)."""

  first: int
  shown: tuple[int, ...]
  places: tuple[int, ...]


def table(container: av.container.InputContainer, stream: av.VideoStream, longest_gap: float) -> Table | None:
  """Reads all packets. None where times cannot be told from packets alone, so that decoding must start at the start:

  timestamps that are missing, double or go back, or gaps above `longest_gap` seconds, which decoding closes.
  """
  if container.format.name in LEFT_OUT:
    return None
  times, keys = [], []
  try:
    for packet in container.demux(stream):
      if packet.size == 0 or packet.is_discard:
        continue
      if packet.pts is None:
        return None
      times.append(packet.pts)
      if packet.is_keyframe:
        keys.append((packet.pts, packet.pts if packet.dts is None else min(packet.dts, packet.pts)))
  except (av.error.FFmpegError, OSError, IndexError):
    return None
  times.sort()
  gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
  if not keys or not gaps or min(gaps) <= 0 or max(gaps) * stream.time_base > longest_gap:
    return None
  return Table(times[0], *zip(*sorted(keys)))
