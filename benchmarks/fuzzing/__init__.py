"""The parts of `benchmarks/fuzz.py`: random small models, plain loops that train them, and who is right."""
