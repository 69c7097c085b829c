"""The digits example with its batches cut into micro batches that go through a pipeline."""

from mnist_handler import MNISTDigitClassifier

from ts.handler_utils.micro_batching import MicroBatching


class MicroBatchingDigitClassifier(MNISTDigitClassifier):
    """While one micro batch is in the network, the next one is decoded already."""

    def __init__(self):
        super().__init__()
        # In place of the method `handle`, and before the server looks for it: this object calls
        # our preprocess, inference and postprocess from threads of its own.
        self.handle = MicroBatching(self)

    def initialize(self, context):
        super().initialize(context)
        config = context.model_yaml_config["micro_batching"]
        self.handle.micro_batch_size = config["micro_batch_size"]
        self.handle.parallelism = config["parallelism"]
