//! Which module of a crate imports which, read from its source text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use syn::{
    UseTree,
    visit::{self, Visit},
};

/// A path as segments, from the crate's root: `engine::ops`.
pub(crate) type Module = Vec<String>;

/// A crate's modules and what each names of the others.
#[derive(Default)]
pub(crate) struct Imports {
    modules: BTreeMap<Module, Source>,
}

#[derive(Default)]
struct Source {
    file: PathBuf,
    /// Absolute paths that the module names, with the lines on which they stand.
    named: Vec<(Module, usize)>,
    /// What the module imports under which name; others may reach it through this module.
    exports: BTreeMap<String, Module>,
}

/// One module of a folder names something of another one in the same folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: Module,
    pub(crate) to: Module,
    /// Where: `src/a/b.rs:12 names a::c::Thing`.
    pub(crate) at: String,
}

/// Modules of one folder of which each imports, directly or not, every other.
#[derive(Debug)]
pub(crate) struct Circle(Vec<Edge>);

impl Circle {
    /// The folder that the modules are in.
    pub(crate) fn folder(&self) -> String {
        self.0.first().map_or_else(String::new, |edge| edge.from[..edge.from.len() - 1].join("::"))
    }
}

impl fmt::Display for Circle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Edge { from, to, at } in &self.0 {
            writeln!(formatter, "  {} -> {}: {at}", from.join("::"), to.join("::"))?;
        }
        Ok(())
    }
}

impl Imports {
    /// Adds the module that a file holds.
    pub(crate) fn add(&mut self, module: Module, file: &Path, text: &str) {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut reader =
            Reader { module: &module, source: Source { file: file.to_path_buf(), ..Source::default() } };
        reader.visit_file(&syntax);
        let source = reader.source;
        self.modules.insert(module, source);
    }

    /// Where a path leads: the module that holds what it names. A name that a module has imported is followed.
    fn resolve(&self, path: &[String], depth: usize) -> Option<Module> {
        let known = (0..=path.len()).rev().find(|&length| self.modules.contains_key(&path[..length]))?;
        let module = &path[..known];
        let next = path.get(known).and_then(|name| self.modules[module].exports.get(name));
        match next {
            Some(imported) if depth < 16 => {
                let further: Module = imported.iter().chain(&path[known + 1..]).cloned().collect();
                self.resolve(&further, depth + 1)
            }
            _ => Some(module.to_vec()),
        }
    }

    /// All edges between modules of one folder.
    pub(crate) fn edges(&self) -> BTreeSet<Edge> {
        let mut edges = BTreeMap::new();
        for (module, source) in &self.modules {
            for (path, line) in &source.named {
                let Some(target) = self.resolve(path, 0) else { continue };
                let shared = module.iter().zip(&target).take_while(|(one, other)| one == other).count();
                // A module and its own submodules do not count.
                if shared == module.len() || shared == target.len() {
                    continue;
                }
                let (from, to) = (module[..=shared].to_vec(), target[..=shared].to_vec());
                let at = format!("{}:{line} names {}", source.file.display(), path.join("::"));
                edges.entry((from, to)).or_insert(at);
            }
        }
        edges.into_iter().map(|((from, to), at)| Edge { from, to, at }).collect()
    }

    /// Circles of imports between modules of one folder.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        let edges = self.edges();
        let mut reach: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for Edge { from, to, .. } in &edges {
            reach.entry(from).or_default().insert(to);
        }
        // The transitive closure; folders are small.
        loop {
            let mut grown = false;
            let snapshot = reach.clone();
            for targets in reach.values_mut() {
                let further: Vec<&Module> =
                    targets.iter().filter_map(|to| snapshot.get(*to)).flatten().copied().collect();
                for one in further {
                    grown |= targets.insert(one);
                }
            }
            if !grown {
                break;
            }
        }
        let mut circles: Vec<Circle> = Vec::new();
        let mut done: BTreeSet<&Module> = BTreeSet::new();
        for (module, targets) in &reach {
            if !targets.contains(module) || done.contains(module) {
                continue;
            }
            let members: BTreeSet<&Module> = targets
                .iter()
                .copied()
                .filter(|other| reach.get(*other).is_some_and(|back| back.contains(module)))
                .collect();
            done.extend(&members);
            let within = |edge: &&Edge| members.contains(&edge.from) && members.contains(&edge.to);
            circles.push(Circle(edges.iter().filter(within).cloned().collect()));
        }
        circles
    }

    /// Edges between the crate's own folders that lead from an earlier one to a later one of `order`; a folder that `order` lacks is
    /// reported, too.
    pub(crate) fn upward(&self, order: &[&[&str]]) -> Vec<String> {
        let level = |module: &Module| order.iter().position(|names| names.contains(&module[0].as_str()));
        let mut found = Vec::new();
        for Edge { from, to, at } in self.edges() {
            if from.len() != 1 {
                continue;
            }
            match (level(&from), level(&to)) {
                (Some(lower), Some(higher)) if higher > lower || (higher == lower && lower != 0) => {
                    found.push(format!("{} -> {}: {at}", from[0], to[0]));
                }
                (Some(_), Some(_)) => {}
                (None, _) => found.push(format!("{} is not in the order", from[0])),
                (_, None) => found.push(format!("{} is not in the order", to[0])),
            }
        }
        found
    }
}

struct Reader<'a> {
    module: &'a Module,
    source: Source,
}

impl Reader<'_> {
    /// A path as it is written, from the root; none for other crates and local names.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(self.module.iter().chain(rest).cloned().collect()),
            "super" => {
                let above = rest.iter().take_while(|segment| *segment == "super").count();
                let base = self.module.len().checked_sub(1 + above)?;
                Some(self.module[..base].iter().chain(&rest[above..]).cloned().collect())
            }
            _ => None,
        }
    }

    fn name(&mut self, path: &[String], line: usize) {
        if let Some(path) = self.absolute(path) {
            self.source.named.push((path, line));
        }
    }

    fn import(&mut self, tree: &UseTree, before: &[String], line: usize) {
        let with =
            |name: &syn::Ident| -> Module { before.iter().cloned().chain([name.to_string()]).collect() };
        let (path, name) = match tree {
            UseTree::Path(path) => return self.import(&path.tree, &with(&path.ident), line),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|item| self.import(item, before, line));
            }
            UseTree::Glob(_) => return self.name(before, line),
            UseTree::Name(name) if name.ident == "self" => {
                (before.to_vec(), before.last().cloned().unwrap_or_default())
            }
            UseTree::Name(name) => (with(&name.ident), name.ident.to_string()),
            UseTree::Rename(renamed) => (with(&renamed.ident), renamed.rename.to_string()),
        };
        // `use child::Thing` in a folder's own file.
        let path = match path.first().map(String::as_str) {
            Some("crate" | "self" | "super") => path,
            _ => [vec!["self".to_owned()], path].concat(),
        };
        if let Some(absolute) = self.absolute(&path) {
            self.source.exports.insert(name, absolute.clone());
            self.source.named.push((absolute, line));
        }
    }
}

/// Whether an item is only there for tests.
pub(crate) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.import(&item.tree, &[], item.use_token.span.start().line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Module = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        self.name(&segments, line);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_macro(&mut self, invoked: &'ast syn::Macro) {
        // What a macro is given is not parsed, but paths from the root in it can be told.
        let tokens: Vec<String> = flat(invoked.tokens.clone());
        for (at, token) in tokens.iter().enumerate() {
            if (token == "crate" || token == "super") && tokens.get(at + 1).is_some_and(|next| next == ":") {
                let path: Module = tokens[at..]
                    .iter()
                    .take_while(|token| {
                        *token == ":" || token.chars().all(|c| c.is_alphanumeric() || c == '_')
                    })
                    .filter(|token| *token != ":")
                    .cloned()
                    .collect();
                self.name(&path, invoked.bang_token.span.start().line);
            }
        }
        visit::visit_macro(self, invoked);
    }
}

fn flat(tokens: proc_macro2::TokenStream) -> Vec<String> {
    let mut all = Vec::new();
    for token in tokens {
        match token {
            proc_macro2::TokenTree::Group(group) => {
                all.push("(".to_owned());
                all.extend(flat(group.stream()));
                all.push(")".to_owned());
            }
            other => all.push(other.to_string()),
        }
    }
    all
}
