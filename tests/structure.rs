//! The structure that docs/architecture.md promises: no circles of imports, nothing imports upward, no file is too long
//! (functions are bounded by clippy), and every kernel has an operation, a test and a bench.
//! And what CONTRIBUTING.md says of an operation: every kernel is launched by one, tested and measured.

#[path = "structure/imports.rs"]
mod imports;
#[path = "structure/kernels.rs"]
mod kernels;
#[path = "structure/language.rs"]
mod language;
#[path = "structure/names.rs"]
mod names;
#[path = "structure/ways.rs"]
mod ways;

use std::{fs, path::Path};

use imports::{Imports, Module};
use kernels::Sources;
use names::Names;

/// Reads every module below a folder.
fn read(folder: &Path, module: &Module, into: &mut Imports) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner: Module = module.iter().cloned().chain([name.clone()]).collect();
        if path.is_dir() {
            read(&path, &inner, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") && name != "main" {
            let own = if name == "mod" || name == "lib" { module.clone() } else { inner };
            into.add(own, &path, &fs::read_to_string(&path).unwrap());
        }
    }
}

fn engine() -> Imports {
    let mut imports = Imports::default();
    read(Path::new("src"), &Vec::new(), &mut imports);
    imports
}

/// Folders from the lowest on; what stands in one line may import only what stands above it. Errors, files and the like are at the bottom,
/// and may name each other.
const ORDER: [&[&str]; 17] = [
    &["error", "files", "interrupt", "jobs", ""],
    &["engine"],
    &["weights"],
    &["encode"],
    &["data"],
    &["models"],
    &["config"],
    &["tokens"],
    &["select"],
    &["report"],
    &["training"],
    &["generator"],
    &["rater"],
    &["measure"],
    &["compare"],
    &["demo"],
    &["cli"],
];

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let circles: Vec<String> =
        engine().circles().iter().map(|circle| format!("{}:\n{circle}", circle.folder())).collect();
    assert!(circles.is_empty(), "{} circles of imports:\n{}", circles.len(), circles.join("\n"));
}

#[test]
fn nothing_imports_upward() {
    let upward = engine().upward(&ORDER);
    assert!(upward.is_empty(), "{} imports lead upward:\n{}", upward.len(), upward.join("\n"));
}

/// A crate of these modules.
fn planted(modules: &[(&str, &str)]) -> Imports {
    let mut imports = Imports::default();
    for (module, text) in modules {
        let path: Module = module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        imports.add(path, Path::new(module), text);
    }
    imports
}

#[test]
fn a_planted_circle_is_found() {
    let root = ("", "pub mod a; pub mod b; pub use b::Thing; mod tests {}");
    let found =
        |a: &str, b: &str| planted(&[root, ("a", a), ("b", b), ("b::inner", "pub struct Inner;")]).circles();
    assert!(found("use crate::b::Thing;", "pub struct Thing;").is_empty());
    // By a use, by a path, through what the crate's root exports, in a macro, in a group, under another name, from a submodule.
    for back in [
        "use crate::a::work;",
        "fn f() { crate::a::work() }",
        "fn f() { println!(\"{}\", crate::a::work()) }",
        "use super::{a::{self, work as other}};",
        "impl crate::a::Trait for Thing {}",
    ] {
        for there in ["use crate::Thing;", "use crate::b::Thing;", "use super::b::inner::Inner;"] {
            let circles = found(there, back);
            assert_eq!(circles.len(), 1, "{there} and {back}");
            assert!(circles[0].to_string().contains("a -> b: a:1 names "), "{}", circles[0]);
        }
    }
    // A module and its own submodules do not count, nor does what is for tests alone.
    for harmless in
        ["use crate::b::inner::Inner;", "#[cfg(test)] mod tests { use crate::a::work; }", "use std::fs;"]
    {
        assert!(found("use crate::b::Thing;", harmless).is_empty(), "{harmless}");
    }
    let three = planted(&[
        ("", "mod a; mod b; mod c;"),
        ("a", "use crate::b;"),
        ("b", "use crate::c;"),
        ("c", "use crate::a;"),
    ]);
    assert_eq!(three.circles().len(), 1);
    let order: [&[&str]; 3] = [&["c"], &["b"], &["a"]];
    assert_eq!(three.upward(&order).len(), 1, "c imports a");
    assert_eq!(three.upward(&[&["c"], &["b"]]).len(), 2, "a is in no line");
}

#[test]
fn the_ways_through_the_program_are_as_the_page_says() {
    let page = fs::read_to_string("docs/architecture.md").unwrap();
    let mistakes = ways::mistakes(&page, ways::source);
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    assert!(page.matches("- `src/").count() > 30, "the page lists the ways");
    // Planted: a folder and a file that come up again, a function that is not there.
    let planted =
        "# Page\n\n## Way\n\n- `src/a/b.rs`: `one`\n- `src/c/d.rs`: `two`\n- `src/a/b.rs`: `three`\n";
    let mistakes = ways::mistakes(planted, |_| Some("fn one() {} fn two<T>() {}".to_owned()));
    assert_eq!(
        mistakes,
        [
            "Way: the folder a is entered twice",
            "Way: a/b.rs is entered twice",
            "Way: a/b.rs has no function three"
        ]
    );
}

/// Every file below a folder that ends so, with its text.
fn sources(folder: &Path, endings: &[&str], into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, endings, into);
        } else if path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)) {
            into.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn no_two_types_share_a_name() {
    let mut files = Vec::new();
    sources(Path::new("src"), &["rs"], &mut files);
    files.sort();
    let mut names = Names::default();
    files.iter().for_each(|(file, text)| names.add(file, text));
    let shared = names.shared();
    assert!(shared.is_empty(), "types of one name, pub or pub(crate):\n{}", shared.join("\n"));
    // Planted: what is private, or for tests alone, may have any name.
    let mut planted = Names::default();
    planted.add(
        "a.rs",
        "pub struct Row; struct Key; pub(super) type Part = u8; #[cfg(test)] mod tests { pub enum Kind {} }",
    );
    planted.add(
        "b.rs",
        "pub(crate) trait Key {} pub type Part = u8; pub enum Kind {} mod inner { pub(crate) enum Row {} }",
    );
    assert_eq!(planted.shared(), ["Row: a.rs, b.rs"]);
}

/// A file may be longer than 500 lines if its first lines say why: `Longer than 500 lines: ...`.
fn too_long(text: &str) -> bool {
    text.lines().count() > 500 && !text.lines().take(20).any(|line| line.contains("Longer than 500 lines: "))
}

#[test]
fn no_file_is_too_long() {
    let mut folders = vec![Path::new("src").to_owned(), Path::new("kernels").to_owned()];
    let (mut long, mut seen) = (Vec::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if ["rs", "cu", "cuh", "cpp", "h"].contains(&ending) {
                seen += 1;
                long.extend(too_long(&fs::read_to_string(&path).unwrap()).then_some(path));
            }
        }
    }
    assert!(long.is_empty() && seen > 200, "{long:?} of {seen}");
    let lines = "line\n".repeat(501);
    assert!(too_long(&lines) && !too_long(&format!("// Longer than 500 lines: one table.\n{lines}")));
}

#[test]
fn every_kernel_has_an_operation_a_test_and_a_bench() {
    let complaints = Sources::of_repository().complaints();
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

const GATE_KERNELS: &str = "\
// KERNEL(in_a_comment, 1) is none.
#define GATE(T, suffix)                                             \\
    KERNEL(                                                         \\
        gate_forward_##suffix, THREADS, T *y, const T *x) { gate(y, x); }
GATE(float, f32)
KERNEL(gate_add, THREADS, float *y) { add(y); }
";
const GATE_LAUNCHES: &str = "\
//! Launches of `gate_lost`.
const OP: &str = \"gate\";
fn run<T: Factor>(y: &mut Buffer<T>) -> Result<()> {
    y.device().launch(&Kernel::of::<T>(OP, &format!(\"gate_forward_{}\", T::SUFFIX)))
}
pub fn gate_forward<T: Factor>(y: &mut Buffer<T>) -> Result<()> {
    run(y)
}
pub fn gate_add(y: &mut Buffer<f32>) -> Result<()> {
    y.device().launch(&Kernel::new(OP, \"gate_add\"))
}
";
const GATE_TEST: &str = "\
use alchemist_engine::engine::ops::gate::cuda as kernels;
#[test]
fn gates() {
    kernels::gate_forward::<f32>(&mut y).unwrap();
    assert!(kernels::gate_add(&mut y).is_err());
}
";
const GATE_BENCH: &str = "\
use alchemist_engine::engine::ops::gate::cuda::{self, gate_add};
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    bench.device(\"gate\", || cuda::gate_forward(&mut y));
    bench.device(\"gate_add\", || gate_add(&mut y));
    Ok(())
}
";

/// A repository of one operation, as it should be.
fn one_operation() -> Sources {
    let mut sources = Sources::default();
    for (path, text) in [
        ("kernels/gate.cu", GATE_KERNELS),
        ("kernels/canary.cu", "KERNEL(canary_race, 64) {}"),
        ("src/engine/ops/gate/mod.rs", "pub mod cuda;"),
        ("src/engine/ops/gate/cuda.rs", GATE_LAUNCHES),
        ("tests/kernels/main.rs", "mod gate;"),
        ("tests/kernels/gate.rs", GATE_TEST),
        ("benches/ops/main.rs", "mod gate;\nfn main() { gate::run(); }"),
        ("benches/ops/gate.rs", GATE_BENCH),
    ] {
        sources.put(path, text);
    }
    sources
}

#[test]
fn planted_kernels_without_operation_launch_test_or_bench_are_found() {
    let good = one_operation();
    assert_eq!(good.complaints(), Vec::<String>::new());
    let found = |change: &dyn Fn(&mut Sources), what: &str| {
        let mut sources = good.clone();
        change(&mut sources);
        let complaints = sources.complaints();
        assert!(complaints.len() == 1 && complaints[0].contains(what), "{what}: {complaints:?}");
    };
    let changed = |path: &str, text: &str, from: &str, to: &str, what: &str| {
        assert!(text.contains(from), "{path} without {from}");
        found(&|sources| sources.put(path, &text.replace(from, to)), what);
    };
    let no_operation = "begins with the name of no operation";
    for stem in ["other", "gateway"] {
        found(&|sources| sources.put(&format!("kernels/{stem}.cu"), ""), no_operation);
    }
    for file in ["tests/kernels/gate.rs", "benches/ops/gate.rs"] {
        found(&|sources| sources.remove(file), file);
    }
    found(&|sources| sources.put("tests/kernels/main.rs", ""), "tests/kernels/main.rs does not run");
    found(&|sources| sources.put("benches/ops/main.rs", "mod gate;"), "benches/ops/main.rs does not run");
    changed("tests/kernels/gate.rs", GATE_TEST, "#[test]", "", "tests/kernels/main.rs does not run");
    // A launcher that is named, but not called; one of the same name that is the tape's.
    let add = "calls what launches `gate_add`";
    changed("tests/kernels/gate.rs", GATE_TEST, "kernels::gate_add(&mut y)", "y", add);
    changed("benches/ops/gate.rs", GATE_BENCH, "|| gate_add(&mut y)", "|| other(&mut y)", add);
    let forward = "calls what launches `gate_forward`";
    changed("benches/ops/gate.rs", GATE_BENCH, "cuda::gate_forward", "ops::gate::gate_forward", forward);
    // A kernel that nobody launches, though a comment names it; one whose name a launcher gets wrong.
    found(
        &|sources| sources.put("kernels/gate_more.cu", "KERNEL(gate_lost, 64, float *y) {}"),
        "kernels/gate_more.cu: `gate_lost` is launched nowhere",
    );
    changed(
        "kernels/gate.cu",
        GATE_KERNELS,
        "gate_forward_##",
        "gate_onward_##",
        "`gate_onward` is launched nowhere",
    );
    // An operation with launches and no kernel of its own, unless what it launches is a product.
    let launches = |body: &str| format!("pub fn other(y: &Buffer<f32>) {{ y.device().{body}; }}");
    let other = |sources: &mut Sources, body: &str| {
        sources.put("src/engine/ops/other/cuda.rs", &launches(body));
        sources.put("benches/ops/other.rs", "");
        sources.put("benches/ops/main.rs", "mod gate;\nmod other;\nfn main() { gate::run(); other::run(); }");
    };
    found(&|sources| other(sources, "launch()"), "no kernels/other*.cu is there");
    found(
        &|sources| {
            other(sources, "product()");
            sources.remove("benches/ops/other.rs");
        },
        "`other` has no bench",
    );
}

#[test]
fn the_words_are_those_of_the_field() {
    let words = language::words(include_str!("structure/words.txt"));
    let mut texts = Vec::new();
    for folder in ["src", "kernels", "docs"] {
        sources(Path::new(folder), &["rs", "cu", "cuh", "h", "cpp", "md"], &mut texts);
    }
    for page in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benches/RESULTS.md"] {
        texts.push((page.to_owned(), fs::read_to_string(page).unwrap()));
    }
    let found: Vec<String> =
        texts.iter().flat_map(|(path, text)| language::found(&words, path, text)).collect();
    assert!(found.is_empty(), "{} lines:\n{}", found.len(), found.join("\n"));
    // The check finds each word of its list.
    for line in include_str!("structure/words.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && line.contains('|'))
    {
        let phrase = line.split('|').next().unwrap().trim().trim_end_matches('*');
        let text = format!("first line\nA_{}-b", phrase.to_uppercase());
        let found = language::found(&words, "src/planted.rs", &text);
        assert!(found.iter().any(|line| line.starts_with("src/planted.rs:2: ")), "{phrase} is not found");
    }
}
