"""Run by test_engine.py: compile a small energy, compare it with the plain one, resume it; prints JSON."""

import dataclasses
import json
import sys
import weakref
from pathlib import Path

import torch

from ebm_core import checkpoint
from ebm_core.config import EngineConfig, LoopConfig, ModelConfig
from ebm_core.losses import improved_cd_loss
from ebm_core.sampler import langevin_step
from ebm_core.trainer import fingerprint, init_state, train_step
from tests.ebm_core.tiny import batch, tiny_config


def main(folder: Path, winograd: bool) -> None:
    model = ModelConfig(kind="plain", widths=(4, 8), norm="layer", attention=False, multiscale=False)
    if winograd:  # computes the three of its down
        model = ModelConfig(kind="mnist", widths=(32, 32), norm="layer", attention=False, multiscale=False)
    loop = LoopConfig(num_steps=8, batch_size=8, grad_norms_every=6)  # `results` goes back once for every term
    cfg = tiny_config(model=model, engine=EngineConfig(compile=True, winograd=winograd), train=loop)
    state, plain = init_state(cfg), init_state(dataclasses.replace(cfg, engine=EngineConfig()))
    found = [results(state, cfg), results(plain, cfg)]
    errors = {name: float((ours - found[1][name]).norm() / found[1][name].norm()) for name, ours in found[0].items()}
    kept = [kept_bytes(each, cfg) for each in (state, plain)]
    train(state, cfg, 2)
    checkpoint.save(state, cfg, folder)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(state, cfg, 5)
    resumed = init_state(cfg)
    checkpoint.load(resumed, folder)
    train(resumed, cfg, 5)
    print(json.dumps({"errors": errors, "kept": kept, "whole": fingerprint(state), "resumed": fingerprint(resumed)}))


def compile_in_small() -> None:
    """Write C++ for the chains' slope alone.

    The other passes are traced and differentiated as ever, and run by PyTorch's own operators: their C++ takes minutes.
    """
    whole = torch.compile

    def compile_some(function, **options):
        return whole(function, **options, backend="inductor" if function.__name__ == "_frozen_slope" else "aot_eager")

    torch.compile = compile_some


def norms() -> None:
    """Gradient norms of every term in the second step, compiled and plain; the first goes back only once."""
    model = ModelConfig(kind="mnist", widths=(32, 32), norm="layer", attention=False, multiscale=False)
    cfg = tiny_config(model=model, train=LoopConfig(batch_size=8, grad_norms_every=2))
    found = []
    for engine in (EngineConfig(compile=True, winograd=True), EngineConfig()):
        run = dataclasses.replace(cfg, engine=engine)
        state = init_state(run)
        rows = [train_step(state, batch(i, run), run) for i in range(2)]
        found.append({name: value for name, value in rows[-1].items() if name.startswith("grad_norm")})
    print(json.dumps(found))


def results(state, cfg) -> dict[str, torch.Tensor]:
    """The frozen slope, the end of the last step, and each term's gradient in theta."""
    x_data, start, past = (batch(i, cfg) for i in range(3))
    state.engine.refresh()
    energy, frozen = state.engine.chain_energies(None, "last")
    at = start.clone().requires_grad_()
    unequal = torch.arange(1.0, len(at) + 1)
    found = {"slope": torch.autograd.grad((unequal * frozen(at)).sum(), at)[0]}
    end = langevin_step(energy, start, cfg.sampler, torch.Generator().manual_seed(0), keep_graph=True)
    found["end"] = end.detach()
    loss = improved_cd_loss(state.engine.energy, x_data, end, past, cfg.loss)
    parameters = list(state.model.parameters())
    for name, term in loss.terms.items():
        slopes = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        found[name] = torch.cat([s.flatten() for s in slopes])
    return found


class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.storage = tensor.untyped_storage()


def kept_bytes(state, cfg) -> int:
    """What autograd keeps of the last step and of the stacked pass, beside the parameters."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        energy, _ = state.engine.chain_energies(None, "last")
        end = langevin_step(energy, batch(0, cfg), cfg.sampler, torch.Generator().manual_seed(0), keep_graph=True)
        energies = state.engine.energy(torch.cat([batch(1, cfg), end]))
    sizes = {kept.storage.data_ptr(): kept.storage.nbytes() for kept in alive}
    for tensor in (*state.model.parameters(), *state.engine.twin.buffers()):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    assert energies.requires_grad  # its graph has lived up to here
    return sum(sizes.values())


def train(state, cfg, until: int) -> None:
    while state.step < until:
        train_step(state, batch(state.step, cfg), cfg)


if __name__ == "__main__":
    if sys.argv[2] == "norms":
        norms()
    else:
        if sys.argv[2] == "small":
            compile_in_small()
        main(Path(sys.argv[1]), sys.argv[2] in ("winograd", "small"))
