"""The plain loop of published distillation code, written from its description, to measure ours against.

One process: PIL transforms in DataLoader workers, an fp32 student, the teacher's forward in every step, the
loss and both accuracies read after each. Of ikdlib it uses the networks alone: no loader, trainer or loss.
On a GPU cuDNN looks for its fastest algorithms, as published code lets it, and convolutions are TF32, torch's
default.
A round trains on as many images as were asked for; `compare.py` starts this program and says when.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
import torch.nn.functional as F
from protocol import MEAN, STD, noise, serve
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ikdlib import models


class Pictures(Dataset):
    """As torchvision's CIFAR100 gives them: an array, a PIL image each time one is asked for, transforms."""

    def __init__(self, count: int, classes: int):
        images, targets = noise(count, classes)
        self.images, self.targets = images.numpy(), targets.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.images[index])), self.targets[index]


def dkd(student, teacher, target, alpha=1.0, beta=8.0, temperature=4.0):
    """DKD as it is commonly written: a mask, and a large number taken off the target's logit."""
    mask = torch.zeros_like(student).scatter_(1, target[:, None], 1).bool()
    s, t = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    s2 = torch.stack([(s * mask).sum(1), (s * ~mask).sum(1)], 1)
    t2 = torch.stack([(t * mask).sum(1), (t * ~mask).sum(1)], 1)
    target_part = F.kl_div(s2.log(), t2, reduction="batchmean") * temperature**2
    s_rest = F.log_softmax(student / temperature - 1000.0 * mask, 1)
    t_rest = F.softmax(teacher / temperature - 1000.0 * mask, 1)
    return alpha * target_part + beta * F.kl_div(s_rest, t_rest, reduction="batchmean") * temperature**2


def ikd(student, means, target, weight=6.5, temperature=1.0):
    """The IKD term on given class means."""
    wanted = F.softmax(means[target] / temperature, 1)
    return (
        weight
        * temperature**2
        * F.kl_div(F.log_softmax(student / temperature, 1), wanted, reduction="batchmean")
    )


def hits(logits, target):
    """Top-1 and top-5 accuracy in %, each read from the device."""
    best = logits.topk(5, 1).indices.eq(target[:, None])
    return 100 * best[:, :1].any(1).float().mean().item(), 100 * best.any(1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("pair", str), ("images", int), ("classes", int), ("threads", int), ("workers", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # 8 on 2 cores is on purpose
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    device, (teacher_name, student_name) = torch.device(options.device), options.pair.split("/")
    teacher = models.build(teacher_name, options.classes).to(device).eval()
    student = models.build(student_name, options.classes).to(device).train()
    means = torch.randn(options.classes, options.classes, device=device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        Pictures(options.images, options.classes), batch_size=64, shuffle=True, num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )  # fmt: skip

    def round_of_steps() -> dict[str, float]:
        began = time.perf_counter()
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            with torch.no_grad():
                answers = teacher(images)
            logits = student(images)
            loss = F.cross_entropy(logits, target) + dkd(logits, answers, target) + ikd(logits, means, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            hits(logits.detach(), target)
        return {"seconds": time.perf_counter() - began}

    serve(round_of_steps)


if __name__ == "__main__":
    main()
