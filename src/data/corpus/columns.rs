//! Which columns of a table hold the ids, the images' paths and the captions: those that are named, or those that by convention do.
//!
//! A column is looked up by its name first. Where the name is the default one (`id`, `image_save_path`, `caption`) and there is no
//! such column, the first of a list of usual names that the header has is taken, without regard to case. A column of web addresses is
//! never taken for images. Without a column of ids the image's path, as it is written, is the id.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Mutex, PoisonError},
};

use crate::jobs::marker::Marker;

/// The names of the three columns that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames {
    /// The column of the ids. While it is `id` and there is none, see [`ID_NAMES`].
    pub id: String,
    /// The column of the images' paths. While it is `image_save_path` and there is none, see [`IMAGE_NAMES`].
    pub image: String,
    /// The column of the captions. While it is `caption` and there is none, see [`CAPTION_NAMES`].
    pub caption: String,
}

impl Default for ColumnNames {
    /// The released names: `id`, `image_save_path`, `caption`.
    fn default() -> Self {
        Self {
            id: ID_NAMES[0].to_owned(),
            image: IMAGE_NAMES[0].to_owned(),
            caption: CAPTION_NAMES[0].to_owned(),
        }
    }
}

/// Usual names of a column of ids, in the order in which they are looked for; the first is the default.
pub const ID_NAMES: [&str; 6] = ["id", "key", "uid", "uuid", "sample_id", "__key__"];

/// Usual names of a column of images' paths, in the order in which they are looked for; the first is the default.
pub const IMAGE_NAMES: [&str; 14] = [
    "image_save_path",
    "image_path",
    "image",
    "file_name",
    "filename",
    "path",
    "file_path",
    "filepath",
    "image_file",
    "image_filename",
    "img_path",
    "img",
    "file",
    "local_path",
];

/// Usual names of a column of captions, in the order in which they are looked for; the first is the default.
pub const CAPTION_NAMES: [&str; 9] = [
    "caption",
    "cogvlm_caption",
    "text",
    "prompt",
    "description",
    "alt_text",
    "top_caption",
    "raw_caption",
    "captions",
];

/// Names of columns that hold web addresses, which are not fetched.
const ADDRESS_NAMES: [&str; 4] = ["url", "image_url", "img_url", "urls"];

/// Columns as a message lists them: `a`, `b`, `c`.
pub(crate) fn list_columns<S: AsRef<str>>(columns: &[S]) -> String {
    columns.iter().map(|column| format!("`{}`", column.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Where the column `name` is.
///
/// # Errors
/// If there are two.
fn named(header: &[String], name: &str) -> Result<Option<usize>, String> {
    let mut places = header.iter().enumerate().filter(|(_, column)| *column == name).map(|(index, _)| index);
    match (places.next(), places.next()) {
        (Some(first), Some(second)) => Err(format!(
            "the column `{name}` is there twice (columns {} and {}); rename one",
            first + 1,
            second + 1
        )),
        (found, _) => Ok(found),
    }
}

/// A column that a convention found in place of the default name.
struct Taken {
    what: &'static str,
    index: usize,
    /// Other columns that the convention knows, too.
    passed_over: Vec<usize>,
}

/// A kind of column.
#[derive(Clone, Copy)]
struct Convention {
    what: &'static str,
    names: &'static [&'static str],
}

const IDS: Convention = Convention { what: "id", names: &ID_NAMES };
const IMAGES: Convention = Convention { what: "image", names: &IMAGE_NAMES };
const CAPTIONS: Convention = Convention { what: "caption", names: &CAPTION_NAMES };

impl Convention {
    /// The column `name`, or where that is the default the first by convention.
    fn find(self, header: &[String], name: &str) -> Result<Option<(usize, Option<Taken>)>, String> {
        if let Some(index) = named(header, name)? {
            return Ok(Some((index, None)));
        }
        if name != self.names[0] {
            return Ok(None);
        }
        let mut found: Vec<usize> = Vec::new();
        for known in self.names {
            let alike: Vec<usize> =
                (0..header.len()).filter(|&index| header[index].eq_ignore_ascii_case(known)).collect();
            // The same name in another case is as good; two of them are not told apart.
            let exact = alike.iter().copied().filter(|&index| header[index] == *known).collect::<Vec<_>>();
            match (&exact[..], &alike[..]) {
                ([index], _) | ([], [index]) => found.push(*index),
                ([], []) => {}
                (_, all) if found.is_empty() => {
                    let columns: Vec<&str> = all.iter().map(|&index| header[index].as_str()).collect();
                    return Err(format!(
                        "the columns {} may all hold the {}s; {}",
                        list_columns(&columns),
                        self.what,
                        self.how_to_name()
                    ));
                }
                (_, all) => found.extend(all),
            }
        }
        let Some(&index) = found.first() else { return Ok(None) };
        let taken = Taken { what: self.what, index, passed_over: found[1..].to_vec() };
        Ok(Some((index, Some(taken))))
    }

    /// How a column is named.
    fn how_to_name(self) -> String {
        let what = self.what;
        format!("name the one with columns.{what} (--set columns.{what}=NAME) or --{what}-column NAME")
    }

    /// What is said where there is no such column.
    fn missing(self, header: &[String], name: &str) -> String {
        let mut message = format!("there is no column `{name}`; the columns are {}", list_columns(header));
        let wanted = name.to_lowercase();
        let nearest = header
            .iter()
            .filter(|column| !is_address(column))
            .map(|column| (strsim::jaro_winkler(&wanted, column.trim().to_lowercase().as_str()), column))
            .filter(|(likeness, _)| *likeness > 0.75)
            .max_by(|left, right| left.0.total_cmp(&right.0));
        let address = header.iter().find(|column| is_address(column));
        if let (Some(column), true) = (address, self.what == IMAGES.what) {
            message.push_str(&format!(
                "; `{column}` is taken to hold addresses, which are not fetched: download the images with img2dataset and give a \
                 table of their paths, or if it holds paths, {}",
                self.how_to_name()
            ));
        } else if let [only] = header
            && let Some(separator) = only.chars().find(|c| matches!(c, '|' | ':' | ' '))
        {
            message.push_str(&format!(
                "; fields must be separated by commas, tabs or semicolons, not by {separator:?}"
            ));
        } else if let Some((_, column)) = nearest {
            message.push_str(&format!("; did you mean `{column}`? If so, {}", self.how_to_name()));
        } else {
            message.push_str(&format!("; {}", self.how_to_name()));
        }
        message
    }
}

fn is_address(column: &str) -> bool {
    ADDRESS_NAMES.iter().any(|name| column.trim().eq_ignore_ascii_case(name))
}

/// Where the columns of a corpus are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// The column of ids; none where the images' paths are the ids.
    pub(super) id: Option<usize>,
    pub(super) image: usize,
    pub(super) caption: usize,
}

impl Columns {
    /// The columns of the table `path` with this header. What a convention decided is said once.
    pub(super) fn find(path: &Path, header: &[String], names: &ColumnNames) -> Result<Self, String> {
        let id = IDS.find(header, &names.id)?;
        if id.is_none() && names.id != ID_NAMES[0] {
            return Err(IDS.missing(header, &names.id));
        }
        let image = IMAGES.find(header, &names.image)?.ok_or_else(|| IMAGES.missing(header, &names.image))?;
        let caption =
            CAPTIONS.find(header, &names.caption)?.ok_or_else(|| CAPTIONS.missing(header, &names.caption))?;
        let found = Self { id: id.as_ref().map(|id| id.0), image: image.0, caption: caption.0 };
        let taken: Vec<Taken> = [id.and_then(|id| id.1), image.1, caption.1].into_iter().flatten().collect();
        say_taken(path, header, &taken);
        if found.id.is_none() {
            say_once(format!(
                "{}: there is no column of ids, so the path of each image, as it is written in `{}`, is its id; {}",
                path.display(),
                header[found.image],
                IDS.how_to_name()
            ));
        }
        Ok(found)
    }
}

/// The column of ids in the table `path`, or that of the images' paths in its place.
///
/// # Errors
/// If there is neither, or it cannot be told which column it is.
pub(crate) fn find_id(path: Option<&Path>, header: &[String], names: [&str; 2]) -> Result<usize, String> {
    let [id, image] = names;
    let (found, taken) = match IDS.find(header, id)? {
        Some(found) => found,
        None if id != ID_NAMES[0] => return Err(absent(header, id)),
        None => match IMAGES.find(header, image)? {
            Some((index, _)) => {
                if let Some(path) = path {
                    say_once(format!(
                        "{}: there is no column of ids, so the path of each image, as it is written in `{}`, is its id; name \
                         the column of ids with --id-column NAME",
                        path.display(),
                        header[index]
                    ));
                }
                return Ok(index);
            }
            None => return Err(absent(header, id)),
        },
    };
    if let Some(path) = path {
        say_taken(path, header, &taken.into_iter().collect::<Vec<_>>());
    }
    Ok(found)
}

/// The column of images' paths, if there is one.
pub(crate) fn find_image(header: &[String], name: &str) -> Option<usize> {
    IMAGES.find(header, name).ok().flatten().map(|(index, _)| index)
}

pub(crate) fn absent(header: &[String], name: &str) -> String {
    format!("there is no column `{name}`; the columns are {}.", list_columns(header))
}

/// Says which columns were taken by convention.
fn say_taken(path: &Path, header: &[String], taken: &[Taken]) {
    // A table that this program wrote has the columns of one of which it was said.
    if Marker::beside(path).exists() {
        return;
    }
    // The released reader takes this one, too.
    let silent = |taken: &&Taken| header[taken.index] != CAPTION_NAMES[1] || !taken.passed_over.is_empty();
    let said: Vec<String> = taken
        .iter()
        .filter(silent)
        .map(|taken| {
            let passed: Vec<&str> = taken.passed_over.iter().map(|&index| header[index].as_str()).collect();
            let passed =
                if passed.is_empty() { String::new() } else { format!(" (not {})", list_columns(&passed)) };
            format!("the {}s are taken from the column `{}`{passed}", taken.what, header[taken.index])
        })
        .collect();
    if !said.is_empty() {
        let whats: Vec<&str> = taken.iter().filter(silent).map(|taken| taken.what).collect();
        let first = whats[0];
        say_once(format!(
            "{}: {}; to name others: --set columns.{first}=NAME, or --{first}-column NAME where the command has it",
            path.display(),
            said.join(", ")
        ));
    }
}

/// Warns of something once, however often the table is opened.
fn say_once(message: String) {
    static SAID: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get_or_insert_default().insert(message.clone()) {
        tracing::warn!("{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(header: &[&str]) -> Result<Columns, String> {
        let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
        Columns::find(Path::new("corpus.csv"), &header, &ColumnNames::default())
    }

    #[test]
    fn every_usual_name_is_found_in_any_case_and_the_default_comes_first() {
        let id = |name: &str| find(&[name, "image_save_path", "caption"]).unwrap().id;
        for name in ID_NAMES {
            assert_eq!((id(name), id(&name.to_uppercase())), (Some(0), Some(0)), "{name}");
        }
        assert_eq!(id("idx"), None);
        for name in IMAGE_NAMES {
            assert_eq!(find(&["id", &name.to_uppercase(), "caption"]).unwrap().image, 1);
            // Whatever else there is, the released name is taken; else the first of the list.
            let found = find(&["id", name, "caption", "image_save_path"]);
            assert_eq!(found.map(|found| found.image).ok(), (name != "image_save_path").then_some(3));
        }
        for name in CAPTION_NAMES {
            assert_eq!(find(&["id", "image", &name.to_uppercase()]).unwrap().caption, 2);
        }
        assert_eq!(find(&["prompt", "image", "text"]).unwrap(), Columns { id: None, image: 1, caption: 2 });
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_and_names_are_taken_as_given() {
        let refused = find(&["id", "image", "Text", "TEXT"]).unwrap_err();
        assert!(refused.contains("`Text`, `TEXT`") && refused.contains("columns.caption"), "{refused}");
        // In its own case it is told apart.
        assert_eq!(find(&["id", "image", "Text", "text"]).unwrap().caption, 3);
        let header = ["key", "image", "text"].map(str::to_owned);
        let names = ColumnNames { caption: "words".to_owned(), ..ColumnNames::default() };
        let refused = Columns::find(Path::new("corpus.csv"), &header, &names).unwrap_err();
        assert!(refused.contains("no column `words`"), "{refused}");
        let names = ColumnNames { id: "name".to_owned(), ..ColumnNames::default() };
        assert!(Columns::find(Path::new("corpus.csv"), &header, &names).is_err());
    }

    #[test]
    fn addresses_are_never_images() {
        for name in ["url", "URL", "image_url"] {
            let refused = find(&["key", name, "TEXT"]).unwrap_err();
            assert!(refused.contains(name) && refused.contains("img2dataset"), "{refused}");
            assert_eq!(find(&["key", name, "TEXT", "path"]).unwrap().image, 3);
        }
    }
}
