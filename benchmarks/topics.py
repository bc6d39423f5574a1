"""Few-shot topics of 20 Newsgroups without learning: the nearest mean of TF-IDF vectors, on the test tasks of a configuration.

The document frequencies are those of the training topics, by scikit-learn. Words that these topics lack are left out, as for the
networks.

python benchmarks/topics.py --config maml_newsgroups_5w5s_lstm --root DIR
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import describe
from scipy.sparse import csr_matrix
from shipped import make_data, read_config
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from metalearn.metrics import interval

OWN = 2
"""The first number of a word: 0 is padding, and 1 any word without a number."""


def count_words(posts: Tensor, vocabulary: int) -> csr_matrix:
    """How often each word stands in each post, ``[posts, vocabulary]``."""
    posts_of, words = np.nonzero(posts.numpy() >= OWN)[0], posts.numpy()[posts.numpy() >= OWN]
    return csr_matrix((np.ones(len(words)), (posts_of, words)), shape=(len(posts), vocabulary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True, help="where the archive of 20 Newsgroups is")
    parser.add_argument("--test_tasks", type=int, default=600)
    options = parser.parse_args()
    config = read_config(options.config)
    vocabulary = config["model"]["init_args"]["backbone"]["init_args"]["vocabulary"]
    data = make_data(config, options.root, test_tasks=options.test_tasks)
    starts, counts = data.pool.offsets, data.pool.counts
    rows = np.concatenate([np.arange(starts[topic], starts[topic] + counts[topic]) for topic in data.splits["train"]])
    weigh = TfidfTransformer(sublinear_tf=True).fit(count_words(data.take(rows, None), vocabulary))
    accuracies = []
    for number in range(options.test_tasks):
        support, query = data.episode(seed=data.seed, split="test", index=number)
        known, asked = (weigh.transform(count_words(role.x, vocabulary)) for role in (support, query))
        labels = support.y.numpy()
        means = np.stack([np.asarray(known[labels == label].mean(0)).ravel() for label in range(labels.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        accuracies.append(float(((asked @ means.T).argmax(1) == query.y.numpy()).mean()))
    accuracy = interval(torch.tensor(accuracies))
    print(describe())
    print(
        f"nearest mean of TF-IDF: {100 * accuracy.mean:.2f} % ± {100 * accuracy.ci95:.2f} over {accuracy.tasks} tasks"
    )


if __name__ == "__main__":
    main()
