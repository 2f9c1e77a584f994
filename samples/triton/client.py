"""Continues prompts on a Triton Inference Server whose model keeps the state of each stream.

Speaks HTTP with the standard library: a JSON head, logits back as bytes. The sequence id of a
stream is all that the server needs to find its state; a prompt goes in pieces, then token by token.

    python samples/triton/client.py --model mamba2 "import os" --max-tokens 32
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import urllib.request

import numpy as np

CHUNK = 512
"""Most tokens of one request: a long prompt does not keep the other streams waiting."""


class Stream:
    """One sequence on the server."""

    def __init__(self, server: str, model: str) -> None:
        self._url = f"http://{server}/v2/models/{model}/infer"
        self._sequence = random.getrandbits(63) or 1
        self._begun = False

    def feed(self, ids: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Logits (V,) after the token ids (T,); ``last`` frees the state."""
        tokens = ids.reshape(1, -1).astype(np.int64)
        body = {
            "inputs": [
                {
                    "name": "input_ids",
                    "datatype": "INT64",
                    "shape": list(tokens.shape),
                    "data": tokens.ravel().tolist(),
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
            "parameters": {
                "sequence_id": self._sequence,
                "sequence_start": not self._begun,
                "sequence_end": last,
            },
        }
        self._begun = True
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            head_bytes = int(answer.headers["Inference-Header-Content-Length"])
            head, data = json.loads(answer.read(head_bytes)), answer.read()
        (output,) = head["outputs"]
        dtype = {"FP32": np.float32, "FP16": np.float16}[output["datatype"]]
        logits = np.frombuffer(data, dtype).reshape(output["shape"])
        return logits[0, -1].astype(np.float32)

    def generate(self, prompt: np.ndarray, count: int) -> list[int]:
        """Greedy continuation of token ids (T,) by ``count`` tokens."""
        for begin in range(0, len(prompt), CHUNK):
            logits = self.feed(prompt[begin : begin + CHUNK])
        tokens = [int(logits.argmax())]
        while len(tokens) < count:
            ids = np.array(tokens[-1:])
            logits = self.feed(ids, last=len(tokens) == count - 1)
            tokens.append(int(logits.argmax()))
        return tokens


def main() -> None:
    """Continue every prompt, each as a stream of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="+", help="each becomes a stream; they run side by side")
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", default="localhost:8000")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument(
        "--tokenizer", help="a tokenizer.json; prompts are bytes, as the demo's are, without one"
    )
    options = parser.parse_args()
    encode, decode = tokenizer(options.tokenizer)
    answers: dict[int, str] = {}

    def run(number: int, prompt: str) -> None:
        stream = Stream(options.server, options.model)
        answers[number] = decode(stream.generate(encode(prompt), options.max_tokens))

    threads = [threading.Thread(target=run, args=item) for item in enumerate(options.prompt)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, prompt in enumerate(options.prompt):
        if number not in answers:
            sys.exit("a stream failed; its error is above")
        print(prompt + answers[number])


def tokenizer(file: str | None):
    """Functions from text to token ids and back."""
    if file is None:
        return (
            lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int64),
            lambda ids: bytes(ids).decode(errors="replace"),
        )
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(file)
    return (lambda text: np.array(loaded.encode(text).ids)), loaded.decode


if __name__ == "__main__":
    main()
