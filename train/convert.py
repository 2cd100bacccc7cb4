"""Convert a ChatGLM or Baichuan checkpoint from its original layout to transformers' own.

python -m train.convert SRC DST
"""

from __future__ import annotations

import sys

from train.rundir.counter import Lines, doing


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[0].startswith("-"):
        print("usage: python -m train.convert SRC DST\n\n" + str(__doc__).split("\n\n")[0], file=sys.stderr)
        return 2

    with Lines():
        doing("loading PyTorch")
        from train.original.checkpoint_files import ConversionError
        from train.original.conversion import convert

        def tell(text: str) -> None:
            print(text, flush=True)
            doing(f"converting {argv[0]}")

        try:
            convert(argv[0], argv[1], tell)
        except (ConversionError, OSError) as error:
            refused = isinstance(error, ConversionError)
            print(f"error[{'ZL-CONVERT-01' if refused else 'ZL-FILE-02'}]: {error}", file=sys.stderr)
            return 2 if refused else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
