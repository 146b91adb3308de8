"""Measures time and memory for all scripts here. Each measurement is printed as one line of JSON."""

import json
import resource
import statistics
import time

import torch


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device, warm_up, repeats, budget=None):
    """Times of `work`, synchronized; on a GPU, measured by CUDA events."""
    for _ in range(warm_up):
        work()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times, started = [], time.perf_counter()
    while len(times) < repeats and (len(times) < 3 or budget is None or time.perf_counter() - started < budget):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return times


def peak_bytes(device):
    """Peak memory: of the GPU's tensors since the last warm-up, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(name, times, device, **more):
    line = {
        "name": name,
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "n": len(times),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    line.update(more)
    print(json.dumps(line), flush=True)
