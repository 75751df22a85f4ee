"""Every family against logits that transformers computed, without torch.

tests/parity/their_models.py has written them.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmerge
from tests.parity.numpy_tensors import tensor

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden_logits.json").read_text()
)


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_logits_are_those_of_transformers(name, tmp_path):
  golden = GOLDEN["models"][name]
  (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
  tensors = {n: tensor(n, s) for n, s in golden["shapes"].items()}
  save_file(tensors, tmp_path / "model.safetensors")
  logits = jaxmerge.load_model(tmp_path)(np.array(GOLDEN["tokens"], np.int32))
  np.testing.assert_allclose(logits[:, -1], golden["last_logits"], atol=1e-5)
