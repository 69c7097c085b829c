"""The work itself, the same lines in every server: a list of bodies in, a list of answers out.

Runs in the environments of all servers, so it needs the standard library, and for the networks
torch, Pillow and numpy. As a program: the answer to the body on stdin.
"""

import io
import sys
import time

CHUNKS = [b"chunk-%02d-%s\n" % (number, b"x" * 20) for number in range(20)]  # 30 bytes each
WAIT_S = 0.01
WAIT_ANSWER = b"waited"


def load(task):
    """A function from bodies to answers. The stream has none: its servers send CHUNKS."""
    if task in ("cnn", "resnet"):
        return Classifier(task)
    if task == "wait":
        return wait
    return echo


def echo(bodies):
    return bodies


def wait(bodies):
    time.sleep(WAIT_S)
    return [WAIT_ANSWER] * len(bodies)


class Classifier:
    """Images in, the numbers of their classes out."""

    # network -> mode of the image, mean and deviation of its channels
    INPUTS = {  # noqa: RUF012  (a constant)
        "cnn": ("L", [0.1307], [0.3081]),
        "resnet": ("RGB", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }

    def __init__(self, name):
        import nets
        import torch

        self.mode, mean, deviation = self.INPUTS[name]
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.deviation = torch.tensor(deviation).view(-1, 1, 1)
        self.network = nets.build(name)
        self.torch = torch

    def decode(self, body):
        """bytes of an image file -> [channels, height, width] float32"""
        import numpy as np
        from PIL import Image

        pixels = np.array(Image.open(io.BytesIO(body)).convert(self.mode))
        image = self.torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
        return (image.float().div_(255) - self.mean) / self.deviation

    def __call__(self, bodies):
        images = self.torch.stack([self.decode(body) for body in bodies])
        with self.torch.inference_mode():
            return [b"%d" % label for label in self.network(images).argmax(1).tolist()]


if __name__ == "__main__":
    sys.stdout.buffer.write(load(sys.argv[1])([sys.stdin.buffer.read()])[0])
