"""Runs in the guest: `files.py write|check DIRECTORY COUNT`. Small files whose contents follow from their numbers."""

import hashlib
import os
import sys


def content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (1 + number % 64)


def main(verb: str, directory: str, count: str) -> int:
    good = 0
    for number in range(int(count)):
        path = os.path.join(directory, str(number // 100), str(number))
        if verb == "write":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                good += file.write(content(number)) > 0
        else:
            with open(path, "rb") as file:
                good += file.read() == content(number)
    print(f"\nguest: files_{verb}={good}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
