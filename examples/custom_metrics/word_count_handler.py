"""Counts words, and tells the server's metrics about them. No model, no torch."""

from ts.metrics.metric_type_enum import MetricTypes


class WordCounter:
    def initialize(self, context):
        """Metrics that metrics.yaml defines are found by name and type."""
        metrics = context.metrics
        self.words_read = metrics.get_metric("WordsRead")  # a counter, unless said otherwise
        self.longest_word = metrics.get_metric("LongestWord", MetricTypes.GAUGE)
        self.word_length = metrics.get_metric("WordLength", MetricTypes.HISTOGRAM)

    def handle(self, data, context):
        """Answers the number of words of each text in `data`."""
        # One value for each dimension of the definition, in its order.
        dimensions = [context.model_name, "Model"]
        answers = []
        for row in data:
            words = body_text(row).split()
            lengths = [len(word) for word in words]
            self.words_read.add_or_update(len(words), dimensions)
            for length in lengths:
                self.word_length.add_or_update(length, dimensions)
            if lengths:
                self.longest_word.add_or_update(max(lengths), dimensions)
            answers.append(len(words))
        # Not in metrics.yaml: kept only with model_metrics_auto_detect=true.
        context.metrics.add_counter("TextsRead", len(data))
        return answers


def body_text(row):
    """The request's text; a body without a text content type arrives as bytes."""
    body = row.get("data") or row.get("body") or ""
    return body if isinstance(body, str) else bytes(body).decode("utf-8", "replace")
