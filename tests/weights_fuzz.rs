//! Files changed at random, with every allocation watched. A further reader of files is one more [`Target`].
//!
//! `scripts/weights.sh` runs for long.

#[path = "weights/forged.rs"]
mod forged;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use alchemist_engine::{
    config::Config,
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    encode::tokenizers::TextTokenizer,
    interrupt::Interrupt,
    tokens::{
        cache::{TextKept, TokenCache},
        encode::{EncodeRequest, encode},
    },
    weights::Weights,
};

/// Bytes that a tokenizer may make of a short caption, with what the tokenizers' library keeps for each of them.
const LONGEST_TEXT: usize = 4 << 20;

/// The largest single allocation since it was last set to 0.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which notes the largest request.
struct Watched;

#[expect(unsafe_code, reason = "an allocator is watched, which only its own trait allows")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// A reader of files, and good files to begin with.
struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    /// The file around what is changed.
    wrap: fn(Vec<u8>) -> Vec<u8>,
    /// Reads everything; errors are fine.
    read: Box<dyn Fn(&Path)>,
    /// No allocation may be larger than this many times the file, and a mebibyte.
    times: usize,
}

fn made(names: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures_made");
    names.iter().map(|name| fs::read(folder.join(name)).unwrap()).collect()
}

fn read_weights(path: &Path) {
    let Ok(weights) = Weights::open(path) else { return };
    for name in weights.names() {
        let _ = weights.read(name);
    }
    let texts: usize = weights.values().map(|(name, value)| name.len() + value.to_string().len()).sum();
    assert!(texts < usize::MAX);
}

/// Makes a small token cache in a folder: its first shard is what is changed, one file at a time.
fn make_cache(folder: &Path) -> PathBuf {
    let settings =
        DataSetSettings { train: 6, validation: 1, side: 16, shares: FlawShares::default(), seed: 3 };
    let data = write_data_set(&folder.join("data"), &settings).unwrap();
    let keys = [
        "pn=1_2".to_owned(),
        "patch_size=8".to_owned(),
        r#"image_tokenizer={"components": 4, "codes": 8}"#.to_owned(),
        r#"text_encoder={"tokens": 4, "channels": 8}"#.to_owned(),
    ];
    let out = folder.join("cache");
    let request = EncodeRequest {
        config: Config::parse("fuzz", "{}", &keys).unwrap(),
        run: None,
        tables: vec![data.train_csv],
        out: out.clone(),
        text: Some(Some(TextKept::Bf16)),
        shard_rows: 4,
        overwrite: false,
    };
    encode(&request, &Interrupt::default(), &mut ()).unwrap();
    TokenCache::open(&out).unwrap().read_all().unwrap();
    out
}

/// A copy of the cache that holds token ids in place of text states.
fn with_ids(cache: &Path, to: &Path) -> PathBuf {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(cache).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let edit = |path: PathBuf, change: &dyn Fn(&mut serde_json::Value)| {
        let mut told: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        told.as_object_mut().unwrap().shift_remove("sha256");
        change(&mut told);
        fs::write(path, alchemist_engine::files::sealed::seal(told.to_string().into_bytes())).unwrap();
    };
    edit(to.join("cache.json"), &|told| told["text"]["kept"] = "ids".into());
    for shard in ["shard-00000", "shard-00001"] {
        let path = to.join(format!("{shard}.text.safetensors"));
        let bytes = fs::read(&path).unwrap();
        let states = SafeTensors::deserialize(&bytes).unwrap();
        let [captions, mask] = ["captions", "mask"].map(|name| states.tensor(name).unwrap());
        let numbers = vec![1; 4 * mask.data().len()];
        let ids = TensorView::new(Dtype::U32, mask.shape().to_vec(), &numbers).unwrap();
        let views = [("captions", captions), ("mask", mask), ("ids", ids)];
        let written = safetensors::serialize(views, None).unwrap();
        fs::write(&path, &written).unwrap();
        edit(to.join(format!("{shard}.json")), &|told| {
            told["text"]["bytes"] = written.len().into();
            told["text"]["sha256"] = alchemist_engine::files::sha256(&written).into();
        });
    }
    TokenCache::open(to).unwrap().read_all().unwrap();
    to.to_path_buf()
}

/// Opens the cache with one of its files in place of the good one, and puts that back. The entry says of the changed file what
/// is true of it, so that it is not refused for its checksum.
fn read_cache_with(cache: &Path, name: &str, changed: &Path) {
    let (path, entry) = (cache.join(name), cache.join("shard-00000.json"));
    let (good, good_entry) = (fs::read(&path).unwrap(), fs::read(&entry).unwrap());
    let bytes = fs::read(changed).unwrap();
    fs::write(&path, &bytes).unwrap();
    if let Some(part) = name.strip_suffix(".safetensors").and_then(|name| name.rsplit('.').next()) {
        let mut told: serde_json::Value = serde_json::from_slice(&good_entry).unwrap();
        told[part]["bytes"] = bytes.len().into();
        told[part]["sha256"] = alchemist_engine::files::sha256(&bytes).into();
        fs::write(&entry, told.to_string()).unwrap();
    }
    if let Ok(cache) = TokenCache::open(cache) {
        let _ = cache.read_all();
    }
    fs::write(&path, good).unwrap();
    fs::write(&entry, good_entry).unwrap();
}

/// A target for each file of a cache, and for one that keeps token ids.
fn cache_targets(cache: &Path, ids: &Path) -> Vec<Target> {
    let files = [
        ("cache", cache, "cache.json"),
        ("shard", cache, "shard-00000.json"),
        ("codes", cache, "shard-00000.codes.safetensors"),
        ("states", cache, "shard-00000.text.safetensors"),
        ("ids", ids, "shard-00000.text.safetensors"),
    ];
    let target = |(name, cache, file): (&'static str, &Path, &'static str)| {
        let folder = cache.to_path_buf();
        Target {
            name,
            seeds: vec![fs::read(cache.join(file)).unwrap()],
            wrap: |bytes| bytes,
            read: Box::new(move |path| read_cache_with(&folder, file, path)),
            times: 32,
        }
    };
    files.map(target).into()
}

fn targets() -> Vec<Target> {
    let mut pickles =
        made(&["nested_zip.pth", "kinds_zip.pth", "views_zip.pth", "trained_zip.pth", "protocol4_zip.pth"]);
    let field = |name: &str| {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/weights").join(name)).unwrap()
    };
    pickles.extend(["objects.pth", "signs.pth", "unread.pth", "wrapped_lightning.pth"].map(field));
    let mut streams =
        made(&["nested_legacy.pth", "kinds_legacy.pth", "views_legacy.pth", "trained_legacy.pth"]);
    streams
        .extend(["objects_legacy_4.pth", "unread_legacy.pth", "legacy_1.pth", "signs_legacy.pth"].map(field));
    let number = 16usize.to_le_bytes();
    let header = br#"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let safetensors = [&(header.len() as u64).to_le_bytes()[..], header, &number, &number].concat();
    let whole = |bytes| bytes;
    let mut targets = vec![
        Target {
            name: "archive",
            seeds: pickles.clone(),
            wrap: whole,
            read: Box::new(read_weights),
            times: 32,
        },
        Target {
            name: "pickle",
            seeds: pickles.iter().map(|archive| pickle_in(archive).to_vec()).collect(),
            wrap: |pickle| forged::checkpoint(&pickle),
            read: Box::new(read_weights),
            times: 32,
        },
        Target { name: "stream", seeds: streams, wrap: whole, read: Box::new(read_weights), times: 32 },
        Target {
            name: "safetensors",
            seeds: vec![safetensors],
            wrap: whole,
            read: Box::new(read_weights),
            times: 32,
        },
    ];
    targets.extend(tokenizer_targets());
    targets
}

/// The files of a tokenizer. A caption of a few letters may become [`LONGEST_TEXT`] bytes, whatever the file's length.
fn tokenizer_targets() -> [Target; 2] {
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let twice = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true,
        }],
        "normalizer": {"type": "Sequence", "normalizers": [
            twice, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}, {"type": "NFKC"},
            {"type": "Prepend", "prepend": "a"}, twice, twice, twice,
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}, level, level,
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false,
            "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["a", -2.0], ["aa", -3.0], ["▁a", -3.0]]},
    });
    let reads = |name: &'static str| -> Box<dyn Fn(&Path)> {
        let folder = tempfile::tempdir().unwrap();
        Box::new(move |path| {
            fs::copy(path, folder.path().join(name)).unwrap();
            if let Ok(words) = TextTokenizer::t5(folder.path(), 16) {
                let _ = words.encode(&["a dog", "", "banana  banana", "e\u{301} ™ ﷺ"]);
            }
        })
    };
    let field = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/weights/t5/spiece.model");
    let pieces = fs::read(field).unwrap();
    [
        Target {
            name: "tokenizer",
            seeds: vec![tokenizer.to_string().into_bytes()],
            wrap: |bytes| bytes,
            read: reads("tokenizer.json"),
            times: LONGEST_TEXT / 1024,
        },
        Target {
            name: "pieces",
            seeds: vec![pieces],
            wrap: |bytes| bytes,
            read: reads("spiece.model"),
            times: LONGEST_TEXT / 1024,
        },
    ]
}

/// The pickle of an archive, from its protocol to the header of the next entry.
fn pickle_in(archive: &[u8]) -> &[u8] {
    let start = archive.windows(2).position(|pair| pair[0] == 0x80 && matches!(pair[1], 2 | 4)).unwrap();
    let length = archive[start..].windows(4).position(|four| four == b"PK\x07\x08").unwrap();
    &archive[start..start + length]
}

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit.max(1) as u64) as usize
    }
}

fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];
    const CODES: &[u8] = b"().0NR}]aebstulcQhqrjJKXx\x85\x86\x87\x88\x93\x94";
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len());
        let length = dice.below(64).min(bytes.len() - at);
        match dice.below(8) {
            0 if !bytes.is_empty() => bytes[at] = dice.roll() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 => {
                let width = [1, 2, 4, 8][dice.below(4)].min(bytes.len() - at);
                let number = NUMBERS[dice.below(NUMBERS.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let part = bytes[at..at + length].to_vec();
                let to = dice.below(bytes.len());
                for _ in 0..=dice.below(40) {
                    bytes.splice(to..to, part.iter().copied());
                }
            }
            5 => bytes.insert(at, CODES[dice.below(CODES.len())]),
            6 => {
                let other = &seeds[dice.below(seeds.len())];
                let from = dice.below(other.len());
                let part = other[from..(from + length).min(other.len())].to_vec();
                bytes.splice(at..at + length, part);
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
    bytes
}

fn run(time: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let mut targets = targets();
    let cache = make_cache(folder.path());
    targets.extend(cache_targets(&cache, &with_ids(&cache, &folder.path().join("ids"))));
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut dice = Dice(seed);
    let (start, mut count, mut most) = (Instant::now(), 0u64, 0usize);
    while start.elapsed() < time {
        for target in &targets {
            let bytes = (target.wrap)(mutate(&mut dice, &target.seeds));
            let path = folder.path().join(format!("changed-{}", target.name));
            fs::write(&path, &bytes).unwrap();
            LARGEST.store(0, Ordering::Relaxed);
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| (target.read)(&path)));
            let largest = LARGEST.load(Ordering::Relaxed);
            let limit = target.times * bytes.len() + (1 << 20);
            if outcome.is_err() || largest > limit {
                let kept = std::env::temp_dir().join(format!("fuzz-{}-{}", target.name, std::process::id()));
                fs::write(&kept, &bytes).unwrap();
                panic!(
                    "{}: {largest} bytes at once for a file of {}; kept as {}",
                    target.name,
                    bytes.len(),
                    kept.display()
                );
            }
            most = most.max(largest);
            count += 1;
        }
    }
    let message = format!("{count} files, seed {seed}, largest allocation {most} bytes");
    #[expect(clippy::print_stdout, reason = "the figures are what the test is run for")]
    {
        println!("{message}");
    }
}

#[test]
fn changed_files_are_read_or_refused_within_bounds() {
    run(Duration::from_secs(2));
}

#[test]
#[ignore = "runs for FUZZ_SECONDS (600): `scripts/weights.sh` runs it"]
fn changed_files_for_long() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(600);
    run(Duration::from_secs(seconds));
}
