"""Makes text_t5.npz, text_t5_gated.npz, text_umt5.npz and text_bert.npz: transformers' encoders with random weights.

  python tests/parity/make_text.py    (needs transformers and torch)

config: their config.json. w/KEY: the state dict, as float16 holds it. ids (b l), seen (b l); out (b l d): the last
layer's tokens, of which those count that are seen.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

T5 = dict(vocab_size=60, d_model=24, num_layers=3, num_heads=3, d_kv=16, d_ff=40, dropout_rate=0.0)
BUCKETS = dict(relative_attention_num_buckets=8, relative_attention_max_distance=20)
BERT = dict(
  vocab_size=60,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=3,
  intermediate_size=40,
  max_position_embeddings=40,
  layer_norm_eps=1e-12,
)
MADE = {  # the model, and the tokens of the longest text: farther apart than the buckets tell
  "t5": (lambda: T5EncoderModel(T5Config(**T5, **BUCKETS, feed_forward_proj="relu")), 40),
  "t5_gated": (lambda: T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu")), 150),
  "umt5": (lambda: UMT5EncoderModel(UMT5Config(**T5, **BUCKETS, feed_forward_proj="gated-gelu")), 40),
  "bert": (lambda: BertModel(BertConfig(**BERT), add_pooling_layer=False), 40),
}


def randomised(model):
  """Weights that keep signals and logits at their size; norms are not one and biases not zero."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      scale = 0.1 if parameter.ndim == 1 else 1.0 if "embed" in name or "bias" in name else parameter.shape[1] ** -0.5
      scale *= {"q": 0.25, "wo": 0.5}.get(name.split(".")[-2], 1.0)  # T5 divides no logits; a product has long tails
      value = scale * torch.randn(parameter.shape)
      value += 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
      parameter.copy_(value.half().float())
  return model.eval()


if __name__ == "__main__":
  for name, (make, length) in MADE.items():
    torch.manual_seed(0)
    model = randomised(make())
    ids = torch.randint(2, 60, (3, length))
    seen = torch.arange(length)[None] < torch.tensor([length, length // 2 + 1, 1])[:, None]
    ids = torch.where(seen, ids, 0)
    with torch.no_grad():
      out = model(input_ids=ids, attention_mask=seen.long()).last_hidden_state.numpy()
    found = {f"w/{key}": value.numpy().astype(np.float16) for key, value in model.state_dict().items()}
    found |= {"ids": ids.numpy().astype(np.int32), "seen": seen.numpy(), "out": out}
    found["config"] = np.array(model.config.to_json_string(use_diff=False))
    found["versions"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")])
    path = Path(__file__).with_name(f"text_{name}.npz")
    np.savez_compressed(path, **found)
    print(path.name, path.stat().st_size, out.shape, float(abs(out).max()), sorted(model.state_dict())[:4])
