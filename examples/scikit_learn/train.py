"""Trains a random forest on the iris flowers that come with scikit-learn: a second or two.

python examples/scikit_learn/train.py model_store/iris.joblib
"""

import argparse

import joblib
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the file to write")
    args = parser.parse_args()
    iris = load_iris()
    forest = RandomForestClassifier(n_estimators=20, random_state=0)
    forest.fit(iris.data, iris.target)
    joblib.dump({"model": forest, "names": iris.target_names.tolist()}, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
