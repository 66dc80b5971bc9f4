"""Training by CUDA graphs, emulated on the CPU: the same numbers as without, or a line why not."""

from __future__ import annotations

import copy
import io
import random

import few_steps
import pytest
import torch
from emulated_graphs import EmulatedGraphs

from stylegan2_fewshot import Plugin, Plugins, distributed, stats
from stylegan2_fewshot.augment import AugmentPipe
from stylegan2_fewshot.capture import META, Rules
from stylegan2_fewshot.laws import ToyImages
from stylegan2_fewshot.ops.dispatch import SELECTED
from training import graphs
from training.graphs import Graphs
from training.networks import Discriminator, Generator
from training.phases import Phases

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def operations_of_pytorch(monkeypatch):
    """Have no kernel chosen, as another test may have: emulated graphs see PyTorch's operations."""
    monkeypatch.setattr(SELECTED, "kernels", {})


class Labelled(ToyImages):
    """The toy images in two classes."""

    label_dim = 2

    def get_label(self, index):
        return torch.eye(2)[index % 2].numpy()


def networks():
    """Return networks with labels, a mean of w, noise, and minibatch standard deviation."""
    widths = dict(channel_base=64, channel_max=8)
    G = Generator(8, 2, 8, 8, 3, dict(num_layers=1), widths)
    D = Discriminator(2, 8, 3, **widths, epilogue_kwargs=dict(mbstd_group_size=2))
    return {"G": G, "D": D}


def train(state, iterations, captured=None, **settings):
    """Train for some iterations on random images and labels, a function of the iteration."""
    phases = Phases({**few_steps.OPTIONS, **settings}, state, few_steps.CPU, captured)
    for _ in range(iterations):
        rng = torch.Generator().manual_seed(state.cur_nimg)
        images = torch.randint(0, 256, [4, 3, 8, 8], generator=rng, dtype=torch.uint8)
        labels = torch.eye(2)[torch.randint(2, [4], generator=rng)]
        phases.iterate(images, labels[:, : state.dataset.label_dim])
    return state


def content(state):
    """Return everything that a checkpoint holds, by name."""
    found = {"pl_mean": state.loss.pl_mean}
    for part in ("G", "D", "G_ema", "plugins"):
        found |= {f"{part}.{name}": x for name, x in getattr(state, part).state_dict().items()}
    for net, opt in state.optimizers.items():
        for number, entry in enumerate(opt.state.values()):
            found |= {f"{net}_opt.{number}.{name}": x for name, x in entry.items()}
    return found | {f"statistic {name}": torch.tensor(x) for name, x in stats.pending().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def start(options, nets=few_steps.toys, plugins=None):
    stats.restore([])
    state = few_steps.begin(options, networks=nets)
    if plugins:  # third parties', not registered
        state.plugins = state.loss.plugins = Plugins(copy.deepcopy(plugins))
    if state.G.c_dim:
        state.dataset = Labelled()
    for module in state.plugins.modules():
        if isinstance(module, AugmentPipe):
            module.like_gpu = True
    return state


def compare(options, iterations=6, nets=few_steps.toys, plugins=None, **settings):
    """Train without and with graphs, which must be the same; return the backend and what was said.

    What training with graphs holds in the end comes third.
    """
    plain = content(train(start(options, nets, plugins), iterations, **settings))
    backend, said, state = EmulatedGraphs(), [], start(options, nets, plugins)
    captured = Graphs(state, backend, said.append)
    assert_same(plain, content(train(state, iterations, captured, **settings)))
    return backend, said, state


def test_conditional_networks_train_the_same_with_accumulation_and_methods():
    methods = {"freezed": {"freezed": 1}, "apa": {"target": -1.0, "kimg": 0.1}}
    backend, said, _ = compare(methods, 3, networks)
    assert said == [] and backend.replays > backend.captures > 0


SETS = [
    {},
    {"rick": {"freeze": 50.0, "warmup": 2, "every": 2, "batches": 2}},
    {"adam": {"probe": 2, "batches": 2}, "tune": {"tune": "scale-shift"}},
    {"minegan": {"alone": 2}},
    {"fsgan": {}, "lecam": {"lambda_": 0.1}},
    {"apa": {"target": -1.0, "kimg": 0.1, "signal_on": "real"}, "dcl": {}},
    {"fixed": {"p": 0.3, "augpipe": "bgcf"}, "lecam": {"lambda_": 0.1}},
    {"diffaugment": {}, "ewc": {"lambda_": 1.0}},
]


def train_the_same(options, iterations):
    backend, said, _ = compare(options, iterations)
    assert said == [] and backend.replays > backend.captures >= 4


def test_methods_train_the_same():
    both = {"lambda_": 1.0, "network": "GD"}
    train_the_same({"ewc": both, "dcl": {}, "freezed": {"freezed": 1}}, 4)


def test_augmentations_train_the_same_while_their_p_moves():
    quick = {"target": -1.0, "kimg": 0.05}
    backend, said, state = compare({"ada": quick, "diffaugment": {}, "apa": quick}, 9)
    assert said == [] and backend.captures == 7  # two parts of four phases, alike in Greg: no more
    assert state.plugins["ada"].pipe.p > 0.3


@SLOW
@pytest.mark.parametrize("options", SETS, ids="-".join)
def test_every_other_method_trains_the_same(options):
    train_the_same(options, 6)


@pytest.mark.parametrize(
    ("options", "phases", "reason"),
    [
        ({"cdc": {}}, "Gmain", "'penalty' of the plugin 'cdc'"),
        pytest.param({"bank": {"size": 2}}, "Gmain Greg Dmain", "waits for", marks=SLOW),
    ],
    ids=["cdc", "bank"],
)
def test_what_no_graph_can_hold_runs_in_python_with_one_line(options, phases, reason):
    _, said, _ = compare(options, 5)
    starts = [line.partition(" runs without a CUDA graph: ") for line in said]
    assert {phase for phase, _, _ in starts} == set(phases.split()) and len(said) == len(starts)
    assert reason in starts[0][2]


def test_a_penalty_that_sets_in_later_is_captured_anew():
    backend, said, _ = compare({"lecam": {"lambda_": 0.1, "start_kimg": 0.008}}, 4)
    assert said == [] and backend.captures == 5  # Dmain twice


@SLOW
def test_batches_of_two_sizes_are_two_graphs():
    backend, said, _ = compare({"apa": {}}, batch_gpu=3)
    assert said == [] and backend.captures == 8


@SLOW
def test_a_resumed_run_is_the_same():
    quick = {"target": -1.0, "kimg": 0.1}
    options = {"ewc": {"lambda_": 1.0}, "apa": quick, "ada": quick}
    plain = content(train(start(options), 6))
    state = start(options)
    train(state, 3, Graphs(state, EmulatedGraphs(), pytest.fail))
    file = io.BytesIO()
    torch.save(state.tensors(), file)
    file.seek(0)
    resumed, backend = start(options), EmulatedGraphs()
    resumed.load(torch.load(file, weights_only=True))
    train(resumed, 3, Graphs(resumed, backend, pytest.fail))
    assert_same(plain, content(resumed))
    assert backend.replays


def test_graphs_outlast_a_rehearsal_and_the_end_of_a_tick():
    def rehearse(captured_by):
        state = start({"ewc": {"ratio": 0.3}, "lecam": {"lambda_": 0.1}})
        captured = captured_by(state)
        before = copy.deepcopy(state.tensors())
        train(state, 3, captured)
        moments = stats.collect()
        state.load(before)
        state.plugins.rehearsed(moments)
        train(state, 3, captured)
        found = content(state)
        return {**found, "moments": torch.tensor([m.mean for m in moments.values()])}

    backend = EmulatedGraphs()
    plain = rehearse(lambda state: None)
    assert_same(plain, rehearse(lambda state: Graphs(state, backend, pytest.fail)))
    assert backend.captures == 4


class Planted(Plugin):
    """A third party's method whose Python goes by something that a graph does not hold."""

    def __init__(self, way):
        super().__init__()
        self.way, self.number, self.last, self.hidden = way, 0.0, None, Hidden()
        self.register_buffer("mean", torch.ones([]))
        self.capturable = way != "says so"

    def observe(self, step):
        if self.way == "rebinds" and step.phase == "Gmain":
            self.mean = self.mean * 0.5 + step.ws.mean()

    def penalty(self, step):
        if step.phase == "Gmain":
            return step.ws.square().mean() * getattr(self, self.way.replace(" ", "_"))(step)

    def counts(self, step):
        self.number += 1
        return self.number

    def decays(self, step):
        return 1.0 / (1 + step.cur_nimg)

    def draws(self, step):
        return random.random()

    def looks(self, step):
        return float(step.z.numpy().max())

    def remembers(self, step):
        before, self.last = self.last, step.ws.detach()
        return 1.0 if before is None else before.square().mean()

    def keeps_attached(self, step):
        self.last = step.ws * 2
        return 1.0

    def rebinds(self, step):
        return self.mean

    def hides(self, step):
        return self.hidden.number

    def says_so(self, step):
        return 1.0

    def sees_ahead(self, step):
        return self.ahead(step, step.ws.device, lambda rng: step.ws.detach().square().mean())

    def asks_now_and_then(self, step):
        self.hidden.number = 1 - self.hidden.number
        draws = [self.sees_ahead(step) for _ in range(int(self.hidden.number + 1))]
        return sum(draws)

    def after_step(self, cur_nimg):
        self.hidden.number += cur_nimg > 4


class Hidden:
    """A number that no comparison of attributes sees."""

    __slots__ = ("number",)

    def __init__(self):
        self.number = 1.0


REASONS = {
    "counts": "planted.number was another in 2 iterations",
    "decays": "step.cur_nimg is computed with",
    "looks": "a replay comes to another ",
    "draws": "Python itself does not come to ",
    "remembers": "planted.last was another in 2 iterations",
    "keeps attached": "a plugin remembers a tensor that gradients could flow through",
    "rebinds": "planted._buffers was another in 2 iterations",
    "says so": "the plugin 'planted' says that none can hold it",
    "sees ahead": "a replay comes to another ",
    "asks now and then": "made ahead of it than it did before",
}


@pytest.mark.parametrize("way", REASONS)
def test_what_python_goes_by_is_never_silently_stale(way, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_CAPTURES", 2)
    random.seed(0)
    state = start({}, plugins={"planted": Planted(way)})
    plain = content(train(state, 5, batch_gpu=4))
    random.seed(0)
    state, said = start({}, plugins={"planted": Planted(way)}), []
    found = content(train(state, 5, Graphs(state, EmulatedGraphs(), said.append), batch_gpu=4))
    if way != "draws":  # which the comparison has advanced
        assert_same(plain, found)
    mine = [line for line in said if line.startswith("Gmain")]
    assert len(mine) == 1 and REASONS[way] in mine[0]


def test_what_nobody_sees_is_found_out_by_the_comparison_that_recurs(monkeypatch):
    monkeypatch.setattr(graphs, "CHECK_EVERY", 3)
    state, said = start({}, plugins={"planted": Planted("hides")}), []
    train(state, 6, Graphs(state, EmulatedGraphs(), said.append), batch_gpu=4)
    assert len(said) == 1 and "Gmain runs without a CUDA graph: a replay comes" in said[0]


def test_a_gradient_that_no_loss_reaches_stays_none_and_its_parameter_where_it_is():
    state = start({})
    idle = torch.nn.Parameter(torch.ones(2))
    state.trained["G"]["idle"] = idle
    state.optimizers["G"].add_param_group({"params": [idle]})
    train(state, 4, Graphs(state, EmulatedGraphs(), pytest.fail))
    assert idle.grad is None and idle not in state.optimizers["G"].state


def test_there_are_no_graphs_on_the_cpu_nor_where_they_are_off():
    state = start({})
    assert graphs.of({"graphs": "auto"}, state, few_steps.CPU, pytest.fail) is None
    assert graphs.of({"graphs": "off"}, state, torch.device("cuda", 0), pytest.fail) is None


def on_meta(options):
    """Return the state of a run on a device that has no values."""
    state = start(options)
    for module in (state.G, state.D, state.G_ema, state.plugins):
        module.to(META)
    for net, module in (("G", state.G), ("D", state.D)):
        state.trained[net] = {k: p for k, p in module.named_parameters() if k in state.trained[net]}
        state.optimizers[net] = torch.optim.Adam(state.trained[net].values(), lr=0.1, fused=False)
        for param in state.trained[net].values():
            param.grad = torch.zeros_like(param)
    return state


@pytest.mark.parametrize(
    "options",
    [{}, {"ewc": {"lambda_": 1.0}}, {"fsgan": {}}, {"adam": {}}, {"rick": {}}],
    ids="-".join,
)
def test_what_stays_outside_of_graphs_does_not_wait_for_the_device(options):
    phases = Phases(few_steps.OPTIONS, on_meta(options), META)
    with Rules():
        phases.step("G")
        phases.step("D")
        phases.update_ema()


def test_ranks_exchange_tensors_of_the_device_and_flags_of_the_cpu(monkeypatch):
    state, sent = on_meta({"ada": {}, "apa": {}, "lecam": {"lambda_": 0.1}, "ewc": {}}), []
    group = {"is_initialized": True, "get_world_size": 2, "get_rank": 0}
    for name, value in group.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_reduce", sent.append)
    phases = Phases(few_steps.OPTIONS, state, META)
    phases.step("G")
    phases.step("D")
    with stats.apart():
        state.plugins.after_step(0)
    flags = [x for x in sent if x.device != META]  # NCCL takes none of them, gloo does
    assert [len(x) for x in flags] == [len(state.trained[net]) for net in "GD"]
    assert len(sent) - len(flags) == 2 + 4  # gradients; sums of ADA, LeCam, and two of APA


def on_a_rank(place):
    """Train with graphs and without; keep both."""
    torch.set_num_threads(1)
    distributed.init("cpu")
    options, kept = {"apa": {"target": -1.0, "kimg": 0.1}, "lecam": {"lambda_": 0.1}}, []
    for captured_by in (lambda state: None, lambda s: Graphs(s, EmulatedGraphs(), pytest.fail)):
        state = start(options)
        kept.append(content(train(state, 4, captured_by(state))))
    torch.save(kept, place / f"{distributed.rank()}.pt")
    distributed.shutdown()


@SLOW
def test_two_ranks_train_the_same(tmp_path):
    distributed.spawn(on_a_rank, (tmp_path,), 2)
    for rank in (0, 1):
        assert_same(*torch.load(tmp_path / f"{rank}.pt"))
