"""What all benchmarks take on the command line."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter


def seeded(doc: str | None) -> ArgumentParser:
    """A parser for seeds, which is described by the script's `doc`."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    parser.add_argument("--count", type=int, metavar="SEEDS", help="so many seeds, from 0 on")
    return parser


def seeds_of(given: Namespace, usual: int) -> list[int]:
    """The seeds of the command line: those named, the first `--count`, or the first `usual`."""
    named: list[int] = given.seeds
    return named or list(range(given.count or usual))
