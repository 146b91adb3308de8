//! The names of the crate's types: one name, one meaning.

use std::collections::BTreeMap;

use syn::{
    Visibility,
    visit::{self, Visit},
};

use super::imports::is_test;

/// The files in which each type that others can name is declared.
#[derive(Default)]
pub(crate) struct Names(BTreeMap<String, Vec<String>>);

impl Names {
    /// Adds the types of a file that are `pub` or `pub(crate)`. What a macro makes is not seen.
    pub(crate) fn add(&mut self, file: &str, text: &str) {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut reader = Reader { file, names: self };
        reader.visit_file(&syntax);
    }

    /// Names that more than one type has, with the files.
    pub(crate) fn shared(&self) -> Vec<String> {
        let shared = self.0.iter().filter(|(_, files)| files.len() > 1);
        shared.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
    }
}

struct Reader<'a> {
    file: &'a str,
    names: &'a mut Names,
}

impl Reader<'_> {
    fn declare(&mut self, visibility: &Visibility, name: &syn::Ident) {
        let crate_wide = match visibility {
            Visibility::Public(_) => true,
            Visibility::Restricted(within) => within.path.is_ident("crate"),
            Visibility::Inherited => false,
        };
        if crate_wide {
            self.names.0.entry(name.to_string()).or_default().push(self.file.to_owned());
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.declare(&item.vis, &item.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.declare(&item.vis, &item.ident);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.declare(&item.vis, &item.ident);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.declare(&item.vis, &item.ident);
    }
}
