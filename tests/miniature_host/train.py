"""A miniature of the host: as much of its interface as `patches` meets, and nothing of its text.

Its loop takes the names, the order of events and the calls of CUDA from the original's interface;
its networks are the project's own.
"""

import json
import os
import tempfile

import click
import dnnlib
import torch
from torch_utils import training_stats

from training import training_loop


class UserError(Exception):
    pass


def setup_training_loop_kwargs(data, gpus, kimg, batch, seed, aug, resume, fp32, **unused):
    if batch % (gpus or 1):
        raise UserError("--batch must be divisible by --gpus")
    optimizer = dnnlib.EasyDict(class_name="torch.optim.Adam", lr=0.002, betas=[0.0, 0.99])
    args = dnnlib.EasyDict(
        num_gpus=gpus or 1,
        random_seed=seed,
        training_set_kwargs=dnnlib.EasyDict(
            class_name="training.dataset.ImageFolderDataset", path=data
        ),
        data_loader_kwargs=dnnlib.EasyDict(pin_memory=True, num_workers=0),
        G_kwargs=dnnlib.EasyDict(
            class_name="training.networks.Generator",
            z_dim=8,
            w_dim=8,
            mapping_kwargs=dnnlib.EasyDict(num_layers=2),
            synthesis_kwargs=dnnlib.EasyDict(
                channel_base=128, channel_max=8, num_fp16_res=0 if fp32 else 2
            ),
        ),
        D_kwargs=dnnlib.EasyDict(
            class_name="training.networks.Discriminator",
            channel_base=128,
            channel_max=8,
            num_fp16_res=0 if fp32 else 2,
            epilogue_kwargs=dnnlib.EasyDict(mbstd_group_size=2),
        ),
        G_opt_kwargs=optimizer,
        D_opt_kwargs=optimizer,
        loss_kwargs=dnnlib.EasyDict(class_name="training.loss.StyleGAN2Loss", r1_gamma=1),
        G_reg_interval=4,
        D_reg_interval=3,
        total_kimg=kimg,
        kimg_per_tick=0.008,
        batch_size=batch,
        batch_gpu=2,
    )
    if resume:
        args.resume_pkl = resume
    return f"mini-{aug or 'ada'}", args


def subprocess_fn(rank, args, temp_dir):
    if args.num_gpus > 1:
        torch.distributed.init_process_group(
            backend="nccl",
            init_method=f"file://{os.path.abspath(temp_dir)}/init",
            rank=rank,
            world_size=args.num_gpus,
        )
    device = torch.device("cuda", rank) if args.num_gpus > 1 else None
    training_stats.init_multiprocessing(rank=rank, sync_device=device)
    training_loop.training_loop(rank=rank, **args)


@click.command()
@click.pass_context
@click.option("--outdir", required=True)
@click.option("--data", required=True)
@click.option("--gpus", type=int)
@click.option("--kimg", type=float, default=0.024)
@click.option("--batch", type=int, default=4, help="The host's own help.")
@click.option("--seed", type=int, default=0)
@click.option("--aug", type=click.Choice(["noaug", "ada", "fixed"]))
@click.option("--p", type=float)
@click.option("--target", type=float)
@click.option("--augpipe", type=click.Choice(["blit", "bgc"]))
@click.option("--resume")
@click.option("--freezed", type=int)
@click.option("--fp32", type=bool)
@click.option("-n", "--dry-run", is_flag=True)
def main(ctx, outdir, dry_run, **config):
    """Train in miniature."""
    try:
        name, args = setup_training_loop_kwargs(**config)
    except UserError as error:
        ctx.fail(error)
    args.run_dir = os.path.join(outdir, name)
    print(json.dumps(args, indent=2))
    if dry_run:
        return
    os.makedirs(args.run_dir)
    torch.multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as temp_dir:
        if args.num_gpus == 1:
            subprocess_fn(rank=0, args=args, temp_dir=temp_dir)
        else:
            torch.multiprocessing.spawn(subprocess_fn, (args, temp_dir), nprocs=args.num_gpus)


if __name__ == "__main__":
    main()
