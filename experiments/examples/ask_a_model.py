"""A mutation that asks a language model: the entry point ``model = "optforge.experiments.examples.ask_a_model:ask"``.

The model is one behind any endpoint that takes chat completions as OpenAI's does; OPTFORGE_MODEL_URL says where, as in
``http://localhost:8000/v1/chat/completions``, OPTFORGE_MODEL which, and OPTFORGE_MODEL_KEY is sent along if it is set.
A search with it is resumed as others are, but not repeated: the model may answer something else.
"""

from __future__ import annotations

import json
import os
import random
import re
from urllib.request import Request, urlopen

from optforge.primitives import Program, ProgramError, parse_program, print_program
from optforge.search.space.draft import Space

SECONDS = 60.0
"""How long an answer may take."""

ASK = """Here is an update rule for training neural networks, one statement a line. g is the gradient, p the parameter;
the parameter becomes p - lr * update. Change it so that it may train better, by one idea. Use only these operations:
{ops}. At most {statements} statements and {slots} slots. Answer with the whole rule in the same form in a code block.

```
{program}```
"""


def ask(program: Program, space: Space, rng: random.Random) -> Program | None:
    """What the model makes of a program; None if its answer holds none that can be read.

    Raises:
        KeyError: if OPTFORGE_MODEL_URL is not set.
        OSError: if nobody answers there.
    """
    text = ASK.format(ops=", ".join(space.ops), statements=space.max_statements, slots=space.max_slots,
                      program=print_program(program))  # fmt: skip
    question = {"model": os.environ.get("OPTFORGE_MODEL", ""), "messages": [{"role": "user", "content": text}],
                "seed": rng.randrange(2**31)}  # fmt: skip
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPTFORGE_MODEL_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = Request(os.environ["OPTFORGE_MODEL_URL"], json.dumps(question).encode(), headers)
    with urlopen(request, timeout=SECONDS) as answer:
        said = json.load(answer)["choices"][0]["message"]["content"]
    for block in re.findall(r"```\w*\n(.*?)```", said, re.DOTALL):
        try:
            child = parse_program(block)  # which is data: nothing of it is executed
        except ProgramError:
            continue
        return Program(child.state, child.hypers, child.body, child.update, child.next_state, program.fallback)
    return None
