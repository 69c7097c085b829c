"""Handler of the digits example: the default image classifier with the digits' own transform."""

from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.image_transforms import Compose, Grayscale, Normalize, Resize, ToTensor

# Mean and standard deviation of the training images; train.py prints and uses the same two.
PIXEL_MEAN = 0.309
PIXEL_STD = 0.349


class MNISTDigitClassifier(ImageClassifier):
    """Answers the five most likely digits with their probabilities: `{"3": 0.99, "8": 0.004, ...}`.

    Everything but the transform is inherited: decoding of the body, softmax, the labels of
    index_to_name.json, and the explanation by integrated gradients.
    """

    image_processing = Compose(
        [Grayscale(), Resize((28, 28)), ToTensor(), Normalize((PIXEL_MEAN,), (PIXEL_STD,))]
    )
