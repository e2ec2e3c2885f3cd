"""The paper's studies of a trained model: out-of-distribution detection, long chains, composition."""
