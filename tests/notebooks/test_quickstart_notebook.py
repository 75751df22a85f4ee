import nbclient
import nbformat

from tests.helpers import ROOT


def test_the_notebook_runs_at_a_tiny_size(tmp_path):
  notebook = nbformat.read(ROOT / "colab/quickstart.ipynb", as_version=4)
  [parameters] = [
    cell
    for cell in notebook.cells
    if "parameters" in cell.metadata.get("tags", [])
  ]
  assert "configs/pretrain/quickstart.py" in parameters.source
  parameters.source = parameters.source.replace("quickstart.py", "tiny.py")
  client = nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path)}},
  )
  client.execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  ]
  images = [o for o in outputs if "image/png" in o.get("data", {})]
  figures = (tmp_path / "runs/quickstart/report").glob("*.png")
  assert len(images) == len(list(figures)) >= 5
  text = "".join(o.get("text", "") for o in outputs)
  assert "paired stderr" in text
  assert (tmp_path / "runs/quickstart/report/report.html").exists()
