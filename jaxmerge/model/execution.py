"""Ways to compute a decoder on some devices, which change rounding alone.

B sequences, L positions of each, D width, P padded vocabulary.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmerge.errors import InputError
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.spread import gather, look_up
from jaxmerge.parallel.chips import chip_of
from jaxmerge.parallel.rules import activation_sharding, batch_shards, spec_of

ATTENTIONS = ("xla", "cudnn", "splash", "blocked")
REMATS = ("none", "dots", "full")
# Bytes of the logits that may exist at once on each device: so many, or a part
# of the memory of a chip that is known. With each chunk the head's gradient is
# summed over the devices, so that many small ones take time; and only one that
# is whole is not computed twice, for which GPUs have the room.
_LOGITS, _SHARES = 2**28, {"tpu": 1 / 64, "gpu": 1 / 8}
# Layers up to which they are straight code. A scan copies what it keeps of each
# layer into one array of all: an eighth of a step on a GPU.
_SHALLOW = {"cpu": 8, "gpu": 32}


@dataclasses.dataclass(frozen=True)
class Execution:
  """A way to compute a decoder; results differ by rounding alone.

  As the defaults stand, the plain form, which also has a forward-mode
  derivative; "cudnn", "splash", "blocked", `rows` and `own_backward` have
  none.

  Attributes:
    attention: one of ATTENTIONS; "blocked" is for CPUs.
    remat: what the backward pass recomputes: "none"; "dots", all but matrix
      products; "full", each layer from its input.
    unroll: layers are straight code, not a scan.
    rows: projections and the loss in the form that is fast on a CPU.
    own_backward: the loss, and kernels that are gathered over a mesh, have
      backward passes of their own.
    logits: dtype that the head's product is kept in, with `own_backward`.
    loss_chunk: positions of a sequence whose logits exist at once; 0: all.
    mesh: that activations are spread over; None: as the compiler decides.
    why: in words, the reason for the attention.
  """

  attention: str = "xla"
  remat: str = "none"
  unroll: bool = False
  rows: bool = False
  own_backward: bool = False
  logits: str = "float32"
  loss_chunk: int = 0
  mesh: Mesh | None = None
  why: str = dataclasses.field(default="", compare=False)

  @property
  def gathers(self) -> bool:
    """Says whether kernels are gathered before they are used."""
    spread = self.mesh is not None and self.mesh.size > 1
    return self.own_backward and spread

  def gather(self, kernel: jax.Array, name: str, dtype: Any) -> jax.Array:
    """The kernel of a layer or of the head in a dtype, to be used at once.

    The kernel as it is where nothing is to be gathered.

    Args:
      name: as in the table of sharding rules, of a kernel that lies alike.
    """
    spec = spec_of(name)
    if self.mesh is None or spec is None or not self.gathers:
      return kernel
    return gather(kernel, PartitionSpec(*spec[-2:]), self.mesh, dtype)

  def embed(
    self, table_PxD: jax.Array, tokens_BxL: jax.Array, dtype: Any
  ) -> jax.Array:
    """Rows of the embedding in a dtype, B x L x D.

    Cast after they are looked up: gradients of a frequent token add up in
    float32, as bfloat16 would lose all but the first few hundred.
    """
    if self.mesh is not None and self.gathers:
      return look_up(table_PxD, tokens_BxL, self.mesh, dtype)
    x_BxLxD = jnp.take(table_PxD, tokens_BxL, axis=0).astype(dtype)
    return self.constrain(x_BxLxD)

  def constrain(self, x_BxLxD: jax.Array) -> jax.Array:
    """Spreads sequences and positions over the mesh, where there is one."""
    if self.mesh is None or self.mesh.size == 1:
      return x_BxLxD
    return jax.lax.with_sharding_constraint(
      x_BxLxD, activation_sharding(self.mesh)
    )


PLAIN = Execution()


def choose(
  config: DecoderConfig,
  mesh: Mesh,
  *,
  length: int,
  batch: int,
  attention: str = "auto",
  remat: str = "none",
  loss_chunk: int = 0,
  logits: str = "float32",
  document_mask: bool = False,
  falls_back: bool = False,
) -> Execution:
  """The fastest execution of a decoder on a mesh.

  Args:
    length: L, positions of a sequence.
    batch: sequences that are computed at once, over all devices.
    attention: one of ATTENTIONS, or "auto". In bfloat16 "auto" takes the fused
      kernel of a GPU or TPU or refuses; it never falls back in silence.
    loss_chunk: as of an Execution; 0: so many that logits take 256 MiB on a
      device, of a TPU 1/64 and of a GPU 1/8 of its memory.
    logits: as of an Execution.
    falls_back: to "xla" where the fused kernel cannot run, for short work.

  Raises:
    InputError: the attention asked for cannot run.
  """
  device = mesh.devices.flat[0]
  platform = device.platform
  fused = {"gpu": "cudnn", "tpu": "splash", "cpu": "blocked"}.get(platform)
  reason = "as asked for"
  if attention == "auto":
    attention, reason = fused or "xla", "the fused kernel of this device"
    if platform == "cpu" and mesh.size > 1:
      attention, reason = "xla", "several devices of a CPU"
    elif platform in ("gpu", "tpu") and config.dtype != "bfloat16":
      attention, reason = "xla", f"{fused} is for model.dtype=bfloat16"
  problems = _problems(attention, config, mesh, length, document_mask)
  if problems and falls_back:
    attention, reason = "xla", "; ".join(problems)
  elif problems:
    raise InputError(
      f"config.step.attention: {attention} attention cannot run here: "
      f"{'; '.join(problems)}; config.step.attention=xla is slower and takes "
      "memory that grows with the square of seq_len"
    )
  on_one_cpu = platform == "cpu" and mesh.size == 1
  shallow = 0 if attention == "xla" else _SHALLOW.get(platform, 0)
  local = max(1, batch // batch_shards(mesh))
  return Execution(
    attention=attention,
    remat=remat,
    unroll=config.num_hidden_layers <= shallow,
    rows=on_one_cpu,
    own_backward=True,
    logits=logits,
    loss_chunk=loss_chunk or _chunk(config, mesh, length, local),
    mesh=mesh,
    why=reason,
  )


def _chunk(config: DecoderConfig, mesh: Mesh, length: int, local: int) -> int:
  """The most positions whose logits take few bytes, a divisor of L."""
  device = mesh.devices.flat[0]
  chip = chip_of(device.device_kind)
  share = _SHARES.get(device.platform, 0.0)
  limit = chip.hbm_gib * 2**30 * share if chip and share else _LOGITS
  row = 4 * config.padded_vocab_size // mesh.shape["tensor"] * local
  positions = length // mesh.shape["context"]
  most = max(1, limit // row)
  divisors = (n for n in range(1, positions + 1) if positions % n == 0)
  return mesh.shape["context"] * max(n for n in divisors if n <= most)


def _problems(
  attention: str,
  config: DecoderConfig,
  mesh: Mesh,
  length: int,
  document_mask: bool,
) -> list[str]:
  """Says why an attention cannot run on the devices of a mesh."""
  device, tensor = mesh.devices.flat[0], mesh.shape["tensor"]
  needs = {"cudnn": "gpu", "splash": "tpu", "blocked": "cpu"}.get(attention)
  if needs is None:
    return []
  if device.platform != needs:
    return [f"it needs a {needs.upper()}, not a {device.platform.upper()}"]
  problems = []
  if attention == "blocked" and mesh.size > 1:
    problems.append("it is for one device")
  if attention == "splash":
    part = 128 * mesh.shape["context"]
    if length % part:
      problems.append(f"seq_len {length} is not a multiple of {part}")
    if config.num_attention_heads % tensor:
      problems.append(
        f"model.num_attention_heads {config.num_attention_heads} is not a "
        f"multiple of mesh.tensor {tensor}"
      )
  if attention == "cudnn":
    if config.dtype != "bfloat16":
      problems.append("model.dtype is not bfloat16")
    if config.head_size % 8 or config.head_size > 128:
      problems.append(
        f"heads of {config.head_size} are not a multiple of 8 up to 128"
      )
    capability = float(getattr(device, "compute_capability", math.inf))
    if capability < 8:
      problems.append(f"compute capability {capability} is below 8.0")
    if mesh.shape["context"] > 1:
      problems.append("mesh.context is more than 1")
    if document_mask and length > 8192:
      problems.append("its mask of documents is too large at this seq_len")
  return problems
