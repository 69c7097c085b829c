"""Serves a scikit-learn model: CSV lines in, a class and its probability out. No torch."""

import os

import joblib
import numpy as np

FEATURES = 4


class IrisClassifier:
    def initialize(self, context):
        """The manifest names the model's file; it lies in the archive's folder."""
        folder = context.system_properties["model_dir"]
        path = os.path.join(folder, context.manifest["model"]["serializedFile"])
        content = joblib.load(path)  # runs code: only for archives of people you trust
        self.model = content["model"]
        self.names = content["names"]

    def handle(self, data, context):
        """data: per request a line `sepal length,sepal width,petal length,petal width` (cm)."""
        answers = [None] * len(data)
        rows, places = [], []
        for index, row in enumerate(data):
            try:
                rows.append(parse(row))
                places.append(index)
            except ValueError as error:
                context.set_response_status(400, "Bad Request", index)
                answers[index] = {"error": str(error)}
        if rows:  # all of the batch in one call
            probabilities = self.model.predict_proba(np.array(rows))
            for index, each in zip(places, probabilities.tolist(), strict=True):
                best = max(range(len(each)), key=each.__getitem__)
                answers[index] = {"class": self.names[best], "probability": each[best]}
        return answers


def parse(row):
    """The numbers of one request. Raises ValueError."""
    body = row.get("data") or row.get("body") or ""
    text = body if isinstance(body, str) else bytes(body).decode()
    numbers = [float(part) for part in text.strip().split(",")]
    if len(numbers) != FEATURES:
        raise ValueError(f"{FEATURES} numbers are expected, not {len(numbers)}")
    return numbers
