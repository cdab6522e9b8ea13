"""The plausibility network: is this picture a frontal chest radiograph in display polarity?

    python -m training.plausibility --data DIR --out DIR

`chests` reads the real radiographs, `non_chests` draws everything else, `train` trains and chooses
the threshold, `figures` measures, `export` writes the package, and `__main__` does all in order.
"""
