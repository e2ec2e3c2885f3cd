"""How the same step runs fast: compilation, convolutions, recomputation, C++. Reading the equations needs none of it."""
