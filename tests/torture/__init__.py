"""Long seeded campaigns against the launcher and the training program: `make torture`.

Each module is one campaign, with `main(count, seed) -> Outcome`. A case depends only on the seed and its number, so a
finding can be repeated alone. The normal tests run a short part of each (test_short.py).
"""
