"""The proxies: eight tiny, unlike tasks that a search scores programs on, the cheapest first.

No example comes twice within a run, so that training and validation loss agree and a score measures optimisation, not
who memorises least; see docs/search.md for what was measured.
"""

from __future__ import annotations

from optforge.experiments.tasks import models
from optforge.experiments.tasks import proxy_data as data
from optforge.experiments.tasks.losses import cross_entropy, squared_error
from optforge.experiments.tasks.transformers import GPT
from optforge.search.training.task import Task

GENERATED = "none needed: generated"
CROSS_ENTROPY = "cross-entropy [nats]"

PROXIES: dict[str, Task] = {
    row.name: row
    for row in (
        Task(
            name="proxy-curves",
            summary="fresh curves like MNIST-1D's; MLP 40-32-32-10 with ReLU",
            model=lambda: models.MLP(data.POINTS, 32, 32, data.CLASSES),
            data=data.curves,
            loss=cross_entropy,
            metric=CROSS_ENTROPY,
            steps=200,
            batch_size=32,
            licence=GENERATED,
            accuracy=True,
        ),
        Task(
            name="proxy-teacher",
            summary="a random network to be imitated, inputs with a power-law spectrum; MLP 32-32-4 with ReLU",
            model=lambda: models.MLP(data.FEATURES, 32, 4),
            data=data.teacher,
            loss=squared_error,
            metric="squared error [per standardised output]",
            steps=200,
            batch_size=16,
            licence=GENERATED,
        ),
        Task(
            name="proxy-autoencoder",
            summary="noisy points of a curved surface, squeezed; MLP 32-24-12-24-32 with ReLU",
            model=lambda: models.MLP(data.PIXELS, 24, 2 * data.LATENT, 24, data.PIXELS),
            data=data.pictures,
            loss=squared_error,
            metric="squared error [per standardised pixel]",
            steps=200,
            batch_size=64,
            licence=GENERATED,
        ),
        Task(
            name="proxy-words",
            summary="topics of bags of words, most of them rare; embedding of 1,024 words in 8 numbers, ReLU layer",
            model=lambda: models.WordBag(data.WORDS, 8, 16, data.TOPICS),
            data=data.bags,
            loss=cross_entropy,
            metric=CROSS_ENTROPY,
            steps=200,
            batch_size=64,
            licence=GENERATED,
            accuracy=True,
        ),
        Task(
            name="proxy-conv",
            summary="fresh curves like MNIST-1D's; two convolutions of 8 and 16 channels",
            model=lambda: models.CurveNet(data.POINTS, (8, 16), data.CLASSES),
            data=data.curves,
            loss=cross_entropy,
            metric=CROSS_ENTROPY,
            steps=150,
            batch_size=32,
            licence=GENERATED,
            accuracy=True,
        ),
        Task(
            name="proxy-deep",
            summary="the highest of six random sums of waves; eight residual layers of width 16",
            model=lambda: models.ResidualMLP(data.COORDINATES, 16, 8, data.WAVES),
            data=data.waves,
            loss=cross_entropy,
            metric=CROSS_ENTROPY,
            steps=200,
            batch_size=64,
            licence=GENERATED,
            accuracy=True,
        ),
        Task(
            name="proxy-recurrent",
            summary="a Markov chain of order two over 12 symbols; gated recurrent unit of width 16",
            model=lambda: models.GRU(data.SYMBOLS, 16, data.LENGTH),
            data=data.chain,
            loss=cross_entropy,
            metric="cross-entropy [nats per symbol]",
            steps=160,
            batch_size=8,
            licence=GENERATED,
            accuracy=True,
        ),
        Task(
            name="proxy-text",
            summary="source of Python's library in 32 classes of characters; one transformer block of width 16",
            model=lambda: GPT(data.LETTERS, data.CONTEXT, width=16, heads=2, depth=1),
            data=data.letters,
            loss=cross_entropy,
            metric="cross-entropy [nats per character]",
            steps=120,
            batch_size=8,
            licence="PSF-2.0 (Python standard library)",
            accuracy=True,
        ),
    )
}
