"""Methods of the field beside one another, on small networks of StyleGAN2's own classes."""

from __future__ import annotations

import io
import itertools

import few_steps
import pytest
import tiny
import torch

from stylegan2_fewshot import distributed
from stylegan2_fewshot.methods.prior import instances
from training.dataset import ImageDataset
from training.phases import Phases, batches
from training.state import construct


def networks():
    G, D = tiny.networks(8, channel_base=64)
    return {"G": G, "D": D}


@pytest.mark.parametrize(
    "options",
    [
        {"cdc": {}, "dcl": {}, "bank": {"size": 2}, "fsgan": {}, "lecam": {"lambda_": 0.1}},
        {"rick": {"freeze": 50.0, "warmup": 2, "every": 2, "batches": 2}, "bank": {"size": 2}},
        {"adam": {"probe": 2, "batches": 2}, "cdc": {}, "freezed": {"freezed": 1}, "ada": {}},
        {"tune": {"tune": "scale-shift"}, "apa": {}},
        {"minegan": {"alone": 2}, "bank": {"size": 2}, "cdc": {}, "lecam": {"lambda_": 0.1}},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_resumed_run_of_several_methods_is_the_same(options):
    few_steps.assert_resumes(options, before=3, networks=networks)


RICK = {"freeze": 50.0, "warmup": 2, "every": 2, "batches": 2}
ADAM = {"probe": 2, "batches": 2}


@pytest.fixture
def with_source(tiny_options, tmp_path):
    """Return options of a run from a source, with EWC and the prior."""
    tiny.save(tmp_path / "source.pkl")
    dataset = ImageDataset(**tiny_options["dataset"])
    files = {name: instances.digest(data) for name, data in dataset.files()}
    meta = {"backbone": "none", "backbone_sha256": "0", "resize": "none", "files": files}
    vectors = instances.unit(torch.randn(2, len(files), 4))
    instances.save(tmp_path / "prior.npz", instances.Instances(vectors, meta))
    plugins = {
        "ewc": {"lambda_": 10.0, "samples": 2},
        "prior": {"prior": str(tmp_path / "prior.npz")},
    }
    return {**tiny_options, "resume": str(tmp_path / "source.pkl"), "plugins": plugins}


def advance(options, iterations, saved=None):
    """Return the state after some iterations, from the start or from a checkpoint."""
    dataset = ImageDataset(**options["dataset"])
    state, _ = construct(options, dataset, few_steps.CPU, estimates=saved is None)
    if saved is not None:
        saved.seek(0)
        state.load(torch.load(saved, weights_only=True))
    phases = Phases(options, state, few_steps.CPU)
    shown = batches(options, state.dataset, state.cur_nimg, few_steps.CPU)
    for images, labels in itertools.islice(shown, iterations):
        phases.iterate(images, labels)
    return state


@pytest.mark.parametrize(
    ("methods", "drop"),
    [
        ({"cdc": {}, "dcl": {}, "tune": {"tune": "scale-shift"}}, ()),
        pytest.param({"fsgan": {}}, (), marks=pytest.mark.slow),
        ({"rick": RICK}, ()),
        pytest.param({"adam": ADAM}, (), marks=pytest.mark.slow),
        ({"minegan": {"alone": 2}}, ("prior",)),
    ],
    ids=lambda value: "-".join(value) or "nothing",
)
def test_a_resumed_run_with_ewc_and_the_prior_is_the_same(with_source, methods, drop):
    others = {name: how for name, how in with_source["plugins"].items() if name not in drop}
    options = {**with_source, "plugins": {**others, **methods}}
    whole, file = advance(options, 4).tensors(), io.BytesIO()
    torch.save(advance(options, 2).tensors(), file)
    parts = advance(options, 2, file).tensors()
    for part in ("G", "D", "G_ema", "plugins"):
        assert whole[part].keys() == parts[part].keys()
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), f"{part}.{name}"


def test_a_miner_and_the_prior_are_refused_in_one_line(with_source):
    options = {**with_source, "plugins": {**with_source["plugins"], "minegan": {}}}
    with pytest.raises(
        ValueError, match=r"--minegan-layers=2: .* drop --cond or --prior"
    ) as caught:
        advance(options, 0)
    assert "\n" not in str(caught.value)


ON_RANKS = [{"rick": RICK}, {"adam": ADAM}, {"fsgan": {}}, {"cdc": {}}, {"minegan": {"alone": 1}}]


def on_a_rank(place):
    """Train with every method in turn; keep what all ranks should have the same, and what not."""
    torch.set_num_threads(1)
    distributed.init("cpu")
    kept = []
    for options in ON_RANKS:
        state = few_steps.iterate(few_steps.begin(options, networks=networks), 4)
        [plugin] = state.plugins.active
        drawn = torch.randn(2, generator=plugin.rng(0, few_steps.CPU))
        kept.append((few_steps.parameters(state), plugin.state_dict(), drawn))
    torch.save(kept, place / f"{distributed.rank()}.pt")
    distributed.shutdown()


@pytest.mark.slow
def test_two_ranks_decide_alike_and_draw_on_their_own(tmp_path):
    distributed.spawn(on_a_rank, (tmp_path,), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for options, one, other in zip(ON_RANKS, *ranks, strict=True):
        for mine, theirs in zip(one[:2], other[:2], strict=True):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                assert torch.equal(value, theirs[name]), f"{options}: {name}"
        assert not torch.equal(one[2], other[2])
    decided = ranks[0][0][1]
    assert any(mask.any() for key, mask in decided.items() if key.endswith(":frozen"))
