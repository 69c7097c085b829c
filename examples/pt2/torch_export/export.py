"""Exports the digits network: one file with weights and graph, which runs without its Python code.

python examples/pt2/torch_export/export.py model_store/digits.pt2
"""

import argparse
import sys
from pathlib import Path

import torch

MNIST = Path(__file__).resolve().parents[2] / "image_classifier" / "mnist"
MAX_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(MNIST))
    from mnist import Net

    model = Net().eval()
    model.load_state_dict(torch.load(MNIST / "digits_cnn.pt", weights_only=True))
    # The batch is the one dimension that differs between requests.
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    images = torch.zeros(2, 1, 28, 28)
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
