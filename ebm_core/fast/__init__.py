"""How the same step runs fast: compilation, convolutions, recomputation, C++. The equations can be read without it."""
