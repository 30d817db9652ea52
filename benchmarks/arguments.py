"""What all benchmarks take on the command line."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter


def seeded(doc: str | None) -> ArgumentParser:
    """A parser for seeds, which is described by the script's `doc`."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    return parser
