//! Whether every kernel has an operation that launches it, a test and a bench, read from the source text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Expr, Token, UseTree,
    punctuated::Punctuated,
    visit::{self, Visit},
};

use crate::imports::is_test;

/// Kernels with planted mistakes, which tests/canary.rs launches.
const CANARY: &str = "canary";
/// An operation's folder that is not in `src/engine/ops`: what the visitors of a backward pass do.
const CONTRIBUTIONS: &str = "src/engine/autograd/contributions";
const OPS: &str = "src/engine/ops/";
/// Where the tests and the benches of an operation are.
const USERS: [(&str, &str); 2] = [("test", "tests/kernels"), ("bench", "benches/ops")];

/// Files and their text, by their path in the repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// What the repository holds of kernels, operations, their tests and their benches.
    pub(crate) fn of_repository() -> Self {
        let mut sources = Self::default();
        for folder in ["kernels", OPS.trim_end_matches('/'), CONTRIBUTIONS, "tests/kernels", "benches/ops"] {
            sources.read(Path::new(folder));
        }
        sources
    }

    fn read(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.read(&path);
            } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "cu") {
                self.put(path.to_str().unwrap(), &fs::read_to_string(&path).unwrap());
            }
        }
    }

    pub(crate) fn put(&mut self, path: &str, text: &str) {
        self.0.insert(path.to_owned(), text.to_owned());
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.0.remove(path).unwrap();
    }

    /// The folders of operations: their names and where they are.
    fn operations(&self) -> BTreeMap<&str, String> {
        let within = self.0.keys().filter_map(|path| path.strip_prefix(OPS)?.split_once('/'));
        let mut found: BTreeMap<&str, String> =
            within.map(|(name, _)| (name, format!("{OPS}{name}"))).collect();
        if self.0.keys().any(|path| path.starts_with(CONTRIBUTIONS)) {
            found.insert("contributions", CONTRIBUTIONS.to_owned());
        }
        found
    }

    /// Stems and texts of the files of one ending right in a folder.
    fn files(&self, folder: &str, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(path, text)| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(ending)?;
            (!name.contains('/')).then_some((name, text.as_str()))
        })
    }

    /// What is not as CONTRIBUTING.md says.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let operations = self.operations();
        let launching: BTreeMap<&str, Launching> =
            operations.iter().filter_map(|(&name, folder)| Some((name, self.launching(folder)?))).collect();
        let mut owned: BTreeMap<&str, Vec<(&str, BTreeSet<String>)>> = BTreeMap::new();
        let mut complaints = Vec::new();
        for (stem, text) in self.files("kernels", ".cu").filter(|(stem, _)| *stem != CANARY) {
            match owner(stem, operations.keys().copied()) {
                Some(operation) => owned.entry(operation).or_default().push((stem, kernels(text))),
                None => complaints.push(format!("kernels/{stem}.cu begins with the name of no operation")),
            }
        }
        let calls = USERS.map(|(_, folder)| self.calls(folder, &operations));
        for (&operation, files) in &owned {
            for ((what, folder), _) in USERS.iter().zip(&calls) {
                complaints.extend(self.undeclared(what, folder, operation));
            }
            for (stem, kernel) in
                files.iter().flat_map(|(stem, kernels)| kernels.iter().map(move |kernel| (*stem, kernel)))
            {
                let launchers: BTreeSet<(String, String)> = launching
                    .iter()
                    .filter(|(_, module)| module.literals.contains(stem))
                    .flat_map(|(name, module)| {
                        module.launchers(kernel).map(move |function| ((*name).to_owned(), function))
                    })
                    .collect();
                if launchers.is_empty() {
                    complaints.push(format!("kernels/{stem}.cu: `{kernel}` is launched nowhere"));
                    continue;
                }
                // A kernel of one operation may be launched by another.
                let of = launchers.iter().map(|(module, _)| module.as_str()).chain([operation]);
                let of: BTreeSet<&str> = of.collect();
                for ((what, folder), calls) in USERS.iter().zip(&calls) {
                    let called = of
                        .iter()
                        .filter_map(|name| calls.get(name))
                        .any(|calls| !calls.is_disjoint(&launchers));
                    if !called && self.0.contains_key(&format!("{folder}/{operation}.rs")) {
                        complaints.push(format!(
                            "kernels/{stem}.cu: no {what} in {folder}/{operation}.rs calls what launches `{kernel}`"
                        ));
                    }
                }
            }
        }
        for (name, module) in launching.iter().filter(|(name, _)| !owned.contains_key(*name)) {
            complaints.extend(self.undeclared("bench", "benches/ops", name));
            // A product is the vendor's.
            if !module.bodies.values().any(|body| body.named.contains("product")) {
                complaints.push(format!(
                    "the operation `{name}` launches something, but no kernels/{name}*.cu is there"
                ));
            }
        }
        complaints
    }

    /// The cuda module of an operation.
    fn launching(&self, folder: &str) -> Option<Launching> {
        let mut module = Launching::default();
        let (file, inner) = (format!("{folder}/cuda.rs"), format!("{folder}/cuda/"));
        let mut texts =
            self.0.iter().filter(|(path, _)| **path == file || path.starts_with(&inner)).peekable();
        texts.peek()?;
        for (path, text) in texts {
            module.visit_file(&parsed(path, text));
        }
        Some(module)
    }

    /// For each operation the launchers, as module and function, that its files in a folder call.
    fn calls<'a>(
        &self,
        folder: &str,
        operations: &BTreeMap<&'a str, String>,
    ) -> BTreeMap<&'a str, BTreeSet<(String, String)>> {
        let mut found: BTreeMap<&str, BTreeSet<(String, String)>> = BTreeMap::new();
        for (stem, text) in self.files(folder, ".rs") {
            let Some(operation) = owner(stem, operations.keys().copied()) else { continue };
            let mut calls = Calls::default();
            calls.visit_file(&parsed(stem, text));
            found.entry(operation).or_default().extend(calls.of_cuda_modules());
        }
        found
    }

    /// What keeps an operation's tests or benches from being run.
    fn undeclared(&self, what: &str, folder: &str, operation: &str) -> Option<String> {
        let file = format!("{folder}/{operation}.rs");
        let Some(text) = self.0.get(&file) else {
            return Some(format!("the operation `{operation}` has no {what}: {file}"));
        };
        let main = self.0.get(&format!("{folder}/main.rs")).map_or("", String::as_str);
        let declared = main.lines().any(|line| line.trim() == format!("mod {operation};"));
        let run = match what {
            "bench" => main.contains(&format!("{operation}::run")),
            // scripts/gpu.sh runs compute-sanitizer over the modules that it finds by this pattern.
            _ => text.contains("#[test]") && operation.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
        };
        (!declared || !run).then(|| format!("{folder}/main.rs does not run {file}"))
    }
}

fn parsed(path: &str, text: &str) -> syn::File {
    syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The operation that a file belongs to: its stem is the operation's name, or goes on behind it with `_`.
fn owner<'a>(stem: &str, operations: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let begins =
        |name: &&str| stem.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    operations.filter(begins).max_by_key(|name| name.len())
}

/// What a name says apart from types, numbers and what is filled in (`*`): `attention_forward_64_bf16` is `attention_forward`.
fn base(name: &str) -> String {
    let words = name.split('_').filter(|word| {
        let number = word.chars().all(|c| c.is_ascii_digit());
        !number && !word.contains('*') && !matches!(*word, "f32" | "bf16" | "f16")
    });
    words.collect::<Vec<_>>().join("_")
}

/// The base names of the kernels of a `.cu` file.
fn kernels(text: &str) -> BTreeSet<String> {
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let (mut found, mut plain) = (BTreeSet::new(), String::new());
    for line in uncommented.join("\n").replace("\\\n", " ").lines() {
        let Some(definition) = line.strip_prefix("#define ") else {
            plain.push_str(line);
            plain.push(' ');
            continue;
        };
        let name = definition.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(definition.len());
        let parameters = definition[name..].strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let parameters = parameters.map_or("", |(parameters, _)| parameters);
        named(definition, &parameters.split(',').map(str::trim).collect::<Vec<_>>(), &mut found);
    }
    named(&plain, &[], &mut found);
    found
}

/// Adds the names that `KERNEL(...)` defines, what a macro's parameters stand for left out.
fn named(text: &str, parameters: &[&str], found: &mut BTreeSet<String>) {
    for macro_name in ["KERNEL(", "KERNEL_SHARING("] {
        for (at, _) in text.match_indices(macro_name) {
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let name = text[at + macro_name.len()..].split(',').next().unwrap_or_default();
            let filled = name.split("##").map(str::trim);
            found.insert(base(
                &filled.map(|part| if parameters.contains(&part) { "*" } else { part }).collect::<String>(),
            ));
        }
    }
}

/// A cuda module: what it says in strings, and what its functions and constants say and name.
#[derive(Default)]
struct Launching {
    literals: BTreeSet<String>,
    bodies: BTreeMap<String, Body>,
    current: Option<String>,
}

#[derive(Default)]
struct Body {
    /// The base names of kernels that its strings may be.
    kernels: BTreeSet<String>,
    named: BTreeSet<String>,
}

impl Launching {
    /// The functions that come to a string with the kernel's name, by themselves or through others of this module.
    fn launchers<'a>(&'a self, kernel: &'a str) -> impl Iterator<Item = String> + 'a {
        self.bodies.keys().filter(|name| self.reaches(name, kernel, &mut BTreeSet::new())).cloned()
    }

    fn reaches<'a>(&'a self, name: &'a str, kernel: &str, seen: &mut BTreeSet<&'a str>) -> bool {
        let Some(body) = self.bodies.get(name).filter(|_| seen.insert(name)) else { return false };
        body.kernels.contains(kernel) || body.named.iter().any(|name| self.reaches(name, kernel, seen))
    }

    fn within(&mut self, name: &syn::Ident, visit: impl FnOnce(&mut Self)) {
        let outside = self.current.replace(name.to_string());
        self.bodies.entry(name.to_string()).or_default();
        visit(self);
        self.current = outside;
    }

    fn body(&mut self) -> Option<&mut Body> {
        self.bodies.get_mut(self.current.as_ref()?)
    }

    fn mention(&mut self, name: &syn::Ident) {
        if let Some(body) = self.body() {
            body.named.insert(name.to_string());
        }
    }

    fn say(&mut self, text: &str) {
        self.literals.insert(text.to_owned());
        // What `format!` fills in.
        let mut filled = String::new();
        for (at, part) in text.split('{').enumerate() {
            match part.split_once('}') {
                Some((_, rest)) if at > 0 => filled.extend(["*", rest]),
                _ => filled.push_str(part),
            }
        }
        let is_name =
            filled.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*".contains(c));
        if let Some(body) = self.body().filter(|_| is_name) {
            body.kernels.insert(base(&filled));
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(name) => self.mention(&name),
                TokenTree::Literal(literal) => {
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        self.say(&text.value());
                    }
                }
                TokenTree::Punct(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Launching {
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.within(&item.sig.ident, |inside| visit::visit_item_fn(inside, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.within(&item.sig.ident, |inside| visit::visit_impl_item_fn(inside, item));
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.within(&item.ident, |inside| visit::visit_item_const(inside, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.within(&item.ident, |inside| visit::visit_impl_item_const(inside, item));
    }

    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.say(&literal.value());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(last) = path.segments.last() {
            self.mention(&last.ident);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.mention(&call.method);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, invoked: &'ast syn::Macro) {
        self.tokens(invoked.tokens.clone());
    }
}

/// What a file imports, and the paths of functions in it.
#[derive(Default)]
struct Calls {
    imports: BTreeMap<String, Vec<String>>,
    paths: Vec<Vec<String>>,
}

impl Calls {
    /// Module and name of each function that is in a module `cuda`: `gate::cuda::gate_forward` is `gate` and `gate_forward`.
    fn of_cuda_modules(&self) -> impl Iterator<Item = (String, String)> {
        self.paths.iter().filter_map(|path| {
            let imported = self.imports.get(&path[0]);
            let whole: Vec<&String> = match imported {
                Some(imported) => imported.iter().chain(&path[1..]).collect(),
                None => path.iter().collect(),
            };
            let at = whole
                .iter()
                .rposition(|name| *name == "cuda")
                .filter(|&at| at > 0 && at + 1 < whole.len())?;
            Some((whole[at - 1].clone(), whole.last()?.to_string()))
        })
    }

    fn import(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, before)),
            UseTree::Glob(_) => {}
            UseTree::Name(name) if name.ident == "self" => {
                self.imports.extend(before.last().map(|last| (last.clone(), before.to_vec())));
            }
            UseTree::Name(name) => drop(self.imports.insert(name.ident.to_string(), with(&name.ident))),
            UseTree::Rename(renamed) => {
                let path = if renamed.ident == "self" { before.to_vec() } else { with(&renamed.ident) };
                self.imports.insert(renamed.rename.to_string(), path);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Calls {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, &[]);
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        self.paths.push(path.path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_expr_path(self, path);
    }

    fn visit_macro(&mut self, invoked: &'ast syn::Macro) {
        // `assert!(work().is_ok())`: what a macro is given are mostly expressions.
        if let Ok(given) = invoked.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            given.iter().for_each(|expression| self.visit_expr(expression));
        }
    }
}
