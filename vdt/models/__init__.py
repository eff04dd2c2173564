"""Networks. The only place that knows Flax; outside, a network is `init` and `apply` on plain nested dicts."""

from vdt.models import presets
from vdt.models.transformer import Network, TransformerConfig

__all__ = ["Network", "TransformerConfig", "presets"]
