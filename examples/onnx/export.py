"""Writes the digits network as an ONNX file; needs `pip install onnx onnxscript`.

python examples/onnx/export.py model_store/digits.onnx
"""

import argparse
import sys
from pathlib import Path

import torch

MNIST = Path(__file__).resolve().parents[1] / "image_classifier" / "mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(MNIST))
    from mnist import Net

    model = Net().eval()
    model.load_state_dict(torch.load(MNIST / "digits_cnn.pt", weights_only=True))
    # The batch is the one dimension that differs between requests.
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        args.output,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: batch}},
        external_data=False,  # one file
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
