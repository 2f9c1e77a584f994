"""A prompt that is read once, a state that goes on in several ways, and a chat that is kept."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ssm_export
from ssm_export.generation import load_tokenizer

SYSTEM = '"""Reading and writing files."""\n\nimport io\nimport os\nimport sys\n\n\n'


def main(words: Sequence[str] | None = None) -> int:
    """Show the three uses on a bundle that has a tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--say", action="append", default=[], help="a turn of the chat")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--states", type=Path, help="where states are kept; beside the bundle")
    options = parser.parse_args(words)
    try:
        bundle = ssm_export.Bundle.open(options.bundle)
        place = bundle.path.resolve()
        folder = options.states or place.parent
        folder.mkdir(parents=True, exist_ok=True)
        # A state is of one model, so bundles that stand side by side have files of their own.
        once, kept = (folder / f"{place.name}.{use}.state" for use in ("read-once", "chat"))
        with ssm_export.Session(bundle) as session:
            session.warm_up()
            system = read_once(session, once)
            in_several_ways(session, system, options.tokens)
            chat(session, system, options.say, kept, options.tokens)
    except ssm_export.SsmExportError as error:
        print(error, file=sys.stderr)
        return error.code.exit_status
    return 0


def read_once(session: ssm_export.Session, file: Path) -> ssm_export.State:
    """The state after the system prompt: of the file where there is one, else read and saved."""
    began = time.perf_counter()
    known = file.exists()
    if known:
        state = ssm_export.State.load(file, session.bundle)
    else:
        session.reset()
        session.prefill([ids(session, SYSTEM)])
        state = session.state
        state.save(file)
    spent = (time.perf_counter() - began) * 1e3
    print(
        f"{'loaded' if known else 'read'} {state.tokens_read()[0]} tokens in {spent:.1f} ms, "
        f"a state of {state.bytes_per_row / 1e3:.0f} kB\n"
    )
    return state


def in_several_ways(session: ssm_export.Session, state: ssm_export.State, tokens: int) -> None:
    """Three rows that go on from one state, decoded as a batch."""
    session.restore(state.fork(3))
    tokenizer = load_tokenizer(session.bundle)
    for number, row in enumerate(session.generate(max_tokens=tokens, temperature=0.7, seed=5)):
        print(f"--- continuation {number}\n{tokenizer.decode(row)}\n")


def chat(
    session: ssm_export.Session,
    system: ssm_export.State,
    turns: list[str],
    file: Path,
    tokens: int,
) -> None:
    """Each turn goes on from the state that the one before saved; text appears as it comes."""
    system.save(file)
    tokenizer = load_tokenizer(session.bundle)
    for turn in turns:
        session.restore(ssm_export.State.load(file, session.bundle))
        print(f"--- {turn}", end="", flush=True)
        session.generate(
            [ids(session, turn)],
            max_tokens=tokens,
            stream=lambda row: print(tokenizer.decode([row[0]]), end="", flush=True),
        )
        session.state.save(file)
        print(
            f"\n--- {session.state.tokens_read()[0]} tokens read, "
            f"{file.stat().st_size / 1e3:.0f} kB saved\n"
        )


def ids(session: ssm_export.Session, text: str) -> list[int]:
    """The token ids of a text that goes on: without the tokens that begin one."""
    encoded = load_tokenizer(session.bundle).encode(text, add_special_tokens=False)
    return [int(token) for token in encoded.ids]


if __name__ == "__main__":
    sys.exit(main())
