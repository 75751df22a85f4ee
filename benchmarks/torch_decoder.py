"""A plain PyTorch decoder of our shape and its training step, as a peer.

A process of it is started by `turns.Side`. Nothing of jaxmerge is imported.

As users write it: RMSNorm, RoPE, SwiGLU, grouped-query attention through
`scaled_dot_product_attention(is_causal=True)`, float32 parameters, for
bfloat16 under `torch.autocast` (with the residual stream in bfloat16, as
ours), clipping by the global norm, fused AdamW; `torch.compile` where asked
for. No gradient checkpointing but where asked for.

B batch, L positions, D width, H query heads, G key/value heads, S head size,
V vocabulary.
"""

import contextlib
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (as everybody calls it)
from torch import nn
from torch.utils.checkpoint import checkpoint
from turns import Shape, serve, worker_arguments

# As jaxmerge's AdamW has them.
_BETAS, _DECAY, _RATE, _CLIP = (0.9, 0.95), 0.1, 3e-4, 1.0


class RMSNorm(nn.Module):
  def __init__(self, size: int):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(size))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), 1e-5)


def rotary_angles(length: int, size: int) -> torch.Tensor:
  """float32[L, S / 2]"""
  frequencies = 10_000.0 ** (-torch.arange(0, size, 2).float() / size)
  return torch.arange(length).float()[:, None] * frequencies


def rotate(
  x_BxLxHxS: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
  left, right = x_BxLxHxS.float().chunk(2, dim=-1)
  turned = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
  return turned.to(x_BxLxHxS.dtype)


class Layer(nn.Module):
  def __init__(self, shape: Shape):
    super().__init__()
    width, self.size = shape.hidden_size, shape.head_size
    self.groups = shape.num_heads // shape.num_kv_heads
    kv_width = shape.num_kv_heads * self.size
    self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
    self.query = nn.Linear(width, width, bias=False)
    self.key = nn.Linear(width, kv_width, bias=False)
    self.value = nn.Linear(width, kv_width, bias=False)
    self.out = nn.Linear(width, width, bias=False)
    self.gate = nn.Linear(width, shape.intermediate_size, bias=False)
    self.up = nn.Linear(width, shape.intermediate_size, bias=False)
    self.down = nn.Linear(shape.intermediate_size, width, bias=False)

  def forward(
    self, x_BxLxD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
  ) -> torch.Tensor:
    batch, length, width = x_BxLxD.shape
    y = self.attention_norm(x_BxLxD)
    query, key, value = (
      linear(y).view(batch, length, -1, self.size)
      for linear in (self.query, self.key, self.value)
    )
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    fused = x_BxLxD.is_cuda  # the CPU's kernel wants equal numbers of heads
    if self.groups > 1 and not fused:
      key = key.repeat_interleave(self.groups, dim=2)
      value = value.repeat_interleave(self.groups, dim=2)
    y = F.scaled_dot_product_attention(
      query.transpose(1, 2),
      key.transpose(1, 2),
      value.transpose(1, 2),
      is_causal=True,
      enable_gqa=self.groups > 1 and fused,
    )
    y = y.transpose(1, 2).reshape(batch, length, width)
    x_BxLxD = x_BxLxD + self.out(y)
    y = self.mlp_norm(x_BxLxD)
    return x_BxLxD + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
  def __init__(self, shape: Shape, remat: bool = False):
    super().__init__()
    width = shape.hidden_size
    self.dtype, self.remat = getattr(torch, shape.dtype), remat
    self.embed = nn.Embedding(shape.vocab_size, width)
    self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
    self.final_norm = RMSNorm(width)
    self.head = nn.Linear(width, shape.vocab_size, bias=False)
    for parameter in self.parameters():
      if parameter.ndim == 2:
        nn.init.normal_(parameter, std=0.02)
    if shape.tied:
      self.head.weight = self.embed.weight
    angles = rotary_angles(shape.seq_len, shape.head_size)[:, None, :]
    self.register_buffer("cos", angles.cos(), persistent=False)
    self.register_buffer("sin", angles.sin(), persistent=False)

  def forward(self, tokens_BxL1: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the next tokens."""
    x_BxLxD = self.embed(tokens_BxL1[:, :-1]).to(self.dtype)
    for layer in self.layers:
      if self.remat:
        x_BxLxD = checkpoint(
          layer, x_BxLxD, self.cos, self.sin, use_reentrant=False
        )
      else:
        x_BxLxD = layer(x_BxLxD, self.cos, self.sin)
    return self.loss(x_BxLxD, tokens_BxL1[:, 1:])

  def loss(
    self, x_BxLxD: torch.Tensor, targets_BxL: torch.Tensor
  ) -> torch.Tensor:
    logits_BxLxV = self.head(self.final_norm(x_BxLxD))
    return F.cross_entropy(
      logits_BxLxV.float().flatten(0, 1), targets_BxL.flatten()
    )

  def compiled(self, how: str) -> nn.Module:
    """By torch.compile as a "whole", or its "layers" by themselves.

    Layers have the same code, which is compiled once: a tenth of the time.
    """
    if how == "whole":
      return torch.compile(self)
    for layer in self.layers:
      layer.compile()
    self.loss = torch.compile(self.loss)
    return self


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
  """Fused AdamW; norm scales do not decay."""
  matrices = [p for p in model.parameters() if p.ndim > 1]
  scales = [p for p in model.parameters() if p.ndim == 1]
  return torch.optim.AdamW(
    [
      {"params": matrices, "weight_decay": _DECAY},
      {"params": scales, "weight_decay": 0.0},
    ],
    lr=_RATE,
    betas=_BETAS,
    fused=True,
  )


class Training:
  """The model, its optimiser and batches of random tokens on the device."""

  def __init__(self, shape: Shape, device: str, compiled: str, remat: bool):
    torch.manual_seed(0)
    # For what stays in float32; autocast takes the rest.
    torch.set_float32_matmul_precision(
      "high" if device == "cuda" else "highest"
    )
    self.device, self.shape = device, shape
    self.model = Decoder(shape, remat).to(device)
    self.loss = self.model.compiled(compiled) if compiled else self.model
    self.optimizer = make_optimizer(self.model)
    generator = torch.Generator().manual_seed(1)
    self.batches = torch.randint(
      shape.vocab_size,
      (4, shape.batch, shape.seq_len + 1),
      generator=generator,
    ).to(device)
    self.taken = 0
    self.details = f"compiled: {compiled}" if compiled else "eager"

  def _autocast(self) -> contextlib.AbstractContextManager[Any]:
    if self.shape.dtype == "float32":
      return contextlib.nullcontext()
    return torch.autocast(self.device, torch.bfloat16)

  def step(self) -> torch.Tensor:
    tokens = self.batches[self.taken % len(self.batches)]
    self.taken += 1
    with self._autocast():
      loss = self.loss(tokens)
    loss.backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  def run(self, steps: int) -> float:
    """So many steps; waits for the last."""
    for _ in range(steps):
      loss = self.step()
    if self.device == "cuda":  # reading the loss waits for less
      torch.cuda.synchronize()
    return loss.item()

  def describe(self) -> dict[str, Any]:
    cuda = self.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {
      "peak_bytes": peak,
      "parameters": sum(p.numel() for p in self.model.parameters()),
      "version": torch.__version__,
      "details": self.details,
    }


def main() -> None:
  shape, options = worker_arguments(sys.argv)
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(options.get("threads", cores))
  training = Training(
    shape,
    options["device"],
    options.get("compile", ""),
    options.get("remat", False),
  )
  serve(training.run, training.describe, options.get("warm_up", 3))


if __name__ == "__main__":
  main()
