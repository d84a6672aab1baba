"""`python -m pizero`, and `torchrun -m pizero train ...`."""

from pizero.cli.main import main

if __name__ == "__main__":
    main()
