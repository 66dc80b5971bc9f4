"""The part of the host's loop that our hooks hold on to, CUDA's calls among it."""

import copy
import json
import pickle
from pathlib import Path

import dnnlib
import legacy
import numpy as np
import torch
from torch_utils import misc, training_stats


def training_loop(rank, run_dir, num_gpus, batch_size, batch_gpu, total_kimg, **options):
    options = dnnlib.EasyDict(options)
    device = torch.device("cuda", rank)
    torch.manual_seed(options.random_seed * num_gpus + rank)
    data = dnnlib.util.construct_class_by_name(**options.training_set_kwargs)
    loader = _loader(data, rank, num_gpus, batch_size, options)
    nets, G_ema = _networks(data, options, device, rank)
    G, D = nets.values()
    if rank == 0:
        misc.print_module_summary(G, [torch.full([2, G.z_dim], torch.nan), torch.empty([2, 0])])
    parts = _wrapped(G, D, G_ema, device, num_gpus)
    loss = dnnlib.util.construct_class_by_name(
        device=device, augment_pipe=None, **parts, **options.loss_kwargs
    )
    phases = [phase for name in "GD" for phase in _phases(name, nets[name], options)]
    collector = training_stats.Collector(regex=".*")
    cur_nimg, tick = 0, 0
    for index, (real, c) in enumerate(loader):
        real = (real.to(device).float() / 127.5 - 1).split(batch_gpu)
        label = torch.from_numpy(np.stack([data.get_label(0)] * batch_gpu)).pin_memory().to(device)
        for phase in phases:
            if index % phase.interval:
                continue
            phase.start.record(torch.cuda.current_stream(device))
            phase.opt.zero_grad(set_to_none=True)
            phase.module.requires_grad_(True)
            for number, (img, img_c) in enumerate(zip(real, c.split(batch_gpu), strict=True)):
                loss.accumulate_gradients(
                    phase=phase.name,
                    real_img=img,
                    real_c=img_c,
                    gen_z=torch.randn([batch_gpu, G.z_dim], device=device),
                    gen_c=label,
                    sync=number == len(real) - 1,
                    gain=phase.interval,
                )
            phase.module.requires_grad_(False)
            with torch.autograd.profiler.record_function(phase.name + "_opt"):
                phase.opt.step()
            phase.end.record(torch.cuda.current_stream(device))
        with torch.autograd.profiler.record_function("Gema"):
            for ema, value in zip(G_ema.parameters(), G.parameters(), strict=True):
                ema.lerp_(value, 0.5)
        cur_nimg += batch_size
        if cur_nimg < (tick + 1) * options.kimg_per_tick * 1000 and cur_nimg < total_kimg * 1000:
            continue
        tick += 1
        if rank == 0:
            phases[0].end.synchronize()
            memory = torch.cuda.max_memory_allocated(device)
            sec = phases[0].start.elapsed_time(phases[0].end) / 1000
            print(f"tick {tick} kimg {cur_nimg / 1000:.3f} sec {sec:.3f} memory {memory}")
            torch.cuda.reset_peak_memory_stats()
            _save(run_dir, cur_nimg, G=G, D=D, G_ema=G_ema)
        collector.update()
        with open(Path(run_dir) / f"stats-{rank}.jsonl", "a") as file:
            print(json.dumps(collector.as_dict()), file=file)
        if cur_nimg >= total_kimg * 1000:
            break


def _save(run_dir, cur_nimg, **nets):
    with open(Path(run_dir) / f"network-snapshot-{cur_nimg:06d}.pkl", "wb") as file:
        pickle.dump(copy.deepcopy(nets), file)


def _loader(data, rank, num_gpus, batch_size, options):
    sampler = misc.InfiniteSampler(data, rank, num_gpus)
    return torch.utils.data.DataLoader(
        data, sampler=sampler, batch_size=batch_size // num_gpus, **options.data_loader_kwargs
    )


def _networks(data, options, device, rank):
    """Return G and D, by name, and G_ema; from a pickle where one is resumed."""
    shape = dict(c_dim=0, img_resolution=data.resolution, img_channels=data.num_channels)
    nets = {}
    for name in "GD":
        net = dnnlib.util.construct_class_by_name(**options[f"{name}_kwargs"], **shape)
        nets[name] = net.train().requires_grad_(False).to(device)
    G_ema = copy.deepcopy(nets["G"]).eval()
    if options.get("resume_pkl") and rank == 0:
        with dnnlib.util.open_url(options.resume_pkl) as file:
            kept = legacy.load_network_pkl(file)
        for name, net in [*nets.items(), ("G_ema", G_ema)]:
            misc.copy_params_and_buffers(kept[name], net, require_all=False)
    return nets, G_ema


def _wrapped(G, D, G_ema, device, num_gpus):
    """Return what the loss is given; with several GPUs, each for its gradients to be shared."""
    parts = {"G_mapping": G.mapping, "G_synthesis": G.synthesis, "D": D}
    for name, net in [*parts.items(), ("", G_ema)] if num_gpus > 1 else ():
        net.requires_grad_(True)
        parts[name] = torch.nn.parallel.DistributedDataParallel(
            net, device_ids=[device], broadcast_buffers=False
        )
        net.requires_grad_(False)
    parts.pop("", None)
    return parts


def _phases(name, module, options):
    """Return the phases of one network, which share an optimizer."""
    interval = options[f"{name}_reg_interval"]
    opt = dnnlib.util.construct_class_by_name(module.parameters(), **options[f"{name}_opt_kwargs"])
    for end, every in (("main", 1), ("reg", interval)):
        events = {key: torch.cuda.Event(enable_timing=True) for key in ("start", "end")}
        yield dnnlib.EasyDict(name=name + end, module=module, opt=opt, interval=every, **events)
