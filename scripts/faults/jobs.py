"""The commands under test."""

from dataclasses import dataclass, field


@dataclass
class Job:
    """A command line, in which `OUT` stands for the output."""

    name: str
    arguments: tuple
    # Relative to the folder of outputs; empty if the command only prints.
    out: str = ""
    # Options that make it another job with the same output.
    other: tuple = ()
    # A final name only ever holds the old or the new bytes.
    atomic: bool = True
    # Names next to the output that exist only while the job is unfinished, and where a user may have files, too.
    transient: tuple = ()
    # Inputs in the workspace that could also be given as the output.
    inputs: tuple = ()
    folder: bool = False
    # Files with timings, relative to the folder of outputs.
    timed: tuple = ()
    # Numbers of the images that it reads.
    images: range | None = None
    # Only in the long form.
    slow: bool = False
    # Determined from the program's own `--help`.
    overwrites: bool = field(default=False)

    @property
    def command(self) -> str:
        return self.arguments[0]

    def line(self, out: str | None = None, other: bool = False, overwrite: bool = False) -> list:
        line = [word.replace("OUT", out or f"t/{self.out}") for word in self.arguments]
        if other:
            line = replaced(line, self.other)
        if overwrite:
            line.append("--overwrite")
        return line


def replaced(line: list, options: tuple) -> list:
    """A command line with options replaced or, for `--set`, added."""
    line = list(line)
    for name, value in zip(options[::2], options[1::2]):
        if name in line and name != "--set":
            line[line.index(name) + 1] = value
        else:
            line += [name, value]
    return line


# Images of the tables train.csv and many.csv, and of validation.csv.
TRAINED, HELD_OUT = range(48), range(48, 64)
PACKED = (
    ("csv", "subset.csv", False), ("parquet", "subset.parquet", False), ("uids", "uids.npy", False), ("imagefolder", "images", True),
    ("imagefolder-links", "links", True), ("webdataset", "shards", True),
)
DATA = ("data/train.csv", "data/images", "data")

JOBS = [
    Job("demo", ("demo", "--out", "OUT", "--set", "ep=1", "--set", "rater_only_epochs=0", "--set", "depth=1", "--set", "pn=1_2",
                 "--set", "bs=240"),
        "demo", ("--seed", "1"), atomic=False, folder=True, slow=True, inputs=("data", "run")),
    Job("compare", ("compare", "--config", "config.json", "--out", "OUT", "--seeds", "1", "--keep", "50%", "--ratings", "clarity",
                    "--samplers", "top-k", "--equal", "epochs", "--set", "ep=1"),
        "comparison", atomic=False, timed=("comparison/fits.csv", "comparison/comparison.json", "comparison/fits/*.json"), folder=True, images=TRAINED, inputs=("data", "run")),
    Job("train", ("train", "--config", "config.json", "--out", "OUT"), "run", ("--set", "seed=1"), atomic=False,
        folder=True, images=TRAINED, inputs=("data",)),
    Job("train gain", ("train", "--config", "config.json", "--set", "rule=gain", "--set", "crossfit.epochs=2", "--out", "OUT"),
        "judged", ("--set", "seed=1"), atomic=False, folder=True, images=TRAINED, inputs=("data",)),
    Job("fit", ("fit", "--config", "config.json", "--data", "data/train.csv", "--validation", "data/validation.csv", "--out", "OUT"),
        "model", ("--set", "seed=1"), atomic=False, folder=True, images=TRAINED, inputs=("data",)),
    Job("encode", ("encode", "--config", "config.json", "--shard", "16", "--out", "OUT"), "cache", ("--set", "image_tokenizer.codes=8"),
        atomic=False, folder=True, images=TRAINED, inputs=("data", "run")),
    Job("score", ("score", "--checkpoint", "run", "--data", "data/many.csv", "--out", "OUT"), "ratings.csv",
        ("--data", "data/train.csv"), transient=("ratings.parts",), images=TRAINED, inputs=("data/many.csv",)),
    Job("attribute", ("attribute", "--checkpoint", "run", "--data", "data/train.csv", "--validation", "data/validation.csv", "--out",
                      "OUT"),
        "numbers.parquet", ("--geometry", "adamw"), transient=("numbers.parts",), images=TRAINED, inputs=("data/train.csv",)),
    Job("select", ("select", "--ratings", "ratings.csv", "--keep", "50%", "--out", "OUT"), "subset.csv", ("--seed", "1"),
        inputs=("ratings.csv",)),
    *(Job(f"pack {form}", ("pack", "--data", "data/train.csv", "--format", form, "--out", "OUT",
                           *(("--shard", "16") if form == "webdataset" else ())),
          out, ("--data", "data/small.csv"), images=TRAINED, folder=folder, inputs=DATA) for form, out, folder in PACKED),
    Job("sample", ("sample", "--checkpoint", "model", "--prompts", "prompts.txt", "--batch", "2", "--out", "OUT"), "sampled",
        ("--seed", "1"), folder=True, inputs=("data", "model", "prompts.txt")),
    Job("measure", ("measure", "--generated", "sampled", "--reference", "data/validation.csv", "--checkpoint", "model", "--out", "OUT"),
        "measures.json", ("--reference", "data/small.csv"), images=HELD_OUT, inputs=("data/validation.csv", "model/config.json")),
    Job("report", ("report", "--of", "run", "--ratings", "ratings.csv", "--out", "OUT"), "report.html", ("--ratings", "few.csv"),
        images=TRAINED, inputs=("ratings.csv", "run/config.json", "data/train.csv")),
    Job("export", ("export", "--checkpoint", "run", "--out", "OUT"), "ar-ckpt.pth", ("--checkpoint", "model"),
        inputs=("run/config.json", "run/metrics.jsonl")),
    Job("inspect", ("inspect", "weights.pth")),
    Job("convert", ("convert", "weights.pth", "OUT"), "weights.safetensors", ("--dtype", "f16"), inputs=("weights.pth",)),
    Job("convert shards", ("convert", "weights.pth", "OUT", "--shard-size", "60kB"), "weights.safetensors", ("--dtype", "f16"),
        inputs=("weights.pth",)),
    Job("plant", ("plant", "--data", "data/train.csv", "--out", "OUT", "--side", "24"), "planted", ("--seed", "1"), folder=True,
        images=TRAINED, inputs=DATA),
    Job("devices", ("devices",)),
]
