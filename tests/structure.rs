//! The structure that docs/architecture.md promises: no circles of imports, nothing imports upward, no file or function is too long.

#[path = "structure/imports.rs"]
mod imports;
#[path = "structure/ways.rs"]
mod ways;

use std::{fs, path::Path};

use imports::{Imports, Module};

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
const ORDER: [&[&str]; 16] = [
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
    &["rater", "generator"],
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
