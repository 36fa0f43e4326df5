"""How programs run: the interpreter, C++, torch.compile, many programs at once, and jax's names."""
