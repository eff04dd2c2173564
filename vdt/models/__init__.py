"""Networks. The only place that knows Flax; outside, a network is `init` and `apply` on plain nested dicts."""

from vdt.models.autoencoder import AutoencoderNetwork, VideoAutoencoder
from vdt.models.image_autoencoders import Published, kl, taef2
from vdt.models.layout import parameter_spec, path_name
from vdt.models.positions import sincos_tables
from vdt.models.presets import PRESETS
from vdt.models.text import BertConfig, BertEncoder, T5Config, T5Encoder, TextNetwork
from vdt.models.transformer import Network, TransformerConfig
from vdt.models.wan_autoencoder import wan

__all__ = [
  "PRESETS",
  "AutoencoderNetwork",
  "BertConfig",
  "BertEncoder",
  "Network",
  "Published",
  "T5Config",
  "T5Encoder",
  "TextNetwork",
  "TransformerConfig",
  "VideoAutoencoder",
  "kl",
  "parameter_spec",
  "path_name",
  "sincos_tables",
  "taef2",
  "wan",
]
