"""Log-likelihoods of choices by transformers, one text at a time."""

import numpy as np
import torch

from jaxmerge.evaluation.choice_scores import encode


def their_logs(model, items, tokenizer, context):
  """Nats, float64[N, C], and the tokens of each choice."""
  shape = len(items), max(len(item.choices) for item in items)
  logs_NxC, tokens_NxC = np.full(shape, -np.inf), np.ones(shape)
  for number, found in enumerate(encode(items, tokenizer, context)):
    for choice, ids in enumerate(found.choices):
      text = np.concatenate([found.prompt, ids]).astype(np.int64)
      _forget_lengths(model)
      with torch.no_grad():
        logits = model(torch.from_numpy(text[None, :-1])).logits[0]
      logs = torch.log_softmax(logits.double(), -1)[-len(ids) :]
      chosen = logs[range(len(ids)), ids.tolist()]
      logs_NxC[number, choice] = chosen.sum().item()
      tokens_NxC[number, choice] = len(ids)
  return logs_NxC, tokens_NxC


def _forget_lengths(model):
  """Dynamic RoPE goes by the longest text so far; here each is the first."""
  for module in model.modules():
    if hasattr(module, "max_seq_len_cached"):
      module.max_seq_len_cached = 0


def check_close(ours_NxC, theirs_NxC, tokens_NxC, name):
  """The largest error of a token is shown with -rP."""
  has = np.isfinite(theirs_NxC)
  assert (np.isfinite(ours_NxC) == has).all()
  error = np.abs(ours_NxC[has] - theirs_NxC[has]) / tokens_NxC[has]
  print(f"{name}: max |dlog| a token {error.max():.2e}")
  assert error.max() <= 1e-4
