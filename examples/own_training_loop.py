"""A training loop of one's own on plsc's parts: data, model, loss, optimizer and schedule, without the engine.

    python examples/own_training_loop.py [EPOCHS]

Trains a small Vision Transformer on handwritten digits and prints the loss and the test accuracy of every epoch. What
the engine does besides (several processes, half precision, accumulation, checkpoints, logs) is missing here.
"""

import sys

import paddle

import plsc
from plsc.data.datasets import Digits
from plsc.data.device import DeviceInput
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader
from plsc.data.sampler import DistributedBatchSampler, evaluation_batches
from plsc.data.transforms import NormalizeImage, RandShift
from plsc.losses import CELoss
from plsc.metrics import TopkAcc
from plsc.optim import GradientClip, Optimizer, parameter_groups
from plsc.optim.optimizers import AdamW
from plsc.optim.schedules import Cosine

BATCH_SIZE, SEED = 64, 0


def loader(data, transforms) -> Loader:
    """Batches of transformed pictures, prepared in this process."""
    return Loader(Fetcher(data, transforms, seed=SEED, class_num=10), batch_size=BATCH_SIZE)


def main(epochs: int = 50) -> float:
    """Train; returns the test accuracy."""
    paddle.seed(SEED)
    train, test = Digits(split="train"), Digits(split="test")
    sampler = DistributedBatchSampler(
        BATCH_SIZE, drop_last=True, shuffle=True, size=len(train), seed=SEED, rank=0, world=1
    )
    steps = epochs * sampler.steps_per_epoch
    to_device = DeviceInput(NormalizeImage(mean=[0.5], std=[0.5]))
    train_loader, test_loader = loader(train, [RandShift(1)]), loader(test, [])

    network = plsc.create_model(
        "VisionTransformer", img_size=8, patch_size=2, in_chans=1, class_num=10, embed_dim=64, depth=4, num_heads=4
    )
    groups = parameter_groups(network, no_decay=("bias", "norm", "token", "position"))
    optimizer = Optimizer(AdamW(weight_decay=0.05, groups=groups), network, GradientClip(1.0))
    schedule = Cosine(2e-3, warmup_steps=steps // 10, total_steps=steps, steps_per_epoch=sampler.steps_per_epoch)
    loss_of, accuracy = CELoss(epsilon=0.1), TopkAcc([1])

    batches = train_loader.run(sampler.batches(0))
    for epoch in range(epochs):
        network.train()
        for step in range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch):
            batch = to_device(next(batches))
            loss = loss_of(network(batch["image"]), plsc.Targets.of(batch)).mean()
            loss.backward()
            optimizer.clip_gradients()
            optimizer.set_lr(schedule(step))
            optimizer.paddle_optimizer.step()
            optimizer.clear_gradients()
        network.eval()
        accuracy.reset()
        with paddle.no_grad():
            for arrays in test_loader.run(evaluation_batches(len(test), BATCH_SIZE, 0, 1)):
                batch = to_device(arrays)
                accuracy.update(network(batch["image"]), plsc.Targets.of(batch), batch["valid"])
        print(f"epoch {epoch + 1}  loss {loss.item():.4f}  test top-1 {accuracy.compute()['top1']:.2%}")
    return accuracy.compute()["top1"]


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))
