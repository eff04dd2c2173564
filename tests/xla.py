"""How XLA compiles in tests: for small models that run for a moment."""

SAFE = "--xla_backend_optimization_level=0"
FAST = f"{SAFE} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Compiles three times as fast. Sums are made one number after the other, and are less exact. A process that compiles
for a TPU ends where it meets this flag, which libtpu does not know."""
EXACT = {"xla_cpu_use_fusion_emitters": True}
"""Options of `jax.jit` where rounding matters."""


def devices(count: int, flags: str = FAST) -> str:
  """XLA_FLAGS for so many CPU devices."""
  return f"{flags} --xla_force_host_platform_device_count={count}"
