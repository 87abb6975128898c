"""timm on PyTorch: channels_last, on a GPU under bfloat16 autocast where that is asked for."""

import contextlib
from collections.abc import Callable
from typing import Any

import timm
import torch


def versions() -> str:
    """What runs."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"timm {timm.__version__}, torch {torch.__version__}, {device}"


def make(case: dict[str, Any], compiled: bool) -> Callable[[], None]:
    """Makes a case."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workload, batch, side = case["workload"], case["batch"], case["resolution"]
    model = timm.create_model(f"tf_efficientnet_{case['variant']}", pretrained=False, drop_path_rate=0.2)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 1000
    half = case["dtype"] == "bfloat16"
    model.train(workload in ("frozen", "trained", "block6"))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and workload != "trained":
            module.eval()
        if workload == "block6" and name.startswith(("conv_stem", "bn1", *(f"blocks.{i}" for i in range(5)))):
            module.eval()
    trained = {"classifier": ("classifier",), "block6": ("blocks.5", "blocks.6", "conv_head", "bn2", "classifier")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained.get(workload, "")))
    network = torch.compile(model) if compiled else model

    def program() -> None:
        context = torch.inference_mode() if workload == "forward" else contextlib.nullcontext()
        with context, torch.autocast(device, torch.bfloat16, enabled=half):
            logits = network(images)
        if workload != "forward":
            model.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return program
