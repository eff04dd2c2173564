"""Networks. The only place that knows Flax; outside, a network is `init` and `apply` on plain nested dicts."""

from vdt.models.autoencoder import AutoencoderNetwork, VideoAutoencoder
from vdt.models.positions import sincos_tables
from vdt.models.presets import PRESETS
from vdt.models.transformer import Network, TransformerConfig

__all__ = ["PRESETS", "AutoencoderNetwork", "Network", "TransformerConfig", "VideoAutoencoder", "sincos_tables"]
