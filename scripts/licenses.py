#!/usr/bin/env python3
"""Checks the license and the source of every dependency against deny.toml.

    python3 scripts/licenses.py

Every crate of the locked dependency graph, for every platform, must offer a license that [licenses] allows, and come
from the one registry (a Git source is refused). Exits with 1 and one line for each crate that does not.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Expression:
    """An SPDX license expression: names joined by OR, AND and WITH, with parentheses ("/" is an old way to write OR)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = re.findall(r"[()]|[^\s()]+", text.replace("/", " OR "))
        self.at = 0

    def satisfied(self, allowed: set[str]) -> bool:
        """Whether the expression holds if exactly the `allowed` licenses are acceptable."""
        self.at = 0
        result = self.alternatives(allowed)
        if self.at != len(self.tokens):
            raise ValueError(f"cannot read the license expression `{self.text}`")
        return result

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, token: str) -> bool:
        if self.next() == token:
            self.at += 1
            return True
        return False

    def alternatives(self, allowed: set[str]) -> bool:
        result = self.conjunction(allowed)
        while self.take("OR"):
            right = self.conjunction(allowed)
            result = result or right
        return result

    def conjunction(self, allowed: set[str]) -> bool:
        result = self.license(allowed)
        while self.take("AND"):
            right = self.license(allowed)
            result = result and right
        return result

    def license(self, allowed: set[str]) -> bool:
        if self.take("("):
            result = self.alternatives(allowed)
            if not self.take(")"):
                raise ValueError(f"cannot read the license expression `{self.text}`")
            return result
        name = self.next()
        if not re.fullmatch(r"[A-Za-z0-9.+-]+", name) or name in ("OR", "AND", "WITH"):
            raise ValueError(f"cannot read the license expression `{self.text}`")
        self.at += 1
        if self.take("WITH"):
            name = f"{name} WITH {self.next()}"
            self.at += 1
        return name in allowed


def check_expressions() -> None:
    """The reader above is small, and wrong answers would go unnoticed: known expressions first."""
    allowed = {"MIT", "Apache-2.0", "Zlib"}
    known = {
        "MIT": True, "GPL-3.0": False, "GPL-3.0 OR MIT": True, "MIT/Unlicense": True, "MIT AND GPL-3.0": False,
        "(MIT OR GPL-3.0) AND Zlib": True, "(MIT OR Zlib) AND GPL-3.0": False, "MIT AND Zlib OR GPL-3.0": True,
        "GPL-3.0 OR MIT AND GPL-2.0": False, "Apache-2.0 WITH LLVM-exception": False,
        "Apache-2.0 WITH LLVM-exception OR MIT": True,
    }
    for text, expected in known.items():
        if Expression(text).satisfied(allowed) != expected:
            sys.exit(f"scripts/licenses.py misreads `{text}`")


def main() -> None:
    check_expressions()
    with (ROOT / "deny.toml").open("rb") as file:
        policy = tomllib.load(file)
    allowed = set(policy["licenses"]["allow"])
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    if policy["graph"]["all-features"]:
        command.append("--all-features")
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    packages = json.loads(output)["packages"]
    dependencies = [package for package in packages if package["source"] is not None]

    failures = []
    sources = Counter(package["source"] for package in dependencies)
    registry = sources.most_common(1)[0][0] if sources else ""
    versions = defaultdict(list)
    for package in dependencies:
        name = f"{package['name']} {package['version']}"
        versions[package["name"]].append(package["version"])
        if package["source"] != registry or not registry.startswith("registry+"):
            failures.append(f"{name}: comes from {package['source']}, not from the registry")
        if not package["license"]:
            failures.append(f"{name}: states no license; read its license file and decide in deny.toml")
            continue
        try:
            if not Expression(package["license"]).satisfied(allowed):
                failures.append(f"{name}: `{package['license']}` is not allowed by deny.toml")
        except ValueError as error:
            failures.append(f"{name}: {error}")
    if failures:
        print("\n".join(failures))
        sys.exit(1)
    twice = [f"{name} ({', '.join(sorted(found))})" for name, found in sorted(versions.items()) if len(found) > 1]
    print(f"{len(dependencies)} dependencies, every license allowed, all from one registry")
    print(f"in more than one version: {', '.join(twice) or 'none'}")


if __name__ == "__main__":
    main()
