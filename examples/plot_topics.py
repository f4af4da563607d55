"""
Topics of Python's standard library
===================================

What is a library about? Latent Dirichlet allocation takes each text for a mixture of topics, and each topic for a
distribution of words; it sees how often words occur, and in no order [1]_. The texts are the docstrings that come with
Python itself, so the numbers depend a little on its version.
"""

import ast
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.sparse import csr_matrix
from sklearn.decomposition import LatentDirichletAllocation

import pyro_lvm as lvm

# %%
# From docstrings to counts
# -------------------------
#
# A document is a module: its docstring, and those of its classes and functions. Words have three letters or more. The
# commonest of English and of docstrings go, as do words in fewer than five documents or in more than 30% of them.

STOP_WORDS = """
    the and for that this with from are was not but can will has have been its which into any all one may must such than
    then them they when where whether only also other each same some more most does should would you your there both
    what how who use used using see none true false self return returns value values name default given called
"""
SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "encodings"}
stop_words = set(STOP_WORDS.split())


def words_of(path):
    """The words of the docstrings in a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, kinds)]
    text = " ".join(ast.get_docstring(node) or "" for node in nodes).lower()
    return [word for word in re.findall("[a-z]{3,}", text) if word not in stop_words]


library = Path(sysconfig.get_paths()["stdlib"])
paths = {path.relative_to(library).with_suffix(""): path for path in sorted(library.rglob("*.py"))}
texts = {".".join(place.parts): words_of(path) for place, path in paths.items() if not SKIPPED & set(place.parts)}
texts = {module.removesuffix(".__init__"): words for module, words in texts.items() if len(words) >= 50}

occurrences = Counter(word for words in texts.values() for word in set(words))
vocabulary = np.array(sorted(word for word, n in occurrences.items() if 5 <= n <= 0.3 * len(texts)))
number = {word: i for i, word in enumerate(vocabulary)}
columns = [[number[word] for word in words if word in number] for words in texts.values()]
starts = np.cumsum([0, *map(len, columns)])
counts = csr_matrix((np.ones(starts[-1]), np.concatenate(columns), starts), (len(texts), len(vocabulary)))
counts.sum_duplicates()
print(f"{len(texts)} modules, {len(vocabulary):,} different words, {counts.sum():,.0f} in all")

# %%
# Fitting
# -------
#
# A fifth of the modules is held out. Perplexity is about how many words a model hesitates between: its bound of the
# log-density of a word, with its sign changed and exponentiated; the lower the better. EM learns the topics, and how
# many of them a document mixes. Online EM updates the topics after every 64 documents [2]_. Scikit-learn takes as many
# iterations as EM; its topics are put into the same model, so that the same bound judges them.

K = 10
shuffled = np.random.default_rng(0).permutation(len(texts))
held_out, train = counts[shuffled[: len(texts) // 5]], counts[shuffled[len(texts) // 5 :]]

lda, online, theirs = (lvm.models.LDA(K, len(vocabulary)) for _ in range(3))
result = lvm.fit_em(lda, train, tol=1e-3, max_iter=100, progress=False)
lvm.fit_em(online, train, online=0.7, batch_size=64, max_iter=10, progress=False)
scikit = LatentDirichletAllocation(K, learning_method="batch", max_iter=result.num_iter, random_state=0).fit(train)
theirs.topic_concentration = torch.tensor(scikit.components_, dtype=torch.float32)
theirs.concentration = torch.full((K,), scikit.doc_topic_prior_)

frequencies = np.asarray(train.sum(0)).ravel() + 1
alike = np.exp(-held_out.sum(0) @ np.log(frequencies / frequencies.sum()) / held_out.sum())
print(f"held-out perplexity: EM {lda.perplexity(held_out):.0f}, online EM {online.perplexity(held_out):.0f}")
print(f"scikit-learn {theirs.perplexity(held_out):.0f}, one distribution of words for all {alike.item():.0f}")

# %%
# The topics
# ----------
#
# The most probable words of each. The topics come in no order, and nobody has named them.

colors = lvm.plots.COLORS[:K]
figure, axes = plt.subplots(2, 5, figsize=(12, 6), sharex=True, layout="constrained")
for k, ax in enumerate(axes.flat):
    probabilities, words = lda.topics[k].topk(10)
    ax.barh(vocabulary[words], 100 * probabilities.numpy(), color=colors[k])
    ax.invert_yaxis()
    ax.set_title(f"topic {k}", color=colors[k], fontweight="bold")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
figure.supxlabel("probability of the word in the topic (%)", fontsize="medium")
plt.show()

# %%
# What modules are about
# ----------------------
#
# The posterior means of the shares of the topics, in modules that many will know. Most have one or two.

KNOWN = """
    argparse asyncio.tasks collections email.message http.client pickle shutil socketserver threading tkinter.ttk turtle
    xml.etree.ElementTree
"""
modules = [module for module in KNOWN.split() if module in texts]  # some systems lack parts of the library
shares = lda.shares(counts[[list(texts).index(module) for module in modules]]).numpy()

figure, ax = plt.subplots(figsize=(10, 4.8), layout="constrained")
before = np.zeros(len(modules))
for k in range(K):
    bars = ax.barh(modules, 100 * shares[:, k], left=before, color=colors[k], edgecolor="white")
    numbers = [str(k) if share > 0.04 else "" for share in shares[:, k]]
    ax.bar_label(bars, numbers, label_type="center", color="white", fontweight="bold")
    before += 100 * shares[:, k]
ax.invert_yaxis()
ax.set(xlim=(0, 100), xlabel="share of the topics (%)")
ax.tick_params(axis="y", length=0)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# .. [1] D. M. Blei, A. Y. Ng and M. I. Jordan, "Latent Dirichlet allocation", *Journal of Machine Learning Research* 3
#    (2003).
# .. [2] M. D. Hoffman, D. M. Blei and F. Bach, "Online learning for latent Dirichlet allocation", *Advances in Neural
#    Information Processing Systems* 23 (2010).
