"""Search, learn and compare deep-learning optimizers: the front door.

::

    import optforge

    optforge.evolve("runs/mine", tasks="proxies", preset="minutes")           # search for an update rule
    optforge.compare("runs/mine#1", "adamw", "lion", tasks="mnist1d").verdict  # compare it with others, tuned alike
    optforge.train("digits", "runs/mine#1")                                   # train a task with it
    optforge.load("runs/mine#1")                                              # the program itself
    optforge.learn(model.parameters(), "adamw")                               # an optimizer that learns its rate

Everything is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optforge.front import compare, evolve, learn, load, train

__all__ = ["__version__", "compare", "evolve", "learn", "load", "train"]


def __getattr__(name: str) -> Any:
    """From `front`, which loads torch, and the version from what is installed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("optforge")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optforge import front

    return getattr(front, name)


def __dir__() -> list[str]:
    return sorted(__all__)
