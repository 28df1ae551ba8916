"""What the slides recall from before networks, by scikit-learn on the same digits."""

from __future__ import annotations

import numpy as np

from .. import data
from ..train import figures
from .common import Report, Setting


def baselines(setting: Setting) -> Report:
    """Nearest neighbours, linear and kernel machines; clusters by how pure they are."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC, LinearSVC

    digits = data.mnist5k()
    x, x_test = (t.flatten(1).numpy() for t in (digits.train_images, digits.test_images))
    y, y_test = digits.train_labels.numpy(), digits.test_labels.numpy()
    classifiers = {
        **{f"{k} nearest neighbours": KNeighborsClassifier(k) for k in (1, 3, 5)},
        "linear SVM": LinearSVC(C=0.01, random_state=0),
        "logistic regression": LogisticRegression(max_iter=200),
        "RBF SVM": SVC(),
    }
    accuracy = {name: round(float(c.fit(x, y).score(x_test, y_test)), 4) for name, c in classifiers.items()}
    reduced = PCA(30, random_state=0).fit(x)
    clusters = {
        "k-means, 10": (KMeans(10, n_init=4, random_state=0), x),
        "k-means, 100": (KMeans(100, n_init=1, random_state=0), x),
        "Gaussian mixture, 10": (GaussianMixture(10, random_state=0), reduced.transform(x)),
    }
    purity = {}
    for name, (model, samples) in clusters.items():
        assigned = model.fit_predict(samples)
        counts = np.bincount(assigned * 10 + y, minlength=10 * (assigned.max() + 1)).reshape(-1, 10)
        purity[name] = round(float(counts.max(1).sum() / len(y)), 4)
    figure, axis = figures.pyplot().subplots(figsize=(6, 3.2))
    rows = {**accuracy, **{f"{k} (purity)": v for k, v in purity.items()}}
    axis.barh(list(rows), list(rows.values()))
    axis.set(xlabel="test accuracy, or purity", xlim=(0.4, 1))
    axis.invert_yaxis()
    figures.save(figure, setting.output / "baselines.png")
    return {"test accuracy": accuracy, "purity": purity}
