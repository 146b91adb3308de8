#!/usr/bin/env python3
"""Makes mended.json beside this file with ftfy: texts, most of them decoded by the wrong table or damaged after that, and what
`ftfy.fix_text` makes of each.

    python3 tests/fixtures_made/make_mended.py                    # writes mended.json
    python3 tests/fixtures_made/make_mended.py --times 20 --out more.json
    MENDED=$PWD/more.json cargo test --release --lib mended      # more of them

What is kept was made with ftfy 6.3.1.
"""

import argparse
import html.entities
import json
import random
from pathlib import Path

import ftfy
from ftfy.chardata import CHARMAP_ENCODINGS

TEXTS = [
    "café – “naïve” résumé", "Ürünler için çok güzel şey", "привет, мир — это тест", "Γειά σου Κόσμε",
    "žluťoučký kůň úpěl ďábelské ódy", "Łódź źdźbło ćma", "naïve façade… 5 € £3", "日本語のテスト", "한국어 문장",
    "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "🙂 emoji 👍🏽 done", "l’humanité’s “best”", "x² + y² ≤ ½",
    "à la carte, voilà le travail", "Ångström Øre Åbo", "jalapeño ¿qué? ¡sí!", "Đà Nẵng Việt Nam", "İstanbul ığdır",
    "™ ® © № §", "ßtraße ŒUVRE œuvre ñandú", "ą č ę ė į š ų ū ž", "„”‘’‚ °C ± × ÷ ﬁ ﬂ ½",
]
SUSPECTS = "ÂÃâ€™œ Šž€aZ é.©®°²½вЂСР√±‚Äà×ØÙ§¶ß\xa0\xad\x80\x92\x9d│═"


def wrongly_decoded(times: int):
    for text in TEXTS:
        yield text
        for encoding in CHARMAP_ENCODINGS:
            try:
                wrong = text.encode().decode(encoding)
            except UnicodeDecodeError:
                continue
            forms = [wrong, wrong + " 猫", wrong.replace("\xa0", " "), wrong.upper(), random.choice(TEXTS) + " " + wrong]
            if encoding != "cp437":
                forms.append(wrong.encode().decode("latin-1"))
            for _ in range(2 * times):
                at = random.randrange(len(wrong))
                forms.append(wrong[:at] + random.choice(["", "?", "\ufffd", "\x1a", " ", "é", "Ã"]) + wrong[at + 1:])
            yield from random.sample(forms, min(len(forms), times))


def others(times: int):
    for _ in range(60 * times):
        yield "".join(random.choice(SUSPECTS) for _ in range(random.randrange(1, 7)))
    names = sorted(name for name in html.entities.html5 if name.endswith(";"))
    for name in random.sample(names, min(len(names), 20 * times)):
        yield f"x&{name}y &{name.upper()}"
    for number in [0, 1, 13, 38, 59, 127, 128, 150, 159, 233, 0xD800, 0xFFFE, 0x1F600, 0x110000]:
        yield f"a&#{number};b &#x{number:x}; &#{number}"
    for number in random.sample(range(0x80, 0x10000), 40 * times):
        if not 0xD800 <= number < 0xE000:
            yield "a" + chr(number) + "b"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "mended.json")
    arguments = parser.parse_args()
    random.seed(1)
    texts = dict.fromkeys([*wrongly_decoded(arguments.times), *others(arguments.times)])
    pairs = [[text, ftfy.fix_text(text)] for text in texts]
    lines = ",\n".join(json.dumps(pair) for pair in pairs)
    arguments.out.write_text(f"[\n{lines}\n]\n")
    print(f"{len(pairs)} texts, {sum(before != after for before, after in pairs)} of them mended")


main()
