//! Tokenizers that were made to fill the memory or to stop the program.

use std::fs;

use alchemist_engine::encode::tokenizers::TextTokenizer;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use super::folders::t5_tokenizer_json;

/// The tokenizer of a folder with this `tokenizer.json`, changed; and what encoding a caption of a few letters gives.
fn forged(change: impl Fn(&mut serde_json::Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut tokenizer = t5_tokenizer_json();
    change(&mut tokenizer);
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let encoded =
        TextTokenizer::t5(folder.path(), 12).and_then(|words| words.encode(&["cat", "a dog", "xylophone"]));
    encoded.err().map_or(String::new(), |error| error.to_string())
}

/// Steps that each make a text longer, so often that no memory would hold it: refused, and the step is named.
#[test]
fn tokenizers_that_would_fill_the_memory_are_refused() {
    let times = |count: usize, step: serde_json::Value| vec![step; count];
    let normalizers = |steps: Vec<serde_json::Value>| {
        forged(move |tokenizer| tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": steps}))
    };
    let twice = |pattern: serde_json::Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let doubled = twice(json!({"String": "a"}), "aa");
    // As many as a real tokenizer might have pass.
    assert_eq!(normalizers(times(3, doubled.clone())), "");
    let long = "x".repeat(1 << 20);
    for steps in [
        times(36, doubled),
        times(36, twice(json!({"Regex": "."}), "xx")),
        times(36, twice(json!({"Regex": ""}), "x")),
        times(36, twice(json!({"String": ""}), "x")),
        vec![twice(json!({"String": "a"}), &long)],
        vec![twice(json!({"Regex": "[a-z]"}), &long)],
    ] {
        let said = normalizers(steps);
        assert!(
            said.contains("tokenizer.json: ") && said.contains("its step Replace makes the text longer"),
            "{said}"
        );
    }
    let said = normalizers(times(40, json!({"type": "ByteLevel"})));
    assert!(said.contains("its step ByteLevel"), "{said}");
    let said = normalizers(times(3, json!({"type": "Prepend", "prepend": long})));
    assert!(said.contains("its step Prepend"), "{said}");
    let nested = (0..30).fold(twice(json!({"String": "a"}), "aa"), |inner, _| {
        json!({"type": "Sequence", "normalizers": [inner.clone(), twice(json!({"String": "a"}), "aa")]})
    });
    assert!(normalizers(vec![nested]).contains("its step Replace"));
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let said = forged(|tokenizer| {
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": times(40, level.clone())});
    });
    assert!(said.contains("its step ByteLevel"), "{said}");
}

/// What the tokenizers' library would panic at.
#[test]
fn damaged_parts_of_a_tokenizer_are_refused() {
    let map = |bytes: &[u8]| {
        let text = BASE64_STANDARD.encode(bytes);
        forged(move |tokenizer| {
            tokenizer["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": text})
        })
    };
    // A trie of one unit, whose children are beyond its end; a text that is none; nothing at all.
    for bytes in [&[4, 0, 0, 0, 0, 0, 0, 0, b'x', 0][..], &[0, 0, 0, 0, 0xff, 0], &[4, 0], &[]] {
        let said = map(bytes);
        assert!(said.contains("precompiled_charsmap is damaged"), "{said}");
    }
    // 256 units, of which the one of "a" has a leaf that lies within a letter of two bytes, or beyond the texts.
    for (place, fits) in [(0u32, true), (1, false), (2, true), (9, false)] {
        let mut units = vec![0u32; 512];
        units[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | (256 ^ u32::from(b'a')) << 10;
        units[256] = place;
        let mut bytes = 2048u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend("é\0".as_bytes());
        assert_eq!(map(&bytes).is_empty(), fits, "{place}: {}", map(&bytes));
    }
    let said = forged(|tokenizer| {
        tokenizer["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "?"});
    });
    assert!(said.contains("not base64"), "{said}");
    // A caption twice, or a template around another.
    let said = forged(|tokenizer| {
        let single = tokenizer["post_processor"]["single"].as_array_mut().unwrap();
        single.push(single[0].clone());
    });
    assert!(said.contains("a caption 2 times"), "{said}");
    let said = forged(|tokenizer| {
        let template = tokenizer["post_processor"].take();
        tokenizer["post_processor"] = json!({"type": "Sequence", "processors": [template.clone(), template]});
    });
    assert!(said.contains("more than one template"), "{said}");
}
